"""Tests, and running them on several engines in turn."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from kvengine.bench.engines import Engine
from kvengine.bench.machine import Machine

# Threads of the engine before may spin for a moment, waiting for more work.
PAUSE = 0.05

Kind = Literal["pp", "tg", "load"]


@dataclass(frozen=True)
class Case:
    """One thing to measure: ppN reads a prompt, tgN decodes, loadN loads the model and reads."""

    kind: Kind
    n_tokens: int
    depth: int = 0
    sequences: int = 1

    @property
    def name(self) -> str:
        text = f"{self.kind}{self.n_tokens}"
        if self.sequences > 1:
            text += f"x{self.sequences}"
        return text + (f"@d{self.depth}" if self.depth else "")


@dataclass
class Measured:
    """The times of one test on one engine, in order of the repetitions."""

    test: Case
    engine: Engine
    seconds: list[float] = field(default_factory=list)
    machines: list[Machine] = field(default_factory=list)
    """What the machine could do at the same times."""
    cache_bytes: int = 0
    cache_bits: float = 0.0
    """Per cached number."""

    @property
    def tps(self) -> list[float]:
        n = self.test.n_tokens * self.test.sequences
        return [n / seconds for seconds in self.seconds]

    @property
    def median(self) -> float:
        return statistics.median(self.tps)


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as another cache or engine: of the repetitions, run side by side."""

    engine: str
    cache: str
    ratios: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.ratios)


def measure(
    engines: list[Engine],
    tests: list[Case],
    repetitions: int,
    vocab_size: int,
    machine: Callable[[], Machine],
    progress: Callable[[int, int, str], None],
    pause: float = PAUSE,
) -> Iterator[Measured]:
    """Run every test on every engine in turn, after a warm-up; yields in order of the tests.

    Who comes first changes with every repetition. Tests of one depth should follow each other.
    The machine is measured before and after every turn: where it is a virtual one, its memory may
    be half as fast a second later, for the tests as well.
    """
    draw = random.Random(0)

    def some_tokens(n: int) -> list[int]:
        return [draw.randrange(vocab_size) for _ in range(n)]

    held = some_tokens(max((test.depth for test in tests), default=0))
    steps = len(tests) * (repetitions + 1)
    done = 0
    depth = 0
    before = machine()
    for test in tests:
        if test.depth != depth:
            depth = test.depth
            progress(done, steps, f"filling {depth} tokens")
            for engine in engines:
                engine.fill(held[:depth])
        able = [each for each in engines if test.sequences == 1 or each.batches]
        results = [Measured(test, engine) for engine in able]
        for repetition in range(-1, repetitions):  # the first is the warm-up
            tokens = some_tokens(test.n_tokens)
            progress(done, steps, test.name)
            for result in results if repetition % 2 == 0 else reversed(results):
                time.sleep(pause)
                seconds = _run(test, result.engine, tokens)
                after = machine()
                if repetition >= 0:
                    result.seconds.append(seconds)
                    result.cache_bytes = result.engine.cache_bytes()
                    result.cache_bits = result.engine.cache_bits()
                    result.machines.append(before.best_of(after))
                before = after
            done += 1
        yield from results


def _run(test: Case, engine: Engine, tokens: list[int]) -> float:
    if test.kind == "load":
        return engine.load(tokens)
    if test.kind == "tg":
        return engine.decode(tokens, test.sequences)
    return engine.read(tokens)


def compare(measured: list[Measured], own: str) -> list[list[Ratio]]:
    """For each result of the engine named `own`: beside its first cache, and all of a peer's.

    Results of the same test are compared; a result is not compared with itself.
    """

    def others(mine: Measured) -> list[Measured]:
        if mine.engine.name != own:
            return []
        same = [each for each in measured if each.test == mine.test]
        first = [each for each in same if each.engine.name == own][:1]
        peers = [each for each in same if each.engine.name != own]
        return [each for each in first + peers if each is not mine]

    return [[_ratio(mine, other) for other in others(mine)] for mine in measured]


def _ratio(mine: Measured, other: Measured) -> Ratio:
    pairs = zip(mine.seconds, other.seconds, strict=True)
    return Ratio(other.engine.name, other.engine.cache, [b / a for a, b in pairs])
