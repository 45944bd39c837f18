"""A sweep over a Ray cluster, whose workers are lost on the way."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli, optional_module

import kvengine as kv
from kvengine.eval import cluster
from kvengine.eval.cluster import Order, fulfil, orders_of
from kvengine.eval.references import References
from kvengine.eval.runner import Runner
from kvengine.eval.store import Store
from kvengine.eval.sweep import jobs_of, sweep
from kvengine.eval.task import outline, parse

TASKS = "kld:context=128,feed=1,limit=16,perplexity:context=64,feed=1,limit=30"


def test_orders_are_what_is_left(tiny: kv.Model, corpus: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "out")
    (job,) = jobs_of(tiny, ["int4:group=8,tail=0"], [parse("perplexity:context=64,limit=20")])
    orders = orders_of(job, store, threads=1)
    assert [order.units for order in orders][:2] == [(0, 1, 2), (3, 4, 5)]
    assert [index for order in orders for index in order.units] == list(range(20))
    found = fulfil(orders[1])
    assert isinstance(found, list)
    for unit in found:
        store.add_unit(job.key, unit)
    left = [index for order in orders_of(job, store, 1) for index in order.units]
    assert left == [0, 1, 2, *range(6, 20)]
    whole = sweep([job], Store(tmp_path / "alone"))[0]
    assert [item for unit in found for item in unit.items] == whole.items[3:6]
    sweep([job], store)
    assert orders_of(job, store, 1) == []


def test_an_order_that_cannot_be_done_says_why(tiny: kv.Model, corpus: Path) -> None:
    task = parse("perplexity:context=64,limit=1")
    cache = kv.canonical_cache("int4:group=128")
    key = outline(task, Runner(tiny, cache)).key
    found = fulfil(Order(str(tiny.path), 1, cache, False, task, (0,), key))
    assert isinstance(found, str)
    assert "group" in found
    found = fulfil(Order(str(tiny.path), 1, cache, False, task, (0,), "of another model"))
    assert isinstance(found, str)
    assert "expected the same model, data and engine" in found


def test_orders_share_the_reference(
    tiny: kv.Model, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_REFERENCES", References())
    monkeypatch.setattr(cluster, "_prepared", cluster._prepared.__wrapped__)
    opened: list[str] = []
    session = kv.Model.session

    def counted(self: kv.Model, n_ctx: int, cache: str, *args: Any, **options: Any) -> Any:
        opened.append(cache)
        return session(self, n_ctx, cache, *args, **options)

    monkeypatch.setattr(kv.Model, "session", counted)
    caches = ["int4:group=8,tail=0", "int8:group=8,tail=0"]
    store = Store(tmp_path / "out")
    for job in jobs_of(tiny, caches, [parse("kld:context=64,limit=2")]):
        for order in orders_of(job, store, threads=1):
            assert isinstance(fulfil(order), list)
    assert opened.count("f32") == 2  # windows


def workers_of_ours() -> list[int]:
    """Processes below this one that do an order."""
    parents, working = {}, []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            name = (path / "cmdline").read_bytes()
            status = (path / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(path.name)] = int(status[1])
        if name.startswith(b"ray::fulfil"):
            working.append(int(path.name))

    def ours(process: int) -> bool:
        while process not in (0, os.getpid()):
            process = parents.get(process, 0)
        return process != 0

    return [process for process in working if ours(process)]


def test_workers_may_be_killed(
    cli: Cli, tiny: kv.Model, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optional_module("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", str(Path(kv.__file__).parents[1]))
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        while not over.is_set() and len(killed) < 2:
            for process in workers_of_ours():
                if process not in killed:
                    os.kill(process, signal.SIGKILL)
                    killed.append(process)
                    break
            time.sleep(0.05)

    killer = threading.Thread(target=kill)
    killer.start()
    arguments = ("compare", "-m", tiny.path, "--tasks", TASKS, "--caches", "f16,int4:group=128")
    try:
        found = cli(*arguments, "--out", tmp_path / "out", "--ray", "local")
    finally:
        over.set()
        killer.join()
    assert len(killed) == 2
    assert found.returncode == 1  # one of the caches does not suit the model
    assert "2 of 4 results failed" in found.stderr
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    units = [json.loads(line) for line in lines if '"unit"' in line]
    done = [(each["key"], each["unit"]["index"]) for each in units]
    assert len(done) == len(set(done)) == 46
    monkeypatch.delenv("PYTHONPATH")
    alone = cli(*arguments, "--out", tmp_path / "alone", "-t", "1")
    assert found.stdout == alone.stdout


def test_a_cluster_that_is_not_there(cli: Cli, tiny: kv.Model, corpus: Path) -> None:
    optional_module("ray")
    found = cli(
        "compare",
        "-m",
        tiny.path,
        "--tasks",
        TASKS,
        "--out",
        corpus.parent / "out",
        *("--ray", "nowhere:1x"),
    )
    assert found.returncode in (1, 2)
    assert found.stderr.count("\n") == 1
    assert "--ray" in found.stderr
