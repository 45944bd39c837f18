"""What KVzip keeps, beside PyPI `kvpress` in float32 on the same model, text and instructions.

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


class OurTokenizer:
    """What kvpress asks of a tokenizer, without what a template writes before a question: all of
    the text is then the context that is repeated."""

    def __init__(self, model: kv.Model, torch: Any) -> None:
        self.model = model
        self.torch = torch
        self.chat_template = model.file.get("tokenizer.chat_template", "")

    def encode(self, text: str, **_: Any) -> Any:
        ids = self.model.tokenizer.encode(text, add_special=False, parse_special=True)
        return self.torch.tensor([ids], dtype=self.torch.long)

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
        text = self.model.render(messages)
        return text[text.index(messages[0]["content"]) :]


def scores_of_press(
    model: kv.Model, ids: np.ndarray, chunk: int, plus: bool, monkeypatch: pytest.MonkeyPatch
) -> np.ndarray:
    """[n_layers, n_kv_heads, n_tokens]."""
    kvpress = optional_module("kvpress")
    torch = optional_module("torch")
    transformers = optional_module("transformers")
    optional_module("gguf")
    source = optional_module("kvpress.presses.kvzip_press")
    path = real_model("smollm2-135m")
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()

    class Tokenizers:
        @staticmethod
        def from_pretrained(_: str) -> OurTokenizer:
            return OurTokenizer(model, torch)

    monkeypatch.setattr(source, "AutoTokenizer", Tokenizers)
    press = kvpress.KVzipPress(
        compression_ratio=0.5, chunk_size=chunk, kvzip_plus_normalization=plus
    )
    found: list[np.ndarray] = []

    def recorded(_: Any) -> None:
        found.append(press.score_val[:, 0].double().numpy())

    press.compress_post = recorded
    with torch.no_grad(), press(reference):
        # Its hooks read these by their names.
        reference.model(
            input_ids=torch.tensor(ids[None].astype(np.int64)),
            past_key_values=transformers.DynamicCache(),
        )
    return found[0]


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("chunk", [2048, 300])
def test_the_same_tokens_stay(chunk: int, plus: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = kv.Model.load(real_model("smollm2-135m"))
    text = evaluation_text("ppl/wikitext2_raw_test.txt.gz")
    ids = np.asarray(ours.tokenizer.encode(text[:20_000])[:N_TOKENS])
    scores = scores_of_press(ours, ids, chunk, plus, monkeypatch)
    n_layers, n_heads, n_tokens = scores.shape
    assert (n_layers, n_heads, n_tokens) == (30, 3, N_TOKENS)
    scores[:, :, :4] = np.inf
    for share in (0.5, 0.25):
        cache = f"kvzip:keep={share},chunk={chunk},plus={int(plus)}"
        session = ours.session(n_ctx=N_TOKENS, cache=cache, exact=True)
        session.forward(ids)
        n_kept = n_layers * n_heads * int(N_TOKENS * share)
        last = np.sort(scores, axis=None)[-n_kept]
        total = agree = 0
        for layer in range(n_layers):
            for head in range(n_heads):
                found = session.cache.positions(layer, head)
                total += len(found)
                # Our keys are kept in binary16: of rows as good as the last one, up to that, either
                # may stay.
                agree += np.count_nonzero(scores[layer, head, found] >= last * (1 - 1e-3))
        assert total == n_kept
        assert agree >= 0.99 * n_kept, f"keep={share}: {agree} of {n_kept}"
