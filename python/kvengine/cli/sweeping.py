"""What the verbs eval and compare share: a sweep with progress, and its results on the terminal."""

from __future__ import annotations

import argparse
import secrets
import tempfile
from collections.abc import Sequence
from pathlib import Path

from kvengine.cli.arguments import add_common
from kvengine.cli.inputs import load_model
from kvengine.cli.output import Progress, human_bytes, print_json, print_table, say
from kvengine.eval.report.data import bits_per_value
from kvengine.eval.setting import canonical_setting
from kvengine.eval.store import Store
from kvengine.eval.sweep import Progress as SweepProgress
from kvengine.eval.sweep import jobs_of, left_out, sweep
from kvengine.eval.task import Result, Task


def add_sweeping(parser: argparse.ArgumentParser) -> None:
    """The flags of both verbs."""
    add_common(parser, cache=False)
    parser.set_defaults(seed=0)  # a sweep of random seeds could not be resumed


def chosen_seed(args: argparse.Namespace) -> int:
    """-s, or a random one, which the results tell."""
    return secrets.randbelow(2**31) if args.seed < 0 else args.seed


def run_sweep(
    args: argparse.Namespace, caches: Sequence[str], tasks: Sequence[Task], out: Path | None
) -> int:
    """Do a sweep, keep it in `out` with a report of all that is there, and tell its results.

    Returns the exit status. With args.ray (the address of a cluster) the work is done there.
    """
    names = {canonical_setting(spec): spec for spec in caches}
    for task in tasks:
        _ = task.data_hash  # missing data is told before anything is loaded
    if out is None:
        with tempfile.TemporaryDirectory(prefix="kvengine-eval-") as folder:
            results = _sweep(args, names, tasks, Store(folder))
    else:
        store = Store(out)
        if store.torn_lines:
            say(f"{store.path}: {store.torn_lines} torn lines are done again")
        results = _sweep(args, names, tasks, store)
        _write_report(out, store.results())
    if args.json:
        print_json([result.as_dict() for result in results])
    else:
        print_results(results, names)
    failed = [result for result in results if result.error is not None]
    if failed:
        say(f"{len(failed)} of {len(results)} results failed")
    return 1 if failed else 0


def _sweep(
    args: argparse.Namespace, names: dict[str, str], tasks: Sequence[Task], store: Store
) -> list[Result]:
    ray = getattr(args, "ray", None)
    jobs = jobs_of(load_model(args), list(names), tasks, args.exact)
    for name, cache in left_out(list(names), tasks):
        say(f"{name} has no prompt to shorten: it is not measured with {names[cache]}")
    told = 0
    left: float | None = None

    def on_progress(progress: SweepProgress) -> None:
        nonlocal left
        left = progress.seconds_left
        job = progress.job
        text = f"{job.task.spec} with {names[job.runner.cache]}{_time_left(left)}"
        bar.update(round(1000 * progress.done), 1000 * progress.jobs, text)

    def on_result(result: Result, known: bool) -> None:
        nonlocal told
        told += 1
        state = "known already" if known else f"{result.seconds:.1f} s{_time_left(left)}"
        say(
            f"{told}/{len(jobs)} {result.task} with {names[result.cache]}: "
            f"{outcome(result)} ({state})"
        )

    if ray is not None:
        from kvengine.eval.cluster import distribute

        with Progress("evaluating on the cluster") as bar:
            distribute(jobs, store, ray, args.threads or 1, bar.update)
    with Progress("evaluating") as bar:
        return sweep(jobs, store, on_progress, on_result)


def _write_report(out: Path, results: Sequence[Result]) -> None:
    from kvengine.eval import report
    from kvengine.eval.report import plots

    say(f"report: {report.write(out, results)}")
    if not plots.can_draw():
        say(report.WITHOUT_PICTURES)


def _time_left(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes = round(seconds / 60)
    return f", about {minutes} min left" if minutes else ", less than a minute left"


def outcome(result: Result) -> str:
    """'kld_mean 0.0123', or what went wrong."""
    return result.error or f"{result.primary} {_shown(result.value)}"


def print_results(results: Sequence[Result], names: dict[str, str]) -> None:
    """A table for each task; metrics of parts (`exact@512`) are left to the documents."""
    for index, task in enumerate(dict.fromkeys(result.task for result in results)):
        own = [result for result in results if result.task == task]
        metrics = list(
            dict.fromkeys(name for result in own for name in result.metrics if "@" not in name)
        )
        sense = "higher" if own[0].higher_is_better else "lower"
        print(f"{chr(10) if index else ''}{task} ({own[0].primary}: {sense} is better)")
        rows = []
        for result in own:
            stats, mean = result.cache_stats or {}, bits_per_value(own, result)
            bits = "" if mean is None else f"{mean:.2f}"
            size = human_bytes(stats["bytes"]) if stats else ""
            numbers = [_shown(result.metrics.get(name)) for name in metrics]
            rows.append([names[result.cache], bits, size, *numbers])
        print_table(["cache", "bits", "bytes", *metrics], rows)
        for result in own:
            if result.error is not None:
                print(f"{names[result.cache]}: {result.error}")


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"
