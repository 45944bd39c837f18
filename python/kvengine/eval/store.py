"""Results on disk: a file of lines that only ever grows, and that any number of processes may share.

`results.jsonl` in a folder has two kinds of lines, each a JSON object (with NaN and Infinity spelled
as Python does) with the key of the result it belongs to (:attr:`Result.key`: model, cache, task, its
parameters, data, seed, engine version):

    {"key": ..., "unit": {"index": 3, "items": [...], "seconds": 1.5, "cache": {...}}}
    {"key": ..., "result": {...}, "units": 20}

A unit's line is written as soon as the unit is done, a result's line (without its items, which are
those of its units) when all are. A line is written at once and is on the disk before anything else
happens, so a kill at any moment loses no more than the unit that was being worked on. A line that a
kill, or a full disk, tore is skipped. Where a key has several results the last one counts.

A process claims a key before it works on it, so that no two do the same; the claim ends with the
process, however that ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kvengine._core import IoError
from kvengine.eval.task import Result, Unit

FILE = "results.jsonl"
_LOCKS = ".locks"


class Store:
    """The results in a folder, which is made if it is absent.

    What other processes add is seen after the next :meth:`refresh`.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Raises IoError: the folder cannot be made or written."""
        self.folder = Path(folder)
        self.path = self.folder / FILE
        self.torn_lines = 0
        self._results: dict[str, Result] = {}
        self._counts: dict[str, int] = {}  # units of each result
        self._units: dict[str, dict[int, Unit]] = {}
        self._read = 0  # bytes of the file
        try:
            (self.folder / _LOCKS).mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644))
            _sync_folder(self.folder)
        except OSError as error:
            raise IoError(
                f"{self.folder}: expected a folder that can be written ({error.strerror})"
            ) from None
        self.refresh()

    def refresh(self) -> None:
        """Read what was added since the last time."""
        with self.path.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = data.rfind(b"\n") + 1  # what follows may still be being written
        self._read += whole
        for line in data[:whole].split(b"\n"):
            if line and not self._take(line):
                self.torn_lines += 1

    def result(self, key: str) -> Result | None:
        """The result with a key, with its items; None where there is none yet."""
        result = self._results.get(key)
        if result is None:
            return None
        units = self._units.get(key, {})
        items = [item for i in range(self._counts[key]) for item in units[i].items]
        return dataclasses.replace(result, items=items)

    def results(self) -> list[Result]:
        """All results, with their items, in the order in which the first of each came."""
        found = (self.result(key) for key in self._results)
        return [result for result in found if result is not None]

    def units(self, key: str) -> dict[int, Unit]:
        """The units of a key that are done."""
        return dict(self._units.get(key, {}))

    def add_unit(self, key: str, unit: Unit) -> None:
        """Keep a unit that was done. Raises IoError."""
        self._append({"key": key, "unit": dataclasses.asdict(unit)})

    def add_result(self, result: Result, units: int) -> None:
        """Keep a result of so many units, which were all kept before; 0 for a failure."""
        document = result.as_dict(with_items=False)
        self._append({"key": result.key, "result": document, "units": units})

    @contextlib.contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """A context in which no other process works on a key; False where one does already."""
        lock = FileLock(self.folder / _LOCKS / key)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            yield False
            return
        try:
            self.refresh()  # it may have been done meanwhile
            yield True
        finally:
            lock.release()

    def _append(self, line: dict[str, Any]) -> None:
        data = json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        try:
            with FileLock(self.folder / _LOCKS / "append"), self.path.open("r+b") as file:
                end = file.seek(0, os.SEEK_END)
                if end > 0:
                    file.seek(end - 1)
                    if file.read(1) != b"\n":  # a torn line: what follows begins a new one
                        data = b"\n" + data
                file.seek(end)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise IoError(f"{self.path}: could not be written ({error.strerror})") from None
        self.refresh()

    def _take(self, line: bytes) -> bool:
        """Take a line in; False if it is torn."""
        try:
            document = json.loads(line)
            key = document["key"]
            if "unit" in document:
                unit = Unit(**document["unit"])
                self._units.setdefault(key, {}).setdefault(unit.index, unit)
            else:
                fields = dict(document["result"])
                del fields["value"]
                result, count = Result(**fields, items=[]), int(document["units"])
                if any(i not in self._units.get(key, {}) for i in range(count)):
                    return False
                self._results[key], self._counts[key] = result, count
        except (ValueError, TypeError, KeyError, AttributeError):
            return False
        return True


def _sync_folder(folder: Path) -> None:
    """Make sure that a file that was just made is found after a crash."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
