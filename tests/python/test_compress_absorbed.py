"""`kvengine compress` of models without RoPE: keys are absorbed into the weights, with nothing left
to do at run time (arXiv 2406.07056)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, Cli

import kvengine as kv
from kvengine.compress import HeadOptions, compress_kv_heads

BLOOM = TINY / "bloom-base.gguf"  # 6 heads of 8
GPT2 = TINY / "gpt2-base.gguf"  # 4 heads of 8
MPT = TINY / "mpt-clamp.gguf"
IDS = [int(i) for i in np.random.default_rng(3).integers(3, 200, 48)]
TEXT = "the lamp was lit and the ship went out into the grey morning " * 40
SAME = 1e-4  # logits are of size one

heads = pytest.mark.parametrize(
    ("source", "n_heads"), [(BLOOM, 6), (GPT2, 4)], ids=["alibi", "gpt"]
)


def logits(path: Path) -> np.ndarray:
    session = kv.Model.load(path, threads=2).session(cache="f32", exact=True)
    return np.array(session.forward(IDS, all_logits=True))


def cache_bytes(path: Path) -> int:
    session = kv.Model.load(path, threads=2).session(cache="f16")
    session.forward(IDS * 2)
    stats = session.cache.stats()
    return stats.codes + stats.tail


def in_common(source: Path, target: Path, n_heads: int) -> Path:
    """A model whose neighbouring heads have different keys and values, which span no more than one
    head's dimensions: each is another turn of the first, biases included."""
    rng = np.random.default_rng(7)
    file = kv.GgufFile(source)
    writer = kv.GgufWriter()
    for key in file:
        writer.copy(key, file)
    for tensor in file.tensors:
        if ".attn_qkv.weight" not in tensor.name:
            if ".attn_qkv.bias" not in tensor.name:
                writer.add_tensor(tensor.name, tensor.type, tensor.shape, tensor.data)
            continue
        bias_name = tensor.name.replace("weight", "bias")
        bias = file.tensor(bias_name).decode()
        parts = np.column_stack([tensor.decode(), bias]).reshape(3, n_heads, 8, -1)
        for side in (1, 2):
            for head in range(1, n_heads, 2):
                parts[side, head] = rng.normal(size=(8, 8)) / 3 @ parts[side, head - 1]
        rows = parts.reshape(3 * n_heads * 8, -1)
        for name, values in ((tensor.name, rows[:, :-1]), (bias_name, rows[:, -1])):
            data = kv.encode_weights("F32", np.ascontiguousarray(values, np.float32))
            writer.add_tensor(name, "F32", list(reversed(values.shape)), data)
    writer.write(target)
    return target


@heads
@pytest.mark.parametrize("method", ["svd-a", "svd-w"])
def test_full_rank_is_exact(source: Path, n_heads: int, method: str, tmp_path: Path) -> None:
    target = tmp_path / "full.gguf"
    options = HeadOptions(method, groups=n_heads, type="F32", n_ctx=64)
    report = compress_kv_heads(source, target, options, TEXT)
    assert report.key_energy == pytest.approx([1.0, 1.0])
    before, after = (
        kv.GgufFile(p).tensor("blk.0.attn_qkv.weight").decode() for p in (source, target)
    )
    assert np.abs(before - after).max() > 0.1  # every head was turned
    assert np.abs(logits(target) - logits(source)).max() < SAME


@heads
def test_what_heads_have_in_common_is_exact(source: Path, n_heads: int, tmp_path: Path) -> None:
    """Half of the heads lose nothing where the others are their linear images; biases too."""
    source = in_common(source, tmp_path / "common.gguf", n_heads)
    target = tmp_path / "half.gguf"
    options = HeadOptions("svd-a", groups=n_heads // 2, type="F32", n_ctx=64)
    compress_kv_heads(source, target, options, TEXT)
    assert np.abs(logits(target) - logits(source)).max() < SAME * np.ptp(logits(source))
    assert cache_bytes(target) * 2 == cache_bytes(source)


@heads
@pytest.mark.parametrize("method", ["svd-a", "svd-w", "mean-pool", "mqa"])
def test_cache_shrinks(source: Path, n_heads: int, method: str, tmp_path: Path) -> None:
    target = tmp_path / "small.gguf"
    groups = 1 if method == "mqa" else n_heads // 2
    compress_kv_heads(source, target, HeadOptions(method, groups, n_ctx=64), TEXT)
    assert cache_bytes(target) * n_heads == cache_bytes(source) * groups
    assert np.isfinite(logits(target)).all()
    file, prefix = kv.GgufFile(target), source.stem.split("-")[0]
    # A model like any other, with fewer kv heads: nothing is projected while it runs.
    assert file[f"{prefix}.attention.head_count_kv"] == groups
    assert f"{prefix}.attention.key_head_count" not in file
    assert {t.name for t in file.tensors} == {t.name for t in kv.GgufFile(source).tensors}
    assert file.tensor("blk.0.attn_qkv.weight").shape[1] == (n_heads + 2 * groups) * 8


def test_scores_are_those_of_projected_keys() -> None:
    """(X Wq_h Psi_h^T)(X Wk Psi^T)^T = (X Wq_h)((X Wk Psi^T Psi)_h)^T."""
    rng = np.random.default_rng(5)
    x, wq, wk = rng.normal(size=(9, 16)), rng.normal(size=(16, 8)), rng.normal(size=(16, 24))
    psi = np.linalg.svd(x @ wk)[2][:8]
    for head in range(3):
        columns = slice(8 * head, 8 * head + 8)
        absorbed = (x @ (wq @ psi[:, columns].T)) @ (x @ (wk @ psi.T)).T
        expected = (x @ wq) @ (x @ wk @ psi.T @ psi)[:, columns].T
        np.testing.assert_allclose(absorbed, expected, atol=1e-12)


def test_refusals(tmp_path: Path, cli: Cli) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    target = tmp_path / "out.gguf"
    flags = ("--groups", "2", "--calibration", text, "-c", "64")
    latent = cli("compress", GPT2, target, *flags, "--mode", "latent")
    assert latent.returncode == 2
    assert "expected projection with gpt2, whose keys have no rotary embedding" in latent.stderr
    clamped = cli("compress", MPT, target, *flags)
    assert clamped.returncode == 2
    assert "mpt.attention.clamp_kqv" in clamped.stderr
    long = cli("compress", GPT2, target, "--groups", "2", "--calibration", text, "-c", "128")
    assert long.returncode == 2
    assert "learned positions 0 to 95" in long.stderr
    assert all(len(r.stderr.strip().splitlines()) == 1 for r in (latent, clamped, long))
    assert not target.exists()
    assert cli("compress", MPT, target, "--method", "mean-pool", "--groups", "2").returncode == 0
