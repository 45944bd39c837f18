"""Real models against golden files that transformers wrote (tests/oracle tells how)."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from conftest import FIXTURES, evaluation_text, real_model

import kvengine as kv

pytestmark = [pytest.mark.model, pytest.mark.slow]

GOLDEN = FIXTURES / "golden"
NAMES = ["smollm2-135m", "gemma3-270m"]


@lru_cache(maxsize=1)
def load(name: str) -> kv.Model:
    return kv.Model.load(real_model(name))


def golden(name: str, kind: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.{kind}.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("name", NAMES)
def test_exact_logits(name: str) -> None:
    expected = golden(name, "logits512")
    model = load(name)
    session = model.session(n_ctx=512, cache="f32", exact=True)
    logits = session.forward(expected["ids"], all_logits=True)
    # transformers adds float32 numbers up in another order: measured 4e-6 of the range. The
    # smallest margin between the two likeliest tokens is 3e-5 of it, so every arg-max must agree.
    scale = float(expected["max"].max() - expected["min"].min())
    assert np.abs(logits[:, expected["vocab_ids"]] - expected["logits"]).max() <= 2e-5 * scale
    assert np.abs(logits.max(axis=1) - expected["max"]).max() <= 2e-5 * scale
    assert (logits.argmax(axis=1) == expected["argmax"]).all()


@pytest.mark.parametrize("name", NAMES)
def test_greedy_text(name: str) -> None:
    expected = golden(name, "greedy")
    model = load(name)
    compared = 0
    for i in range(3):
        prompt, output = expected[f"prompt{i}"], expected[f"output{i}"].tolist()
        session = model.session(n_ctx=512, exact=True)
        pieces = session.generate(prompt, max_tokens=len(output))
        tokens = [piece.token for piece in pieces if piece.token is not None]
        # Up to the first step at which two tokens are nearly as likely: rounding decides there.
        certain = expected[f"margin{i}"] > 0.05
        n = len(output) if certain.all() else int(certain.argmin())
        ends = [token for token in output if model.tokenizer.is_end_of_generation(token)]
        assert tokens[:n] == [token for token in output[:n] if token not in ends]
        compared += n
    assert compared > 20


@pytest.mark.parametrize("name", NAMES)
def test_fast_mode_stays_close(name: str) -> None:
    """int8 activations: the likeliest token of most positions is the same, the nll too."""
    expected = golden(name, "window2048")
    ids, nll = expected["ids"][0], expected["nll"][0]
    session = load(name).session(n_ctx=2048)
    logits = session.forward(ids, all_logits=True)[1024:2047].astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    ours = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(1023), ids[1025:]]
    assert ours.mean() == pytest.approx(nll.mean(), abs=0.01)
    assert (logits.argmax(axis=1) == expected["argmax"][0]).mean() > 0.97


@pytest.mark.parametrize("name", NAMES)
def test_long_context(name: str) -> None:
    """The last token of 8,192 (SmolLM2) or 16,384 (Gemma-3) tokens of a book, in exact mode."""
    expected = golden(name, "long")
    n_tokens = int(expected["n_tokens"])
    model = load(name)
    text = evaluation_text("books/middlemarch.txt.gz")[: 8 * n_tokens]
    ids = np.asarray(model.tokenizer.encode(text)[:n_tokens], dtype="<i4")
    assert hashlib.sha256(ids.tobytes()).hexdigest() == str(expected["ids_sha256"])
    logits = model.session(n_ctx=n_tokens, cache="f32", exact=True).forward(ids)[0]
    # Thousands of float32 additions in another order, and transformers' angles are float32.
    tolerance = 1e-3 * float(expected["max"] - expected["min"])
    assert np.abs(logits[expected["vocab_ids"]] - expected["logits"]).max() <= tolerance
    assert logits.argmax() == expected["argmax"]


def test_resident_memory_follows_the_cache() -> None:
    """At 8,192 tokens int4 saves at least 80 % of its byte difference to f16 in resident memory."""
    path = real_model("smollm2-135m")
    program = """
import sys, numpy as np, kvengine as kv
session = kv.Model.load(sys.argv[1]).session(n_ctx=8192, cache=sys.argv[2])
ids = np.arange(8192, dtype=np.int32) % 40000 + 100
session.forward(ids[:256])
before = kv.resident_bytes(), session.cache.stats().bytes
session.forward(ids[256:])
print(kv.resident_bytes() - before[0], session.cache.stats().bytes - before[1])
"""
    costs = []
    for cache in ("f16", "int4"):
        command = [sys.executable, "-c", program, str(path), cache]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        costs.append([int(number) for number in done.stdout.split()])
    (f16_resident, f16_bytes), (int4_resident, int4_bytes) = costs
    assert f16_bytes > 2.5 * int4_bytes
    assert f16_resident - int4_resident >= 0.8 * (f16_bytes - int4_bytes)


def test_chat_prompt_is_the_templates(tmp_path: Path, cli_json) -> None:
    path = real_model("smollm2-135m")
    messages = tmp_path / "messages.json"
    messages.write_text(json.dumps([{"role": "user", "content": "Hello!"}]))
    text = cli_json("template", "-m", path, "--messages", messages, "--add-generation-prompt")
    assert text["text"].endswith("<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n")
    # Exact, because the first token is a near tie that the rounding of int8 activations decides.
    question = ("-p", "What is the capital of France?", "--chat", "--temp", "0", "-n", "40")
    assert "Paris" in cli_json("generate", *question, "--exact")["text"]


def test_perplexity_of_a_compressed_cache(cli_json, tmp_path: Path) -> None:
    """A coarser cache is smaller and farther from the reference, in this order."""
    real_model("smollm2-135m")
    ids = golden("smollm2-135m", "window2048")["ids"][0].tolist()
    text = tmp_path / "text"
    text.write_bytes(load("smollm2-135m").tokenizer.decode_bytes(ids))
    results = [
        cli_json(
            *("perplexity", "-f", text, "-c", "256", "--chunks", "1", "--exact"),
            *("--reference", "f32", "--cache", cache),
        )
        for cache in ("f16", "int8", "int4")
    ]
    sizes = [result["cache"]["bytes"] for result in results]
    divergences = [result["kld_mean"] for result in results]
    assert sizes == sorted(sizes, reverse=True)
    assert divergences == sorted(divergences)
    assert divergences[0] < 1e-4
    assert divergences[-1] < 0.2
    assert all(result["ppl_reference"] == results[0]["ppl_reference"] for result in results)


@pytest.mark.parametrize("name", NAMES)
def test_repacked_weights_are_the_same_weights(name: str) -> None:
    ids = golden(name, "logits512")["ids"][:64]
    packed, plain = load(name), kv.Model.load(real_model(name), repack=False)
    assert plain.repacked_bytes == 0
    # Of the same bytes, for nearly all of the file; a tied embedding counts once.
    assert 0.9 <= packed.repacked_bytes / packed.file.file_bytes <= 1.1
    logits = [model.session(n_ctx=64).forward(ids, all_logits=True) for model in (packed, plain)]
    # Sums in another order may round an activation's code the other way; nothing more.
    spread = float(np.ptp(logits[1]))
    assert np.abs(logits[0] - logits[1]).max() <= 0.05 * spread
    assert (logits[0].argmax(axis=1) == logits[1].argmax(axis=1)).mean() > 0.95
