"""LongBench on the user's copy of its files, and its question type QMSum on the data that is here."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from kvengine._core import ConfigError
from kvengine.eval import longbench, metrics
from kvengine.eval.answering import (
    answer,
    cut_middle,
    has_line,
    mean,
    mean_logprob,
    read,
)
from kvengine.eval.data import read_rows
from kvengine.eval.runner import Runner
from kvengine.eval.task import Record, Task, register


@register
@dataclass(frozen=True)
class LongBench(Task):
    """folder: of the dataset's files (:mod:`kvengine.eval.longbench`). tasks: of them; all there are
    unless named. context: most tokens of a prompt, whose middle is cut out beyond; 0: what the model
    was trained for; nothing is cut where a setting shortens prompts (then the sample's context is,
    and nothing else; bits per value are beside the prompt that f16 read, which was cut). chat: use the
    chat template where the benchmark does. limit: most samples of each task.

    score: the mean over tasks, 0 to 100.
    """

    name: ClassVar[str] = "longbench"
    primary: ClassVar[str] = "score"
    version: ClassVar[int] = 2  # 1: answers of samsum could begin with a line break
    shortens: ClassVar[bool] = True

    folder: str = "LongBench"
    tasks: tuple[str, ...] = ()
    context: int = 0
    chat: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        known = ", ".join(longbench.KINDS)
        self.check("tasks", set(self.tasks) <= longbench.KINDS.keys(), f"tasks among {known}")
        self.check("context", self.context == 0 or self.context >= 16, "0 or at least 16")

    @functools.cached_property
    def source(self) -> longbench.Folder:
        return longbench.Folder(self.folder)

    @functools.cached_property
    def chosen(self) -> list[str]:
        """The tasks that are done."""
        chosen = list(dict.fromkeys(self.tasks)) or self.source.tasks()
        for name in chosen:
            if name not in self.source.prompts:
                raise ConfigError(f"longbench: expected a prompt for {name}, found none")
        return chosen

    @functools.cached_property
    def data_hash(self) -> str:
        return self.source.hash(self.chosen)

    def units(self, runner: Runner) -> Sequence[tuple[str, dict[str, Any]]]:
        return [(name, row) for name in self.chosen for row in self.source.rows(name)[: self.limit]]

    def run(self, runner: Runner, unit: tuple[str, dict[str, Any]]) -> list[Record]:
        name, row = unit
        kind = longbench.KINDS[name]
        new_tokens = self.source.new_tokens.get(name, kind.new_tokens)
        tokens = self._prompt(runner, name, row, new_tokens)
        sessions = read(runner, [tokens], new_tokens)
        done = has_line if kind.one_line else None
        text = answer(runner, sessions, new_tokens, done, begins=kind.begins)[0]
        score = longbench.score(kind, text, row["answers"], row["all_classes"])
        return [{"task": name, "tokens": len(tokens), "answer": text, "score": score}]

    def _prompt(self, runner: Runner, name: str, row: dict[str, Any], new_tokens: int) -> list[int]:
        chat = self.chat and longbench.KINDS[name].chat
        parts = self.source.prompt(name, row)
        if runner.method:
            return runner.prompt(*parts, chat=chat)
        most = self.context or runner.model.n_ctx - new_tokens - _FRAME
        text = cut_middle(runner.model.tokenizer, "".join(parts), max(most, 1))
        return runner.prompt("", text, chat=chat)

    def summarize(self, items: Sequence[Record]) -> dict[str, float]:
        scores: dict[str, list[float]] = {}
        for item in items:
            scores.setdefault(item["task"], []).append(item["score"])
        return longbench.means(scores)


_FRAME = 64  # tokens that chat templates put around a message, and some to spare
_MEETINGS = "long/qmsum_test.jsonl"
_ASKED = (
    "Below is the transcript of a meeting. Answer the question about it in one or a few sentences."
    "\n\nTranscript:\n{context}\n\n"
)
_QUERY = "Question: {query}\nAnswer:"


@register
@dataclass(frozen=True)
class Qmsum(Task):
    """context: most tokens of a transcript, whose middle is cut out beyond. questions: most of each
    meeting. shared: the transcript is read once for all its questions, and compressed before they
    are seen; else each prompt is read in one pass, as LongBench does. limit: most meetings.

    rouge_l: F of ROUGE-L, 0 to 1. logprob: mean log-probability of the reference's tokens.
    """

    name: ClassVar[str] = "qmsum_test"  # qmsum is a part of LongBench
    primary: ClassVar[str] = "rouge_l"
    files: ClassVar[tuple[str, ...]] = (_MEETINGS,)
    shortens: ClassVar[bool] = True

    limit: int | None = 5
    context: int = 3072
    questions: int = 4
    new_tokens: int = 96
    shared: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("context", "questions", "new_tokens"):
            self.check(name, getattr(self, name) >= 1, "at least 1")

    def units(self, runner: Runner) -> Sequence[dict[str, Any]]:
        return read_rows(_MEETINGS)[: self.limit]

    def run(self, runner: Runner, unit: dict[str, Any]) -> list[Record]:
        asked = unit["specific_queries"][: self.questions]
        transcript = cut_middle(runner.model.tokenizer, unit["transcript"], self.context)
        before, _, between = _ASKED.partition("{context}")
        prompts = [
            runner.prompt(
                before, transcript, between + _QUERY.replace("{query}", each["query"]), chat=True
            )
            for each in asked
        ]
        longest = max(len(runner.encode(" " + each["answer"], special=False)) for each in asked)
        sessions = read(runner, prompts, max(self.new_tokens, longest), self.shared)
        logprobs = [
            mean_logprob(runner, session, " " + each["answer"])
            for session, each in zip(sessions, asked, strict=True)
        ]
        texts = answer(runner, sessions, self.new_tokens)
        return [
            {
                "meeting": unit["id"],
                "tokens": len(prompt),
                "answer": text,
                "rouge_l": metrics.rouge_l(text, each["answer"]).f,
                "logprob": logprob,
            }
            for each, prompt, text, logprob in zip(asked, prompts, texts, logprobs, strict=True)
        ]

    def summarize(self, items: Sequence[Record]) -> dict[str, float]:
        return {name: mean([item[name] for item in items]) for name in ("rouge_l", "logprob")}
