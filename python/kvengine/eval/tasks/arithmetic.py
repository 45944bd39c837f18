"""GSM8K: word problems whose steps are written out before the answer (arXiv 2110.14168)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from kvengine._core import ConfigError
from kvengine.eval.answering import answer, mean, mean_logprob, read
from kvengine.eval.data import read_rows
from kvengine.eval.runner import Runner
from kvengine.eval.task import Record, Task, register

_PROBLEMS = "qa/gsm8k_test.jsonl"
_CALCULATION = re.compile(r"<<[^<>]*>>")
_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?")
_BATCH = 4  # problems that share the demonstrations, and are answered together


@register
@dataclass(frozen=True)
class Gsm8k(Task):
    """shots: demonstrations, the last problems of the file, which are not asked, and are what prompt
    compression shortens. limit: most problems.

    accuracy: the share of answers whose number is right: that behind ####, or the last one.
    logprob: mean log-probability of the tokens of the reference's steps and answer.
    """

    name: ClassVar[str] = "gsm8k"
    primary: ClassVar[str] = "accuracy"
    files: ClassVar[tuple[str, ...]] = (_PROBLEMS,)
    shortens: ClassVar[bool] = True

    limit: int | None = 40
    shots: int = 5
    new_tokens: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("shots", 0 <= self.shots <= 50, "0 to 50")
        self.check("new_tokens", self.new_tokens >= 1, "at least 1")

    def units(self, runner: Runner) -> Sequence[list[dict[str, Any]]]:
        if runner.method and not self.shots:
            raise ConfigError(
                f"gsm8k: shots: expected demonstrations for {runner.method} to shorten, found 0"
            )
        rows = read_rows(_PROBLEMS)
        asked = rows[: len(rows) - self.shots][: self.limit]
        return [asked[i : i + _BATCH] for i in range(0, len(asked), _BATCH)]

    def run(self, runner: Runner, unit: list[dict[str, Any]]) -> list[Record]:
        rows = read_rows(_PROBLEMS)
        shown = "".join(
            f"{_question(row)}{_steps(row)}\n\n" for row in rows[len(rows) - self.shots :]
        )
        prompts = [runner.prompt("", shown, _question(row)) for row in unit]
        right = [_steps(row) for row in unit]
        longest = max(len(runner.encode(text, special=False)) for text in right)
        sessions = read(runner, prompts, max(self.new_tokens, longest), shared=True)
        logprobs = [
            mean_logprob(runner, session, text)
            for session, text in zip(sessions, right, strict=True)
        ]
        texts = answer(runner, sessions, self.new_tokens, stop="\nQuestion:")
        return [
            {
                "answer": text,
                "wanted": row["answer"],
                "accuracy": float(number(text) == number(row["answer"])),
                "logprob": logprob,
            }
            for row, text, logprob in zip(unit, texts, logprobs, strict=True)
        ]

    def summarize(self, items: Sequence[Record]) -> dict[str, float]:
        return {name: mean([item[name] for item in items]) for name in ("accuracy", "logprob")}


def number(text: str) -> float | None:
    """The number behind the last ####, else the last one; None where there is none."""
    _, mark, after = text.rpartition("####")
    found = _NUMBER.findall(after) if mark else _NUMBER.findall(text)[-1:]
    return float(re.sub(r"[$,]", "", found[0])) if found else None


def _question(row: dict[str, Any]) -> str:
    return f"Question: {row['context']}\nAnswer:"


def _steps(row: dict[str, Any]) -> str:
    """The steps without the marks of a calculator, and the answer."""
    return f" {_CALCULATION.sub('', row['chain_of_thought'])}\n#### {row['answer']}"
