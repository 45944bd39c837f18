"""`kvengine compare`: many caches by many tasks, with a report."""

from __future__ import annotations

import argparse
from pathlib import Path

from kvengine.cli.arguments import whole
from kvengine.cli.sweeping import add_sweeping, chosen_seed, run_sweep
from kvengine.eval.sets import CACHES, TASKS, cache_specs, task_specs
from kvengine.eval.task import parse_list

DESCRIPTION = (
    "Measure every task with every cache and write results and a report to a folder. Results are "
    "kept as they are found: the same command goes on where it was stopped, and several processes "
    "may share a folder."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--caches",
        metavar="SET",
        default="default",
        help=f"cache specs, or sets ({', '.join(CACHES)}), with commas between them",
    )
    parser.add_argument(
        "--tasks",
        metavar="SET",
        default="default",
        help=f"tasks as kvengine eval has them, or sets ({', '.join(TASKS)})",
    )
    parser.add_argument(
        "--limit",
        type=whole(1),
        help="most items of each task that names no limit itself, and of those of a set",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="where results go")
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="have the work done by this Ray cluster (local: one on this machine), each worker with "
        "-t threads (1)",
    )
    add_sweeping(parser)


def run(args: argparse.Namespace) -> int:
    tasks = parse_list(task_specs(args.tasks, args.limit), limit=args.limit, seed=chosen_seed(args))
    return run_sweep(args, cache_specs(args.caches), tasks, args.out)
