"""Questions after demonstrations: MMLU, and the classification of arXiv 2405.12591 (DecoQuant).

The demonstrations are the prefix: they are read once for each cache and compressed, and every
question is read by a fork of that session, from the compressed demonstrations. A prefix ends where
the tokens of the questions begin to differ from it. Without demonstrations (`shots=0`) nothing but
the start of the question is shared.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from kvengine.eval.data import read_rows
from kvengine.eval.runner import Runner, common_prefix
from kvengine.eval.task import Record, Task, chunks, register
from kvengine.eval.tasks.choice import Question, choice_metrics, choose, lettered
from kvengine.model import Session

_CHUNK = 10  # questions of a unit
_GAP = "\n\n"  # between demonstrations


@dataclass(frozen=True)
class Sheet:
    """A unit: what all its questions follow, and those."""

    shared: str
    questions: list[Question]


@dataclass(frozen=True)
class _Shots(Task):
    """A task with demonstrations; a unit is a sheet."""

    primary: ClassVar[str] = "acc"
    metrics: ClassVar[tuple[str, ...]] = ("acc", "probability")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("shots", self.shots >= 0, "at least 0")

    @abstractmethod
    def units(self, runner: Runner) -> Sequence[Sheet]:
        """Sheets of which no shared text is empty unless there are no demonstrations."""

    def run(self, runner: Runner, unit: Sheet) -> list[Record]:
        pairs = [
            [
                runner.encode_pair(unit.shared + question.contexts[0], " " + answer)
                for answer in question.answers
            ]
            for question in unit.questions
        ]
        prompts = [options[0][0] for options in pairs]
        shared = common_prefix([runner.encode(unit.shared.rstrip()), *prompts])
        room = max(len(prefix) + len(answer) for options in pairs for prefix, answer in options)
        sessions = self._read(runner, prompts, shared, room)
        found = iter(
            runner.score(
                [
                    (session, answer)
                    for session, options in zip(sessions, pairs, strict=True)
                    for _, answer in options
                ]
            )
        )
        return [
            choose(question, [next(found) for _ in question.answers]) for question in unit.questions
        ]

    def _read(
        self, runner: Runner, prompts: list[list[int]], shared: int, room: int
    ) -> list[Session]:
        """Sessions that have read each prompt, of which so many tokens are shared."""
        if not shared:
            return [runner.prefill(prompt, room - len(prompt)) for prompt in prompts]
        prefix = runner.shared_prefix(prompts[0][:shared], room - shared)
        return runner.go_on(prefix, [prompt[shared:] for prompt in prompts])

    def summarize(self, items: Sequence[Record]) -> dict[str, float]:
        return choice_metrics(items, self.metrics)


@register
@dataclass(frozen=True)
class Mmlu(_Shots):
    """57 subjects (arXiv 2009.03300), answered by a letter, as lm-eval 0.4 asks.

    shots: demonstrations (at most 5), the first ones of each subject's dev split. limit: questions,
    which are spread evenly over the validation split.
    """

    name: ClassVar[str] = "mmlu"
    files: ClassVar[tuple[str, ...]] = ("qa/mmlu_dev.jsonl", "qa/mmlu_validation.jsonl")

    shots: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("shots", self.shots <= 5, "at most 5")

    def units(self, runner: Runner) -> Sequence[Sheet]:
        dev, rows = map(read_rows, self.files)
        if self.limit is not None and self.limit < len(rows):
            rows = [rows[i * len(rows) // self.limit] for i in range(self.limit)]
        sheets = []
        for subject in dict.fromkeys(row["subject"] for row in rows):
            name = subject.replace("_", " ")
            shared = (
                f"The following are multiple choice questions (with answers) about {name}.{_GAP}"
            )
            examples = [row for row in dev if row["subject"] == subject][: self.shots]
            shared += "".join(map(_answered, map(_mmlu_question, examples)))
            own = [_mmlu_question(row) for row in rows if row["subject"] == subject]
            sheets += [Sheet(shared, part) for part in chunks(own, _CHUNK)]
        return sheets


def _mmlu_question(row: dict[str, Any]) -> Question:
    return lettered(row["question"].strip(), row["choices"], row["label"])


def _answered(question: Question) -> str:
    return f"{question.contexts[0]} {question.answers[question.label]}{_GAP}"


@dataclass(frozen=True)
class _Classification(_Shots):
    """Texts of two classes. Demonstrations are drawn by `seed` (42 in the original); the other
    texts are asked about, in the order of the file. Of the answers the one with the highest mean
    log-probability of its tokens is taken.
    """

    primary: ClassVar[str] = "acc_token"
    metrics: ClassVar[tuple[str, ...]] = ("acc_token", "acc", "probability")
    question_name: ClassVar[str]
    answer_name: ClassVar[str]
    classes: ClassVar[dict[str, str]]
    """The answer that each label of the file is spelled as."""

    shots: int = 10

    def units(self, runner: Runner) -> Sequence[Sheet]:
        rows = read_rows(self.files[0])
        self.check("shots", self.shots < len(rows), f"less than the {len(rows)} texts there are")
        drawn = random.Random(self.seed).sample(range(len(rows)), self.shots)
        shared = "".join(_answered(self._question(rows[i])) for i in drawn)
        others = [row for i, row in enumerate(rows) if i not in set(drawn)]
        questions = [self._question(row) for row in others[: self.limit]]
        return [Sheet(shared, part) for part in chunks(questions, _CHUNK)]

    def _question(self, row: dict[str, Any]) -> Question:
        context = f"{self.question_name}: {row['text'].strip()}\n{self.answer_name}:"
        return Question(
            [context], list(self.classes.values()), list(self.classes).index(row["label"])
        )


@register
@dataclass(frozen=True)
class Subjectivity(_Classification):
    """Sentences about films: their plots (objective) or opinions (Subj)."""

    name: ClassVar[str] = "subj"
    files: ClassVar[tuple[str, ...]] = ("classify/subj.jsonl",)
    question_name: ClassVar[str] = "Input"
    answer_name: ClassVar[str] = "Type"
    classes: ClassVar[dict[str, str]] = {"objective": "objective", "subjective": "subjective"}


@register
@dataclass(frozen=True)
class MovieReviews(_Classification):
    """Whole reviews of films, long (the original has sentences of reviews): fewer demonstrations."""

    name: ClassVar[str] = "movie_reviews"
    files: ClassVar[tuple[str, ...]] = ("classify/movie_reviews.jsonl",)
    question_name: ClassVar[str] = "Review"
    answer_name: ClassVar[str] = "Sentiment"
    classes: ClassVar[dict[str, str]] = {"neg": "negative", "pos": "positive"}

    shots: int = 4
