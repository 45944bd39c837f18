"""`kvengine bench`, with engines whose times are known; the real peer is measured by hand."""

from __future__ import annotations

import json
import math
import runpy
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import kvengine as kv
from kvengine.bench import limits, machine
from kvengine.bench.engines import OwnEngine
from kvengine.bench.measure import Case, Measured, compare, measure
from kvengine.bench.report import Result

ROOT = Path(__file__).resolve().parents[2]
KEYS = ["test", "cache", "engine", "tps", "tps_median", "cache_bytes", "threads"]
MACHINE = machine.Machine(read_bytes=1e9, int8_ops=8e9, f32_ops=2e9, bf16_ops=4e9)


@pytest.fixture(autouse=True)
def known_machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring the machine takes long; one test does."""
    if request.node.name != "test_a_real_machine":
        rates = {"read_bytes": 1e9, "int8_ops": 8e9, "f32_ops": 2e9, "bf16_ops": 4e9}
        monkeypatch.setattr(machine, "machine_limits", lambda threads: rates)
    monkeypatch.setattr(machine, "BUSY", math.inf)


def test_command(cli, cli_json, m) -> None:
    arguments = ("bench", *m, "-p", "16,32", "-n", "4", "-d", "0,24", "-r", "2")
    rows = cli_json(*arguments, "--cache", "f16", "--cache", "int8:group=8,tail=4")
    # The first keys are fixed; what follows them is not.
    assert all(list(row)[: len(KEYS)] == KEYS for row in rows)
    tests = ["pp16", "pp32", "tg4", "pp16@d24", "pp32@d24", "tg4@d24"]
    assert [row["test"] for row in rows] == [name for name in tests for _ in range(2)]
    assert {row["cache"] for row in rows} == {
        "f16",
        kv.canonical_cache("int8:group=8,tail=4"),
    }
    for row in rows:
        assert len(row["tps"]) == 2
        assert min(row["tps"]) <= row["tps_median"] <= max(row["tps"])
        assert row["cache_bytes"] > 0
        assert row["threads"] == 2
        assert row["engine"] == "kvengine"
        assert row["limit"]["share"] == pytest.approx(sum(row["limit"]["shares"]) / 2)
        assert [machine["read_bytes"] for machine in row["machines"]] == [1e9, 1e9]
    for first, coded in zip(rows[::2], rows[1::2], strict=True):
        assert first["ratios"] == []
        bits, bytes = (
            [row[key] for row in (first, coded)] for key in ("bits_per_value", "cache_bytes")
        )
        assert bits[0] >= 16  # a cache as small as this is mostly bookkeeping
        assert bits[1] / bits[0] == pytest.approx(bytes[1] / bytes[0])
        (ratio,) = coded["ratios"]
        assert (ratio["engine"], ratio["cache"]) == ("kvengine", "f16")
        expected = [a / b for a, b in zip(coded["tps"], first["tps"], strict=True)]
        assert ratio["ratios"] == pytest.approx(expected)
        assert ratio["median"] == pytest.approx(sum(expected) / 2)
    result = cli(*arguments)
    assert "tg4@d24" in result.stdout
    assert "times as fast" not in result.stdout  # as nothing
    # Caches are called what they were called, and by their specs in JSON.
    table = cli("bench", *m, "-p", "4", "-n", "0", "-r", "1", "--cache", "f16", "--cache", "turbo4")
    assert " turbo4 " in table.stdout
    assert "rotation" not in table.stdout
    assert "limits measured beside the tests: 1.0 GB/s, 8.0 Gop/s int8" in result.stdout


def test_a_real_machine(cli_json, m) -> None:
    (row,) = cli_json("bench", *m, "-p", "8", "-n", "0", "-r", "1")
    (rates,) = row["machines"]
    assert all(rates[name] > 0 for name in ("read_bytes", "int8_ops", "f32_ops"))
    assert 0 < row["limit"]["share"] < 1


def test_sequences_and_loading(cli, cli_json, m) -> None:
    arguments = ("bench", *m, "-p", "0", "-n", "3", "-r", "2", "--load", "--sequences", "3")
    rows = cli_json(*arguments)
    assert [row["test"] for row in rows] == ["load32", "tg3", "tg3x3"]
    assert rows[0]["limit"] is None
    for row, tokens in ((rows[0], 32), (rows[1], 3), (rows[2], 9)):
        assert row["tps"] == pytest.approx([tokens / seconds for seconds in row["seconds"]])
    assert rows[2]["cache_bytes"] == rows[1]["cache_bytes"]  # of one sequence
    assert "first token after" in cli(*arguments).stdout
    assert cli_json("bench", *m, "-p", "0", "-n", "1", "--load", "5")[0]["test"] == "load5"


def test_a_busy_machine_is_told(cli, m, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("bench", *m, "-p", "8", "-n", "0", "-r", "1")
    monkeypatch.setattr(machine, "BUSY", 0.5)
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (0.75, 0.0, 0.0))
    assert "the machine is busy (load average 0.75" in cli(*arguments).stderr
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (0.0, 9.0, 9.0))
    assert cli(*arguments).stderr == ""


class Clockwork:
    """An engine that takes the seconds it is told to."""

    threads = 1

    def __init__(self, name: str, cache: str, seconds: list[float], log: list[str]) -> None:
        self.name, self.cache, self.batches = name, cache, name != "peer"
        self._seconds, self._log, self._at = seconds, log, 0
        self.held: list[int] = []

    def fill(self, tokens: list[int]) -> None:
        self._log.append(f"{self.name} holds {len(tokens)}")
        assert tokens[: len(self.held)] == self.held
        self.held = tokens

    def read(self, tokens: list[int]) -> float:
        return self._next(f"reads {len(tokens)}")

    def decode(self, tokens: list[int], sequences: int) -> float:
        return self._next(f"decodes {len(tokens)} x {sequences}")

    def load(self, tokens: list[int]) -> float:
        return self._next(f"loads {len(tokens)}")

    def cache_bytes(self) -> int:
        return self._at

    def cache_bits(self) -> float:
        return self._at / 8

    def _next(self, what: str) -> float:
        self._log.append(f"{self.name} {what}")
        self._at += 1
        return self._seconds[(self._at - 1) % len(self._seconds)]


def run_clockwork(engines: list[Clockwork], tests: list[Case], repetitions: int) -> list[Measured]:
    return list(
        measure(engines, tests, repetitions, 100, lambda: MACHINE, lambda *_: None, pause=0)
    )


def test_engines_take_turns() -> None:
    log: list[str] = []
    engines = [Clockwork(name, "f16", [1], log) for name in ("kvengine", "peer")]
    tests = [Case("load", 9), Case("pp", 4), Case("pp", 4, 50), Case("tg", 2, 50, 3)]
    measured = run_clockwork(engines, tests, 2)
    assert log == [
        # The warm-up, then two repetitions; who comes first changes.
        *["peer loads 9", "kvengine loads 9"],
        *["kvengine loads 9", "peer loads 9"],
        *["peer loads 9", "kvengine loads 9"],
        *["peer reads 4", "kvengine reads 4"],
        *["kvengine reads 4", "peer reads 4"],
        *["peer reads 4", "kvengine reads 4"],
        *["kvengine holds 50", "peer holds 50"],
        *["peer reads 4", "kvengine reads 4"],
        *["kvengine reads 4", "peer reads 4"],
        *["peer reads 4", "kvengine reads 4"],
        *["kvengine decodes 2 x 3"] * 3,  # the peer cannot
    ]
    names = [(each.test.name, each.engine.name) for each in measured]
    assert names == [
        ("load9", "kvengine"),
        ("load9", "peer"),
        ("pp4", "kvengine"),
        ("pp4", "peer"),
        ("pp4@d50", "kvengine"),
        ("pp4@d50", "peer"),
        ("tg2x3@d50", "kvengine"),
    ]
    assert all(len(each.seconds) == 2 for each in measured)
    assert measured[-1].tps == [6, 6]


def test_ratios_are_of_neighbours() -> None:
    log: list[str] = []
    # Both are ten times slower in the third repetition: the ratio of the medians would be 3.
    own = Clockwork("kvengine", "f16", [9, 1, 2, 10], log)
    coded = Clockwork("kvengine", "int4", [9, 1, 1, 1], log)
    peer = Clockwork("peer", "f16", [9, 2, 6, 20], log)
    measured = run_clockwork([own, coded, peer], [Case("pp", 8)], 3)
    ratios = compare(measured, "kvengine")
    # Ours beside the peer; a coded cache beside our first and the peer; the peer beside nothing.
    assert [[(ratio.engine, ratio.cache) for ratio in each] for each in ratios] == [
        [("peer", "f16")],
        [("kvengine", "f16"), ("peer", "f16")],
        [],
    ]
    assert ratios[0][0].ratios == [2, 3, 2]
    assert ratios[0][0].median == 2
    assert [ratio.ratios for ratio in ratios[1]] == [[1, 2, 10], [2, 6, 20]]
    assert ratios[1][0].median == 2
    assert [len(each) for each in compare(measured[:2], "kvengine")] == [0, 1]
    assert [each.cache_bits for each in measured] == [0.5] * 3


def test_tests_are_compared_apart() -> None:
    log: list[str] = []
    own = Clockwork("kvengine", "f16", [1, 1, 1, 4], log)
    coded = Clockwork("kvengine", "int4", [1, 2, 1, 1], log)
    peers = [Clockwork("peer", cache, [3], log) for cache in ("f16", "q8_0")]
    measured = run_clockwork([own, coded, *peers], [Case("pp", 8), Case("tg", 8)], 1)
    ratios = compare(measured, "kvengine")
    assert [[ratio.median for ratio in each] for each in ratios] == [
        *[[3, 3], [0.5, 1.5, 1.5], [], []],
        *[[0.75, 0.75], [4, 3, 3], [], []],
    ]


def test_the_machine_is_measured_beside_each_turn(tiny: kv.Model) -> None:
    """Memory that is twice as fast later makes no test look better, or worse than it was."""
    reads = iter([9e9, 1e9, 9e9, 1e9, 1e9, 2e9, 2e9])
    engines = [Clockwork(name, "f16", [1, 0.5, 0.25], []) for name in ("kvengine", "peer")]
    measured = list(
        measure(
            engines,
            [Case("tg", 4)],
            2,
            100,
            lambda: machine.Machine(next(reads), 1e15, 1e15, 1e15),
            lambda *_: None,
            pause=0,
        )
    )
    # In the turns' order: the peer's warm-up, ours, ours, the peer's, the peer's, ours.
    assert [each.read_bytes for each in measured[0].machines] == [9e9, 2e9]
    assert [each.read_bytes for each in measured[1].machines] == [1e9, 2e9]
    result = Result(measured[0], [], limits.ModelCosts(tiny, exact=False).limits(measured[0]))
    assert result.kind == "memory"
    slow, fast = (result.limits[i].tps for i in (1, 0))
    assert fast == pytest.approx(4.5 * slow)
    assert result.shares == pytest.approx([8 / fast, 16 / slow])
    assert result.limit()["share"] == pytest.approx((8 / fast + 16 / slow) / 2)


def test_repeated_lists_add_up(cli_json, cli, m) -> None:
    arguments = ("-p", "4,5", "-p", "5", "-p6", "-n", "0", "-d", "8", "-d", "0,8", "-r", "1")
    rows = cli_json("bench", *m, *arguments)
    names = ["pp4@d8", "pp5@d8", "pp6@d8", "pp4", "pp5", "pp6"]
    assert [row["test"] for row in rows] == names
    # The defaults are as they were.
    rows = cli_json("bench", *m, "-n", "2", "-r", "1", "--sequences", "3,1", "--sequences=2")
    assert [row["test"] for row in rows] == ["pp512", "tg2", "tg2x3", "tg2x2"]
    result = cli("bench", *m, "-d", "1", "-d", "-2")
    assert result.returncode == 2
    assert "-d/--n-depth" in result.stderr


def test_limits(tiny: kv.Model) -> None:
    costs = limits.ModelCosts(tiny, exact=False)
    matrices = [each for each in tiny.file.tensors if len(each.shape) == 2]
    read = [each for each in matrices if each.name != "token_embd.weight"]
    assert {each.type for each in read} == {"F32"}
    weight_bytes = sum(each.bytes for each in read)
    # Decoding: all matrices in every step, and the cache as it is on average.
    decode = costs.limit(Case("tg", 10, 90), 100_000, MACHINE)
    assert decode.kind == "memory"
    assert decode.tps == pytest.approx(MACHINE.read_bytes / (weight_bytes + 95_000))
    # Eight sequences share the weights but not the caches.
    eight = costs.limit(Case("tg", 10, 90, 8), 100_000, MACHINE)
    assert eight.tps == pytest.approx(8 * MACHINE.read_bytes / (weight_bytes + 8 * 95_000))
    # Prefill: every weight times every token, logits once, attention to all that came before.
    head = next(each for each in read if each.name == "output.weight")
    body = sum(each.elements for each in read) - head.elements
    layer = tiny.layers[0]
    pairs = sum(range(31, 31 + 200))
    attention = (
        len(tiny.layers) * 2 * layer["n_heads"] * (layer["head_dim"] + layer["value_dim"]) * pairs
    )
    assert costs.attention_operations(30, 200) == attention
    prefill = costs.limit(Case("pp", 200, 30), 0, MACHINE)
    assert prefill.kind == "compute"
    operations = 2 * body * 200 + 2 * head.elements + attention
    assert prefill.tps == pytest.approx(200 * MACHINE.bf16_ops / operations)
    exact = limits.ModelCosts(tiny, exact=True).limit(Case("pp", 200, 30), 0, MACHINE)
    assert exact.tps == pytest.approx(200 * MACHINE.f32_ops / operations)
    assert costs.limit(Case("load", 32), 0, MACHINE) is None


def test_limits_of_quantized_windowed_and_tied_models(tmp_path: Path) -> None:
    layers = [{"n_heads": 2, "head_dim": 8, "value_dim": 4, "window": window} for window in (0, 3)]
    tensors = [
        types.SimpleNamespace(name=name, type=kind, shape=[1] * n, bytes=bytes, elements=elements)
        for name, kind, n, bytes, elements in [
            ("token_embd.weight", "Q8_0", 2, 1000, 900),
            ("blk.0.ffn_up.weight", "Q4_0", 2, 300, 500),
            ("blk.0.ffn_norm.weight", "F32", 1, 40, 10),
            ("blk.0.attn_q.weight", "BF16", 2, 70, 35),
        ]
    ]
    file = types.SimpleNamespace(tensors=tensors)
    model = types.SimpleNamespace(layers=layers, file=file, backend="cpu-avx2")
    costs = limits.ModelCosts(model, exact=False)  # type: ignore[arg-type]
    # Positions 5 to 7 see 6, 7, 8 tokens, or three through the window.
    assert costs.attention_operations(5, 3) == 2 * 2 * 12 * (6 + 7 + 8 + 9)
    memory = costs.limit(Case("tg", 4), 0, MACHINE)
    assert memory.tps == pytest.approx(1e9 / (1000 + 300 + 70))
    fast = machine.Machine(1e15, 8e9, 2e9, 0)
    compute = costs.limit(Case("tg", 1), 0, fast)
    seconds = 2 * (500 + 900) / 8e9 + (2 * 35 + 2 * 2 * 12 * 2) / 2e9
    assert (compute.kind, compute.tps) == ("compute", pytest.approx(1 / seconds))


def test_own_engine(tiny: kv.Model) -> None:
    engine = OwnEngine(tiny, "f16", 256, exact=False)
    engine.fill(list(range(20)))
    before = engine.cache_bytes()
    assert engine.read(list(range(200))) > 0
    assert engine.cache_bytes() > before
    assert engine.cache_bits() >= 16
    assert engine.decode([1, 2], 2) > 0
    assert engine.load([1, 2, 3]) > 0
    engine.fill([9, 9])
    assert engine._base.n_tokens == 2


def test_what_is_filled_is_one_prompt(tiny: kv.Model) -> None:
    """A deeper fill does not go on from what an earlier one has left: both are dropped from."""
    engine = OwnEngine(tiny, "knorm:keep=0.25,sinks=0,recent=1", 512, exact=False)
    for n in (80, 200, 200):
        engine.fill(list(range(n)))
        assert engine._base.n_tokens == n
        assert len(engine._base.cache.positions(0, 0)) == n // 4
        engine.decode([1, 2, 3], 1)
        assert len(engine._last.cache.positions(0, 0)) == n // 4 + 3
        assert len(engine._base.cache.positions(0, 0)) == n // 4


def test_machine_limits() -> None:
    rates = kv.machine_limits(threads=1, isa="scalar")
    assert list(rates) == ["read_bytes", "int8_ops", "f32_ops", "bf16_ops"]
    assert all(rate >= 0 for rate in rates.values())
    with pytest.raises(kv.ConfigError):
        kv.machine_limits(threads=-1)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K_M", "Q8_0"])
def test_made_models(kind: str, tiny_path: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")

    def make(name: str, *arguments: str) -> Path:
        command = [sys.executable, ROOT / "tools" / "bench" / "make_model.py", tmp_path / name]
        shape = {"d-model": 256, "layers": 9, "heads": 4, "kv-heads": 2, "ffn": 512, "context": 99}
        command += [f"--{key}={value}" for key, value in shape.items()]
        subprocess.run(
            [*command, "--type", kind, "--vocabulary", tiny_path, *arguments], check=True
        )
        return tmp_path / name

    path = make("a.gguf")
    model = kv.Model.load(path, threads=1)
    assert (model.d_model, model.n_layers, model.n_ctx) == (256, 9, 99)
    logits = model.session().forward([1, 2, 3])
    assert np.isfinite(logits).all()
    assert logits.std() > 0.1
    found = {each.name: each.tensor_type.name for each in gguf.GGUFReader(path).tensors}
    assert found["blk.0.attn_q.weight"] == kind.removesuffix("_M")
    assert found["output.weight"] == ("Q8_0" if kind == "Q8_0" else "Q6_K")
    if kind == "Q4_K_M":
        down = [found[f"blk.{i}.ffn_down.weight"] for i in range(9)]
        assert set(down) == {"Q4_K", "Q6_K"}
    assert make("b.gguf").read_bytes() == path.read_bytes()
    assert make("c.gguf", "--seed", "1").read_bytes() != path.read_bytes()


def test_tensors_added_from_python(tmp_path: Path) -> None:
    values = np.arange(64, dtype=np.float32).reshape(2, 32)
    writer = kv.GgufWriter()
    writer.add_tensor("plain", "F32", [32, 2], values)
    writer.add_tensor("made", "Q8_0", [32, 2], lambda: kv.encode_weights("Q8_0", values))
    writer.write(tmp_path / "a.gguf")
    file = kv.GgufFile(tmp_path / "a.gguf")
    np.testing.assert_array_equal(file.tensor("plain").decode(), values)
    np.testing.assert_allclose(file.tensor("made").decode(), values, atol=0.3)
    with pytest.raises(kv.ConfigError, match="twice"):
        writer.add_tensor("plain", "F32", [1], np.zeros(1, np.float32))
    with pytest.raises(kv.ConfigError, match="weight type"):
        writer.add_tensor("other", "Q9", [32], b"")
    for bad, error in (
        (b"short", kv.ConfigError),
        (lambda: 3, TypeError),
        (lambda: 1 / 0, ZeroDivisionError),
    ):
        broken = kv.GgufWriter()
        broken.add_tensor("bad", "F32", [4], bad)
        with pytest.raises(error):
            broken.write(tmp_path / "bad.gguf")
        assert not (tmp_path / "bad.gguf").exists()


def test_plot(tmp_path: Path) -> None:
    script = ROOT / "tools" / "bench" / "plot_depth.py"
    plot = runpy.run_path(str(script))

    def row(test: str, engine: str, tps: float, cache: str = "f16") -> dict[str, object]:
        return {
            **{"test": test, "engine": engine, "cache": cache, "tps_median": tps},
            **{"model": "m.gguf", "threads": 2},
        }

    rows = [
        row("tg32@d64", "kvengine", 20),
        row("tg32", "kvengine", 30),
        row("tg32", "peer", 10),
        row("pp8@d64", "kvengine", 5, "int4"),
        row("tg32x8", "kvengine", 99),
        row("load32", "kvengine", 99),
    ]
    assert plot["read_series"]([rows[:2], rows[2:]]) == {
        "tg32": {"kvengine f16": [(0, 30), (64, 20)], "peer f16": [(0, 10)]},
        "pp8": {"kvengine int4": [(64, 5)]},
    }
    source = tmp_path / "bench.json"
    out = tmp_path / "plot.svg"
    source.write_text("[{}]")
    assert plot["main"]([str(source), "-o", str(out)]) == 2
    source.write_text(json.dumps(rows[-2:]))
    assert plot["main"]([str(source), "-o", str(out)]) == 2
    assert not out.exists()
    pytest.importorskip("matplotlib")
    source.write_text(json.dumps(rows))
    assert plot["main"]([str(source), "-o", str(out)]) == 0
    first = out.read_bytes()
    assert b"<svg" in first
    assert plot["main"]([str(source), "-o", str(out)]) == 0
    assert out.read_bytes() == first
