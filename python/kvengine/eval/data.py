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


def read_text(name: str) -> str:
    """A text file of the folder, unpacked; line ends as they are."""
    return _read(find(name))


def read_lines(name: str) -> list[str]:
    """The lines of a text file that are not empty."""
    return [line for line in read_text(name).split("\n") if line]


def read_rows(name: str) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    try:
        return [json.loads(line) for line in read_lines(name)]
    except ValueError as error:
        raise ConfigError(f"{find(name)}: expected a JSON object a line ({error})") from None


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
        data = _read(find(name)).encode("utf-8", "surrogateescape")
        digest.update(f"{name}:{len(data)}\n".encode())
        digest.update(data)
    return digest.hexdigest()[:16]


@functools.lru_cache(maxsize=16)
def _read(path: Path) -> str:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return file.read().decode("utf-8", "surrogateescape")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ConfigError(f"{path}: expected a gzip file, found a damaged one ({error})") from None
    except OSError as error:
        raise ConfigError(f"{path}: could not be read ({error.strerror})") from None
