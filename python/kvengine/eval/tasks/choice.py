"""Questions with a few answers to choose from, of which the likeliest is taken.

Prompts and scores are those of lm-eval 0.4, without demonstrations, so that figures can be compared
with published ones: `acc` takes the answer of the highest log-probability, `acc_norm` that of the
highest per character, `acc_token` that of the highest per token. `probability` is the share of the right answer among all, which tells caches
apart before any answer changes.

The question is the prefix, and is compressed; the answers follow it. Where the answers lie before
what is scored (winogrande), each of them makes a prefix of its own.
"""

from __future__ import annotations

import math
import re
import statistics
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from kvengine.eval.data import read_rows
from kvengine.eval.runner import Likelihood, Runner
from kvengine.eval.task import Record, Task, chunks, register

_CHUNK = 10  # questions of a unit

Row = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """contexts: one for all answers, or one for each. answers: what follows, after a space. label:
    which is right.
    """

    contexts: list[str]
    answers: list[str]
    label: int


def choose(question: Question, found: Sequence[Likelihood]) -> Record:
    """The record of a question whose answers were scored."""
    scores = [each.logprob for each in found]
    sizes = [max(len(answer), 1) for answer in question.answers]
    top = max(scores)

    def right(numbers: Iterable[float]) -> int:
        """Whether the right answer has the highest; of several, the first counts."""
        numbers = list(numbers)
        return int(numbers.index(max(numbers)) == question.label)

    return {
        "label": question.label,
        "acc": right(scores),
        "acc_norm": right(score / size for score, size in zip(scores, sizes, strict=True)),
        "acc_token": right(each.logprob / len(each.logprobs) for each in found),
        "probability": math.exp(scores[question.label] - top)
        / math.fsum(math.exp(score - top) for score in scores),
        "scores": scores,
    }


def choice_metrics(items: Sequence[Record], names: Sequence[str]) -> dict[str, float]:
    """Means of some of the numbers of :func:`choose`, and the standard error of the first."""
    metrics = {name: statistics.fmean(item[name] for item in items) for name in names}
    mean = metrics[names[0]]
    metrics[f"{names[0]}_stderr"] = math.sqrt(mean * (1 - mean) / max(len(items) - 1, 1))
    return metrics


