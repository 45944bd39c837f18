"""`kvengine bench --peer`, with a stand-in for the package; the real one is measured by hand."""

from __future__ import annotations

import math
import sys
import types
from typing import ClassVar

import numpy as np
import pytest

from kvengine.bench import machine


@pytest.fixture(autouse=True)
def known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring the machine takes long."""
    rates = {"read_bytes": 1e9, "int8_ops": 8e9, "f32_ops": 2e9, "bf16_ops": 4e9}
    monkeypatch.setattr(machine, "machine_limits", lambda threads: rates)
    monkeypatch.setattr(machine, "BUSY", math.inf)


class FakeLlama:
    """As much of llama_cpp.Llama as the bench uses; remembers what was asked."""

    made: ClassVar[list[FakeLlama]] = []

    def __init__(self, **options: object) -> None:
        self.options, self.n_tokens, self.ctx, self.closed = options, 0, self, False
        self.evaluated: list[tuple[int, int]] = []
        FakeLlama.made.append(self)

    def eval(self, tokens: list[int]) -> None:
        self.evaluated.append((self.n_tokens, len(tokens)))
        self.n_tokens += len(tokens)

    def n_vocab(self) -> int:
        return 7

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def llama_cpp(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    FakeLlama.made.clear()
    fake = types.SimpleNamespace(
        Llama=FakeLlama,
        GGML_TYPE_F16=1,
        GGML_TYPE_Q8_0=8,
        GGML_TYPE_BF16=30,
        __version__="9.9",
        llama_synchronize=lambda ctx: None,
        llama_state_seq_get_size=lambda ctx, sequence: 100 * ctx.n_tokens,
        llama_get_logits_ith=lambda ctx, i: np.zeros(7, np.float32).ctypes.data_as(
            np.ctypeslib.ctypes.POINTER(np.ctypeslib.ctypes.c_float)
        ),
    )
    monkeypatch.setitem(sys.modules, "llama_cpp", fake)
    return fake


def test_peer(cli, cli_json, m, llama_cpp: types.SimpleNamespace) -> None:
    arguments = ("bench", *m, "-p", "16", "-n", "2", "-d", "0,8", "-r", "2", "--cache", "f16")
    arguments += ("--cache", "int8:group=8", "--peer", "llama-cpp-python")
    rows = cli_json(*arguments)
    peer_name = "llama-cpp-python 9.9"
    names = ["kvengine", "kvengine", peer_name, peer_name]
    assert [row["engine"] for row in rows] == names * 4
    # llama.cpp has no int8: its q8_0 stands in. This one has no q4_0.
    assert [row["cache"] for row in rows[2:4]] == ["f16", "q8_0"]
    own, coded, peer, coded_peer = rows[8:12]
    assert (peer["ratios"], peer["bits_per_value"]) == ([], 16)
    assert (coded_peer["ratios"], coded_peer["bits_per_value"]) == ([], 8.5)
    for row, others in ((own, [peer, coded_peer]), (coded, [own, peer, coded_peer])):
        for ratio, other in zip(row["ratios"], others, strict=True):
            assert (ratio["engine"], ratio["cache"]) == (other["engine"], other["cache"])
            expected = [a / b for a, b in zip(row["tps"], other["tps"], strict=True)]
            assert ratio["ratios"] == pytest.approx(expected)
    assert peer["cache_bytes"] == 100 * (8 + 16)
    assert math.isfinite(peer["limit"]["share"])
    llama, coded_llama = FakeLlama.made
    options = coded_llama.options
    assert (options["type_k"], options["type_v"], options["flash_attn"]) == (8, 8, True)
    assert llama.options["n_threads"] == llama.options["n_threads_batch"] == 2
    assert (llama.options["type_k"], llama.options["type_v"]) == (1, 1)
    # A warm-up and two repetitions of each test, from the same depth, which is filled once.
    shallow = [*[(0, 16)] * 3, *[(0, 1), (1, 1)] * 3]
    deep = [(0, 8), *[(8, 16)] * 3, *[(8, 1), (9, 1)] * 3]
    assert llama.evaluated == shallow + deep
    table = cli(*arguments).stdout
    for at, other in enumerate(
        ("kvengine with f16", f"{peer_name} with f16", f"{peer_name} with q8_0")
    ):
        assert f"[{'abc'[at]}] times as fast as {other}\n" in table
    header, _, coded_row = (table.splitlines()[i] for i in (2, 3, 4))
    for column in ("[a]", "[b]", "[c]"):
        start = header.index(column)
        assert float(coded_row[start:].split()[0].removesuffix("x")) > 0


def test_peer_with_the_same_caches(cli_json, m, llama_cpp: types.SimpleNamespace) -> None:
    arguments = ("bench", *m, "-p", "8", "-n", "0", "-r", "1", "--peer", "llama-cpp-python")
    rows = cli_json(*arguments, "--cache", "bf16", "--cache", "k=f16+v=bf16")
    names = [row["cache"] for row in rows]
    assert names[:2] == names[2:]
    assert [row["bits_per_value"] for row in rows[2:]] == [16, 16]
    types = [(llama.options["type_k"], llama.options["type_v"]) for llama in FakeLlama.made]
    assert types == [(30, 30), (1, 30)]


def test_a_cache_that_the_peer_refuses(cli, m, llama_cpp: types.SimpleNamespace) -> None:
    refused = {8}

    class Picky(FakeLlama):
        def __init__(self, **options: object) -> None:
            if options["type_k"] in refused:
                raise ValueError("no context")
            super().__init__(**options)

    llama_cpp.Llama = Picky
    arguments = ("bench", *m, "-p", "8", "-n", "0", "-r", "1", "--peer", "llama-cpp-python")
    result = cli(*arguments, "--cache", "int8:group=8")
    assert result.returncode == 0
    assert "with q8_0 (no context)" in result.stderr
    assert "with f16" in result.stdout
    refused.add(1)
    result = cli(*arguments, "--cache", "f16")
    assert result.returncode == 2
    assert "--peer" in result.stderr


def test_peer_loading(cli_json, m, llama_cpp: types.SimpleNamespace) -> None:
    arguments = ("bench", *m, "-p", "0", "-n", "0", "-r", "1", "--load", "6", "--sequences", "2")
    rows = cli_json(*arguments, "--peer", "llama-cpp-python")
    assert [row["test"] for row in rows] == ["load6", "load6"]
    assert rows[1]["cache_bytes"] == 600
    _, *loaded = FakeLlama.made
    assert [each.evaluated for each in loaded] == [[(0, 6)]] * 2
    assert all(each.closed for each in loaded)


def test_a_peer_that_is_not_there(cli, m, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    result = cli("bench", *m, "--peer", "llama-cpp-python")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "CMAKE_ARGS" in result.stderr
