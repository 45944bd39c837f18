"""The cache as users see it: what it costs and what it holds."""

from __future__ import annotations

import numpy as np
import pytest

import kvengine as kv

KEYS = [
    "spec",
    "bytes",
    "f16_bytes",
    "peak_bytes",
    "bits_per_value",
    "tokens_seen",
    "tokens_kept",
    "path",
    "codes",
    "scales",
    "bases",
    "tail",
    "meta",
    "offloaded",
    "on_device",
    "spilled",
]
# The tiny model has heads of few channels: a group must divide them.
SPECS = ["f32", "f16", "bf16", "int8:group=8,tail=4", "k=int4:group=8,tail=8 + v=f16"]
TOKENS = [(7 * i) % 250 for i in range(150)]


@pytest.mark.parametrize("spec", SPECS)
def test_stats(tiny: kv.Model, spec: str) -> None:
    session = tiny.session(cache=spec)
    session.forward(TOKENS)
    stats = session.cache.stats()
    assert stats.spec == session.cache.spec == kv.canonical_cache(spec)
    assert stats.total == stats.bytes
    assert stats.bytes == stats.codes + stats.scales + stats.bases + stats.tail + stats.meta
    assert stats.tokens_seen == stats.tokens_kept == len(TOKENS)
    per_token = sum(
        2 * layer["n_kv_heads"] * (layer["head_dim"] + layer["value_dim"]) for layer in tiny.layers
    )
    assert stats.f16_bytes == per_token * len(TOKENS)
    assert stats.peak_bytes >= stats.bytes
    assert stats.bits_per_value == pytest.approx(16 * stats.bytes / stats.f16_bytes)
    assert stats.ratio == pytest.approx(stats.f16_bytes / stats.bytes)
    assert stats.path in ("fused", "rebuilt")
    assert list(stats.as_dict()) == KEYS
    assert all(stats.as_dict()[key] == getattr(stats, key) for key in KEYS)


def test_an_empty_cache(tiny: kv.Model) -> None:
    stats = tiny.session().cache.stats()
    assert stats.tokens_seen == stats.f16_bytes == 0
    assert stats.bits_per_value == 0


@pytest.mark.parametrize("spec", SPECS)
def test_keys_and_values(tiny: kv.Model, spec: str) -> None:
    exact = tiny.session(cache="f32")
    coded = tiny.session(cache=spec)
    exact.forward(TOKENS)
    coded.forward(TOKENS)
    for side in ("keys", "values"):
        for head in range(tiny.layers[0]["n_kv_heads"]):
            a = getattr(exact.cache, side)(0, head)
            b = getattr(coded.cache, side)(0, head)
            assert a.shape == b.shape == (len(TOKENS), tiny.layers[0]["head_dim"])
            assert a.dtype == b.dtype == np.float32
            # The first layer reads nothing of the cache before it writes: what differs is the
            # codec's own error, at most half a step of 4 bits over the range of a group.
            assert np.abs(a - b).max() <= (a.max() - a.min()) / 15


@pytest.mark.parametrize(("layer", "head"), [(-1, 0), (99, 0), (0, -1), (0, 99)])
def test_other_layers_and_heads_are_refused(tiny: kv.Model, layer: int, head: int) -> None:
    session = tiny.session()
    session.forward([1])
    with pytest.raises(kv.ConfigError):
        session.cache.keys(layer, head)
    with pytest.raises(kv.ConfigError):
        session.cache.values(layer, head)


def test_the_cache_keeps_its_session_alive(tiny: kv.Model) -> None:
    session = tiny.session()
    session.forward([1, 2, 3])
    cache = session.cache
    del session
    assert cache.stats().tokens_seen == 3


def test_listing() -> None:
    listing = kv.caches()
    names = [each.name for each in listing]
    assert {"f32", "f16", "bf16", "q8_0", "q4_0", "int8", "int4"} <= set(names)
    assert len(names) == len(set(names))
    for each in listing:
        reads_file = each.kind == "preset" and each.parameters != ""
        file = ":basis=FILE" if reads_file else ":gates=FILE" if each.name == "duo" else ""
        assert kv.canonical_cache(each.name + file) == each.spec
        assert kv.canonical_cache(each.spec) == each.spec
        assert each.kind
        assert each.paper
        assert 0 < each.bits_per_value <= 32


@pytest.mark.parametrize(
    "spec", ["", " ", "+", "int4:", "int4:group", "int4:group=", "k=", "f16 + f16", "\0", "é" * 99]
)
def test_bad_specs(spec: str) -> None:
    with pytest.raises(kv.ConfigError) as raised:
        kv.canonical_cache(spec)
    assert "\n" not in str(raised.value)


def test_blocks_in_a_file(tiny: kv.Model) -> None:
    session = tiny.session(
        cache="infllm:init=4,local=32,block=64,topk=1,span=16,resident=1,offload=file"
    )
    session.forward(TOKENS)
    stats = session.cache.stats()
    assert stats.tokens_kept == len(TOKENS)
    # Of 150 tokens 32 are local and 4 the first: one block of 64, in f16.
    assert stats.offloaded == stats.f16_bytes // len(TOKENS) * 64
    with pytest.raises(kv.CapacityError, match="have left the local window of infllm"):
        session.truncate(100)
