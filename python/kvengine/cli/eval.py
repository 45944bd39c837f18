"""`kvengine eval`: what caches cost in quality, task by task."""

from __future__ import annotations

import argparse
from pathlib import Path

from kvengine.cli.arguments import whole
from kvengine.cli.sweeping import add_sweeping, chosen_seed, run_sweep
from kvengine.eval.task import parse_list, registry

DESCRIPTION = (
    "Measure tasks with caches: 'kvengine eval kld,needle:depths=5 --cache f16 --cache kivi2'. "
    "A task is a name with parameters, which may be lists (needle:lengths=512,1024). With --out "
    "results are kept as they are found: the same command goes on where it was stopped. The data is "
    "read from the folder that KVENGINE_DATA names."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tasks", metavar="TASK[,TASK]", help=f"of {', '.join(registry())}")
    parser.add_argument(
        "--cache",
        action="append",
        default=argparse.SUPPRESS,
        metavar="SPEC",
        help="may be repeated, see kvengine caches (default: f16); prompt compression may stand before "
        "it: selfinfo:keep=0.5+best4",
    )
    parser.add_argument(
        "--limit", type=whole(1), help="most items of each task that names no limit itself"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="keep results (and their report) in this folder"
    )
    add_sweeping(parser)


def run(args: argparse.Namespace) -> int:
    tasks = parse_list(args.tasks, limit=args.limit, seed=chosen_seed(args))
    return run_sweep(args, getattr(args, "cache", ["f16"]), tasks, args.out)
