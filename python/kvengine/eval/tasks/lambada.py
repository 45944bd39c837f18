"""LAMBADA (arXiv 1606.06031): the last word of a passage, which its last sentence does not give away.

The passage without its last word is the prefix, and is compressed; the word follows it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from kvengine.eval.data import read_rows
from kvengine.eval.runner import Runner
from kvengine.eval.task import Record, Task, chunks, register

_FILE = "qa/lambada_openai_test.jsonl"
_CHUNK = 10  # passages of a unit


@register
@dataclass(frozen=True)
class Lambada(Task):
    """The last word of a passage.

    accuracy: whether all tokens of the last word are the likeliest ones, as lm-eval has it;
    last_token: whether the last token alone is, after all before it (as in arXiv 2405.12591);
    ppl: exp of the mean negative log-probability of the last word.
    """

    name: ClassVar[str] = "lambada"
    primary: ClassVar[str] = "accuracy"
    files: ClassVar[tuple[str, ...]] = (_FILE,)

    def units(self, runner: Runner) -> Sequence[Any]:
        return chunks(read_rows(_FILE)[: self.limit], _CHUNK)

    def run(self, runner: Runner, unit: list[dict[str, Any]]) -> list[Record]:
        pairs = [runner.encode_pair(row["context"], " " + row["continuation"]) for row in unit]
        found = runner.score([(runner.prefill(prefix, len(word)), word) for prefix, word in pairs])
        return [
            {
                "word": row["continuation"],
                "logprob": each.logprob,
                "accuracy": int(each.greedy),
                "last_token": int(each.ranks[-1] == 0),
            }
            for row, each in zip(unit, found, strict=True)
        ]

    def summarize(self, items: Sequence[Record]) -> dict[str, float]:
        def mean(name: str) -> float:
            return statistics.fmean(item[name] for item in items)

        return {
            "accuracy": mean("accuracy"),
            "last_token": mean("last_token"),
            "ppl": math.exp(-mean("logprob")),
        }
