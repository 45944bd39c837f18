"""The evaluation's data: read in place from the folder that KVENGINE_DATA names, never copied."""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvengine._core import ConfigError

VARIABLE = "KVENGINE_DATA"


def folder() -> Path:
    """The data folder. Raises ConfigError where there is none."""
    name = os.environ.get(VARIABLE, "")
    if not name:
        raise ConfigError(
            f"{VARIABLE}: expected this variable to name the folder of evaluation data "
            "(books/, qa/, ppl/, ...), found it unset"
        )
    path = Path(name)
    if not path.is_dir():
        raise ConfigError(f"{VARIABLE}: expected a folder of evaluation data, found none at {name}")
    return path


def find(name: str) -> Path:
    """The file `name` of the folder, or `name`.gz. Raises ConfigError where neither is there."""
    for path in (folder() / name, folder() / f"{name}.gz"):
        if path.is_file():
            return path
    raise ConfigError(f"{VARIABLE}: expected the file {name} in {folder()}, found none")


class Row(dict[str, Any]):
    """A row of a JSONL file; a field that it lacks raises ConfigError."""

    where: str = ""

    def __missing__(self, key: str) -> Any:
        raise ConfigError(f"{self.where}: expected the field '{key}', found none")


def read_text(name: str) -> str:
    """A text file of the folder, unpacked; line ends as they are. Raises ConfigError: no UTF-8."""
    path = find(name)
    try:
        return _read(path).decode()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: expected UTF-8 text, found other bytes at {error.start}"
        ) from None


def read_lines(name: str) -> list[str]:
    """The lines of a text file that are not empty."""
    return [line for line in read_text(name).split("\n") if line]


def read_rows(name: str) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    return [parse_row(line, f"{name}:{i}") for i, line in enumerate(read_lines(name), 1)]


def parse_row(line: str, where: str) -> Row:
    """Raises ConfigError: the line is no JSON object."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: expected JSON ({error})") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{where}: expected a JSON object, found something else")
    row = Row(found)
    row.where = where
    return row


def list_files(below: str) -> list[str]:
    """The names of the files in a folder of the folder, sorted, without ".gz"."""
    path = folder() / below
    if not path.is_dir():
        raise ConfigError(f"{VARIABLE}: expected the folder {below} in {folder()}, found none")
    names = sorted(each.name.removesuffix(".gz") for each in path.iterdir() if each.is_file())
    return [f"{below}/{name}" for name in names]


def hash_files(names: Sequence[str]) -> str:
    """Hash of the names and unpacked bytes of files."""
    digest = hashlib.sha256()
    for name in names:
        data = _read(find(name))
        digest.update(f"{name}:{len(data)}\n".encode())
        digest.update(data)
    return digest.hexdigest()[:16]


@functools.lru_cache(maxsize=16)
def _read(path: Path) -> bytes:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return file.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ConfigError(f"{path}: expected a gzip file, found a damaged one ({error})") from None
    except OSError as error:
        raise ConfigError(f"{path}: could not be read ({error.strerror})") from None