@dataclass(frozen=True)
class Choice(Task):
    """A file of questions, a unit a few of them."""

    primary: ClassVar[str] = "acc"
    metrics: ClassVar[tuple[str, ...]] = ("acc", "acc_norm", "probability")

    @staticmethod
    @abstractmethod
    def question(row: Row) -> Question:
        """What is asked about a row of the file."""

    def units(self, runner: Runner) -> Sequence[Any]:
        return chunks(read_rows(self.files[0])[: self.limit], _CHUNK)

    def run(self, runner: Runner, unit: list[Row]) -> list[Record]:
        questions = [self.question(row) for row in unit]
        pairs = []
        for question in questions:
            sessions = {}
            contexts = question.contexts * (len(question.answers) // len(question.contexts))
            split = [
                runner.encode_pair(context, " " + answer)
                for context, answer in zip(contexts, question.answers, strict=True)
            ]
            room = max(len(answer) for _, answer in split)
            for prefix, answer in split:
                key = tuple(prefix)
                if key not in sessions:
                    sessions[key] = runner.prefill(prefix, room)
                pairs.append((sessions[key], answer))
        found = iter(runner.score(pairs))
        return [choose(question, [next(found) for _ in question.answers]) for question in questions]

    def summarize(self, items: Sequence[Record]) -> dict[str, float]:
        return choice_metrics(items, self.metrics)


@register
@dataclass(frozen=True)
class HellaSwag(Choice):
    """Endings of a description (arXiv 1905.07830).

    lm-eval writes the second half of `ctx` with a capital letter; the data does not tell where that
    begins.
    """

    name: ClassVar[str] = "hellaswag"
    primary: ClassVar[str] = "acc_norm"
    files: ClassVar[tuple[str, ...]] = ("qa/hellaswag_validation.jsonl",)

    @staticmethod
    def question(row: Row) -> Question:
        context = _without_brackets(f"{row['activity']}: {row['ctx']}")
        return Question(
            [context], [_without_brackets(each) for each in row["endings"]], row["label"]
        )


def _without_brackets(text: str) -> str:
    """WikiHow's marks, such as [step], removed."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


@register
@dataclass(frozen=True)
class Piqa(Choice):
    """Physical common sense (arXiv 1911.11641)."""

    name: ClassVar[str] = "piqa"
    files: ClassVar[tuple[str, ...]] = ("qa/piqa_validation.jsonl",)

    @staticmethod
    def question(row: Row) -> Question:
        return Question([f"Question: {row['goal']}\nAnswer:"], row["choices"], row["label"])


class _Arc(Choice):
    primary: ClassVar[str] = "acc_norm"

    @staticmethod
    def question(row: Row) -> Question:
        return Question([f"Question: {row['question']}\nAnswer:"], row["choices"], row["label"])


@register
@dataclass(frozen=True)
class ArcEasy(_Arc):
    """Science questions for schools (arXiv 1803.05457)."""

    name: ClassVar[str] = "arc_easy"
    primary: ClassVar[str] = "acc"
    files: ClassVar[tuple[str, ...]] = ("qa/arc_easy_validation.jsonl",)


@register
@dataclass(frozen=True)
class ArcChallenge(_Arc):
    """Those of them that are not answered by looking words up."""

    name: ClassVar[str] = "arc_challenge"
    files: ClassVar[tuple[str, ...]] = ("qa/arc_challenge_validation.jsonl",)


@register
@dataclass(frozen=True)
class WinoGrande(Choice):
    """Whom a pronoun means (arXiv 1907.10641): the end of the sentence after either name."""

    name: ClassVar[str] = "winogrande"
    metrics: ClassVar[tuple[str, ...]] = ("acc", "probability")
    files: ClassVar[tuple[str, ...]] = ("qa/winogrande_xl_validation.jsonl",)

    @staticmethod
    def question(row: Row) -> Question:
        before, _, after = row["sentence"].partition("_")
        contexts = [before + name for name in row["choices"]]
        return Question(contexts, [after.strip()] * len(contexts), row["label"])


@register
@dataclass(frozen=True)
class OpenBookQa(Choice):
    """Questions about elementary facts (arXiv 1809.02789)."""

    name: ClassVar[str] = "openbookqa"
    primary: ClassVar[str] = "acc_norm"
    files: ClassVar[tuple[str, ...]] = ("qa/openbookqa_validation.jsonl",)

    @staticmethod
    def question(row: Row) -> Question:
        return Question([row["question"]], row["choices"], row["label"])


@register
@dataclass(frozen=True)
class CommonsenseQa(Choice):
    """Common sense, answered by a letter (arXiv 1811.00937)."""

    name: ClassVar[str] = "commonsenseqa"
    metrics: ClassVar[tuple[str, ...]] = ("acc", "probability")
    files: ClassVar[tuple[str, ...]] = ("qa/commonsenseqa_validation.jsonl",)

    @staticmethod
    def question(row: Row) -> Question:
        return lettered("Question: " + row["question"].strip(), row["choices"], row["label"])


def lettered(question: str, choices: Sequence[str], label: int) -> Question:
    """Answers listed below a question, of which the letter is asked."""
    letters = [chr(ord("A") + i) for i in range(len(choices))]
    listed = "".join(f"{a}. {choice}\n" for a, choice in zip(letters, choices, strict=True))
    return Question([f"{question}\n{listed}Answer:"], letters, label)


@register
@dataclass(frozen=True)
class BoolQ(Choice):
    """Yes or no, about a passage (arXiv 1905.10044)."""

    name: ClassVar[str] = "boolq"
    metrics: ClassVar[tuple[str, ...]] = ("acc", "probability")
    files: ClassVar[tuple[str, ...]] = ("qa/boolq_validation.jsonl",)

    @staticmethod
    def question(row: Row) -> Question:
        context = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
        return Question([context], ["no", "yes"], int(row["answer"]))


@register
@dataclass(frozen=True)
class Copa(Choice):
    """Causes and effects (SuperGLUE, arXiv 1905.00537); two spaces before an answer, as lm-eval."""

    name: ClassVar[str] = "copa"
    metrics: ClassVar[tuple[str, ...]] = ("acc", "probability")
    files: ClassVar[tuple[str, ...]] = ("qa/copa_validation.jsonl",)

    @staticmethod
    def question(row: Row) -> Question:
        link = {"cause": "because", "effect": "therefore"}[row["question"]]
        answers = [f" {each[0].lower()}{each[1:]}" for each in row["choices"]]
        return Question([f"{row['premise'].strip()[:-1]} {link}"], answers, row["label"])
