"""Speculation: the same text, whatever is guessed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, Cli

import kvengine as kv

PROMPT = "The cache keeps the token. The cache keeps the "


def run(
    model: kv.Model, cache: str = "f16", **options: object
) -> tuple[list[object], kv.Generation]:
    session = model.session(cache=cache, exact=True)
    answer = session.generate(PROMPT, **({"max_tokens": 120, "ignore_eos": True} | options))
    pieces = [(piece.text, piece.token, piece.logprob) for piece in answer]
    return [*pieces, answer.finish_reason, session.tokens], answer


@pytest.mark.parametrize("cache", ["f16", "f32", "bf16", "int8:group=8,tail=64", "int4:group=8"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_nothing_changes(tiny: kv.Model, cache: str, temperature: float) -> None:
    options = {"cache": cache, "temperature": temperature, "seed": 3, "repeat_penalty": 1.05}
    expected, plain = run(tiny, **options)
    assert plain.drafted_tokens == plain.accepted_tokens == 0
    for draft in ("lookup", tiny):
        for draft_max in (1, 3, 7, 100):
            found, answer = run(tiny, draft=draft, draft_max=draft_max, **options)
            assert found == expected
            assert 0 <= answer.accepted_tokens <= answer.drafted_tokens
    assert answer.accepted_tokens > 50
    assert run(tiny, draft="lookup", draft_max=0, **options)[1].drafted_tokens == 0


def test_stop_strings(tiny: kv.Model) -> None:
    whole = "".join(piece[0] for piece in run(tiny)[0][:-2])
    for start in range(5, 60, 7):
        stop = whole[start : start + 2]
        expected, _ = run(tiny, stop=stop)
        assert run(tiny, stop=stop, draft=tiny)[0] == expected
        assert run(tiny, stop=stop, draft="lookup")[0] == expected


def test_the_session_holds_what_was_shown(tiny: kv.Model) -> None:
    session = tiny.session(exact=True)
    answer = session.generate(PROMPT, max_tokens=60, ignore_eos=True, draft=tiny)
    tokens = [next(answer).token for _ in range(20)]
    prompt = tiny.tokenizer.encode(PROMPT)
    assert session.tokens == [*prompt, *tokens[:-1]]
    # Looking at the keys shows these tokens only, and does not disturb the answer.
    assert session.cache.keys(0, 0).shape[0] == len(session.tokens)
    tokens += [piece.token for piece in answer]
    assert tokens == [piece[1] for piece in run(tiny, max_tokens=60)[0][:-2]]

    session = tiny.session(exact=True)
    answer = session.generate(PROMPT, max_tokens=60, ignore_eos=True, draft=tiny)
    for _ in range(10):
        next(answer)
    answer.close()
    assert session.cache.stats().tokens_kept == session.n_tokens
    other = tiny.session(exact=True)
    other.forward(prompt)
    for token in tokens[:9]:
        other.forward([token])
    np.testing.assert_array_equal(session.forward([5]), other.forward([5]))


def test_a_draft_session_stays_with_its_session(tiny: kv.Model) -> None:
    session, plain = tiny.session(exact=True), tiny.session(exact=True)
    for text in (PROMPT, " and", " so on"):
        options = {"max_tokens": 15, "ignore_eos": True}
        found = [piece.token for piece in session.generate(text, draft=tiny, **options)]
        assert found == [piece.token for piece in plain.generate(text, **options)]
    assert session.fork().n_tokens == session.n_tokens


def test_other_vocabularies_are_refused(tiny: kv.Model) -> None:
    other = kv.Model.load(TINY / "gemma3-base.gguf")
    with pytest.raises(kv.ConfigError, match="draft model: expected the vocabulary"):
        run(tiny, draft=other)
    with pytest.raises(kv.ConfigError, match="draft"):
        run(tiny, draft="nothing")
    with pytest.raises(kv.ConfigError, match="draft"):
        run(tiny, draft="lookup", draft_max=-1)
    with pytest.raises(kv.ConfigError, match="batch"):
        tiny.generate_batch(["a"], draft_max=3)


def test_generate_verb(cli: Cli, cli_json: object, tiny_chat_path: Path) -> None:
    arguments = ("generate", "-m", tiny_chat_path, "-t", "2", "-p", PROMPT, "-n", "60")
    arguments += ("--temp", "0", "--ignore-eos", "--exact")
    plain = cli_json(*arguments)
    assert plain["drafted"] == plain["accepted"] == 0
    for more in (
        ["--draft-max", "5"],
        ["-md", tiny_chat_path],
        ["-md", tiny_chat_path, "--draft", 2],
    ):
        found = cli_json(*arguments, *more)
        assert found["tokens"] == plain["tokens"]
        assert found["text"] == plain["text"]
        assert 0 <= found["accepted"] <= found["drafted"]
        assert found["drafted"] > 0
        assert found["accepted"] > 0 or "-md" not in more
    assert cli_json(*arguments, "-md", tiny_chat_path, "--draft-max", "0")["drafted"] == 0
    assert "guesses right" in cli(*arguments, "--draft-max", "7").stderr
    refused = cli(*arguments, "-md", TINY / "gemma3-base.gguf")
    assert refused.returncode == 2
    assert "vocabulary" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert cli(*arguments, "--draft-max", "-1").returncode == 2
    assert cli(*arguments, "-md", "").returncode == 2
