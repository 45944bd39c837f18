"""Models without rotary embeddings (BLOOM, GPT-2, MPT): their limits, and caches of linear biases."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY
from numpy.typing import NDArray

import kvengine as kv

BLOOM = TINY / "bloom-base.gguf"  # 6 heads, linear biases
GPT2 = TINY / "gpt2-base.gguf"  # 96 learned positions
MPT = TINY / "mpt-clamp.gguf"
SLOPES = [2.0**-power for power in (2, 4, 6, 8, 1, 3)]  # transformers' for 6 heads
TOKENS = [int(i) for i in np.random.default_rng(11).integers(3, 290, 1400)]

Floats = NDArray[np.float64]


@pytest.fixture(scope="module")
def bloom() -> kv.Model:
    return kv.Model.load(BLOOM, threads=2)


def test_positions_end_where_they_were_learned() -> None:
    session = kv.Model.load(GPT2, threads=2).session(n_ctx=200, exact=True)
    with pytest.raises(kv.CapacityError, match=r"learned positions 0 to 95: .* found 96"):
        session.forward(TOKENS[:97])
    session.forward(TOKENS[:95])  # nothing was read in vain
    assert session.n_tokens == 95
    logits = np.array(session.forward(TOKENS[95:96]))
    with pytest.raises(kv.CapacityError, match="found 96"):
        session.forward([5])
    whole = kv.Model.load(GPT2, threads=2).session(exact=True).forward(TOKENS[:96])
    np.testing.assert_allclose(logits, whole, atol=1e-2)  # of f16 rows


class Step:
    """BLOOM's next logits out of rows that a cache holds, in double precision."""

    def __init__(self, path: Path) -> None:
        self.file = kv.GgufFile(path)

    def tensor(self, name: str) -> Floats:
        return self.file.tensor(name).decode().astype(np.float64)

    def linear(self, name: str, x: Floats) -> Floats:
        return self.tensor(f"{name}.weight") @ x + self.tensor(f"{name}.bias")

    def norm(self, name: str, x: Floats) -> Floats:
        x = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
        return x * self.tensor(f"{name}.weight") + self.tensor(f"{name}.bias")

    def attend(self, layer: int, q: Floats, rows: list[tuple[Floats, Floats, Floats]]) -> Floats:
        heads = []
        for query, slope, (keys, values, distances) in zip(
            q.reshape(6, 8), SLOPES, rows, strict=True
        ):
            scores = keys @ query / math.sqrt(8) - slope * distances
            weights = np.exp(scores - scores.max())
            heads.append(weights / weights.sum() @ values)
        return self.linear(f"blk.{layer}.attn_output", np.concatenate(heads))

    def logits(self, token: int, layers: list[list[tuple[Floats, Floats, Floats]]]) -> Floats:
        x = self.norm("token_embd_norm", self.tensor("token_embd.weight")[token])
        for layer, rows in enumerate(layers):
            name = f"blk.{layer}"
            q = self.linear(f"{name}.attn_qkv", self.norm(f"{name}.attn_norm", x))[:48]
            x = x + self.attend(layer, q, rows)
            up = self.linear(f"{name}.ffn_up", self.norm(f"{name}.ffn_norm", x))
            up *= 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)))
            x = x + self.linear(f"{name}.ffn_down", up)
        return self.tensor("token_embd.weight") @ self.norm("output_norm", x)


@pytest.mark.parametrize(
    "spec",
    [
        "f16",
        "best4",
        # kivi2 and decoquant4 for heads of 8
        "k=int2:per=channel,group=32,tail=128,seal=window,prefill=exact"
        "+v=int2:group=8,tail=128,seal=row",
        "k=mpo:block=8,segment=1024+k=sym4:group=row,tail=0,prefill=exact+v=int4:group=8",
        "k=klt+k=int3:per=channel,group=64+v=lm3",
        "snapkv:keep=0.5",
        "snapkv:keep=0.5+best4",
        "streaming:keep=0.25",
        "h2o:keep=0.25+int4:group=8",
    ],
)
def test_caches(bloom: kv.Model, spec: str) -> None:
    """A step equals what its definition says of the rows that the cache gives out."""
    session = bloom.session(n_ctx=2048, cache=spec, exact=True)
    session.forward(TOKENS[:-1])
    cache, layers = session.cache, range(2)

    def held() -> list[list[tuple[Floats, Floats, Floats]]]:
        return [
            [
                (cache.keys(i, h), cache.values(i, h), np.asarray(cache.positions(i, h)))
                for h in range(6)
            ]
            for i in layers
        ]

    before = held()
    found = np.asarray(session.forward(TOKENS[-1:])).reshape(-1)
    after = held()
    last = len(TOKENS) - 1
    rows = [
        [
            (np.vstack([k, new_k[-1:]]), np.vstack([v, new_v[-1:]]), last - np.append(at, last))
            for (k, v, at), (new_k, new_v, _) in zip(heads, new_heads, strict=True)
        ]
        for heads, new_heads in zip(before, after, strict=True)
    ]
    expected = Step(BLOOM).logits(TOKENS[-1], rows)
    assert np.abs(found - expected).max() < 2e-3 * np.ptp(expected)
    stats = cache.stats()
    assert spec == "f16" or stats.bytes < 0.75 * stats.f16_bytes


