"""Several sequences in one batch: scoring, answering, streaming."""

from __future__ import annotations

import math

import numpy as np
import pytest

import kvengine as kv

PROMPTS = [
    "The cache keeps the token.",
    "A window of many rows, each of them seen once and then forgotten.",
    "Nothing is as it seems to be in here today.",
    "One two three four five six seven eight nine ten.",
    "A last one which is rather longer than all of the others, so that it takes more than a chunk.",
]
OPTIONS = {"ignore_eos": True, "temperature": 0.0}


def alone(model: kv.Model, prompt: object, **options: object) -> tuple[str, list[int]]:
    session = model.session(cache="int4:group=8,tail=64", exact=True)
    pieces = list(session.generate(prompt, **options))
    text = "".join(piece.text for piece in pieces)
    return text, [piece.token for piece in pieces if piece.token is not None]


@pytest.mark.parametrize("parallel", [1, 2, 8])
def test_answers_are_those_of_each_prompt_alone(tiny: kv.Model, parallel: int) -> None:
    answers = tiny.generate_batch(
        PROMPTS,
        90,
        parallel=parallel,
        cache="int4:group=8,tail=64",
        exact=True,
        repeat_penalty=1.1,
        **OPTIONS,
    )
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        expected = alone(tiny, prompt, max_tokens=90, repeat_penalty=1.1, **OPTIONS)
        assert (answer.text, answer.tokens) == expected
        assert answer.finish_reason == "length"
        assert answer.prompt_tokens == len(tiny.tokenizer.encode(prompt))
        assert len(answer.logprobs) == 90
        assert answer.logprob == pytest.approx(sum(answer.logprobs))
        assert answer.error == ""


def test_draws_are_those_of_each_prompt_alone(tiny: kv.Model) -> None:
    options = {"temperature": 1.0, "top_k": 0, "seed": 7, "ignore_eos": True}
    answers = tiny.generate_batch(PROMPTS, 20, exact=True, cache="int4:group=8,tail=64", **options)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert answer.tokens == alone(tiny, prompt, max_tokens=20, **options)[1]


def test_pieces_stream_in_turn(tiny: kv.Model) -> None:
    stream = tiny.stream_batch(PROMPTS[:3], 10, **OPTIONS)
    texts = ["", "", ""]
    order = []
    for index, piece in stream:
        texts[index] += piece.text
        order.append(index)
    assert order[:6] == [0, 1, 2, 0, 1, 2]
    assert texts == [answer.text for answer in stream.answers]
    assert stream.prompt_seconds > 0
    assert stream.decode_seconds > 0


def test_stop_strings_end_their_own_sequence(tiny: kv.Model) -> None:
    whole = tiny.generate_batch(PROMPTS, 30, exact=True, **OPTIONS)
    stop = whole[0].text[10:12]
    answers = tiny.generate_batch(PROMPTS, 30, exact=True, stop=stop, **OPTIONS)
    for answer, expected in zip(answers, whole, strict=True):
        if stop in expected.text:
            assert answer.text == expected.text[: expected.text.index(stop)]
            assert answer.finish_reason == "stop"
        else:
            assert answer.text == expected.text
            assert answer.finish_reason == "length"
    assert answers[0].finish_reason == "stop"


def test_a_prompt_that_does_not_fit_fails_alone(tiny: kv.Model) -> None:
    answers = tiny.generate_batch([PROMPTS[0], PROMPTS[4], PROMPTS[0]], 5, n_ctx=40, **OPTIONS)
    assert [answer.finish_reason for answer in answers] == ["length", "error", "length"]
    assert "context" in answers[1].error
    assert answers[0].tokens == answers[2].tokens
    assert len(answers[0].tokens) == 5
    answers = tiny.generate_batch(PROMPTS[:2], -1, n_ctx=70, **OPTIONS)
    for answer in answers:
        assert answer.finish_reason == "length"
        assert len(answer.tokens) == 71 - answer.prompt_tokens


