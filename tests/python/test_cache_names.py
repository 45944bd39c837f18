"""Names of transformers and kvpress for caches."""

from __future__ import annotations

import re
from typing import Any

import pytest
from conftest import optional_module

import kvengine as kv
from kvengine.cache_names import known_names, translate
from kvengine.eval.runner import Runner
from kvengine.eval.sets import cache_specs

QUANTO = "tail=128,seal=window,prefill=exact"

SAME = {
    "DynamicCache": "f16",
    "DynamicCache()": "f16",
    "static": "f16",
    "StaticCache(max_cache_len=4096)": "f16",
    "quantized": f"int4:group=64,{QUANTO}",
    "QuantizedCache('quanto', nbits=2, q_group_size=32)": f"int2:group=32,{QUANTO}",
    "QuantizedCache:backend=quanto,axis_key=-1,residual_length=64": (
        "k=int4:group=64,per=channel,tail=64,seal=window,prefill=exact + "
        "v=int4:group=64,tail=64,seal=window,prefill=exact"
    ),
    "SinkCache(window_length=256, num_sink_tokens=4)": (
        "streaming:keep=256,sinks=4,positions=reassigned"
    ),
    "StreamingLLMPress(compression_ratio=0.75, n_sink=8)": "streaming:keep=0.25,sinks=8,interval=0",
    "SnapKVPress(compression_ratio=0.7)": "snapkv:keep=0.3",
    "SnapKVPress(0.75)": "snapkv:keep=0.25",
    "SnapKVPress:compression_ratio=0.5,window_size=32,kernel_size=7": (
        "snapkv:keep=0.5,window=32,kernel=7"
    ),
    "PyramidKVPress(compression_ratio=0.5,beta=10)": "pyramidkv:keep=0.5,beta=10",
    "TOVAPress(compression_ratio=5e-1)": "tova:keep=0.5,interval=0",
    "KnormPress(compression_ratio=0.0)": "knorm:keep=1",
    "KeyDiffPress(compression_ratio=0.5)": "keydiff:keep=0.5",
    "ObservedAttentionPress(compression_ratio=0.5)": "observed:keep=0.5",
    "ExpectedAttentionPress(compression_ratio=0.5, n_future_positions=256, epsilon=0.01)": (
        "expected:keep=0.5,future=256,epsilon=0.01"
    ),
    "RandomPress(compression_ratio=0.5, seed=3)": "random:keep=0.5,seed=3",
    "AdaKVPress(SnapKVPress(compression_ratio=0.5, window_size=32), alpha_safeguard=0.3)": (
        "adakv:score=snapkv,keep=0.5,window=32,alpha=0.3"
    ),
    # Its budgets are not asked for: layers get the same.
    "AdaKVPress(PyramidKVPress(compression_ratio=0.5, window_size=32, beta=10))": (
        "adakv:score=snapkv,keep=0.5,window=32"
    ),
    "SinkCache(window_length=2, num_sink_tokens=1)": "streaming:keep=2,sinks=1,positions=reassigned",
    "AdaKVPress:press=KnormPress,compression_ratio=0.5": "adakv:score=knorm,keep=0.5",
    "KeyRerotationPress(press=StreamingLLMPress(compression_ratio=0.5))": (
        "streaming:keep=0.5,interval=0,positions=reassigned"
    ),
    "KVzipPress(compression_ratio=0.75)": "kvzip:keep=0.25",
    "KVzipPress(compression_ratio=0.5, kvzip_plus_normalization=True)": "kvzip:keep=0.5,plus=1",
    "KnormPress(compression_ratio=0.5) + kivi2": "knorm:keep=0.5 + kivi2",
    "ThinKPress(key_channel_compression_ratio=0.4, window_size=8)": "think:ratio=0.4,window=8",
    "SnapKVPress(0.5) + ThinKPress(0.50) + int4": "snapkv:keep=0.5 + think:ratio=0.5 + int4",
    " SnapKVPress( compression_ratio = 0.5 )+QuantizedCache(nbits=2)": (
        f"snapkv:keep=0.5 + int2:group=64,{QUANTO}"
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_a_name_is_what_it_stands_for(name: str) -> None:
    assert kv.canonical_cache(name) == kv.canonical_cache(SAME[name])


@pytest.mark.parametrize("spec", ["best4", "k=int8:group=8 + v=f16", "klt4:basis=/x/KVCache+y", ""])
def test_our_own_specs_stay(spec: str) -> None:
    assert translate(spec) == spec


@pytest.mark.parametrize(
    ("name", "sentence"),
    {
        "SnapKVPress": "SnapKVPress: expected compression_ratio=, the share that is dropped",
        "SnapKVPress:windw=3": "parameter windw=3; known: compression_ratio, window_size",
        "SnapKVPress(window_size=3)": "SnapKVPress: expected compression_ratio=, the share",
        "AdaKVPress(SnapKVPress(windw=3))": "SnapKVPress: .* parameter windw=3",
        "SnapKVPress(compression_ratio=1)": "expected 0 to below 1, found 1",
        "SnapKVPress(compression_ratio=nan)": "expected 0 to below 1, found nan",
        "SnapKVPress(compression_ratio=0.5": "as many '\\(' as '\\)'",
        "SnapKVPress(compression_ratio=0.5))": "as many '\\(' as '\\)'",
        "SnapKVPress(compression_ratio=0.5, 3)": "expected parameter=value, found ' 3'",
        "SnapKVPress(compression_ratio=0.5,compression_ratio=0.5)": "once, found it twice",
        "SnapKVPress(compression_ratio=0.5, depth=3)": "no counterpart of the parameter depth=3",
        "SnapKVPress(compression_ratio=0.5, window_size=x)": "window_size: expected a number",
        "ExpectedAttentionPress(compression_ratio=0.5, use_vnorm=False)": "of True, none of False",
        "KVzipPress(compression_ratio=0.5, layerwise=True)": "layerwise: .*none of True",
        "AdaKVPress(alpha_safeguard=0.2)": "expected a press among SnapKVPress, .*found ''",
        "AdaKVPress(" * 340 + ")" * 340: "expected a press among SnapKVPress",
        "KeyRerotationPress(SnapKVPress(0.5))": "a press among StreamingLLMPress",
        "DuoAttentionPress(head_compression_ratio=0.5)": "expected gates=FILE",
        "ThinKPress(window_size=8)": "ThinKPress: expected key_channel_compression_ratio=",
        "ThinKPress(0)": "ratio: expected a share like 0.4, above 0",
        "QFilterPress(0.5)": "have a counterpart, found QFilterPress",
        "QuantizedCache(backend='hqq')": "hqq has none: int4:fit=search is nearest",
        "QuantizedCache(nbits=8)": "nbits: expected 2 or 4, found 8",
        "QuantizedCache(axis_key=1)": "axis_key: expected 0 or -1, found 1",
        "SinkCache(window_length=0)": "expected window_length=, at least 2 tokens, found '0'",
        "SinkCache(window_length=1, num_sink_tokens=0)": "at least 2 tokens, found '1'",
        "HQQQuantizedCache": "int4:fit=search is nearest",
        "OffloadedCache": "f16 is the same cache",
        "SnapKVPress(" + "x" * 5000: "at most 4096 characters",
    }.items(),
)
def test_what_has_no_counterpart_is_told(name: str, sentence: str) -> None:
    with pytest.raises(kv.ConfigError, match=sentence) as caught:
        kv.canonical_cache(name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_names_go_wherever_specs_do(tiny: kv.Model) -> None:
    name = "KnormPress(compression_ratio=0.5)"
    session = tiny.session(n_ctx=64, cache=f"{name} + int8:group=8,tail=0")
    session.forward(list(range(4, 44)))
    assert len(session.cache.positions(0, 0)) == 20
    assert Runner(tiny, name).cache == kv.canonical_cache("knorm:keep=0.5")
    listed = cache_specs("f16,SnapKVPress(compression_ratio=0.5, window_size=8),kivi2,DynamicCache")
    assert listed == ["f16", "SnapKVPress(compression_ratio=0.5, window_size=8)", "kivi2"]
    wrong = "SnapKVPress(compression_ratio=0.5, windw=3)"
    for before in ("f16", "int4:group=32"):
        with pytest.raises(kv.ConfigError, match="no counterpart of the parameter windw=3"):
            cache_specs(f"{before},{wrong},kivi2")
        for listed in ("SnapKVPress:windw=3", "SnapKVPress:compression_ratio=0.5,windw=3"):
            with pytest.raises(kv.ConfigError, match="no counterpart of the parameter windw=3"):
                cache_specs(f"{before},{listed},kivi2")


PRESSES: dict[str, dict[str, Any]] = {
    "SnapKVPress": {"compression_ratio": 0.5, "window_size": 32},
    "PyramidKVPress": {"compression_ratio": 0.5},
    "TOVAPress": {"compression_ratio": 0.25},
    "KnormPress": {"compression_ratio": 0.25},
    "KeyDiffPress": {"compression_ratio": 0.25},
    "ObservedAttentionPress": {"compression_ratio": 0.25},
    "StreamingLLMPress": {"compression_ratio": 0.25},
    "ExpectedAttentionPress": {"compression_ratio": 0.25},
    "RandomPress": {"compression_ratio": 0.25},
    "KVzipPress": {"compression_ratio": 0.25},
}


@pytest.mark.parametrize("name", PRESSES)
def test_the_text_of_a_press_is_a_stage(name: str) -> None:
    kvpress = optional_module("kvpress")
    press = getattr(kvpress, name)(**PRESSES[name])
    keep = 1 - PRESSES[name]["compression_ratio"]
    assert f":keep={keep:g}," in kv.canonical_cache(str(press)).replace("+", ",")
    if name == "SnapKVPress":
        expected = kv.canonical_cache("adakv:keep=0.5,window=32")
        assert kv.canonical_cache(str(kvpress.AdaKVPress(press))) == expected


def test_every_press_has_a_counterpart_or_a_sentence() -> None:
    kvpress = optional_module("kvpress")
    names = [name for name in kvpress.__all__ if name.endswith("Press")]
    assert len(names) > 40
    for name in names:
        try:
            translate(f"{name}(compression_ratio=0.5)")
        except kv.ConfigError as error:
            assert name in str(error)
        else:
            assert name in known_names()
    assert {name for name in known_names() if re.search("Press$", name)} <= set(names)