def test_votes_hold_the_biases(bloom: kv.Model) -> None:
    """The weights that selectors go by add up to one for every query."""
    seen = []

    def score(keys: Floats, values: Floats, queries: Floats, mass: Floats) -> Floats:
        seen.append(mass.sum() / (queries.shape[0] * queries.shape[1]))
        return mass

    session = bloom.session(n_ctx=512, cache="custom:keep=0.25,window=16", scorer=score)
    session.forward(TOKENS[:300])
    assert len(seen) == 12
    np.testing.assert_allclose(seen, 1, rtol=1e-3)


def test_blocks_need_rotated_keys(bloom: kv.Model) -> None:
    with pytest.raises(kv.ConfigError, match="without a rotary embedding"):
        bloom.session(n_ctx=512, cache="infllm")


def changed(source: Path, target: Path, leave_out: str = "", **shapes: list[int]) -> Path:
    """A copy without a tensor, or with one of zeros in another shape."""
    file = kv.GgufFile(source)
    writer = kv.GgufWriter()
    for key in file:
        writer.copy(key, file)
    for tensor in file.tensors:
        shape = shapes.get(tensor.name.replace(".", "_"))
        if shape is not None:
            writer.add_tensor(tensor.name, "F32", shape, bytes(4 * math.prod(shape)))
        elif tensor.name != leave_out:
            writer.add_tensor(tensor.name, tensor.type, tensor.shape, tensor.data)
    writer.write(target)
    return target


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (BLOOM, "token_embd_norm.weight"),
        (BLOOM, "blk.1.attn_qkv.weight"),
        (GPT2, "position_embd.weight"),
        (GPT2, "blk.0.ffn_up.weight"),
        (MPT, "blk.0.attn_norm.weight"),
    ],
)
def test_missing_tensors(source: Path, name: str, tmp_path: Path) -> None:
    with pytest.raises(kv.FormatError, match=name):
        kv.Model.load(changed(source, tmp_path / "bad.gguf", leave_out=name))


@pytest.mark.parametrize(
    ("source", "name", "shape"),
    [
        (BLOOM, "blk.0.attn_qkv.weight", [48, 143]),
        (BLOOM, "blk.0.attn_qkv.bias", [48]),
        (BLOOM, "token_embd_norm.bias", [47]),
        (GPT2, "position_embd.weight", [32, 95]),
        (MPT, "blk.0.attn_qkv.weight", [32, 32]),
    ],
)
def test_odd_shapes(source: Path, name: str, shape: list[int], tmp_path: Path) -> None:
    path = changed(source, tmp_path / "bad.gguf", **{name.replace(".", "_"): shape})
    with pytest.raises(kv.FormatError, match=rf"{name}: expected \[.*\], found \[.*\]"):
        kv.Model.load(path)


@pytest.mark.parametrize(
    ("source", "key", "value", "kind"),
    [
        (GPT2, "context_length", 2**30, "u32"),
        (GPT2, "context_length", 2**27, "u32"),
        (BLOOM, "attention.head_count", 5, "u32"),
        (BLOOM, "attention.head_count_kv", 4, "u32"),
        (MPT, "attention.max_alibi_bias", -1.0, "f32"),
        (MPT, "attention.max_alibi_bias", 0.0, "f32"),
        (MPT, "attention.clamp_kqv", math.nan, "f32"),
    ],
)
def test_absurd_numbers(source: Path, key: str, value: float, kind: str, tmp_path: Path) -> None:
    writer = kv.GgufWriter.copy_of(kv.GgufFile(source))
    prefix = source.stem.split("-")[0]
    writer.set(f"{prefix}.{key}", value, kind)
    writer.write(tmp_path / "bad.gguf")
    with pytest.raises(kv.FormatError) as error:
        kv.Model.load(tmp_path / "bad.gguf")
    assert "\n" not in str(error.value)
