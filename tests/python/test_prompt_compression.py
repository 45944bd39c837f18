"""Prompt compression: kept sets against plain NumPy, what is protected, specs and the commands."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import kvengine as kv
from kvengine.prompt import parse_method
from kvengine.prompt.layout import layout_of, question_span
from kvengine.prompt.llmlingua2 import _encoder

TEXT = (
    "Anna reads the book in the boat. The lamp waits, and the cache keeps the token that nobody "
    "wanted.  Zürich and 東京 are far away; the boat goes on.\tThen the lamp went out. " * 2
)
QUESTION = "\n\nWho reads the book?"


def information(model: kv.Model, tokens: list[int]) -> np.ndarray:
    """-ln p of tokens 1, 2, ... by one forward pass, in plain NumPy."""
    logits = model.session(len(tokens), exact=True).forward(tokens, all_logits=True)
    wide = logits[:-1].astype(np.float64)
    total = np.log(np.exp(wide - wide.max(1, keepdims=True)).sum(1)) + wide.max(1)
    return total - wide[np.arange(len(tokens) - 1), tokens[1:]]


def above_rank(scores: np.ndarray, share: float) -> np.ndarray:
    rank = max(0, min(len(scores) - 1, int(len(scores) * share) - 1))
    return scores > sorted(scores, reverse=True)[rank]


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_all_at_once(tiny: kv.Model, keep: float) -> None:
    tokens = tiny.tokenizer.encode(TEXT)
    short = kv.compress_prompt(tiny, tokens, f"selfinfo:keep={keep},iterative=no,exact=yes")
    expected = information(tiny, tokens)
    # Passes of other lengths add float32 numbers up in another order.
    np.testing.assert_allclose(short.information[1:], expected, atol=1e-3)
    assert np.isnan(short.information[0])
    least = np.quantile(expected, 1 - keep)
    kept = [0, *(i + 1 for i in range(len(expected)) if expected[i] >= least)]
    assert list(short.kept) == kept
    assert short.tokens == [tokens[i] for i in kept]
    assert len(short.tokens) == pytest.approx(keep * len(tokens), abs=2)


@pytest.mark.parametrize("segment", [7, 50, 200, 10_000])
def test_iterative(tiny: kv.Model, segment: int) -> None:
    keep = 0.4
    tokens = tiny.tokenizer.encode(TEXT)
    spec = f"selfinfo:keep={keep},segment={segment},exact=yes"
    short = kv.compress_prompt(tiny, tokens, spec)
    # Segments never take more than half of the window, which here is the prompt.
    size = min(segment, len(tokens) // 2)
    prefix, kept, measured = tokens[:1], [0], [np.nan]
    for start in range(1, len(tokens), size):
        part = tokens[start : start + size]
        scores = information(tiny, prefix + part)[len(prefix) - 1 :]
        stays = above_rank(scores, keep)
        measured += list(scores)
        kept += [start + int(i) for i in np.flatnonzero(stays)]
        prefix = prefix + [token for token, stay in zip(part, stays, strict=True) if stay]
    np.testing.assert_allclose(short.information, measured, atol=1e-3)
    assert list(short.kept) == kept
    assert short.tokens == prefix


def test_words_stay_whole(tiny: kv.Model) -> None:
    tokens = tiny.tokenizer.encode(TEXT)
    pieces = [tiny.tokenizer.piece(token) for token in tokens]
    words: list[list[int]] = []
    for i, piece in enumerate(pieces):
        # The first token has no probability, so that it is a word of its own.
        if i < 2 or piece[:1].isspace() or pieces[i - 1][-1:].isspace():
            words.append([])
        words[-1].append(i)
    scores = information(tiny, tokens)
    sums = np.array([sum(scores[i - 1] for i in word) for word in words[1:]])
    once = kv.compress_prompt(tiny, tokens, "selfinfo:keep=0.5,unit=word,iterative=no,exact=yes")
    stays = sums >= np.quantile(sums, 0.5)
    expected = [0, *(i for word, s in zip(words[1:], stays, strict=True) if s for i in word)]
    assert list(once.kept) == expected
    iterative = kv.compress_prompt(tiny, tokens, "selfinfo:keep=0.5,unit=word,segment=40")
    kept = set(iterative.kept)
    assert all(kept.issuperset(word) or kept.isdisjoint(word) for word in words)
    assert 0 < len(kept) < len(tokens)


def test_a_number_of_tokens(tiny: kv.Model) -> None:
    prompt = TEXT + QUESTION
    n = len(tiny.tokenizer.encode(prompt))
    short = kv.compress_prompt(tiny, prompt, "selfinfo:keep=150,iterative=no")
    assert (short.original_tokens, len(short.tokens)) == (n, pytest.approx(150, abs=2))
    assert len(kv.compress_prompt(tiny, prompt, f"selfinfo:keep={n + 5}").tokens) == n
    with pytest.raises(kv.ConfigError, match=r"above the \d+ tokens that are protected, found 5"):
        kv.compress_prompt(tiny, prompt, "selfinfo:keep=5")


def test_ends_and_special_tokens_stay(tiny: kv.Model) -> None:
    tokens = tiny.tokenizer.encode(TEXT)
    tokens[50] = tiny.tokenizer.eos
    short = kv.compress_prompt(tiny, tokens, "selfinfo:keep=0.05,first=9,last=11")
    kept = set(short.kept)
    assert kept.issuperset([*range(9), 50, *range(len(tokens) - 11, len(tokens))])
    assert len(kept) < 0.05 * len(tokens) + 9 + 1 + 11 + 3
    whole = kv.compress_prompt(tiny, tokens, "selfinfo:keep=1")
    assert whole.tokens == tokens


@pytest.mark.parametrize("iterative", ["yes", "no"])
def test_prompts_longer_than_the_window(tiny_path, tmp_path, iterative: str) -> None:
    writer = kv.GgufWriter.copy_of(kv.GgufFile(tiny_path))
    writer.set("llama.context_length", 64, "u32")
    writer.write(tmp_path / "narrow.gguf")
    model = kv.Model.load(tmp_path / "narrow.gguf", threads=2)
    tokens = model.tokenizer.encode(TEXT)
    assert len(tokens) > 3 * model.n_ctx
    short = kv.compress_prompt(model, tokens, f"selfinfo:keep=0.5,iterative={iterative}")
    assert len(short.tokens) == pytest.approx(len(tokens) / 2, abs=len(tokens) / 32 + 2)
    if iterative == "no":
        unmeasured = np.flatnonzero(np.isnan(short.information))
        assert list(unmeasured) == list(range(0, len(tokens), 64))
        assert set(short.kept).issuperset(unmeasured)


@pytest.mark.parametrize("question", [None, "Who reads"])
def test_the_question_stays(tiny: kv.Model, question: str | None) -> None:
    short = kv.compress_prompt(tiny, TEXT + QUESTION, "selfinfo:keep=0.2", question)
    assert (question or QUESTION) in short.text
    assert len(short.tokens) < 0.3 * short.original_tokens + len(QUESTION)


def test_where_the_question_is() -> None:
    assert question_span("a\nb\n\nc\nd\n", None) == (3, 9)
    assert question_span("a\nb", None) == (1, 3)
    assert question_span("all one line", None) == (12, 12)
    assert question_span("q a q b", "q") == (4, 5)
    with pytest.raises(kv.ConfigError, match="expected a part of the prompt, found 'x'"):
        question_span("abc", "x")


def test_conversations(tiny_chat: kv.Model) -> None:
    messages = [
        {"role": "system", "content": "Be brief and kind to everybody."},
        {"role": "user", "content": TEXT},
        {"role": "assistant", "content": "The boat goes on."},
        {"role": "user", "content": " " + TEXT + QUESTION},
    ]
    layout = layout_of(tiny_chat, messages, None)
    assert layout.tokens == tiny_chat.encode_chat(messages)
    fixed = b"".join(
        piece for piece, free in zip(layout.pieces, layout.free, strict=True) if not free
    )
    assert fixed.decode() == (
        "<|bos|>[system] Be brief and kind to everybody.\n[user] \n[assistant] \n[user] "
        f"{QUESTION}\n[assistant] "
    )
    short = kv.compress_prompt(tiny_chat, messages, "selfinfo:keep=0.3")
    assert short.text.startswith("<|bos|>[system] Be brief and kind to everybody.\n[user] ")
    assert short.text.endswith(f"{QUESTION}\n[assistant] ")
    assert len(short.tokens) < 0.6 * short.original_tokens
    assert list(tiny_chat.session().generate(short.tokens, max_tokens=2))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("summary", "expected one of selfinfo, llmlingua2, found 'summary'"),
        ("selfinfo:keep=0", "expected keep as a share up to 1 or a whole number"),
        ("selfinfo:keep=nan", "expected keep as a share"),
        ("selfinfo:keep=1.5", "expected keep as a share"),
        ("selfinfo:keep=half", "expected a number for keep, found 'half'"),
        ("selfinfo:keep", "expected parameters like key=value, found 'keep'"),
        ("selfinfo:keep=0.5,keep=0.5", "expected keep once"),
        ("selfinfo:unit=phrase", "expected unit token or word, found 'phrase'"),
        ("selfinfo:iterative=1", "expected yes or no for iterative, found '1'"),
        ("selfinfo:segment=1", "expected segment from 2, found 1"),
        ("selfinfo:last=-1", "expected last from 0, found -1"),
        ("selfinfo:depth=1", "expected one of keep, unit, iterative"),
        ("llmlingua2:keep=2", "expected keep above 0 and up to 1, found 2"),
        ("llmlingua2:model=gpt2", "expected xlm-roberta-large or .* in model, .* found 'gpt2'"),
    ],
)
def test_bad_specs(spec: str, message: str, cli, m) -> None:
    with pytest.raises(kv.ConfigError, match=message):
        parse_method(spec)
    result = cli("generate", *m, "-p", "a b", "--compress-prompt", spec)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1


def test_specs_are_canonical() -> None:
    assert str(parse_method("selfinfo")) == "selfinfo:keep=0.5"
    spec = "selfinfo:keep=0.25,unit=word,iterative=no"
    assert str(parse_method(" selfinfo: unit=word, iterative=no, keep=.25 ")) == spec


def test_nothing_to_compress(tiny: kv.Model) -> None:
    with pytest.raises(kv.ConfigError, match="expected at least one token, found none"):
        kv.compress_prompt(tiny, [])
    with pytest.raises(kv.ConfigError, match="expected text or messages"):
        kv.compress_prompt(tiny, [5, 6], question="x")
    assert kv.compress_prompt(tiny, [5]).tokens == [5]


def test_cancelling(tiny: kv.Model) -> None:
    with pytest.raises(kv.CancelledError):
        kv.compress_prompt(tiny, TEXT, progress=lambda done, total: False)


def test_generate(cli_json, m, tiny_chat: kv.Model) -> None:
    arguments = ("-p", TEXT, "--question", "Who reads?", "--temp", 0, "-n", 5)
    plain = cli_json("generate", *m, *arguments)
    assert "prompt_compression" not in plain
    short = cli_json("generate", *m, *arguments, "--compress-prompt", "selfinfo:keep=0.5")
    expected = kv.compress_prompt(tiny_chat, TEXT + "\n\nWho reads?", "selfinfo", "Who reads?")
    assert short["prompt_compression"] == {
        "method": "selfinfo:keep=0.5",
        "tokens_before": plain["prompt_tokens"],
        "tokens_after": len(expected.tokens),
    }
    assert short["prompt_tokens"] == len(expected.tokens) < 0.6 * plain["prompt_tokens"]
    assert short["cache"]["tokens_seen"] < plain["cache"]["tokens_seen"]
    answer = tiny_chat.session().generate(expected.tokens, max_tokens=5)
    assert short["text"] == "".join(piece.text for piece in answer)
    chat = cli_json("generate", *m, *arguments, "--chat", "--compress-prompt", "selfinfo")
    assert chat["prompt_tokens"] == chat["prompt_compression"]["tokens_after"]


def test_chat(cli, m) -> None:
    options = ("--compress-prompt", "selfinfo:keep=0.5", "--question", "Who reads?")
    result = cli("chat", *m, "-p", TEXT, *options, "--temp", 0, "-n", 3)
    assert result.returncode == 0
    assert "prompt selfinfo:keep=0.5: " in result.stderr
    assert cli("chat", *m, *options).returncode == 2


# --- LLMLingua-2 -----------------------------------------------------------------------------


@pytest.fixture
def fake_llmlingua(monkeypatch: pytest.MonkeyPatch):
    """A package that keeps every second word; what it was asked is recorded."""
    asked: list[tuple[str, dict[str, Any]]] = []

    class PromptCompressor:
        def __init__(self, name: str, use_llmlingua2: bool, device_map: str) -> None:
            assert use_llmlingua2
            if name == "nowhere/xlm-roberta-large":
                raise OSError("no such\nmodel")

        def compress_prompt(self, text: str, **options: Any) -> dict[str, str]:
            asked.append((text, options))
            return {"compressed_prompt": " ".join(text.split()[::2])}

    module = ModuleType("llmlingua")
    module.PromptCompressor = PromptCompressor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "llmlingua", module)
    _encoder.cache_clear()
    yield asked
    _encoder.cache_clear()


def test_llmlingua2(tiny_chat: kv.Model, fake_llmlingua) -> None:
    prompt = "one two three four five" + QUESTION
    short = kv.compress_prompt(tiny_chat, prompt, "llmlingua2:keep=0.25")
    assert short.text == "one three five" + QUESTION
    assert short.tokens == tiny_chat.tokenizer.encode(short.text)
    assert short.original_tokens == len(tiny_chat.tokenizer.encode(prompt))
    assert short.kept is None
    [(text, options)] = fake_llmlingua
    assert text == "one two three four five"
    assert options == {
        "rate": 0.25,
        "force_tokens": ["\n", ".", "!", "?", ","],
        "chunk_end_tokens": [".", "\n"],
        "drop_consecutive": True,
    }
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": prompt},
    ]
    short = kv.compress_prompt(tiny_chat, messages, "llmlingua2")
    assert short.text == f"<|bos|>[system] Be kind.\n[user] one three five{QUESTION}\n[assistant] "
    with pytest.raises(kv.ConfigError, match="found token ids"):
        kv.compress_prompt(tiny_chat, [1, 2], "llmlingua2")
    with pytest.raises(
        kv.IoError, match=r"the encoder nowhere/xlm-roberta-large \(no such model\)"
    ):
        kv.compress_prompt(tiny_chat, prompt, "llmlingua2:model=nowhere/xlm-roberta-large")


def test_llmlingua2_is_refused_without_its_package(cli, m, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llmlingua", None)
    _encoder.cache_clear()
    result = cli("generate", *m, "-p", TEXT, "--compress-prompt", "llmlingua2:keep=0.5")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "kvengine generate: llmlingua2: expected the Python package llmlingua, found none; "
        "pip install 'kvengine[llmlingua]' brings it\n"
    )
