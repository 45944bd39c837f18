"""`kvengine compress --mode latent`: the cache holds what heads had in common before rotating."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_compress import BIASED, MHA, TEXT, cache_bytes, logits, with_equal_neighbours

import kvengine as kv
from kvengine.compress import HeadOptions, compress_kv_heads

# Logits of these models are of size one; keys and values differ by rounding of float32.
SAME = 1e-4


def compressed(source: Path, target: Path, groups: int, mode: str = "latent") -> Path:
    options = HeadOptions("svd-a", groups, "F32", n_ctx=128, mode=mode)
    report = compress_kv_heads(source, target, options, TEXT)
    assert (
        report.kv_bytes_per_token * report.n_kv_heads == report.kv_bytes_per_token_before * groups
    )
    return target


@pytest.mark.parametrize("source", [MHA, BIASED], ids=["mha", "bias"])
def test_all_heads_kept_is_exact(tmp_path: Path, source: Path) -> None:
    heads = kv.GgufFile(source)["llama.attention.head_count_kv"]
    target = compressed(source, tmp_path / "full.gguf", heads)
    assert np.abs(logits(target) - logits(source)).max() < SAME
    coded = logits(target, "int8:group=8,tail=0")
    assert np.abs(coded - logits(source)).max() < 1


def test_heads_that_are_equal_share_a_place_without_loss(tmp_path: Path) -> None:
    source = with_equal_neighbours(MHA, tmp_path / "equal.gguf")
    target = compressed(source, tmp_path / "latent.gguf", 2)
    assert np.abs(logits(source) - logits(MHA)).max() > 100 * SAME  # the heads did matter
    assert np.abs(logits(target) - logits(source)).max() < SAME


@pytest.mark.parametrize("groups", [1, 2])
def test_cache_shrinks(tmp_path: Path, groups: int) -> None:
    target = compressed(MHA, tmp_path / "small.gguf", groups)
    before, after = cache_bytes(MHA), cache_bytes(target)
    assert after[0] * 4 == before[0] * groups
    assert after[1] == before[1]  # what the model's own keys and values would be
    for cache in ("int4:group=8,tail=0", "k=int2:per=channel,group=8,tail=8+v=int8:group=8,tail=5"):
        assert np.isfinite(logits(target, cache)).all()


def test_keys_have_more_in_common_before_they_rotate(tmp_path: Path) -> None:
    def error(mode: str) -> float:
        path = compressed(MHA, tmp_path / f"{mode}.gguf", 1, mode)
        return float(np.square(logits(path) - logits(MHA)).mean())

    assert error("latent") < error("projection")


def test_what_cannot_be_made_or_run(tmp_path: Path, cli) -> None:
    def refused(options: HeadOptions) -> str:
        with pytest.raises(kv.ConfigError) as caught:
            compress_kv_heads(MHA, tmp_path / "no.gguf", options, TEXT)
        assert not (tmp_path / "no.gguf").exists()
        return str(caught.value)

    assert "projection with svd-w" in refused(HeadOptions("svd-w", 2, mode="latent"))
    assert "mode" in refused(HeadOptions("svd-a", 2, mode="other"))
    target = compressed(MHA, tmp_path / "latent.gguf", 2)
    with pytest.raises(kv.UnsupportedError, match="as it was trained"):
        compress_kv_heads(target, tmp_path / "no.gguf", HeadOptions("svd-a", 2), TEXT)
    file = kv.GgufFile(target)

    def damaged(name: str, shape: list[int], values: np.ndarray) -> Path:
        writer = kv.GgufWriter()
        for key in file:
            writer.copy(key, file)
        for tensor in file.tensors:
            if tensor.name != name:
                writer.add_tensor(tensor.name, tensor.type, tensor.shape, tensor.data)
        if shape:
            writer.add_tensor(name, "F32", shape, values)
        path = tmp_path / "damaged.gguf"
        writer.write(path)
        return path

    name = "blk.1.attn_k_latent.weight"
    good = file.tensor(name)
    rows = good.decode()
    broken = rows.copy()
    broken[3, 2] = np.nan
    for shape, values, text in (
        ([], rows, name),
        (good.shape, broken, "finite"),
        (good.shape[::-1] if good.shape[0] != good.shape[1] else [8, 8], rows.T, "rows of 32"),
        ([32, 3], rows[:3], "2 groups"),
        ([32, 66], np.zeros((66, 32), np.float32), "up to 32"),
    ):
        path = damaged(
            name, shape, np.ascontiguousarray(values).ravel()[: int(np.prod(shape or [1]))]
        )
        with pytest.raises(kv.FormatError, match=text):
            kv.Model.load(path)
    for group in (3, 0, 1 << 20):
        writer = kv.GgufWriter.copy_of(file)
        writer.set("llama.attention.latent_group", group, "u32")
        writer.write(tmp_path / "damaged.gguf")
        with pytest.raises(kv.FormatError, match="latent_group"):
            kv.Model.load(tmp_path / "damaged.gguf")


def test_command(cli_json, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    target = tmp_path / "out.gguf"
    arguments = ("--mode", "latent", "--groups", "2", "--calibration", text, "-c", "128")
    found = cli_json("compress", *arguments, MHA, target)
    assert (found["groups"], found["path"]) == (2, str(target))
    out = cli_json("generate", "-m", target, "-p", "the lamp", "-n", "3", "-t", "1")
    assert out["cache"]["spec"] == "f16"
