"""LongBench (arXiv 2308.14508) in its own file format: the folder, the table of tasks, the scores.

A folder holds `dataset2prompt.json` (the prompts, which are data and come with the dataset), and
`NAME.jsonl` for each task there is, with `input`, `context`, `answers` and `all_classes`; both may
lie in subfolders as the dataset has them (config/, data/). `dataset2maxlen.json`, where it is there,
overrules the tokens of answers that are listed here.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvengine._core import ConfigError
from kvengine.eval import metrics
from kvengine.eval.answering import first_line
from kvengine.eval.data import Row, parse_row

PROMPTS, LENGTHS = "dataset2prompt.json", "dataset2maxlen.json"
_FOLDERS = ("", "config", "data")


@dataclass(frozen=True)
class Kind:
    """How the answers of a task are scored.

    category: of which its score is a part; "" where it is no part of any. new_tokens: most of an
    answer. chat: whether the prompt is put into the chat template. one_line: only the first line of
    an answer counts. begins: an answer begins with neither a line break nor its end.
    """

    category: str
    metric: str
    new_tokens: int
    chat: bool = True
    one_line: bool = False
    begins: bool = False


# The settings of the KV cache benchmark (arXiv 2407.01527), which are LongBench's own.
KINDS: dict[str, Kind] = {
    "narrativeqa": Kind("single-doc QA", "f1", 128),
    "qasper": Kind("single-doc QA", "f1", 128),
    "multifieldqa_en": Kind("single-doc QA", "f1", 64),
    "hotpotqa": Kind("multi-doc QA", "f1", 32),
    "2wikimqa": Kind("multi-doc QA", "f1", 32),
    "musique": Kind("multi-doc QA", "f1", 32),
    "gov_report": Kind("summarization", "rouge_l", 512),
    "qmsum": Kind("summarization", "rouge_l", 512),
    "multi_news": Kind("summarization", "rouge_l", 512),
    "trec": Kind("few-shot", "classification", 64, chat=False, one_line=True),
    "triviaqa": Kind("few-shot", "f1", 32, chat=False, one_line=True),
    "samsum": Kind("few-shot", "rouge_l", 128, chat=False, one_line=True, begins=True),
    "passage_retrieval_en": Kind("synthetic", "retrieval", 32),
    "lcc": Kind("code", "edit", 64, chat=False),
    "repobench-p": Kind("code", "edit", 64, chat=False),
    "passage_count": Kind("", "count", 32),  # configured there too, but no part of its means
}


def score(kind: Kind, prediction: str, references: Sequence[str], classes: Sequence[str]) -> float:
    """The best over the references, 0 to 1."""
    if kind.one_line:
        prediction = first_line(prediction)
    if kind.metric == "edit":
        prediction = metrics.first_code_line(prediction)

    def one(reference: str) -> float:
        if kind.metric == "f1":
            return metrics.token_f1(prediction, reference)
        if kind.metric == "rouge_l":
            return metrics.rouge_l(prediction, reference).f
        if kind.metric == "classification":
            return metrics.classification(prediction, reference, classes)
        if kind.metric == "retrieval":
            return metrics.retrieval(prediction, reference)
        if kind.metric == "count":
            return metrics.count(prediction, reference)
        return metrics.edit_similarity(prediction, reference)

    return max(map(one, references), default=0.0)


def means(scores: dict[str, list[float]]) -> dict[str, float]:
    """Of each task (times 100, two decimals, as LongBench has it), each category and over all."""
    tasks = {name: round(100 * sum(own) / len(own), 2) for name, own in scores.items()}
    categories: dict[str, list[float]] = {}
    for name, value in tasks.items():
        if KINDS[name].category:
            categories.setdefault(KINDS[name].category, []).append(value)
    counted = [value for values in categories.values() for value in values] or list(tasks.values())
    found = {"score": sum(counted) / len(counted)}
    found |= {f"score@{name}": sum(own) / len(own) for name, own in categories.items()}
    return found | {f"score@{name}": value for name, value in tasks.items()}


class Folder:
    """The user's copy of the dataset."""

    def __init__(self, name: str) -> None:
        """Raises ConfigError where it is no folder, or has no prompts."""
        self.path = Path(name).expanduser()
        if not self.path.is_dir():
            raise ConfigError(
                f"longbench: expected folder= to name that of the dataset's files ({PROMPTS} and "
                f"NAME.jsonl), found no folder {name}"
            )
        self.prompts = self._table(PROMPTS)
        if not self.prompts:
            raise ConfigError(f"{self.path}: expected {PROMPTS} of the dataset, found none")
        self.new_tokens = self._table(LENGTHS)
        for task, count in self.new_tokens.items():
            if type(count) is not int or count < 1:
                raise ConfigError(
                    f"{self.path}: {LENGTHS}: {task}: expected 1 token or more, found {count!r:.40}"
                )

    def tasks(self) -> list[str]:
        """Those that there are files of and that are known here, in the order of the table."""
        return [name for name in KINDS if name in self.prompts and self._find(name)]

    def rows(self, task: str) -> list[Row]:
        """The samples of a task. Raises ConfigError for a missing or malformed file."""
        path = self._file(task)
        rows = []
        for number, line in enumerate(_text(path).split("\n"), 1):
            if line.strip():
                rows.append(_checked(parse_row(line, f"{path}:{number}")))
        return rows

    def hash(self, tasks: Sequence[str]) -> str:
        """Of the prompts and the samples of some tasks."""
        digest = hashlib.sha256()
        for name in tasks:
            data = _text(self._file(name))
            table = [name, self.prompts.get(name), self.new_tokens.get(name), len(data)]
            digest.update((json.dumps(table) + data).encode())
        return digest.hexdigest()[:16]

    def prompt(self, task: str, row: dict[str, Any]) -> tuple[str, str, str]:
        """The dataset's prompt with a sample put in: what is before its context, that, the rest."""
        template = str(self.prompts[task])
        # Not str.format, which could be told to look into what it is given.
        before, mark, after = template.partition("{context}")
        fill = str(row["input"])
        context = row["context"] if mark else ""
        return before.replace("{input}", fill), context, after.replace("{input}", fill)

    def _file(self, task: str) -> Path:
        path = self._find(task)
        if path is None:
            raise ConfigError(f"{self.path}: expected the file {task}.jsonl, found none")
        return path

    def _find(self, task: str) -> Path | None:
        names = [self.path / folder / f"{task}.jsonl" for folder in _FOLDERS]
        names += [path.with_name(f"{path.name}.gz") for path in names]
        return next((path for path in names if path.is_file()), None)

    def _table(self, name: str) -> dict[str, Any]:
        for folder in _FOLDERS:
            path = self.path / folder / name
            if path.is_file():
                table = _json(_text(path), str(path))
                if not isinstance(table, dict):
                    raise ConfigError(f"{path}: expected an object, found something else")
                return table
        return {}


def _checked(row: Row) -> Row:
    """A sample with all it needs."""
    for name in ("input", "context"):
        row[name] = str(row[name])
    for name in ("answers", "all_classes"):
        found = row["answers"] if name == "answers" else row.get(name) or []
        if not isinstance(found, list):
            raise ConfigError(f"{row.where}: {name}: expected a list, found {found!r:.40}")
        row[name] = [str(each) for each in found]
    return row


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except OSError as error:
        raise ConfigError(f"{path}: could not be read ({error.strerror or error})") from None
    except (EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected UTF-8 text, found a damaged file ({error})") from None


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: expected JSON ({error})") from None
