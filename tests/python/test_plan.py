"""--cache auto: a budget in, a plan out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, Cli

import kvengine as kv
from kvengine.eval.calibration import Calibration, calibrate

IDS = [int(i) for i in np.random.default_rng(4).integers(3, 200, 250)]


def test_session_stays_in_its_budget(tiny: kv.Model) -> None:
    least = 40_000  # of 256 tokens; most of it rows that are not coded yet
    with pytest.raises(kv.ConfigError, match="expected at least"):
        tiny.session(cache="auto", kv_budget=least // 10)
    plan = tiny.plan_cache(str(10 * least))
    session = tiny.session(cache="auto", kv_budget=10 * least)
    assert session.cache.spec == plan.spec
    session.forward(IDS)
    assert session.cache.stats().peak_bytes <= plan.bytes <= 10 * least
    assert len(plan.layers) == tiny.n_layers


def test_auto_and_budget_belong_together(tiny: kv.Model) -> None:
    with pytest.raises(kv.ConfigError, match="together"):
        tiny.session(cache="auto")


def test_any_cache_stays_in_a_budget(tiny: kv.Model) -> None:
    plain = tiny.session(cache="int8:tail=8,group=8", kv_budget=36_000)
    with pytest.raises(kv.CapacityError, match="memory limit of 36000 bytes"):
        for i in range(0, len(IDS), 10):
            plain.forward(IDS[i : i + 10])
    tiers = tiny.session(cache="int8:tail=8,group=8+int2:group=8,older=100000", kv_budget="36000")
    for i in range(0, len(IDS), 10):
        tiers.forward(IDS[i : i + 10])
    assert tiers.cache.stats().peak_bytes <= 36_000
    with pytest.raises(kv.ConfigError, match="expected a size"):
        tiny.session(kv_budget="much")


def test_command_line(tiny_path: Path, cli: Cli, cli_json) -> None:
    base = ("-m", tiny_path, "-p", "the lamp", "-n", 4)
    document = cli_json("generate", *base, "--cache", "auto", "--kv-budget", "1MiB")
    assert document["cache"]["bytes"] <= 1 << 20
    said = cli("generate", *base, "--cache", "auto", "--kv-budget", "bits=44").stderr
    assert "layers 0-1: keys f16, values f16" in said


@pytest.mark.parametrize(
    "flags",
    [
        ("--cache", "auto"),
        ("--kv-budget", "-1MiB"),
        ("--kv-budget", "10"),
        ("--cache", "auto", "--kv-budget", "much"),
        ("--cache", "auto", "--kv-budget", "10"),
        ("--cache", "auto", "--kv-budget", "1GiB", "--kv-calibration", "/nonexistent"),
        ("--cache", "auto", "--kv-budget", "1GiB", "--kv-calibration", "/dev/zero"),
        ("--cache", "auto", "--kv-budget", "1GiB", "--kv-calibration", "/"),
        ("--cache", "auto", "--kv-budget", "1GiB", "-ctk", "f16"),
    ],
)
def test_bad_usage(tiny_path: Path, cli: Cli, flags: tuple[str, ...]) -> None:
    result = cli("generate", "-m", tiny_path, "-p", "the", "-n", 1, *flags)
    assert result.returncode == 2
    assert result.stderr.startswith("kvengine") and "Traceback" not in result.stderr


def longer_context(target: Path) -> Path:
    writer = kv.GgufWriter.copy_of(kv.GgufFile(TINY / "llama-head-dim.gguf"))
    writer.set("llama.context_length", 4096, "u32")
    writer.write(target)
    return target


def test_calibration(tmp_path: Path, cli: Cli, cli_json) -> None:
    path = longer_context(tmp_path / "long.gguf")
    text, file = tmp_path / "text.txt", tmp_path / "calibration.json"
    words = [
        "the",
        "lamp",
        "was",
        "lit",
        "and",
        "the",
        "grey",
        "ship",
        "went",
        "out",
        "into",
        "the",
        "morning",
    ]
    random = np.random.default_rng(6)
    text.write_text(" ".join(random.choice(words) for _ in range(3000)))
    document = cli_json("calibrate", "-m", path, "-f", text, "-o", file)
    model = kv.Model.load(path, threads=2)
    found = Calibration.read(file, model)
    assert document["damage"] == found.damage
    assert len(found.damage) == 2 * model.n_layers
    assert all(value > 0 for value in found.damage)
    plan = model.plan_cache("bits=10", 4096, damage=found.damage)
    assert plan.bytes <= 10 / 8 * 4096 * model.file["llama.block_count"] * 2 * sum(
        layer["n_kv_heads"] * layer["head_dim"] for layer in model.layers[:1]
    )
    flags = ("-c", 4096, "--cache", "auto", "--kv-budget", "bits=10", "--kv-calibration", file)
    assert "cache auto: at most" in cli("generate", "-m", path, "-p", "a", "-n", 1, *flags).stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [path.name, text.name, file.name]
    )
    with pytest.raises(kv.IoError):
        found.write(tmp_path / "missing" / "calibration.json")
    # Another model's, and files that are none.
    with pytest.raises(kv.ConfigError, match="another's"):
        Calibration.read(file, kv.Model.load(TINY / "llama-mha.gguf"))
    file.write_text(json.dumps({"damage": [1]}))
    with pytest.raises(kv.FormatError):
        Calibration.read(file, model)
    with pytest.raises(kv.ConfigError, match="1024 or more"):
        calibrate(model, "text", 100)
    with pytest.raises(kv.ConfigError, match="at least 1024 tokens"):
        calibrate(model, "text")
