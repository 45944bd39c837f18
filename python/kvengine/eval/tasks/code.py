"""Code: the next line of a file, and whole functions that have to pass tests."""

from __future__ import annotations

import io
import random
import token
import tokenize
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from kvengine.eval.answering import answer, has_line, mean, mean_logprob, read
from kvengine.eval.data import read_rows
from kvengine.eval.execution import run_program
from kvengine.eval.metrics import edit_similarity, first_code_line
from kvengine.eval.runner import Runner
from kvengine.eval.task import Record, Task, register

_FILES = "code/python_files_networkx.jsonl"
_PROBLEMS = "code/humaneval.jsonl"


@register
@dataclass(frozen=True)
class CodeCompletion(Task):
    """context: tokens before the line that is asked for, as many as there are. shortest: characters
    of that line at least, which is of no text in quotes. limit: most files. Where prompts are shortened, nothing is protected.

    edit: edit similarity of the first line of code of the answer, as LongBench's code tasks have it,
    0 to 1. exact: the share of lines that are right. logprob: of the line's tokens, mean.
    """

    name: ClassVar[str] = "code_completion"
    primary: ClassVar[str] = "edit"
    files: ClassVar[tuple[str, ...]] = (_FILES,)
    shortens: ClassVar[bool] = True
    version: ClassVar[int] = 2  # 1: lines of strings were asked for, too

    limit: int | None = 20
    context: int = 2048
    shortest: int = 12
    new_tokens: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("context", "shortest", "new_tokens"):
            self.check(name, getattr(self, name) >= 1, "at least 1")

    def units(self, runner: Runner) -> Sequence[dict[str, Any]]:
        return read_rows(_FILES)[: self.limit]

    def run(self, runner: Runner, unit: dict[str, Any]) -> list[Record]:
        before, line = self._line(unit)
        # The line break is the answer's: vocabularies join it to the indentation that follows.
        tokens = runner.encode(before)
        if len(tokens) > self.context:  # a file's beginning (and BOS) is what it begins with
            tokens = tokens[:1] + tokens[len(tokens) - self.context + 1 :]
        if runner.method:  # all of it is context, as in LongBench's lcc
            tokens = runner.prompt("", runner.model.tokenizer.decode(tokens))
        room = max(self.new_tokens, len(runner.encode("\n" + line, special=False)))
        sessions = read(runner, [tokens], room)
        logprob = mean_logprob(runner, sessions[0], "\n" + line)
        text = answer(runner, sessions, self.new_tokens, has_line)[0]
        found = first_code_line(text)
        return [
            {
                "path": unit["path"],
                "tokens": len(tokens),
                "wanted": line,
                "answer": found,
                "edit": edit_similarity(found, line),
                "exact": float(found.strip() == line.strip()),
                "logprob": logprob,
            }
        ]

    def _line(self, unit: dict[str, Any]) -> tuple[str, str]:
        """The text before a line in the second half of a file (no line break), and the line."""
        lines = unit["text"].split("\n")
        prose = _lines_of_strings(unit["text"])
        asked = [
            i
            for i in range(len(lines) // 2, len(lines))
            if len(lines[i].strip()) >= self.shortest
            and first_code_line(lines[i]) == lines[i]
            and i not in prose
        ]
        chosen = random.Random(f"{self.seed} {unit['path']}").choice(asked or [len(lines) - 1])
        return "\n".join(lines[:chosen]), lines[chosen]

    def summarize(self, items: Sequence[Record]) -> dict[str, float]:
        return {name: mean([item[name] for item in items]) for name in ("edit", "exact", "logprob")}


def _lines_of_strings(text: str) -> set[int]:
    """Lines of a Python file that are prose: of strings over several lines, or that begin with one."""
    found: set[int] = set()
    begins = True
    try:
        for each in tokenize.generate_tokens(io.StringIO(text).readline):
            first, last = each.start[0] - 1, each.end[0] - 1
            if each.type in _STRINGS and (begins or last > first):
                found.update(range(first, last + 1))
            begins = each.type in _LINE_BEGINS
    except (tokenize.TokenError, SyntaxError):  # no Python from here on
        pass
    return found


_STRINGS = {
    getattr(token, name)
    for name in ("STRING", "FSTRING_START", "FSTRING_MIDDLE", "FSTRING_END")
    if hasattr(token, name)
}
_LINE_BEGINS = {token.NEWLINE, token.NL, token.INDENT, token.DEDENT, token.COMMENT, token.ENCODING}
_ENDS = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\n@", "\nassert ", "\n```")


@register
@dataclass(frozen=True)
class HumanEval(Task):
    """execute: yes runs what the model wrote, in a process with limits
    (:mod:`kvengine.eval.execution`); nothing is measured without it. seconds: of each program.
    limit: most problems.

    passed: the share of problems whose first, greedy answer passes the tests (pass@1). logprob: mean
    log-probability of the tokens of the reference solutions.
    """

    name: ClassVar[str] = "humaneval"
    primary: ClassVar[str] = "passed"
    files: ClassVar[tuple[str, ...]] = (_PROBLEMS,)

    execute: bool = False
    seconds: int = 10
    new_tokens: int = 384

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("execute", self.execute, "yes, as it runs programs that the model wrote")
        self.check("seconds", 1 <= self.seconds <= 600, "1 to 600")
        self.check("new_tokens", self.new_tokens >= 1, "at least 1")

    def units(self, runner: Runner) -> Sequence[dict[str, Any]]:
        return read_rows(_PROBLEMS)[: self.limit]

    def run(self, runner: Runner, unit: dict[str, Any]) -> list[Record]:
        # The last line break is the answer's: vocabularies join it to the indentation that follows.
        prompt = unit["prompt"].rstrip()
        solution = "\n" + unit["canonical_solution"]
        tokens = runner.encode(prompt)
        room = max(self.new_tokens, len(runner.encode(solution, special=False)))
        sessions = read(runner, [tokens], room)
        logprob = mean_logprob(runner, sessions[0], solution)
        text = function_body(answer(runner, sessions, self.new_tokens, _is_over)[0])
        tests = f"{unit['test']}\ncheck({unit['entry_point']})\n"
        outcome = run_program(f"{prompt}{text}\n{tests}", self.seconds)
        return [
            {
                "task": unit["task_id"],
                "answer": text,
                "passed": float(outcome.passed),
                "outcome": outcome.reason or "passed",
                "logprob": logprob,
            }
        ]

    def summarize(self, items: Sequence[Record]) -> dict[str, float]:
        return {name: mean([item[name] for item in items]) for name in ("passed", "logprob")}


def function_body(text: str) -> str:
    """An answer until the function is over and something else begins."""
    ends = [end for end in (text.find(mark) for mark in _ENDS) if end >= 0]
    return text[: min(ends)] if ends else text


def _is_over(text: str) -> bool:
    return function_body(text) != text
