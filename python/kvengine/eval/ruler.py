"""Synthetic long prompts in the manner of RULER (arXiv 2404.06654), from the data's books and words.

A kind of sample is a function that draws what is asked for and returns a maker: how the sample looks
with so many units of filler. The wording is ours; the tasks are the paper's: needles in a haystack
(one; one of several keys; several values; several keys asked together), following variables through
assignments, the most frequent words of a list (with frequencies apart by a factor, or by Zipf's law),
and questions about one of many paragraphs.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

from kvengine._core import ConfigError
from kvengine.eval.data import list_files, read_lines, read_rows, read_text

QUESTIONS = "qa/xquad_en_part1.jsonl"
WORDS = ("words/adjectives.txt", "words/nouns.txt", "words/verbs.txt")
BOOKS = "books"

_MOST_UNITS = 1 << 20  # of filler


@dataclass(frozen=True)
class Sample:
    """A prompt is `before + context + after`; the answer goes on behind it.

    answers: all of them are wanted, or, with `any_of`, one. depth: of a single needle, 0 to 1.
    """

    before: str
    context: str
    after: str
    answers: tuple[str, ...]
    any_of: bool = False
    depth: float | None = None

    @property
    def prompt(self) -> str:
        return self.before + self.context + self.after

    @property
    def right(self) -> str:
        """A right answer in full."""
        return " " + (self.answers[0] if self.any_of else ", ".join(self.answers))


Maker = Callable[[int], Sample]


def sample(kind: str, draw: random.Random, fits: Callable[[str], bool]) -> Sample:
    """The longest sample of a kind whose prompt fits.

    Raises:
        ConfigError: not even one without any filler does.
    """
    make = KINDS[kind](draw)
    if not fits(make(0).prompt):
        raise ConfigError(f"ruler: expected lengths with room for {kind}, found one without")
    low, high = 0, 1
    while high < _MOST_UNITS and fits(make(high).prompt):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(make(middle).prompt) else (low, middle)
    return make(low)


# --- Needles -----------------------------------------------------------------------------------


def _needles(draw: random.Random, keys: int, values: int, asked: int) -> Maker:
    """`values` sentences for each of `keys` keys; the first `asked` keys are asked for."""
    names = _names(draw, keys)
    numbers = [[str(draw.randrange(10**6, 10**7)) for _ in range(values)] for _ in names]
    sentences = [
        f"The secret number of {name} is {number}."
        for name, own in zip(names, numbers, strict=True)
        for number in own
    ]
    depths = [draw.random() for _ in sentences]
    start = draw.random()
    wanted = tuple(number for own in numbers[:asked] for number in own)
    which = ", ".join(names[:asked])
    before = (
        "Secret numbers are hidden in the text below. Remember them; they are asked for later.\n\n"
    )
    plural = len(wanted) > 1
    after = (
        f"\n\nQuestion: {'What are all secret numbers' if plural else 'What is the secret number'} "
        f"of {which}?\nAnswer: The secret {'numbers' if plural else 'number'} of {which} "
        f"{'are' if plural else 'is'}"
    )

    def make(units: int) -> Sample:
        text = _hidden(_book(start, units), sentences, depths)
        return Sample(before, text, after, wanted, depth=depths[0] if len(depths) == 1 else None)

    return make


def _variables(draw: random.Random) -> Maker:
    """A chain of five assignments among noise; all variables with its value are asked for."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    names: list[str] = []
    while len(names) < 5:
        name = "".join(draw.choice(letters) for _ in range(5))
        if name not in names:
            names.append(name)
    value = draw.randrange(10**4, 10**5)
    lines = [f"VAR {names[0]} = {value}."]
    lines += [f"VAR {b} = VAR {a}." for a, b in itertools.pairwise(names)]
    depths = sorted(draw.random() for _ in lines)  # each after what it refers to
    start = draw.random()
    before = "Follow the variables that are set in the text below.\n\n"
    after = (
        f"\n\nQuestion: Which variables have the value {value}, directly or through others?\n"
        f"Answer: The {len(names)} variables with the value {value} are"
    )
    return lambda units: Sample(
        before, _hidden(_book(start, units), lines, depths), after, tuple(names)
    )


def _hidden(words: list[str], sentences: list[str], depths: list[float]) -> str:
    """A text with sentences put in at depths, in the order of the depths."""
    parts, at = [], 0
    for depth, sentence in sorted(zip(depths, sentences, strict=True), key=lambda each: each[0]):
        place = int(len(words) * depth)
        parts += [*words[at:place], sentence]
        at = place
    return " ".join([*parts, *words[at:]])


# --- Words -------------------------------------------------------------------------------------

