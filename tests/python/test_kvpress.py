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
