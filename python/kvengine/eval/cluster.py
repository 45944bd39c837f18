"""A sweep over a Ray cluster (PyPI ray 2, an extra): its units are done wherever there is room.

The process that asks for it keeps the store: workers are sent a few units of a task with a cache at
a time and send back what they found, so a lost worker loses no more than those, which another does
again; no unit is kept twice. When all units are there the usual sweep has nothing left to compute.

Every machine needs this package, the model at the same path, and the data folder at the same path.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from kvengine._core import ConfigError, Error, UnsupportedError
from kvengine.eval import data
from kvengine.eval.references import References
from kvengine.eval.runner import Runner
from kvengine.eval.store import Store
from kvengine.eval.sweep import Job
from kvengine.eval.task import Task, Unit, outline, run_unit
from kvengine.model import Model

INSTALL = "pip install 'kvengine[ray]'"
_SHARDS = 8  # of a job, where it has so many units
_RETRIES = 5  # of a shard whose worker was lost
_REFERENCES = References()  # of a worker: its orders of one task share them, whatever their cache


@dataclass(frozen=True)
class Order:
    """What a worker is asked to do: some units of a task with a cache."""

    model: str
    threads: int
    cache: str
    exact: bool
    task: Task
    units: tuple[int, ...]
    key: str  # of the result that the units are for


@functools.lru_cache(maxsize=1)
def _model(path: str, threads: int) -> Model:
    return Model.load(path, threads=threads)


@functools.lru_cache(maxsize=1)
def _prepared(order_model: str, threads: int, cache: str, exact: bool, task: Task) -> Any:
    """A worker's runner, and the units of the task; kept for the next order of the same."""
    runner = Runner(_model(order_model, threads), cache, exact, _REFERENCES)
    return runner, task.units(runner)


def fulfil(order: Order) -> list[Unit] | str:
    """Do an order, in a worker; the sentence of an Error that kept it from being done."""
    try:
        runner, units = _prepared(order.model, order.threads, order.cache, order.exact, order.task)
        # With a hash of the data as it is here.
        if outline(dataclasses.replace(order.task), runner).key != order.key:
            return "worker: expected the same model, data and engine as here, found others"
        return [run_unit(order.task, runner, index, units[index]) for index in order.units]
    except Error as error:
        return str(error)


def distribute(
    jobs: Sequence[Job],
    store: Store,
    address: str,
    threads: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Have the units of jobs that are not in the store done by a cluster, and keep them there.

    What no worker could do is left out: a sweep, which is to follow, does it here, or tells why it
    cannot. Jobs that another process has claimed are left to it.

    Args:
        address: of the cluster, as ray.init() takes it; "local" starts one on this machine.
        threads: processors that an order takes.
        on_progress: called with the units done and all there are.

    Raises:
        UnsupportedError: ray is absent. Error: the cluster cannot be reached. ConfigError: no machine
            of it has so many processors.
    """
    ray = _ray()
    with contextlib.ExitStack() as stack:
        # Ray tells of lost workers on standard output, which is for results.
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        _connect(ray, address)
        stack.callback(ray.shutdown)
        most = max(
            (int(each["Resources"].get("CPU", 0)) for each in ray.nodes() if each["Alive"]),
            default=0,
        )
        if threads > most:  # such orders would wait for ever
            raise ConfigError(
                f"-t: expected at most {most}, as machines of the cluster have, found {threads}"
            )
        # Speeds are those of this machine.
        jobs = [job for job in jobs if not job.task.depends_on_machine]
        with contextlib.ExitStack() as claims:
            mine = [job for job in jobs if claims.enter_context(store.claim(job.key))]
            _distribute(ray, mine, store, threads, on_progress or (lambda done, total: None))


def _distribute(
    ray: ModuleType,
    jobs: Sequence[Job],
    store: Store,
    threads: int,
    on_progress: Callable[[int, int], None],
) -> None:
    remote = ray.remote(num_cpus=threads, max_retries=_RETRIES)(fulfil)
    orders = [(job, order) for job in jobs for order in orders_of(job, store, threads)]
    total, done = sum(len(order.units) for _, order in orders), 0
    waiting = {remote.remote(order): job for job, order in orders}
    failed: set[str] = set()
    while waiting:
        on_progress(done, total)
        (first, *_), _ = ray.wait(list(waiting), num_returns=1)
        job = waiting.pop(first)
        try:
            found = ray.get(first)
        except ray.exceptions.RayError:  # lost too often, or cancelled below
            continue
        if isinstance(found, str):
            if job.key not in failed:  # the rest would fail alike
                failed.add(job.key)
                for reference, each in waiting.items():
                    if each is job:
                        ray.cancel(reference)
            continue
        for unit in found:
            store.add_unit(job.key, unit)
        done += len(found)
    on_progress(done, total)


def orders_of(job: Job, store: Store, threads: int) -> list[Order]:
    """The units of a job that are not in the store, a few consecutive ones an order."""
    result = store.result(job.key)
    if result is not None and result.error is None:
        return []
    try:
        count = len(job.task.units(job.runner))
    except Error:  # the sweep will tell
        return []
    known = store.units(job.key)
    left = [index for index in range(count) if index not in known]
    size = max(1, -(-len(left) // _SHARDS))
    return [
        Order(
            model=os.fspath(job.runner.model.path.resolve()),
            threads=threads,
            cache=job.runner.cache,
            exact=job.runner.exact,
            task=job.task,
            units=tuple(left[start : start + size]),
            key=job.key,
        )
        for start in range(0, len(left), size)
    ]


def _ray() -> ModuleType:
    try:
        import ray
    except ImportError as error:
        raise UnsupportedError(
            f"ray: expected the Python package, found none ({error}); {INSTALL}"
        ) from None
    return ray


def _connect(ray: ModuleType, address: str) -> None:
    folder = os.environ.get(data.VARIABLE, "")
    try:
        ray.init(
            address=address,
            runtime_env={"env_vars": {data.VARIABLE: folder}},
            log_to_driver=False,
            logging_level="error",
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        sentence = " ".join(str(error).split())
        raise Error(
            f"--ray: expected a cluster at '{address[:80]}', found none ({sentence:.200})"
        ) from None
