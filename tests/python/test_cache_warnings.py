"""Caches that are known to damage a model: told once, with what to use instead."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

import kvengine as kv


@pytest.fixture(scope="module")
def biased_path(tiny_chat_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a large bias in one channel of its keys."""
    source = kv.GgufFile(tiny_chat_path)
    writer = kv.GgufWriter.copy_of(source)
    keys = source.tensor("blk.1.attn_k.weight")
    bias = np.zeros(keys.shape[1], np.float32)
    bias[2] = 90
    writer.add_tensor("blk.1.attn_k.bias", "F32", [len(bias)], bias)
    path = tmp_path_factory.mktemp("biased") / "biased.gguf"
    writer.write(path)
    return path


def test_sessions_warn(biased_path: Path) -> None:
    model = kv.Model.load(biased_path, threads=1)
    with pytest.warns(kv.CacheWarning, match=r"1 of 2 layers .* up to 90 in a channel") as found:
        model.session(n_ctx=64, cache="int4:group=8")
    (warning,) = found
    assert warning.filename == __file__
    assert str(warning.message).count("\n") == 0
    assert model.cache_warnings("int4:group=8") == [str(warning.message)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.session(n_ctx=64, cache="int4:group=16,per=channel")
        model.session(n_ctx=64)
    with pytest.raises(kv.ConfigError):
        model.cache_warnings("int99")


def test_models_without_biases_do_not(tiny: kv.Model) -> None:
    assert tiny.cache_warnings("int2:group=8") == []


def test_commands_tell_once(cli, biased_path: Path) -> None:
    m = ("-m", biased_path, "-t", "1", "--json")
    caches = ("--cache", "int2:group=8", "--cache", "int4:group=8")
    arguments = ("bench", *m, "-p", "4", "-n", "2", "-r", "1", "--load", *caches)
    for _ in range(2):  # each command anew
        result = cli(*arguments)
        assert result.returncode == 0
        assert len(json.loads(result.stdout)) == 6
        told = [line for line in result.stderr.splitlines() if "warning" in line]
        assert len(told) == 2
        assert all(line.startswith("kvengine bench: warning: cache int") for line in told)
        assert "use best2" in told[0]
