"""Which tokens stay, beside PyPI `kvpress` in float32 on the same model and text.

Needs kvpress (with torch, transformers and gguf), which nothing else does; skipped loudly without.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import evaluation_text, optional_module, real_model

import kvengine as kv

pytestmark = [pytest.mark.model, pytest.mark.slow]

N_TOKENS = 700
# The stage of a cache spec, and the press with its parameters.
PRESSES = {
    "snapkv": ("SnapKVPress", {"window_size": 64, "kernel_size": 5}),
    "knorm": ("KnormPress", {}),
    "keydiff": ("KeyDiffPress", {}),
    "tova": ("TOVAPress", {}),
    "streaming": ("StreamingLLMPress", {"n_sink": 4}),
    "expected": ("ExpectedAttentionPress", {"n_future_positions": 512, "n_sink": 4}),
    "observed": ("ObservedAttentionPress", {}),
}


@pytest.fixture(scope="module")
def reference() -> Any:
    """The model in transformers, its attention as whole matrices."""
    optional_module("kvpress")
    torch = optional_module("torch")
    transformers = optional_module("transformers")
    optional_module("gguf")
    path = real_model("smollm2-135m")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


@pytest.fixture(scope="module")
def ours() -> kv.Model:
    return kv.Model.load(real_model("smollm2-135m"))


def scores_of_press(reference: Any, name: str, share: float, ids: np.ndarray) -> list[np.ndarray]:
    """Per layer the scores [n_kv_heads, n_tokens] of the press."""
    kvpress = optional_module("kvpress")
    torch = optional_module("torch")
    press_name, parameters = PRESSES[name]
    press = getattr(kvpress, press_name)(compression_ratio=1 - share, **parameters)
    scored: dict[int, np.ndarray] = {}
    score = press.score

    def recorded(module: Any, *args: Any, **kwargs: Any) -> Any:
        scores = score(module, *args, **kwargs)
        scored[module.layer_idx] = scores[0].double().numpy()
        return scores

    press.score = recorded
    with torch.no_grad(), press(reference):
        reference(torch.tensor(ids[None].astype(np.int64)), output_attentions=name == "observed")
    return [scored[layer] for layer in sorted(scored)]


@pytest.mark.parametrize("ratio", [0.5, 0.4, 0.125])
def test_the_same_channels_stay(ratio: float, reference: Any, ours: kv.Model) -> None:
    """ThinK: channels that are left out are zeros in both."""
    kvpress = optional_module("kvpress")
    torch = optional_module("torch")
    transformers = optional_module("transformers")
    text = evaluation_text("ppl/wikitext2_raw_test.txt.gz")
    ids = np.asarray(ours.tokenizer.encode(text[:20_000])[:N_TOKENS])
    press = kvpress.ThinKPress(key_channel_compression_ratio=ratio, window_size=32)
    cache = transformers.DynamicCache()
    with torch.no_grad(), press(reference):
        reference(torch.tensor(ids[None].astype(np.int64)), past_key_values=cache)
    session = ours.session(n_ctx=N_TOKENS, cache=f"think:ratio={ratio},window=32", exact=True)
    session.forward(ids)
    # GGUF files of this architecture have the channels of rotary pairs side by side.
    halves = np.concatenate([np.arange(0, 64, 2), np.arange(1, 64, 2)])
    agree = total = 0
    for layer in range(30):
        theirs = cache.layers[layer].keys[0].numpy()
        for head in range(theirs.shape[0]):
            mine = session.cache.keys(layer, head)[:, halves]
            pruned = (mine[: N_TOKENS - 32 - 64] == 0).all(axis=0)
            gone = (theirs[head] == 0).all(axis=0)
            assert pruned.sum() == gone.sum() == int(64 * ratio)
            # The newest keys keep all of their channels.
            assert np.count_nonzero(mine[-32:, pruned]) > 0.9 * 32 * pruned.sum()
            kept = ~pruned & ~gone
            # Keys reach 16 and are kept in binary16, here and in the layers below.
            assert np.allclose(mine[:500, kept], theirs[head][:500, kept], rtol=2e-3, atol=2e-2)
            agree += int((pruned & gone).sum())
            total += int(gone.sum())
    # Channels whose scores are within a thousandth of each other may change places: our keys are
    # kept in binary16.
    assert agree >= 0.99 * total, f"{agree} of {total}"


@pytest.mark.parametrize("share", [0.5, 0.25])
@pytest.mark.parametrize("name", list(PRESSES))
def test_the_same_tokens_stay(name: str, share: float, reference: Any, ours: kv.Model) -> None:
    text = evaluation_text("ppl/wikitext2_raw_test.txt.gz")
    ids = np.asarray(ours.tokenizer.encode(text[:20_000])[:N_TOKENS])
    expected = scores_of_press(reference, name, share, ids)
    session = ours.session(n_ctx=N_TOKENS, cache=f"{name}:keep={share}", exact=True)
    session.forward(ids)
    n_kept = int(N_TOKENS * share)
    assert len(expected) == 30
    for layer, heads in enumerate(expected):
        for head, scores in enumerate(heads):
            found = session.cache.positions(layer, head)
            assert len(found) == n_kept
            # Equal tokens have equal keys in the first layer, up to their rotation, and so equal
            # norms: rows that are as good as the last one kept may stand for each other. Our keys
            # are kept in binary16.
            last = np.sort(scores)[-n_kept]
            agree = np.count_nonzero(scores[found] >= last - 1e-3 * abs(last))
            assert agree >= 0.99 * n_kept, f"layer {layer} head {head}: {agree} of {n_kept}"
