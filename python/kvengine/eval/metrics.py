"""How good an answer is: the scores that long-context benchmarks use, each between 0 and 1.

Those of LongBench (arXiv 2308.14508) follow its code, whose details decide the second digit:
ROUGE-L is that of the Python package rouge 1.0.1, which differs from the usual one, and edit
similarity is fuzzywuzzy's on top of difflib. Texts that no score can be made of score 0.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np
from numpy.typing import NDArray

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_INTEGERS = re.compile(r"\d+")
_NOT_CODE = ("`", "#", "//")


def normalize(text: str) -> str:
    """Lower case, without ASCII punctuation and articles, words apart by one space (as SQuAD)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


# --- Questions ---------------------------------------------------------------------------------


def token_f1(prediction: str, reference: str) -> float:
    """F1 of the bags of normalized words."""
    found, wanted = normalize(prediction).split(), normalize(reference).split()
    common = (Counter(found) & Counter(wanted)).total()
    if common == 0:
        return 0.0
    precision, recall = common / len(found), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def exact_match(prediction: str, gold: str) -> float:
    """1 if the normalized gold occurs in the normalized prediction; an empty gold never does."""
    wanted = normalize(gold)
    return float(bool(wanted) and wanted in normalize(prediction))


def partial_match(prediction: str, gold: str) -> float:
    """Share of the gold that is the longest substring it has in common with the prediction."""
    return longest_common_substring(prediction, gold) / len(gold) if gold else 0.0


def longest_common_substring(a: str, b: str) -> int:
    """Its length, in characters; len(a) * len(b) steps."""
    best, above = 0, [0] * (len(b) + 1)
    for char in a:
        row = [0]
        for j, other in enumerate(b):
            row.append(above[j] + 1 if char == other else 0)
        best, above = max(best, *row), row
    return best


def retrieval(prediction: str, reference: str) -> float:
    """Share of the integers of a prediction that are the first one of the reference."""
    gold = _INTEGERS.search(reference)
    return count(prediction, gold.group()) if gold else 0.0


def count(prediction: str, reference: str) -> float:
    """Share of the integers of a prediction that are the reference, compared as text."""
    numbers = _INTEGERS.findall(prediction)
    return numbers.count(reference.strip()) / len(numbers) if numbers else 0.0


def classification(prediction: str, reference: str, classes: Iterable[str]) -> float:
    """1 / (the number of classes named) if the right one is named, else 0.

    Classes whose names are a part of the right one's name do not count as named.
    """
    named = [name for name in classes if name in prediction]
    named = [name for name in named if name == reference or name not in reference]
    return 1 / len(named) if reference in named else 0.0


def mentioned(prediction: str, references: Sequence[str]) -> float:
    """Share of the references that occur in the prediction, in any case (RULER's recall)."""
    if not references:
        return 0.0
    text = prediction.lower()
    return sum(reference.lower() in text for reference in references) / len(references)


# --- Summaries ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rouge:
    """Precision, recall and their F."""

    p: float
    r: float
    f: float


def rouge_l(prediction: str, reference: str) -> Rouge:
    """ROUGE-L as the package rouge 1.0.1 computes it, with sets of words.

    Sentences end at every full stop, words at white space, in their case. The words of the longest
    common subsequences of all pairs of sentences form one set; its size is divided by the numbers
    of distinct words. Unlike the package, long sentences do not exhaust the stack.
    """
    predicted, wanted = _sentences(prediction), _sentences(reference)
    if not predicted or not wanted:
        return Rouge(0.0, 0.0, 0.0)
    matched: set[str] = set()
    for right in wanted:
        for left in predicted:
            matched.update(_common_subsequence(right, left))
    p = len(matched) / len({word for words in predicted for word in words})
    r = len(matched) / len({word for words in wanted for word in words})
    return Rouge(p, r, 2 * p * r / (p + r + 1e-8))


def _sentences(text: str) -> list[list[str]]:
    """Words of the parts between full stops; of a part of white space: one empty word."""
    return [part.split() or [""] for part in text.split(".") if part]


def _common_subsequence(x: Sequence[str], y: Sequence[str]) -> list[str]:
    """Of several longest ones that which the package finds: where both ways are as long, shorten y."""
    table = [[0] * (len(y) + 1)]
    for word in x:
        above, row = table[-1], [0]
        for j, other in enumerate(y):
            row.append(above[j] + 1 if word == other else max(above[j + 1], row[j]))
        table.append(row)
    i, j, found = len(x), len(y), []
    while i and j:
        if x[i - 1] == y[j - 1]:
            i, j = i - 1, j - 1
            found.append(x[i])
        elif table[i - 1][j] > table[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found[::-1]


# --- Code --------------------------------------------------------------------------------------


def edit_similarity(prediction: str, reference: str) -> float:
    """How alike two texts are, in whole percents: twice the matching over all characters.

    What matches are the blocks of Python's difflib, as in fuzzywuzzy without its C extension.
    """
    if prediction == reference:
        return 1.0
    return round(100 * SequenceMatcher(None, prediction, reference).ratio()) / 100


def first_code_line(text: str) -> str:
    """The first line without a backtick, a hash or two slashes, after leading empty lines."""
    lines = text.lstrip("\n").split("\n")
    return next((line for line in lines if not any(mark in line for mark in _NOT_CODE)), "")


# --- Long texts --------------------------------------------------------------------------------


def distinct_n(tokens: Sequence[Hashable], n: int) -> float:
    """Different n-grams over all n-grams (arXiv 1510.03055); 0 for less than one n-gram."""
    if n < 1:
        raise ValueError(f"n: expected at least 1, found {n}")
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


@dataclass(frozen=True)
class Loop:
    """A stretch of tokens that repeats itself: `length` tokens from `start`, again every `period`."""

    start: int
    period: int
    length: int


def longest_loop(
    tokens: Sequence[int] | NDArray[np.integer], copies: int = 3, most_period: int = 256
) -> Loop | None:
    """The longest stretch of at least `copies` copies of one unit; another may begin after them.

    Of several that long: that of the shortest period, then the first. None if there is none.
    """
    if copies < 2:
        raise ValueError(f"copies: expected at least 2, found {copies}")
    sequence = np.asarray(tokens)
    best: Loop | None = None
    for period in range(1, min(most_period, len(sequence) // copies) + 1):
        start, length = _longest_run(sequence[period:] == sequence[:-period])
        if length >= (copies - 1) * period and (best is None or length + period > best.length):
            best = Loop(start, period, length + period)
    return best


def _longest_run(flags: NDArray[np.bool_]) -> tuple[int, int]:
    """Start and length of the first longest run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    if not len(edges):
        return 0, 0
    lengths = edges[1::2] - edges[::2]
    longest = int(lengths.argmax())
    return int(edges[2 * longest]), int(lengths[longest])
