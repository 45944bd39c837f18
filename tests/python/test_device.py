"""Where a model is computed. These tests pass with and without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvengine as kv


def has_gpu(path: Path) -> bool:
    return kv.Model.load(path, threads=1, device="auto").device == "cuda"


def test_the_cpu_is_the_default(tiny: kv.Model) -> None:
    assert (tiny.device, tiny.device_note) == ("cpu", "")
    assert tiny.backend.startswith("cpu-")


def test_an_unknown_device_is_a_config_error(tiny_path: Path) -> None:
    with pytest.raises(kv.ConfigError, match="device: expected cpu, cuda or auto, found 'gpu'"):
        kv.Model.load(tiny_path, device="gpu")


def test_auto_says_why_it_is_the_cpu(tiny_path: Path) -> None:
    model = kv.Model.load(tiny_path, threads=1, device="auto")
    if model.device == "cuda":
        pytest.skip("there is a GPU")
    assert "the CPU computes" in model.device_note
    with pytest.raises(kv.DeviceError):
        kv.Model.load(tiny_path, device="cuda")


def test_a_gpu_gives_what_the_cpu_gives(tiny: kv.Model, tiny_path: Path) -> None:
    if not has_gpu(tiny_path):
        pytest.skip("there is no GPU, or this build does not know it")
    tokens = tiny.tokenizer.encode("The cache keeps the token.")
    gpu = kv.Model.load(tiny_path, device="cuda")
    expected = tiny.session(exact=True).forward(tokens, all_logits=True)
    found = gpu.session(exact=True).forward(tokens, all_logits=True)
    np.testing.assert_allclose(found, expected, atol=5e-3 * np.ptp(expected))


def test_the_command_line_without_a_gpu(cli: Callable[..., Any], tiny_path: Path) -> None:
    if has_gpu(tiny_path):
        pytest.skip("there is a GPU")
    generate = ("generate", "-m", tiny_path, "-p", "ab", "-n", "2")
    for flags in (("--device", "cuda"), ("-ngl", "99"), ("-ngl", "-1")):
        found = cli(*generate, *flags)
        assert found.returncode == 2
        assert "cuda" in found.stderr
    found = cli(*generate, "--device", "auto")
    assert found.returncode == 0
    assert "device auto: the CPU computes" in found.stderr
    assert cli(*generate, "-ngl", "0").returncode == 0
