"""Results on disk: what is kept, what survives a kill, and who works on what."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import kvengine as kv
from kvengine.eval.store import Store
from kvengine.eval.sweep import jobs_of, sweep
from kvengine.eval.task import Result, Unit, parse

BLANK = Result(
    model={"fingerprint": "00", "name": "tiny", "architecture": "llama"},
    cache="f16",
    exact=False,
    task="kld",
    name="kld",
    parameters={"lengths": [1, 2], "limit": None},
    version=1,
    data_hash="ab",
    seed=0,
    engine="1",
    primary="kld_mean",
    higher_is_better=False,
    metrics={},
    items=[],
    seconds=0.0,
    cache_stats=None,
)
UNITS = [Unit(i, [{"i": i, "text": "ä\ud800\n", "x": float("inf")}], 0.5, None) for i in range(3)]
DONE = dataclasses.replace(BLANK, metrics={"kld_mean": 0.25}, seconds=1.5)


def filled(folder: Path) -> Store:
    store = Store(folder)
    for unit in UNITS:
        store.add_unit(DONE.key, unit)
    store.add_result(DONE, len(UNITS))
    return store


def test_what_was_kept_is_found(tmp_path: Path) -> None:
    store = filled(tmp_path / "a" / "b")
    for each in (store, Store(tmp_path / "a" / "b")):
        found = each.result(DONE.key)
        assert found is not None
        assert found.metrics == DONE.metrics
        assert found.value == 0.25
        assert [item["i"] for item in found.items] == [0, 1, 2]
        assert found.items[0]["x"] == float("inf")
        assert each.results() == [found]
        assert each.result("other") is None
        assert list(each.units(DONE.key)) == [0, 1, 2]
        assert each.torn_lines == 0


def test_every_cut_of_the_file_loses_one_line_at_most(tmp_path: Path) -> None:
    data = filled(tmp_path / "whole").path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
    for cut in range(0, len(data), 7):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / "results.jsonl").write_bytes(data[:cut])
        store = Store(folder)
        complete = sum(end <= cut for end in ends)
        assert len(store.units(DONE.key)) == min(complete, 3)
        assert (store.result(DONE.key) is not None) == (complete == 4)
        store.add_unit("next", UNITS[0])  # does not go on in the torn line
        again = Store(folder)
        assert len(again.units("next")) == 1
        complete = sum(end - 1 <= cut for end in ends)  # its end may be all that a line lacked
        assert len(again.units(DONE.key)) == min(complete, 3)
        assert again.torn_lines == (cut not in (0, *ends, *(end - 1 for end in ends)))


@pytest.mark.parametrize(
    "line",
    ["[]", "7", "{}", '{"key": "a"}', '{"key": "a", "unit": {}}', '{"key": "a", "result": 1}']
    + ["\x00\x00", '{"key": "a", "result": {}, "units": 1}', "\xff"],
)
def test_lines_that_say_nothing_are_skipped(tmp_path: Path, line: str) -> None:
    store = filled(tmp_path)
    with store.path.open("ab") as file:
        file.write(line.encode("latin-1") + b"\n")
    store.add_unit("next", UNITS[1])
    again = Store(tmp_path)
    assert again.torn_lines == 1
    assert again.result(DONE.key) is not None
    assert 1 in again.units("next")


def test_others_are_heard(tmp_path: Path) -> None:
    one, other = Store(tmp_path), Store(tmp_path)
    one.add_unit("a", UNITS[0])
    assert other.units("a") == {}
    other.refresh()
    assert list(other.units("a")) == [0]


def test_a_later_result_counts(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add_result(dataclasses.replace(BLANK, error="no memory"), 0)
    assert Store(tmp_path).result(DONE.key).error == "no memory"
    for unit in UNITS:
        store.add_unit(DONE.key, unit)
    store.add_result(DONE, 3)
    assert store.result(DONE.key).error is None
    assert len(Store(tmp_path).results()) == 1


def test_a_key_is_claimed_once(tmp_path: Path) -> None:
    one, other = Store(tmp_path), Store(tmp_path)
    with one.claim("a") as mine:
        assert mine
        with other.claim("a") as too, other.claim("b") as free:
            assert not too
            assert free
    with other.claim("a") as mine:
        assert mine


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(kv.IoError, match="folder that can be written"):
        Store(tmp_path / "file")
    with pytest.raises(kv.IoError, match="folder that can be written"):
        Store(tmp_path / "file" / "below")


SWEEP = """
import sys
import kvengine as kv
from kvengine.eval.store import Store
from kvengine.eval.sweep import jobs_of, sweep
from kvengine.eval.task import parse

