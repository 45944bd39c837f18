"""The divergence tool itself, against values worked out by hand (numpy only)."""

from __future__ import annotations

import numpy as np
import pytest
from kld import bucketed, divergences, log_softmax, summary


def test_two_outcomes_match_the_closed_form() -> None:
    """KL((3/4, 1/4) || (1/2, 1/2)) = ln 2 - H(1/4), and nothing for the distribution itself."""
    truth = np.log(np.array([[0.75, 0.25], [0.5, 0.5]], np.float32))
    logits = np.array([[7.0, 7.0], [-3.0, -3.0]], np.float32)
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    kld, _ = divergences(logits, truth)
    assert kld == pytest.approx([np.log(2) - entropy, 0.0], abs=1e-7)  # float32 inputs


def test_same_top_and_quantiles() -> None:
    """One row of four has another arg-max."""
    truth = log_softmax(np.eye(4, dtype=np.float32) * 3)
    logits = np.eye(4, dtype=np.float32) * 3
    logits[2, 0] = 9
    kld, same = divergences(logits, truth)
    found = summary(kld, same)
    assert found["same_top"] == 0.75
    assert found["kld_median"] == pytest.approx(0.0, abs=1e-7)
    assert found["kld_mean"] == pytest.approx(kld[2] / 4, rel=1e-6) and kld[2] > 1


def test_buckets_bound_the_divergence_from_below() -> None:
    """Equal when everything outside the top is off by one factor, smaller when it is not."""
    rng = np.random.default_rng(7)
    truth = log_softmax(rng.normal(size=(5, 50)) * 3)
    top = np.argsort(-truth, axis=-1)[:, :8]
    rest = np.exp(truth)
    np.put_along_axis(rest, top, 0.0, axis=-1)
    golden = {
        "top_ids": top[None].astype(np.int32),
        "top_logp": np.take_along_axis(truth, top, axis=-1)[None],
        "rest_logp": np.log(rest.sum(-1))[None],
    }
    shifted = truth + 0.5
    np.put_along_axis(shifted, top, np.take_along_axis(truth, top, axis=-1), axis=-1)
    exact, _ = divergences(shifted, truth)
    assert bucketed(shifted, golden, 0) == pytest.approx(exact, rel=1e-9)
    noisy = truth + rng.normal(size=truth.shape)
    exact, _ = divergences(noisy, truth)
    assert (bucketed(noisy, golden, 0) < exact).all()


def test_bad_logits_are_refused() -> None:
    """A wrong shape and a NaN."""
    truth = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"expected \(2, 3\), found \(1, 3\)"):
        divergences(truth[:1], truth)
    logits = truth.copy()
    logits[1, 1] = np.nan
    with pytest.raises(ValueError, match="finite"):
        divergences(logits, truth)
