"""RULER-style tasks: retrieval, tracking, aggregation and questions at chosen lengths."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from kvengine.eval import ruler
from kvengine.eval.answering import answer, mean, mean_logprob, read
from kvengine.eval.metrics import mentioned
from kvengine.eval.runner import Runner
from kvengine.eval.task import Record, Task, register


@register
@dataclass(frozen=True)
class Ruler(Task):
    """kinds: of samples (:data:`kvengine.eval.ruler.KINDS`). lengths: tokens of prompt and answer.
    samples: of each kind and length. limit: most cells of a kind and length.

    score: the share of the wanted answers that occur in what the model says. logprob: mean
    log-probability of the tokens of a right answer.
    """

    name: ClassVar[str] = "ruler"
    primary: ClassVar[str] = "score"
    shortens: ClassVar[bool] = True

    kinds: tuple[str, ...] = tuple(ruler.KINDS)
    lengths: tuple[int, ...] = (1024, 2048, 4096)
    samples: int = 3
    new_tokens: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        known = ", ".join(ruler.KINDS)
        self.check("kinds", set(self.kinds) <= ruler.KINDS.keys(), f"kinds among {known}")
        self.check("samples", self.samples >= 1, "at least 1")
        self.check("new_tokens", self.new_tokens >= 1, "at least 1")
        self.check("lengths", min(self.lengths) > self.new_tokens, "more than new_tokens")

    def data_files(self) -> tuple[str, ...]:
        return ruler.data_files()

    def units(self, runner: Runner) -> Sequence[tuple[str, int]]:
        return [(kind, length) for length in self.lengths for kind in self.kinds][: self.limit]

    def run(self, runner: Runner, unit: tuple[str, int]) -> list[Record]:
        kind, length = unit
        samples = [self.sample(runner, kind, length, i) for i in range(self.samples)]
        prompts = [runner.prompt(each.before, each.context, each.after) for each in samples]
        longest = max(len(runner.encode(each.right, special=False)) for each in samples)
        sessions = read(runner, prompts, max(self.new_tokens, longest))
        logprobs = [
            mean_logprob(runner, session, each.right)
            for session, each in zip(sessions, samples, strict=True)
        ]
        texts = answer(runner, sessions, self.new_tokens, stop="\nQuestion:")
        return [
            self._record(kind, length, each, prompt, text, logprob)
            for each, prompt, text, logprob in zip(samples, prompts, texts, logprobs, strict=True)
        ]

    def sample(self, runner: Runner, kind: str, length: int, index: int) -> ruler.Sample:
        """The same for all caches; lengths are those of the model's tokens."""
        room = length - self.new_tokens
        draw = random.Random(f"ruler {self.seed} {kind} {length} {index}")
        return ruler.sample(kind, draw, lambda prompt: len(runner.encode(prompt)) <= room)

    def _record(
        self,
        kind: str,
        length: int,
        each: ruler.Sample,
        prompt: list[int],
        text: str,
        logprob: float,
    ) -> Record:
        score = mentioned(text, each.answers)
        record: Record = {
            "kind": kind,
            "length": length,
            "tokens": len(prompt),
            "wanted": list(each.answers),
            "answer": text,
            "score": float(score > 0) if each.any_of else score,
            "logprob": logprob,
        }
        if each.depth is not None:
            record["depth"] = round(4 * each.depth) / 4  # nearest quarter, to make cells of
        return record

    def summarize(self, items: Sequence[Record]) -> dict[str, float]:
        metrics = {name: mean([item[name] for item in items]) for name in ("score", "logprob")}
        for part in ("kind", "length"):
            for value in dict.fromkeys(item[part] for item in items):
                own = [item for item in items if item[part] == value]
                for name in ("score", "logprob"):
                    metrics[f"{name}@{value}"] = mean([item[name] for item in own])
        return metrics
