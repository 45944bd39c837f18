"""What verbs print: one JSON document or tables on standard output, the rest on standard error."""

from __future__ import annotations

import json
import math
import sys
import threading
from collections.abc import Sequence
from typing import Any

from kvengine._core import CacheStats


def print_json(document: Any) -> None:
    """Print a document as one line; numbers that JSON has no spelling for become null."""
    text = json.dumps(_finite(document), ensure_ascii=False, allow_nan=False)
    # Lone surrogates (bytes of a file that are not UTF-8) become JSON escapes.
    sys.stdout.buffer.write(text.encode("utf-8", "backslashreplace") + b"\n")
    sys.stdout.flush()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return value


def say(text: str) -> None:
    """Print a message to standard error."""
    print(text, file=sys.stderr, flush=True)


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print left-aligned columns; columns of numbers are right-aligned."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    numeric = [
        bool(rows) and all(isinstance(row[i], int | float) for row in rows)
        for i in range(len(header))
    ]
    for line in (list(header), *cells):
        padded = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ]
        print("  ".join(padded).rstrip())


def human_bytes(n: float) -> str:
    """'12.3 MiB'"""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024 or unit == "GiB":
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    raise AssertionError


def cache_summary(stats: CacheStats) -> str:
    """One line: what the cache costs beside f16, and how many tokens a selector left."""
    line = f"cache {stats.spec}: {human_bytes(stats.bytes)}"
    if stats.bytes:
        line += (
            f" for {stats.tokens_seen} tokens, f16 would be {human_bytes(stats.f16_bytes)}"
            f" ({stats.ratio:.2f}x, {stats.bits_per_value:.2f} bits per value)"
        )
    if stats.tokens_kept < stats.tokens_seen:
        line += f", {stats.tokens_kept} tokens kept"
    elif stats.bytes and "keep=" in stats.spec:
        line += ", no token dropped: there are no more than the selector keeps"
    return line


class Progress:
    """A bar, or a spinner, on standard error for whatever takes longer than a second.

    Nothing is shown unless standard error is a terminal. Use as a context manager; `update` may
    be given to the engine as a progress callback.
    """

    DELAY = 1.0

    def __init__(self, text: str) -> None:
        self._text = text
        self._done = 0
        self._total: int | None = None
        self._lock = threading.Lock()
        self._bar: Any = None
        self._task: Any = None
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            self._timer = threading.Timer(self.DELAY, self._show)
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer:
            self._timer.cancel()
        with self._lock:
            self._timer = None
            if self._bar:
                self._bar.stop()
                self._bar = None

    def update(self, done: int, total: int, text: str | None = None) -> None:
        """Tell how far things are; a total of 0 means unknown."""
        with self._lock:
            self._done, self._total = done, total or None
            self._text = text or self._text
            if self._bar:
                self._bar.update(
                    self._task, completed=done, total=self._total, description=self._text
                )

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        with self._lock:
            if not self._timer:  # over meanwhile
                return
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task(self._text, completed=self._done, total=self._total)
            self._bar.start()
