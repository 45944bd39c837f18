"""Perplexity: the arithmetic, the protocol, and what is read of the cache."""

from __future__ import annotations

import math

import numpy as np
import pytest

import kvengine as kv
from kvengine.eval import PerplexityOptions, perplexity
from kvengine.eval.perplexity import log_softmax, score_rows, window_starts

TOKENS = [(11 * i * i + 7 * i) % 290 for i in range(200)]


def plain_log_softmax(row: np.ndarray) -> list[float]:
    """By the definition, with Python's exact sums."""
    numbers = [float(x) for x in row]
    top = max(numbers)
    total = math.log(math.fsum(math.exp(x - top) for x in numbers))
    return [x - top - total for x in numbers]


def test_log_softmax() -> None:
    rows = np.random.default_rng(1).normal(0, 8, (5, 40)).astype(np.float32)
    rows[0, :3] = -np.inf
    expected = [plain_log_softmax(row) for row in rows]
    np.testing.assert_allclose(log_softmax(rows), expected, rtol=0, atol=1e-12)
    assert log_softmax(np.full((1, 4), 1e30, np.float32)) == pytest.approx(-math.log(4))


def test_scores() -> None:
    draw = np.random.default_rng(2)
    logits = draw.normal(0, 3, (37, 50)).astype(np.float32)
    reference = (logits + draw.normal(0, 0.5, logits.shape)).astype(np.float32)
    targets = draw.integers(0, 50, 37)
    scores = score_rows(logits, targets, reference)
    assert scores.compared is not None
    for i in range(37):
        p, r = plain_log_softmax(logits[i]), plain_log_softmax(reference[i])
        kld = math.fsum(math.exp(b) * (b - a) for a, b in zip(p, r, strict=True))
        assert scores.nll[i] == pytest.approx(-p[targets[i]], abs=1e-12)
        assert scores.compared.nll[i] == pytest.approx(-r[targets[i]], abs=1e-12)
        assert scores.compared.kld[i] == pytest.approx(kld, abs=1e-12)
        assert scores.compared.same_top[i] == (p.index(max(p)) == r.index(max(r)))
    assert 0 < scores.compared.same_top.mean() < 1


def test_impossible_tokens_cost_nothing_extra() -> None:
    reference = np.array([[0, 0, -np.inf]], np.float32)
    tested = np.array([[1, 1, -np.inf]], np.float32)
    scores = score_rows(tested, np.array([0]), reference)
    assert scores.compared.kld[0] == pytest.approx(0, abs=1e-15)


def test_nan_is_not_averaged() -> None:
    with pytest.raises(kv.Error, match="NaN"):
        score_rows(np.array([[math.nan, 0]], np.float32), np.array([1]))


def by_hand(model: kv.Model, options: PerplexityOptions, first: int) -> list[float]:
    """Negative log-likelihoods by one forward pass for each window."""
    nll = []
    for start in window_starts(len(TOKENS), options):
        window = TOKENS[start : start + options.n_ctx]
        logits = model.session(cache="f32", exact=True).forward(window, all_logits=True)
        for i in range(first, options.n_ctx - 1):
            nll.append(-plain_log_softmax(logits[i])[window[i + 1]])
    return nll