model = kv.Model.load(sys.argv[1], threads=1)
tasks = [parse("perplexity:context=64,limit=5,feed=8"), parse("kld:context=64,limit=5,feed=8")]
jobs = jobs_of(model, ["f16", "int4:group=8,tail=0"], tasks)
print("ready", flush=True)
for result in sweep(jobs, Store(sys.argv[2])):
    print(result.key, result.metrics[result.primary], flush=True)
"""


def start(tiny_path: Path, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SWEEP), str(tiny_path), str(folder)],
        stdout=subprocess.PIPE,
        text=True,
    )


def units_done(folder: Path) -> list[tuple[str, int]]:
    results = folder / "results.jsonl"
    lines = results.read_text().splitlines() if results.exists() else []
    documents = [json.loads(line) for line in lines if line.endswith("}")]
    return [(each["key"], each["unit"]["index"]) for each in documents if "unit" in each]


def test_a_killed_sweep_goes_on(tiny_path: Path, corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    for wanted in (1, 4, 9, 14):
        process = start(tiny_path, folder)
        assert process.stdout is not None
        process.stdout.readline()
        while process.poll() is None and len(units_done(folder)) < wanted:
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    last = start(tiny_path, folder)
    out, _ = last.communicate(timeout=120)
    assert last.returncode == 0
    done = units_done(folder)
    assert len(done) == len(set(done)) == 20  # nothing lost, nothing twice
    model = kv.Model.load(tiny_path, threads=1)
    tasks = [parse(f"{name}:context=64,limit=5,feed=8") for name in ("perplexity", "kld")]
    jobs = jobs_of(model, ["f16", "int4:group=8,tail=0"], tasks)
    at_once = sweep(jobs, Store(tmp_path / "at-once"))
    assert out.split()[1:] == [
        str(each) for result in at_once for each in (result.key, result.value)
    ]


def test_two_processes_share_the_work(tiny_path: Path, corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    processes = [start(tiny_path, folder) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0] == outputs[1]
    done = units_done(folder)
    assert len(done) == len(set(done)) == 20
    assert len(Store(folder).results()) == 4


def test_a_cache_that_fails_does_not_stop_the_others(
    tiny: kv.Model, corpus: Path, tmp_path: Path
) -> None:
    # Groups of 128 values do not fit heads of fewer.
    jobs = jobs_of(tiny, ["int4:group=128", "f16"], [parse("perplexity:context=64,limit=1")])
    seen: list[bool] = []
    store = Store(tmp_path / "out")
    failed, fine = sweep(jobs, store, on_result=lambda result, known: seen.append(known))
    assert failed.error is not None
    assert failed.value is None
    assert fine.error is None
    again: list[bool] = []
    sweep(jobs, store, on_result=lambda result, known: again.append(known))
    assert seen == [False, False]
    assert again == [True, False]  # the fine one is known, the other is tried again


def test_progress_tells_the_time_left(tiny: kv.Model, corpus: Path, tmp_path: Path) -> None:
    told = []
    jobs = jobs_of(tiny, ["f16", "int8:group=8"], [parse("perplexity:context=64,limit=2")])
    assert len(jobs_of(tiny, ["f16", "f16"], [parse("perplexity")] * 2)) == 1
    sweep(jobs, Store(tmp_path / "out"), told.append)
    assert told[0].seconds_left is None
    assert told[-1].seconds_left is not None
    assert [each.done for each in told] == sorted(each.done for each in told)
    assert told[0].done == 0
    assert told[-1].done == told[-1].jobs == 2
