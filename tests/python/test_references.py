"""The logits of a reference cache are computed once for all caches that are compared with it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvengine as kv
from kvengine.eval.perplexity import PerplexityOptions, score_window
from kvengine.eval.references import References
from kvengine.eval.store import Store
from kvengine.eval.sweep import jobs_of, sweep
from kvengine.eval.task import parse

CACHES = ["f16", "int4:group=8,tail=0", "int2:group=8,tail=0"]
WINDOW = [(11 * i * i + 7 * i) % 290 for i in range(48)]
OPTIONS = PerplexityOptions(n_ctx=48, feed=7, cache="int2:group=8,tail=0", reference="f32")
ROWS = 48 - 1 - 24  # scored


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many sessions of each cache were opened."""
    found: Counter[str] = Counter()
    session = kv.Model.session

    def counted(self: kv.Model, n_ctx: int, cache: str, *args: Any, **options: Any) -> Any:
        found[cache] += 1
        return session(self, n_ctx, cache, *args, **options)

    monkeypatch.setattr(kv.Model, "session", counted)
    return found


def scores(model: kv.Model, options: PerplexityOptions, references: References | None) -> Any:
    return score_window(model, WINDOW, options, lambda read: None, references)[0]


@pytest.mark.parametrize("feed", [7, 24, 48])
@pytest.mark.parametrize("prefill", [0, 24, 31])
def test_kept_rows_change_nothing(
    tiny: kv.Model, opened: Counter[str], feed: int, prefill: int
) -> None:
    options = PerplexityOptions(
        n_ctx=48, feed=feed, prefill=prefill, cache="int2:group=8,tail=0", reference="f32"
    )
    kept = References()
    expected = scores(tiny, options, None)
    for _ in range(3):
        found = scores(tiny, options, kept)
        np.testing.assert_array_equal(found.compared.kld, expected.compared.kld)
        np.testing.assert_array_equal(found.compared.nll, expected.compared.nll)
        np.testing.assert_array_equal(found.compared.same_top, expected.compared.same_top)
    assert expected.compared.kld.max() > 0.01
    assert opened["f32"] == 2


def test_rows_of_other_settings_are_not_taken(tiny: kv.Model, opened: Counter[str]) -> None:
    kept = References()
    for feed in (7, 9, 7):
        scores(tiny, PerplexityOptions(n_ctx=48, feed=feed, reference="f32"), kept)
    exact = PerplexityOptions(n_ctx=48, feed=7, reference="f32", exact=True)
    scores(tiny, exact, kept)
    assert opened["f32"] == 4
    scores(tiny, exact, kept)
    assert opened["f32"] == 4


def test_no_more_is_kept_than_fits(tiny: kv.Model, opened: Counter[str]) -> None:
    vocabulary = len(tiny.session(8, "f16").forward([1]).ravel())
    kept = References(most_bytes=4 * ROWS * vocabulary)
    for token in (1, 2, 1, 2):
        window = [token, *WINDOW[1:]]
        score_window(tiny, window, OPTIONS, lambda read: None, kept)
    assert opened["f32"] == 3  # the first window was kept, the second had no room
    small = References(most_bytes=4 * ROWS * vocabulary - 1)
    before = opened["f32"]
    for _ in range(2):
        scores(tiny, OPTIONS, small)
    assert opened["f32"] == before + 2


def test_a_window_that_fails_is_not_kept(tiny: kv.Model, opened: Counter[str]) -> None:
    kept = References()

    def fail(read: int) -> None:
        if read > 40:
            raise kv.CancelledError("enough")

    with pytest.raises(kv.CancelledError):
        score_window(tiny, WINDOW, OPTIONS, fail, kept)
    expected = scores(tiny, OPTIONS, None)
    np.testing.assert_array_equal(scores(tiny, OPTIONS, kept).compared.kld, expected.compared.kld)
    assert opened["f32"] == 3


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where text.txt of some windows lies, and results may."""
    (tmp_path / "text.txt").write_text("One two three. " * 60)
    monkeypatch.setenv("KVENGINE_DATA", str(tmp_path))
    return tmp_path


def test_a_sweep_reads_the_reference_once(
    tiny: kv.Model, opened: Counter[str], folder: Path
) -> None:
    task = parse("kld:text=text.txt,context=32,limit=3")
    results = sweep(jobs_of(tiny, CACHES, [task]), Store(folder / "out"))
    assert opened["f32"] == 3
    opened.clear()
    for cache, result in zip(CACHES, results, strict=True):
        (alone,) = sweep(jobs_of(tiny, [cache], [task]), Store(folder / "alone"))
        assert alone.items == result.items
    assert opened["f32"] == 9


def test_the_perplexity_is_known_once_the_divergence_is(
    tiny: kv.Model, opened: Counter[str], folder: Path
) -> None:
    options = "text=text.txt,context=32,limit=3"
    tasks = [parse(f"kld:{options}"), parse(f"perplexity:{options}")]
    results = sweep(jobs_of(tiny, CACHES, tasks), Store(folder / "out"))
    assert [opened[kv.canonical_cache(cache)] for cache in CACHES] == [3, 3, 3]
    alone = sweep(jobs_of(tiny, CACHES, tasks[1:]), Store(folder / "alone"))
    assert [each.items for each in alone] == [each.items for each in results[3:]]
    assert [each.cache_stats for each in alone] == [each.cache_stats for each in results[3:]]
    # Another way of feeding is another reading.
    other = [*tasks[:1], parse(f"perplexity:{options},feed=8")]
    opened.clear()
    sweep(jobs_of(tiny, CACHES[:1], other), Store(folder / "other"))
    assert opened["f16"] == 6