@pytest.mark.parametrize("n_ctx", [3, 33, 64])
@pytest.mark.parametrize("feed", [1, 7, 32, 100])
def test_second_half_is_scored(tiny: kv.Model, n_ctx: int, feed: int) -> None:
    options = PerplexityOptions(n_ctx=n_ctx, feed=feed, cache="f32", exact=True)
    result = perplexity(tiny, TOKENS, options)
    nll = by_hand(tiny, options, n_ctx // 2)
    mean = sum(nll) / len(nll)
    variance = sum((x - mean) ** 2 for x in nll) / len(nll)
    assert result.windows == len(TOKENS) // n_ctx
    assert result.scored_tokens == len(nll) == result.windows * (n_ctx - 1 - n_ctx // 2)
    # The feeds add the same float32 numbers up in another order.
    assert result.ppl == pytest.approx(math.exp(mean), rel=1e-5)
    error = math.exp(mean) * math.sqrt(variance / (len(nll) - 1))
    assert result.ppl_error == pytest.approx(error, rel=1e-4)
    assert result.ppl_reference is None
    assert result.kld_mean is None


def test_stride(tiny: kv.Model) -> None:
    options = PerplexityOptions(n_ctx=64, stride=16, cache="f32", exact=True)
    result = perplexity(tiny, TOKENS, options)
    nll = by_hand(tiny, options, 64 - 1 - 16)
    assert result.windows == (200 - 64) // 16 + 1
    assert result.scored_tokens == len(nll) == 16 * result.windows
    assert result.ppl == pytest.approx(math.exp(sum(nll) / len(nll)), rel=1e-5)


def test_reference(tiny: kv.Model) -> None:
    same = PerplexityOptions(n_ctx=64, cache="f32", reference="f32", exact=True)
    result = perplexity(tiny, TOKENS, same)
    assert result.kld_mean == result.kld_p999 == 0
    assert result.same_top == 1
    assert result.ppl == result.ppl_reference
    coarse = PerplexityOptions(
        n_ctx=64, feed=8, cache="int4:group=8,tail=0", reference="f32", exact=True
    )
    result = perplexity(tiny, TOKENS, coarse)
    assert 0 < result.kld_median < result.kld_p99 <= result.kld_p999
    assert result.kld_mean > 0
    assert result.ppl != result.ppl_reference
    assert result.cache.spec == kv.canonical_cache(coarse.cache)
    assert result.cache.tokens_seen == 64


def test_the_cache_is_read_between_feeds(tiny: kv.Model) -> None:
    def kld(feed: int) -> float | None:
        options = PerplexityOptions(
            n_ctx=192, feed=feed, cache="int4:group=8,tail=32", reference="f16", exact=True
        )
        return perplexity(tiny, TOKENS, options).kld_mean

    assert kld(192) == 0  # one pass attends to itself in f16
    assert kld(8) > 0


@pytest.mark.parametrize("prefill", [16, 32, 50, 62])
def test_a_prompt_is_read_in_one_go(tiny: kv.Model, prefill: int) -> None:
    """A selector drops at its end: scores are those of a session that reads the same two parts."""
    cache = "knorm:keep=0.5"
    options = PerplexityOptions(
        n_ctx=64, feed=64, prefill=prefill, chunks=1, cache=cache, exact=True
    )
    session = tiny.session(cache=cache, exact=True)
    parts = [TOKENS[:prefill], TOKENS[prefill:64]]
    logits = np.concatenate([session.forward(part, all_logits=True) for part in parts])
    nll = [-plain_log_softmax(logits[i])[TOKENS[i + 1]] for i in range(32, 63)]
    result = perplexity(tiny, TOKENS, options)
    assert result.ppl == pytest.approx(math.exp(sum(nll) / len(nll)), rel=1e-9)
    assert result.cache.tokens_kept < 64


def test_windows_are_told(tiny: kv.Model) -> None:
    windows, feeds = [], []
    options = PerplexityOptions(n_ctx=64, chunks=2)
    result = perplexity(
        tiny, TOKENS, options, windows.append, lambda done, total: feeds.append((done, total))
    )
    assert [window.index for window in windows] == [0, 1]
    assert windows[-1].ppl_so_far == result.ppl
    assert math.sqrt(windows[0].ppl * windows[1].ppl) == pytest.approx(result.ppl)
    assert feeds == [(32, 128), (64, 128), (96, 128), (128, 128)]


def test_bos_replaces_the_first_token(tiny: kv.Model, tmp_path) -> None:
    writer = kv.GgufWriter.copy_of(tiny.file)
    writer.set("tokenizer.ggml.add_bos_token", True, "bool")
    writer.write(tmp_path / "bos.gguf")
    model = kv.Model.load(tmp_path / "bos.gguf", threads=1)
    options = PerplexityOptions(n_ctx=64, cache="f32", exact=True, chunks=1)
    with_bos = [model.tokenizer.bos, *TOKENS[1:]]
    assert model.tokenizer.add_bos
    assert not tiny.tokenizer.add_bos
    assert perplexity(model, TOKENS, options).ppl == perplexity(tiny, with_bos, options).ppl


@pytest.mark.parametrize(
    "options",
    [
        {"n_ctx": 2},
        {"feed": 0},
        {"chunks": 0},
        {"stride": 0},
        {"stride": 512},
        {"n_ctx": -1},
        {"prefill": -1},
        {"n_ctx": 9, "prefill": 8},
    ],
    ids=str,
)
def test_bad_options(options: dict) -> None:
    with pytest.raises(kv.ConfigError):
        PerplexityOptions(**options)


def test_short_texts_are_refused(tiny: kv.Model) -> None:
    with pytest.raises(kv.ConfigError, match="window"):
        perplexity(tiny, TOKENS[:63], PerplexityOptions(n_ctx=64))