# A third of the paper's 30 times and 3 times, so that prompts of 1,024 tokens have room.
_COMMON, _COMMON_TIMES, _OTHER_TIMES = 10, 10, 1
_FREQUENT, _ZIPF = 3, 2.0


def _common_words(draw: random.Random) -> Maker:
    """Ten words ten times each, others (the filler) once."""
    words = _some_words(draw)
    common = words[:_COMMON]
    order = draw.getrandbits(32)
    before = "Below is a numbered list of words. Some words are in it many times.\n\n"
    after = (
        f"\n\nQuestion: What are the {_COMMON} most common words of the list?\n"
        f"Answer: The {_COMMON} most common words are"
    )

    def make(units: int) -> Sample:
        listed = common * _COMMON_TIMES
        listed += words[_COMMON : _COMMON + units] * _OTHER_TIMES
        random.Random(order).shuffle(listed)
        text = " ".join(f"{i}. {word}" for i, word in enumerate(listed, 1))
        return Sample(before, text, after, tuple(common))

    return make


def _frequent_words(draw: random.Random) -> Maker:
    """Made-up words whose numbers fall by Zipf's law; the three most frequent are asked for."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    coded = list(dict.fromkeys("".join(draw.choices(letters, k=6)) for _ in range(60)))
    order = draw.getrandbits(32)
    before = "Below is a text of coded words. Count how often each of them occurs.\n\n"
    after = (
        f"\n\nQuestion: What are the {_FREQUENT} words that occur most often?\n"
        f"Answer: The {_FREQUENT} most frequent words are"
    )

    def make(units: int) -> Sample:
        # The first ranks differ whatever the length: 8, 4, 2 more than Zipf gives.
        listed = [
            word
            for rank, word in enumerate(coded)
            for _ in range(round(units / (rank + 1) ** _ZIPF) + (8 >> rank))
        ]
        random.Random(order).shuffle(listed)
        return Sample(before, " ".join(listed), after, tuple(coded[:_FREQUENT]))

    return make


# --- Questions ---------------------------------------------------------------------------------


def _question(draw: random.Random) -> Maker:
    """A question about one of many paragraphs."""
    rows = read_rows(QUESTIONS)
    row = draw.choice(rows)
    asked = draw.choice(row["qas"])
    others = [other["context"] for other in rows if other["context"] != row["context"]]
    draw.shuffle(others)
    place = draw.random()
    before = "Answer the question from the documents below, in as few words as possible.\n\n"
    after = f"\n\nQuestion: {asked['question']}\nAnswer:"

    def make(units: int) -> Sample:
        documents = others[:units]
        documents.insert(int(place * (len(documents) + 1)), row["context"])
        text = "\n\n".join(f"Document {i}:\n{text}" for i, text in enumerate(documents, 1))
        return Sample(before, text, after, tuple(asked["answers"]), any_of=True)

    return make


KINDS: dict[str, Callable[[random.Random], Maker]] = {
    "single": lambda draw: _needles(draw, keys=1, values=1, asked=1),
    "multikey": lambda draw: _needles(draw, keys=4, values=1, asked=1),
    "multivalue": lambda draw: _needles(draw, keys=1, values=4, asked=1),
    "multiquery": lambda draw: _needles(draw, keys=4, values=1, asked=4),
    "variables": _variables,
    "common_words": _common_words,
    "frequent_words": _frequent_words,
    "qa": _question,
}


def data_files() -> tuple[str, ...]:
    return (*list_files(BOOKS), *WORDS, QUESTIONS)


def _names(draw: random.Random, count: int) -> list[str]:
    """Different names like "quizzical-lamp"."""
    names: list[str] = []
    while len(names) < count:
        name = f"{draw.choice(read_lines(WORDS[0]))}-{draw.choice(read_lines(WORDS[1]))}".lower()
        if name not in names:
            names.append(name)
    return names


def _some_words(draw: random.Random) -> list[str]:
    """All lower-case words of the lists that have four letters or more, each once, shuffled."""
    words = sorted({word for name in WORDS for word in read_lines(name) if word.isalpha()})
    words = [word for word in words if word.islower() and len(word) > 3]
    draw.shuffle(words)
    return words


def _book(start: float, count: int) -> list[str]:
    """So many words of the books, from a share of them on, cycled."""
    words = _book_words()
    first = int(start * len(words))
    turned = words[first : first + count]
    while len(turned) < count:
        turned += words[: count - len(turned)]
    return turned


@functools.lru_cache(maxsize=1)
def _book_words() -> list[str]:
    return " ".join(read_text(name) for name in list_files(BOOKS)).split()
