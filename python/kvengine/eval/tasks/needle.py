"""The pass key in a haystack, by the protocol of arXiv 2407.01527 (that of arXiv 2305.16300).

A text of so many words has a sentence with a pass key put in at a depth; the model is asked for it.
Prefix, needle and question are the protocol's fixed strings, no chat template is used, and the
answer is greedy. The background of the original, Paul Graham's essays, is not among the evaluation
data: the books there take their place, joined in the order of their names and cycled. The original
joins its files in whatever order the folder lists them, so scores of single cells never were
comparable across machines.

Beside the score of the answer - exact: the key occurs in it; partial: the longest part of the key
that does - there is the likelihood of the right answer, which also tells caches apart for models too
small to ever answer right: the mean log-probability of the key's tokens, each after the right ones
before it, and their mean rank (0: the likeliest).

Where prompts are shortened, only the text is (the protocol's LLMLingua-2 shortens the question too).

`question=seen`, the protocol, reads text and question in one pass, so that caches that drop tokens
choose with the question in sight. `question=later` compresses the text first, as if it were kept for
any question, and then reads the question.
"""

from __future__ import annotations

import functools
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from kvengine.eval.data import list_files, read_text
from kvengine.eval.metrics import exact_match, partial_match
from kvengine.eval.runner import Runner, common_prefix
from kvengine.eval.task import Record, Task, register
from kvengine.model import Session

PREFIX = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. "
    "I will quiz you about the important information there.\n"
)
NEEDLE = "The pass key is {key}. Remember it. {key} is the pass key."
QUESTION = "\nWhat is the pass key? The pass key is "
BACKGROUND = "books"

PROTOCOL = (512, 2730, 4949, 7168, 9386, 11605, 13824, 16042, 18261, 20480)
"""The lengths in words of the original, which has 10 depths and 3 repeats."""


@dataclass(frozen=True)
class Cell:
    """One unit: all keys at one depth (0 to 1) of one length (words)."""

    length: int
    depth: float
    keys: tuple[str, ...]


@register
@dataclass(frozen=True)
class Needle(Task):
    """lengths: words of the text. depths: how many, from 0 to 1. repeats: keys for each cell.

    digits: of a key (7, or 64 in the harder variant). new_tokens: most tokens of an answer, which
    ends early where the key is complete. limit: most cells. `needle:lengths=512,2730,4949,7168,
    9386,11605,13824,16042,18261,20480,depths=10,repeats=3` is the original.
    """

    name: ClassVar[str] = "needle"
    primary: ClassVar[str] = "exact"
    shortens: ClassVar[bool] = True

    lengths: tuple[int, ...] = (512, 1024, 2048, 3072)
    depths: int = 5
    repeats: int = 1
    digits: int = 7
    new_tokens: int = 256
    question: str = "seen"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("lengths", min(self.lengths) >= 1, "at least 1")
        self.check("depths", 1 <= self.depths <= 1000, "1 to 1000")
        self.check("repeats", 1 <= self.repeats <= 1000, "1 to 1000")
        self.check("digits", 1 <= self.digits <= 1000, "1 to 1000")
        self.check("new_tokens", self.new_tokens >= 1, "at least 1")
        self.check("question", self.question in ("seen", "later"), "seen or later")

    def data_files(self) -> tuple[str, ...]:
        return tuple(list_files(BACKGROUND))

    def units(self, runner: Runner) -> Sequence[Cell]:
        draw = random.Random(self.seed)
        last = max(self.depths - 1, 1)
        cells = [
            Cell(length, i / last, tuple(self._key(draw) for _ in range(self.repeats)))
            for length in self.lengths
            for i in range(self.depths)
        ]
        return cells[: self.limit]

    def _key(self, draw: random.Random) -> str:
        return "".join(str(draw.randrange(10)) for _ in range(self.digits))

    def run(self, runner: Runner, unit: Cell) -> list[Record]:
        sessions, records = [], []
        for done, key in enumerate(unit.keys):
            session = self._read(runner, haystack(unit.length, unit.depth, key))
            right = runner.loglikelihoods(session, [runner.encode(key, special=False)])[0]
            sessions.append(session)
            records.append(
                {
                    "length": unit.length,
                    "depth": unit.depth,
                    "tokens": session.n_tokens,
                    "key": key,
                    "logprob": right.logprob / len(right.logprobs),
                    "rank": statistics.fmean(right.ranks),
                    "greedy": right.greedy,
                }
            )
            runner.progress((done + 1) / (len(unit.keys) + 1))

        def complete(index: int, text: str) -> bool:
            return exact_match(text, unit.keys[index]) == 1

        prompts: list[list[int]] = [[] for _ in sessions]
        answers = runner.answer(sessions, prompts, self.new_tokens, complete)
        for record, answer in zip(records, answers, strict=True):
            record["answer"] = answer.text
            record["exact"] = exact_match(answer.text, record["key"])
            record["partial"] = partial_match(answer.text, record["key"])
        return records

    def _read(self, runner: Runner, text: str) -> Session:
        """A session that has read text and question."""
        tokens = runner.prompt(PREFIX, text, QUESTION)
        if self.question == "seen":
            return runner.prefill(tokens, self._room(runner))
        # The question stays whole, so that it is as long as behind the whole text.
        whole = runner.encode(PREFIX + text + QUESTION)
        asked = len(whole) - common_prefix([runner.encode(PREFIX + text), whole])
        session = runner.prefill(tokens[:-asked], asked + self._room(runner))
        session.forward(tokens[-asked:])
        return session

    def _room(self, runner: Runner) -> int:
        """For the answer and, before it, for the key, of which a character may be some tokens."""
        return self.new_tokens + 4 * self.digits

    def summarize(self, items: Sequence[Record]) -> dict[str, float]:
        metrics = {name: _mean(items, name) for name in ("exact", "partial", "logprob", "rank")}
        for length in dict.fromkeys(item["length"] for item in items):
            own = [item for item in items if item["length"] == length]
            for name in ("exact", "partial", "logprob"):
                metrics[f"{name}@{length}"] = _mean(own, name)
        return metrics


def haystack(length: int, depth: float, key: str) -> str:
    """The text with the needle, which PREFIX precedes and QUESTION follows."""
    words = background(length)
    place = int(length * depth)
    return " ".join([*words[:place], NEEDLE.format(key=key), *words[place:]])


def background(length: int) -> list[str]:
    """The first words of the books, cycled."""
    words = _words()
    return (words * (length // len(words) + 1))[:length]


@functools.lru_cache(maxsize=1)
def _words() -> list[str]:
    return " ".join(read_text(name) for name in list_files(BACKGROUND)).split()


def _mean(items: Sequence[Record], name: str) -> float:
    return statistics.fmean(item[name] for item in items)
