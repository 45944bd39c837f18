"""`kvengine bench`: speed at given depths, side by side with another engine if asked to."""

from __future__ import annotations

import argparse
from pathlib import Path

from kvengine import canonical_cache
from kvengine.bench.engines import Engine, OwnEngine
from kvengine.bench.limits import ModelCosts
from kvengine.bench.machine import Machine, busy_load
from kvengine.bench.measure import Case, compare, measure
from kvengine.bench.peers import INSTALL, PEERS
from kvengine.bench.report import Result, document, print_results
from kvengine.cli.arguments import INT_MAX, AddUp, InputError, add_common, whole, whole_list
from kvengine.cli.inputs import load_model
from kvengine.cli.output import Progress, print_json, say

DESCRIPTION = (
    "Measure tokens per second: ppN reads a prompt of N tokens, tgN decodes N tokens one by one "
    "(tgNxS: of S sequences together), after @dN tokens that the cache holds already; loadN loads "
    "the model, reads N tokens and chooses the next. Engines and caches take turns. Shares are of "
    "what the machine could do at best, which is measured before and after each turn: memory that has "
    "to be read, or arithmetic. Ratios are medians over the repetitions, each of two measurements "
    "made side by side."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:

    def add_list(*flags: str, low: int, high: int = INT_MAX, default: int, text: str) -> None:
        parser.add_argument(
            *flags,
            type=whole_list(low, high),
            action=AddUp,
            default=[default],
            metavar="N,...",
            help=f"{text} ({default}); may be repeated",
        )

    add_list("-p", "--n-prompt", low=0, default=512, text="prompt lengths; 0: none")
    add_list("-n", "--n-gen", low=0, default=32, text="tokens to decode; 0: none")
    add_list("-d", "--n-depth", low=0, default=0, text="tokens held before")
    add_list(
        "--sequences", low=1, high=256, default=1, text="sequences to decode together, besides 1"
    )
    parser.add_argument(
        "--load",
        type=whole(1),
        nargs="?",
        const=32,
        metavar="N",
        help="also load the model and read a prompt of N (32) tokens",
    )
    parser.add_argument(
        "-r", "--repetitions", type=whole(1, 1000), default=5, help="measurements of each test"
    )
    parser.add_argument(
        "--cache",
        action="append",
        default=argparse.SUPPRESS,
        metavar="SPEC",
        help="may be repeated: each is compared with the first (default: f16)",
    )
    parser.add_argument(
        "--peer",
        choices=list(PEERS),
        help="measure this engine in the same run, with those caches it has as well; beside any that "
        f"it does not have, with f16, q8_0 and q4_0; {INSTALL}",
    )
    add_common(parser, cache=False)


def run(args: argparse.Namespace) -> None:
    tests = _tests(args)
    # The name of a preset is shorter than what it stands for.
    names = {canonical_cache(spec): spec for spec in getattr(args, "cache", ["f16"])}
    specs = list(names)
    needed = max(test.depth + test.n_tokens for test in tests)
    if args.ctx_size and args.ctx_size < needed:
        raise InputError(f"-c/--ctx-size: expected at least {needed} tokens, found {args.ctx_size}")
    make_peer = PEERS[args.peer]() if args.peer else None
    model = load_model(args)
    load = busy_load()
    if load:
        say(
            f"the machine is busy (load average {load:.2f} over the last minute): "
            "expect figures that are too low"
        )
    n_ctx = args.ctx_size or needed
    engines: list[Engine] = [OwnEngine(model, spec, n_ctx, args.exact) for spec in specs]
    if make_peer:
        engines += make_peer(Path(model.path), specs, n_ctx, model.threads)
    with Progress("warming up") as progress:
        measured = list(
            measure(
                engines,
                tests,
                args.repetitions,
                model.tokenizer.vocab_size,
                lambda: Machine.measure(model.threads),
                progress.update,
            )
        )
    costs = ModelCosts(model, args.exact)
    results = [
        Result(
            each,
            ratios,
            costs.limits(each),
        )
        for each, ratios in zip(measured, compare(measured, OwnEngine.name), strict=True)
    ]
    path = Path(model.path)
    if args.json:
        print_json([document(result, path) for result in results])
    else:
        print_results(results, f"{path.name}, {model.backend}, {model.threads} threads", names)


def _tests(args: argparse.Namespace) -> list[Case]:
    tests = [Case("load", args.load)] if args.load else []
    for depth in dict.fromkeys(args.n_depth):
        tests += [Case("pp", n, depth) for n in dict.fromkeys(args.n_prompt) if n > 0]
        for sequences in dict.fromkeys([1, *args.sequences]):
            tests += [Case("tg", n, depth, sequences) for n in dict.fromkeys(args.n_gen) if n > 0]
    if not tests:
        raise InputError("-p/-n: expected something to measure, found only zeros")
    return tests
