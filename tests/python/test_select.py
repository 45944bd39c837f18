"""Caches that drop tokens: what Python sees of them, and scores from Python."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import kvengine as kv

PROMPT = list(range(5, 85)) * 2
Floats = NDArray[np.float32]


@pytest.fixture(scope="module")
def model(tiny_path: Path) -> kv.Model:
    return kv.Model.load(tiny_path, threads=2)


def test_rows_and_positions(model: kv.Model) -> None:
    whole = model.session(n_ctx=512)
    whole.forward(PROMPT)
    session = model.session(n_ctx=512, cache="knorm:keep=0.25")
    session.forward(PROMPT)
    n = len(PROMPT) // 4
    positions = session.cache.positions(1, 0)
    assert positions.dtype == np.int32
    assert positions.shape == (n,)
    assert np.all(np.diff(positions) > 0)
    keys = whole.cache.keys(1, 0)
    assert np.array_equal(session.cache.keys(1, 0), keys[positions])
    assert np.array_equal(session.cache.values(1, 0), whole.cache.values(1, 0)[positions])
    norms = np.linalg.norm(keys, axis=1)
    assert norms[positions].max() <= np.delete(norms, positions).min() + 1e-5
    stats = session.cache.stats()
    assert (stats.tokens_seen, stats.tokens_kept) == (len(PROMPT), n)
    assert np.array_equal(whole.cache.positions(0, 0), np.arange(len(PROMPT)))


def test_a_context_is_read_before_its_question(model: kv.Model) -> None:
    session = model.session(n_ctx=512, cache="snapkv:keep=0.25,window=8")
    session.forward(PROMPT)
    before = session.cache.positions(0, 0)
    session.forward([3, 4, 5])
    after = session.cache.positions(0, 0)
    assert np.array_equal(after[:-3], before)
    assert after[-3:].tolist() == [160, 161, 162]


@pytest.mark.parametrize(
    ("cache", "sentence"),
    [
        ("h2o:keep=513", "keep: expected at most the 512 tokens of the session"),
        ("snapkv:window=512", "window: expected fewer than the 512 tokens of the session"),
        ("knorm:keep=0", "keep: expected a share of the tokens above 0 and at most 1"),
        ("knorm:keep=1.5", "keep: expected a share of the tokens above 0 and at most 1"),
        ("h2o:keep=30,sinks=20,recent=20", "keep: expected at least the 20 sinks and 20 recent"),
    ],
)
def test_budgets_that_cannot_be_are_refused(model: kv.Model, cache: str, sentence: str) -> None:
    with pytest.raises(kv.ConfigError, match=sentence):
        model.session(n_ctx=512, cache=cache)


def test_prefixes_are_reused_only_where_nothing_is_gone(model: kv.Model) -> None:
    session = model.session(n_ctx=512, cache="streaming:keep=40")
    session.forward(PROMPT)
    with pytest.raises(kv.CapacityError, match="rows were dropped when 160 had been read"):
        session.truncate(100)
    assert session.reuse_prefix(PROMPT[:100]) == 0
    assert session.n_tokens == 0


def test_forks_and_files_go_on_alike(model: kv.Model, tmp_path: Path) -> None:
    session = model.session(n_ctx=512, cache="h2o:keep=48+int8:group=8,tail=16")
    session.forward(PROMPT)
    for token in (7, 8, 9):
        session.forward([token])
    session.save(tmp_path / "session")
    restored = model.restore(tmp_path / "session")
    fork = session.fork()
    for token in (3, 4):
        expected = session.forward([token])
        assert np.array_equal(restored.forward([token]), expected)
        assert np.array_equal(fork.forward([token]), expected)


def test_reassigned_positions(model: kv.Model) -> None:
    """With one sink and every token the same, only distances matter: positions do not grow."""
    session = model.session(
        n_ctx=4096, cache="streaming:keep=32,interval=8,positions=reassigned", exact=True
    )
    session.forward(PROMPT)
    assert session.cache.positions(0, 0).tolist() == list(range(32))
    for i in range(40):
        session.forward([5 + i])
        assert session.cache.positions(0, 0).max() < 32 + 8
    assert session.n_tokens == len(PROMPT) + 40
    # Keys of the newest tokens lie where a session that begins there would have them.
    keys = session.cache.keys(0, 0)
    fresh = model.session(n_ctx=512, exact=True)
    fresh.forward((PROMPT + [5 + i for i in range(40)])[-len(keys) :])
    # The first layer's keys are those of the tokens; turned once per 8 tokens in binary16.
    assert np.abs(keys[4:] - fresh.cache.keys(0, 0)[4:]).max() <= 5e-3 * np.abs(keys).max()


def newest(keys: Floats, values: Floats, queries: Floats, mass: Floats) -> Floats:
    assert keys.shape == values.shape
    assert queries.shape[2] == keys.shape[1]
    assert np.isclose(mass.sum(), queries.shape[0] * queries.shape[1], rtol=1e-3)
    return np.arange(len(keys), dtype=np.float32)


def test_scores_from_python(model: kv.Model) -> None:
    session = model.session(n_ctx=512, cache="custom:keep=0.25,window=16", scorer=newest)
    gc.collect()
    session.forward(PROMPT)
    expected = np.arange(120, 160)
    assert np.array_equal(session.cache.positions(0, 0), expected)
    assert np.array_equal(session.fork().cache.positions(1, 0), expected)


def test_scorers_are_given_anew_to_restored_sessions(model: kv.Model, tmp_path: Path) -> None:
    cache = "custom:keep=40,window=16,interval=8"

    def score(keys: Floats, values: Floats, queries: Floats, mass: Floats) -> Floats:
        return np.arange(len(keys), dtype=np.float32) + mass

    session = model.session(n_ctx=512, cache=cache, scorer=score)
    session.forward(PROMPT)
    session.save(tmp_path / "a.session")
    restored = model.restore(tmp_path / "a.session", scorer=score)
    for token in range(20):
        assert np.array_equal(session.forward([token]), restored.forward([token]))
    for layer in (0, 1):
        found = restored.cache.positions(layer, 0)
        assert len(found) < 40 + 8  # it went on dropping
        assert np.array_equal(found, session.cache.positions(layer, 0))
    with pytest.raises(kv.ConfigError, match="expected a session with a scorer, found none"):
        model.restore(tmp_path / "a.session")
    model.session(cache="f16").save(tmp_path / "b.session")
    with pytest.raises(kv.ConfigError, match="expected the selector custom"):
        model.restore(tmp_path / "b.session", scorer=newest)


def test_scores_are_what_the_definition_says(model: kv.Model) -> None:
    """SnapKV in Python keeps what SnapKV keeps."""

    def snapkv(keys: Floats, values: Floats, queries: Floats, mass: Floats) -> Floats:
        weights = mass[:-8]
        pooled = np.convolve(weights, np.ones(5, np.float32) / 5, mode="same")
        return np.concatenate([pooled, np.full(8, np.inf, np.float32)])

    mine = model.session(n_ctx=512, cache="custom:keep=0.25,window=8", scorer=snapkv)
    theirs = model.session(n_ctx=512, cache="snapkv:keep=0.25,window=8")
    for session in (mine, theirs):
        session.forward(PROMPT)
    for layer in (0, 1):
        found, expected = mine.cache.positions(layer, 0), theirs.cache.positions(layer, 0)
        # numpy sums in float32 and the engine in float64: one of 40 may differ.
        assert len(np.intersect1d(found, expected)) >= len(expected) - 1


@pytest.mark.parametrize(
    ("result", "error", "what"),
    [
        (lambda n: np.zeros(3), kv.ConfigError, "expected 160 numbers, one per token, found 1 dim"),
        (lambda n: "no", kv.ConfigError, "scorer: layer 0, kv head 0"),
        (lambda n: {}[n], KeyError, "160"),
    ],
)
def test_bad_scorers_leave_the_session_as_it_was(
    model: kv.Model, result: object, error: type[Exception], what: str
) -> None:
    session = model.session(
        n_ctx=512,
        cache="custom",
        scorer=lambda k, v, q, m: result(len(k)),  # type: ignore[operator]
    )
    with pytest.raises(error, match=what):
        session.forward(PROMPT)
    assert session.n_tokens == 0


def test_scorers_belong_to_custom(model: kv.Model) -> None:
    with pytest.raises(kv.ConfigError, match="expected a session with a scorer"):
        model.session(cache="custom")
    with pytest.raises(kv.ConfigError, match="expected the selector custom"):
        model.session(cache="snapkv", scorer=newest)


def test_scorers_cannot_begin_passes(model: kv.Model) -> None:
    other = model.session(n_ctx=64)

    def score(keys, values, queries, mass):  # type: ignore[no-untyped-def]
        other.forward([1])
        return mass

    session = model.session(n_ctx=512, cache="custom:keep=0.25,window=16", scorer=score)
    with pytest.raises(kv.ConfigError, match="one forward pass at a time"):
        session.forward(list(range(1, 100)))
    assert len(other.forward([1])) > 0