def test_closing_cancels(tiny: kv.Model) -> None:
    sessions = [tiny.session() for _ in PROMPTS]
    stream = tiny.stream_batch(PROMPTS, 30, sessions=sessions, parallel=2, **OPTIONS)
    next(stream)
    stream.close()
    assert list(stream) == []
    assert stream.answers[0].finish_reason is None
    assert len(stream.answers[0].tokens) == 1
    assert sessions[0].forward([1]).shape[0] == 1
    assert sessions[4].n_tokens == 0


def test_sessions_go_on(tiny_chat: kv.Model) -> None:
    sessions = [tiny_chat.session() for _ in range(2)]
    messages = [{"role": "user", "content": "Hello"}]
    first = tiny_chat.generate_batch([messages, messages], 5, sessions=sessions, **OPTIONS)
    assert first[0].tokens == first[1].tokens
    held = sessions[0].n_tokens
    assert held == first[0].prompt_tokens + 4
    second = tiny_chat.generate_batch([" and", [5, 6]], 5, sessions=sessions, **OPTIONS)
    assert sessions[1].n_tokens == held + 2 + 4
    assert len(second[0].tokens) == 5
    with pytest.raises(kv.ConfigError, match="sessions"):
        tiny_chat.generate_batch(["a"], sessions=sessions)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"parallel": 0}, "parallel"),
        ({"temperature": math.nan}, "temperature"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"cache": "nothing"}, "nothing"),
        ({"prompts": ["a", ""]}, "prompt"),
    ],
)
def test_bad_options(tiny: kv.Model, options: dict[str, object], match: str) -> None:
    with pytest.raises(kv.ConfigError, match=match):
        tiny.generate_batch(**({"prompts": ["a", "b"]} | options))


def test_forward_batch_scores_forks(tiny: kv.Model) -> None:
    session = tiny.session(exact=True, cache="int4:group=8,tail=64")
    session.forward(tiny.tokenizer.encode(PROMPTS[4]))
    rows = [tiny.tokenizer.encode(text, add_special=False) for text in PROMPTS[:4]]
    forks = [session.fork() for _ in rows]
    logits = tiny.forward_batch(forks, rows, all_logits=True)
    for each, tokens in zip(logits, rows, strict=True):
        np.testing.assert_array_equal(each, session.fork().forward(tokens, all_logits=True))
        assert not each.flags.writeable
    last = tiny.forward_batch(forks, [np.array([5])] * 4)
    assert [each.shape for each in last] == [(1, tiny.vocab_size)] * 4
    np.testing.assert_array_equal(last[2], forks[2].last_logits)


def test_forward_batch_refuses(tiny: kv.Model) -> None:
    one, other = tiny.session(), tiny.session(n_ctx=3)
    for sessions, tokens, error in (
        ([], [], kv.ConfigError),
        ([one], [], kv.ConfigError),
        ([one, one], [[1], [2]], kv.ConfigError),
        ([one, other], [[1], []], kv.ConfigError),
        ([one, other], [[1], [-1]], kv.ConfigError),
        ([one, other], [[1], [1, 2, 3, 4]], kv.CapacityError),
        ([one, tiny.session(exact=True)], [[1], [2]], kv.ConfigError),
    ):
        with pytest.raises(error):
            tiny.forward_batch(sessions, tokens)
    assert one.n_tokens == other.n_tokens == 0
    many = tiny.session(n_batch=32)
    with pytest.raises(kv.CancelledError):
        tiny.forward_batch([many, other], [[1] * 100, [1]], progress=lambda done, total: False)
    assert 0 < many.n_tokens + other.n_tokens < 101


def test_a_sequence_notices_others_at_its_session(tiny: kv.Model) -> None:
    session = tiny.session()
    stream = tiny.stream_batch([PROMPTS[0]], 30, sessions=[session], **OPTIONS)
    next(stream)
    session.truncate(1)
    with pytest.raises(kv.ConfigError, match="session"):
        next(stream)
