"""`kvengine bench`: speed at given depths, side by side with another engine if asked to."""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from kvengine import Model, Session, canonical_cache
from kvengine.cli.arguments import InputError, add_common, whole, whole_list
from kvengine.cli.inputs import load_model
from kvengine.cli.output import Progress, human_bytes, print_json, print_table
from kvengine.cli.peers import PEERS

DESCRIPTION = (
    "Measure tokens per second: ppN reads a prompt of N tokens, tgN decodes N tokens one by one, "
    "after @dN tokens that the cache holds already. Engines and caches take turns."
)


class Engine(Protocol):
    """What is measured. Tokens are random: which ones they are does not matter for speed."""

    name: str
    cache: str
    threads: int

    def fill(self, tokens: list[int]) -> None:
        """Begin anew with these tokens held."""

    def read(self, tokens: list[int]) -> float:
        """Seconds for reading tokens after those, all at once; they are forgotten again."""

    def decode(self, tokens: list[int]) -> float:
        """Seconds for reading them one by one; they are forgotten again."""

    def cache_bytes(self) -> int:
        """What the cache held at the end of the last measurement."""


@dataclass(frozen=True)
class Test:
    """`decode`: tokens are read one by one."""

    decode: bool
    n_tokens: int
    depth: int

    @property
    def name(self) -> str:
        kind = "tg" if self.decode else "pp"
        return f"{kind}{self.n_tokens}" + (f"@d{self.depth}" if self.depth else "")


@dataclass
class Measured:
    test: Test
    engine: Engine
    tps: list[float] = field(default_factory=list)
    cache_bytes: int = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-p", "--n-prompt", type=whole_list(0), default=[512], help="prompt lengths; 0: none"
    )
    parser.add_argument(
        "-n", "--n-gen", type=whole_list(0), default=[32], help="tokens to decode; 0: none"
    )
    parser.add_argument(
        "-d", "--n-depth", type=whole_list(0), default=[0], help="tokens held before"
    )
    parser.add_argument(
        "-r", "--repetitions", type=whole(1, 1000), default=5, help="measurements of each test"
    )
    parser.add_argument(
        "--cache",
        action="append",
        default=argparse.SUPPRESS,
        metavar="SPEC",
        help="may be repeated (default: f16)",
    )
    parser.add_argument(
        "--peer",
        choices=list(PEERS),
        help="measure this engine in the same run; caches it does not have are left out",
    )
    add_common(parser, cache=False)


def run(args: argparse.Namespace) -> None:
    tests = [
        Test(decode, n, depth)
        for depth in args.n_depth
        for decode, lengths in ((False, args.n_prompt), (True, args.n_gen))
        for n in lengths
        if n > 0
    ]
    if not tests:
        raise InputError("-p/-n: expected something to measure, found only zeros")
    specs = list(dict.fromkeys(canonical_cache(spec) for spec in getattr(args, "cache", ["f16"])))
    needed = max(test.depth + test.n_tokens for test in tests)
    if args.ctx_size and args.ctx_size < needed:
        raise InputError(f"-c/--ctx-size: expected at least {needed} tokens, found {args.ctx_size}")
    make_peer = PEERS[args.peer]() if args.peer else None
    model = load_model(args)
    n_ctx = args.ctx_size or needed
    engines: list[Engine] = [OwnEngine(model, spec, n_ctx, args.exact) for spec in specs]
    if make_peer:
        engines += make_peer(Path(model.path), specs, n_ctx, model.threads)
    with Progress("warming up") as progress:
        measured = list(
            measure(engines, tests, args.repetitions, model.tokenizer.vocab_size, progress.update)
        )
    if args.json:
        print_json([_document(each) for each in measured])
    else:
        _print(model, measured)


class OwnEngine:
    """A session of this engine."""

    name = "kvengine"

    def __init__(self, model: Model, cache: str, n_ctx: int, exact: bool) -> None:
        self.cache = cache
        self.threads = model.threads
        self._new: Callable[[], Session] = lambda: model.session(n_ctx, cache, exact)
        self._base = self._new()
        self._last = self._base

    def fill(self, tokens: list[int]) -> None:
        self._base = self._last = self._new()
        if tokens:
            self._base.forward(tokens)

    def read(self, tokens: list[int]) -> float:
        return self._timed([tokens])

    def decode(self, tokens: list[int]) -> float:
        return self._timed([[token] for token in tokens])

    def cache_bytes(self) -> int:
        return self._last.cache.stats().bytes

    def _timed(self, steps: Iterable[list[int]]) -> float:
        session = self._base.fork()
        begin = time.perf_counter()
        for tokens in steps:
            session.forward(tokens)
        seconds = time.perf_counter() - begin
        self._last = session
        return seconds


def measure(
    engines: list[Engine],
    tests: list[Test],
    repetitions: int,
    vocab_size: int,
    progress: Callable[[int, int, str], None],
) -> Iterator[Measured]:
    """Run every test on every engine in turn, after a warm-up; yields in order of the tests."""
    draw = random.Random(0)

    def some_tokens(n: int) -> list[int]:
        return [draw.randrange(vocab_size) for _ in range(n)]

    steps = len(tests) * (repetitions + 1)
    done = 0
    depth = None
    for test in tests:
        if test.depth != depth:
            depth = test.depth
            progress(done, steps, f"filling {depth} tokens")
            held = some_tokens(depth)
            for engine in engines:
                engine.fill(held)
        results = [Measured(test, engine) for engine in engines]
        for repetition in range(-1, repetitions):
            tokens = some_tokens(test.n_tokens)
            progress(done, steps, test.name)
            for result in results:
                run_test = result.engine.decode if test.decode else result.engine.read
                seconds = run_test(tokens)
                if repetition >= 0:  # the first is the warm-up
                    result.tps.append(test.n_tokens / seconds)
                    result.cache_bytes = result.engine.cache_bytes()
            done += 1
        yield from results


def _document(measured: Measured) -> dict[str, Any]:
    return {
        "test": measured.test.name,
        "cache": measured.engine.cache,
        "engine": measured.engine.name,
        "tps": measured.tps,
        "tps_median": statistics.median(measured.tps),
        "cache_bytes": measured.cache_bytes,
        "threads": measured.engine.threads,
    }


def _print(model: Model, measured: list[Measured]) -> None:
    print(f"{Path(model.path).name}, {model.backend}, {model.threads} threads\n")
    print_table(
        ["test", "engine", "cache", "tokens/s", "spread", "cache size"],
        [
            [
                each.test.name,
                each.engine.name,
                each.engine.cache,
                f"{statistics.median(each.tps):.1f}",
                f"{min(each.tps):.1f} to {max(each.tps):.1f}",
                human_bytes(each.cache_bytes),
            ]
            for each in measured
        ],
    )
