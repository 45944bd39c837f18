"""Many tasks with many caches of a model, one after the other, kept in a store as they are done."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvengine._core import CancelledError, ConfigError, Error
from kvengine.eval.references import References
from kvengine.eval.runner import Runner
from kvengine.eval.setting import parse_setting
from kvengine.eval.store import Store
from kvengine.eval.task import Result, Task, Unit, outline, registry, run_task
from kvengine.model import Model

_PATIENCE = 1.0  # seconds between two looks at what other processes do


@dataclass(frozen=True)
class Job:
    """A task with a cache, and the key of its result."""

    task: Task
    runner: Runner
    blank: Result

    @property
    def key(self) -> str:
        return self.blank.key


@dataclass(frozen=True)
class Progress:
    """How far a sweep is.

    job: what is being done. done, jobs: how many are, of how many; done counts parts of the one.
    seconds_left: None until the first job is done.
    """

    job: Job
    done: float
    jobs: int
    seconds_left: float | None


def jobs_of(
    model: Model, caches: Sequence[str], tasks: Sequence[Task], exact: bool = False
) -> list[Job]:
    """Every task with every cache, each once; a task's caches follow one another.

    Settings that shorten prompts are left out of tasks that have none to shorten.

    Raises ConfigError: a bad spec, data that is missing, or a setting that no task is left for.
    """
    references = References()
    runners = [Runner(model, cache, exact, references) for cache in caches]
    for runner in runners:
        if runner.method and not any(task.shortens for task in tasks):
            shortening = ", ".join(name for name, task in registry().items() if task.shortens)
            raise ConfigError(
                f"{runner.method}: expected a task with prompts to shorten ({shortening}), found none"
            )
    jobs = [
        Job(task, runner, outline(task, runner))
        for task in tasks
        for runner in runners
        if task.shortens or not runner.method
    ]
    return list({job.key: job for job in jobs}.values())


def left_out(caches: Sequence[str], tasks: Sequence[Task]) -> list[tuple[str, str]]:
    """Names of tasks and canonical specs of settings that :func:`jobs_of` leaves out."""
    shortening = [cache for cache in caches if parse_setting(cache).method]
    names = dict.fromkeys(task.name for task in tasks if not task.shortens)
    return [(name, cache) for name in names for cache in shortening]


def sweep(
    jobs: Sequence[Job],
    store: Store,
    on_progress: Callable[[Progress], None] | None = None,
    on_result: Callable[[Result, bool], None] | None = None,
) -> list[Result]:
    """Do what is not in the store yet; the results of all jobs, in their order.

    A job that raises an Error (a cache that does not suit the model, for instance) has a result with
    `error`; it is tried again by the next sweep. A job that another process works on is left to it,
    and waited for.

    Args:
        on_progress: called before each unit and during long ones.
        on_result: called with each result and whether it was in the store before.
    """
    clock = _Clock(jobs, on_progress or (lambda progress: None))
    tell = on_result or (lambda result, known: None)
    results: dict[str, Result] = {}
    for job in jobs:
        known = store.result(job.key)
        if known and known.error is None:
            results[job.key] = known
            clock.skip(job)
            tell(known, True)
    waiting = [job for job in jobs if job.key not in results]
    while waiting:
        others = []
        for job in waiting:
            with store.claim(job.key) as mine:
                if not mine:
                    others.append(job)
                    continue
                known = store.result(job.key)
                if known and known.error is None:
                    results[job.key] = known
                    clock.skip(job)
                else:
                    results[job.key] = _do(job, store, clock)
                tell(results[job.key], known is results[job.key])
        if len(others) == len(waiting):
            time.sleep(_PATIENCE)
        waiting = others
    return [results[job.key] for job in jobs]


def _do(job: Job, store: Store, clock: _Clock) -> Result:
    count = 0

    def on_unit(unit: Unit) -> None:
        store.add_unit(job.key, unit)

    def on_progress(done: float, units: int) -> None:
        nonlocal count
        count = units
        clock.tell(job, done / max(units, 1))

    clock.begin(job)
    try:
        result = run_task(job.task, job.runner, store.units(job.key), on_unit, on_progress)
    except CancelledError:
        raise
    except (Error, MemoryError) as error:
        sentence = " ".join(str(error).split()) or "memory: expected enough, found too little"
        result, count = dataclasses.replace(job.blank, error=sentence), 0
    store.add_result(result, count)
    clock.end(job, usual=result.error is None)
    return result


class _Clock:
    """Guesses the time left: a task takes as long as it took with other caches."""

    def __init__(self, jobs: Sequence[Job], report: Callable[[Progress], None]) -> None:
        self._jobs = jobs
        self._report = report
        self._left = {job.key: job for job in jobs}
        self._taken: dict[str, list[float]] = {}  # by task
        self._start = 0.0

    def skip(self, job: Job) -> None:
        self._left.pop(job.key, None)

    def begin(self, job: Job) -> None:
        self._start = time.monotonic()
        self.tell(job, 0.0)

    def end(self, job: Job, usual: bool) -> None:
        """A job is done; unless it failed, others of its task will take as long."""
        self._left.pop(job.key, None)
        if usual:
            self._taken.setdefault(job.task.spec, []).append(time.monotonic() - self._start)

    def tell(self, job: Job, part: float) -> None:
        done = len(self._jobs) - len(self._left) + part
        self._report(Progress(job, done, len(self._jobs), self._seconds_left(job)))

    def _seconds_left(self, current: Job) -> float | None:
        all_taken = [seconds for times in self._taken.values() for seconds in times]
        if not all_taken:
            return None
        spent = time.monotonic() - self._start
        left = 0.0
        for job in self._left.values():
            times = self._taken.get(job.task.spec, all_taken)
            usual = sum(times) / len(times)
            left += max(usual - spent, 0.0) if job is current else usual
        return left
