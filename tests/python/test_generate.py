"""Generation: pieces, reasons to stop, seeds, conversations."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import kvengine as kv

PROMPT = "The cache keeps the token."


def text_of(generation: kv.Generation) -> str:
    return "".join(piece.text for piece in generation)


def test_greedy_follows_the_logits(tiny: kv.Model) -> None:
    session = tiny.session()
    pieces = list(session.generate(PROMPT, max_tokens=12, ignore_eos=True))
    tokens = [piece.token for piece in pieces if piece.token is not None]
    assert len(tokens) == 12

    check = tiny.session()
    logits = check.forward(tiny.tokenizer.encode(PROMPT, parse_special=True))[0]
    for piece in pieces[:12]:
        ends = [t for t in range(len(tiny.tokenizer)) if tiny.tokenizer.is_end_of_generation(t)]
        allowed = logits.copy()
        allowed[ends] = -np.inf
        assert piece.token == allowed.argmax()
        wide = logits.astype(np.float64)
        expected = wide[piece.token] - np.log(np.exp(wide - wide.max()).sum()) - wide.max()
        assert piece.logprob == pytest.approx(expected, abs=1e-4)
        logits = check.forward([piece.token])[0]


def test_the_iterator_tells_what_happened(tiny: kv.Model) -> None:
    session = tiny.session()
    answer = session.generate(PROMPT, max_tokens=5, ignore_eos=True)
    assert iter(answer) is answer
    assert answer.finish_reason is None
    text = text_of(answer)
    assert answer.finish_reason == "length"
    assert answer.generated_tokens == 5
    assert answer.prompt_tokens == len(tiny.tokenizer.encode(PROMPT))
    assert answer.prompt_seconds > 0
    assert answer.decode_seconds > 0
    # The session holds all but the last token, which nobody has asked to go on from.
    held = tiny.tokenizer.decode(session.tokens[answer.prompt_tokens :])
    assert text.startswith(held)
    assert list(answer) == []


def test_full_context_ends_an_answer(tiny: kv.Model) -> None:
    tokens = tiny.tokenizer.encode(PROMPT)
    session = tiny.session(n_ctx=len(tokens) + 3)
    answer = session.generate(tokens, max_tokens=-1, ignore_eos=True)
    text_of(answer)
    assert answer.finish_reason == "length"
    assert session.n_tokens == session.n_ctx


def test_end_token_ends_an_answer(tiny: kv.Model) -> None:
    end = tiny.tokenizer.eos
    assert tiny.tokenizer.is_end_of_generation(end)
    answer = tiny.session().generate(PROMPT, logit_bias={end: 1e4})
    assert text_of(answer) == ""
    assert answer.finish_reason == "stop"


def test_stop_strings(tiny: kv.Model) -> None:
    whole = text_of(tiny.session().generate(PROMPT, max_tokens=30, ignore_eos=True))
    stop = whole[len(whole) // 2 :][:3]
    answer = tiny.session().generate(PROMPT, max_tokens=30, ignore_eos=True, stop=stop)
    assert text_of(answer) == whole[: whole.index(stop)]
    assert answer.finish_reason == "stop"
    answer = tiny.session().generate(PROMPT, max_tokens=30, ignore_eos=True, stop=["\0", stop])
    assert text_of(answer) == whole[: whole.index(stop)]


def test_closing_cancels(tiny: kv.Model) -> None:
    session = tiny.session()
    with session.generate(PROMPT, max_tokens=30, ignore_eos=True) as answer:
        next(answer)
    assert answer.finish_reason == "cancelled"
    assert list(answer) == []
    assert session.forward([1]).shape[0] == 1


def test_a_generation_ends_when_its_session_is_used_otherwise(tiny: kv.Model) -> None:
    session = tiny.session()
    answer = session.generate(PROMPT, max_tokens=30, ignore_eos=True)
    next(answer)
    session.truncate(1)
    with pytest.raises(kv.ConfigError, match="generation"):
        next(answer)


def test_a_generation_keeps_its_session_alive(tiny: kv.Model) -> None:
    answer = tiny.session().generate(PROMPT, max_tokens=4, ignore_eos=True)
    assert len(list(answer)) >= 4


def test_seeds(tiny: kv.Model) -> None:
    def draw(seed: int, model: kv.Model = tiny) -> list[int | None]:
        options = {"temperature": 1.5, "max_tokens": 20, "top_k": 0, "ignore_eos": True}
        return [p.token for p in model.session().generate(PROMPT, seed=seed, **options)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert draw(2**64 - 1) != draw(1)
    assert draw(1) == draw(1, kv.Model.load(tiny.path, threads=3))


def test_logit_bias_bans(tiny: kv.Model) -> None:
    first = next(tiny.session().generate(PROMPT, ignore_eos=True)).token
    banned = {first: -math.inf}
    other = next(tiny.session().generate(PROMPT, ignore_eos=True, logit_bias=banned)).token
    assert other != first


def test_prompt_kinds_agree(tiny: kv.Model) -> None:
    tokens = tiny.tokenizer.encode(PROMPT)
    expected = text_of(tiny.session().generate(PROMPT, max_tokens=8))
    for prompt in (tokens, np.array(tokens), PROMPT.encode()):
        assert text_of(tiny.session().generate(prompt, max_tokens=8)) == expected


def test_text_goes_on_where_the_session_is(tiny: kv.Model) -> None:
    session = tiny.session()
    text_of(session.generate("The cache", max_tokens=0))
    text_of(session.generate(" keeps", max_tokens=0))
    tokenizer = tiny.tokenizer
    assert session.tokens == tokenizer.encode("The cache") + tokenizer.encode(
        " keeps", add_special=False
    )


@pytest.mark.parametrize("prompt", ["", [], ()])
def test_nothing_to_begin_with(tiny: kv.Model, prompt: object) -> None:
    with pytest.raises(kv.ConfigError):
        tiny.session().generate(prompt)


def test_an_empty_prompt_goes_on(tiny: kv.Model) -> None:
    session = tiny.session()
    session.forward(tiny.tokenizer.encode(PROMPT))
    expected = text_of(tiny.session().generate(PROMPT, max_tokens=6))
    assert text_of(session.generate([], max_tokens=6)) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_p": -0.1},
        {"top_p": math.nan},
        {"min_p": 2},
        {"typical_p": math.nan},
        {"repeat_penalty": 0},
        {"repeat_penalty": math.nan},
        {"presence_penalty": math.nan},
        {"frequency_penalty": math.inf},
        {"repeat_last_n": -2},
        {"max_tokens": -2},
        {"stop": ""},
        {"stop": [""]},
        {"logit_bias": {10**6: 1.0}},
        {"logit_bias": {1: math.nan}},
    ],
    ids=str,
)
def test_bad_options(tiny: kv.Model, options: dict) -> None:
    with pytest.raises(kv.ConfigError):
        tiny.session().generate(PROMPT, **options)


def test_invalid_text_is_refused(tiny: kv.Model) -> None:
    with pytest.raises(UnicodeEncodeError):
        tiny.session().generate("\ud800")


def test_a_growing_conversation_reads_only_what_is_new(tiny_chat: kv.Model) -> None:
    session = tiny_chat.session()
    messages = [{"role": "user", "content": "the lamp"}]
    first = session.generate(messages, max_tokens=6, ignore_eos=True)
    assert first.prompt_tokens == len(tiny_chat.encode_chat(messages))
    messages.append({"role": "assistant", "content": text_of(first)})
    messages.append({"role": "user", "content": "and the boat"})
    held = session.n_tokens
    second = session.generate(messages, max_tokens=6, ignore_eos=True)
    whole = tiny_chat.encode_chat(messages)
    assert second.prompt_tokens < len(whole) - held + first.generated_tokens
    fresh = tiny_chat.session()
    assert text_of(second) == text_of(fresh.generate(messages, max_tokens=6, ignore_eos=True))
    assert session.tokens == fresh.tokens


def test_bos_is_not_doubled(tmp_path: Path, tiny_chat: kv.Model) -> None:
    writer = kv.GgufWriter.copy_of(tiny_chat.file)
    writer.set("tokenizer.ggml.add_bos_token", True, "bool")
    with_bos = tmp_path / "bos.gguf"
    writer.write(with_bos)
    writer.set("tokenizer.chat_template", "{{ messages[0].content }}", "string")
    without_bos = tmp_path / "no-bos.gguf"
    writer.write(without_bos)
    for path in (with_bos, without_bos):
        model = kv.Model.load(path, threads=1)
        tokens = model.encode_chat([{"role": "user", "content": "the lamp"}])
        assert tokens.count(model.tokenizer.bos) == 1
        assert tokens[0] == model.tokenizer.bos


def test_messages_need_a_template(tiny: kv.Model) -> None:
    with pytest.raises(kv.UnsupportedError, match="chat template"):
        tiny.session().generate([{"role": "user", "content": "hi"}])


def test_render(tiny_chat: kv.Model) -> None:
    text = tiny_chat.render([{"role": "user", "content": "hi"}])
    bos = tiny_chat.tokenizer.token_text(tiny_chat.tokenizer.bos)
    assert text == f"{bos}[user] hi\n[assistant] "
