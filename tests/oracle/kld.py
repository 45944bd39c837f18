"""Kullback-Leibler divergence of an engine's logits from reference log-probabilities.

    python tests/oracle/kld.py LOGITS.npy REFERENCE.logp.npy

LOGITS: float32 [n, vocab], the engine's raw logits of the scored positions.
REFERENCE: float32 or float16 [n, vocab], log-probabilities of the same positions as written by
`make_golden.py --reference`. Prints KL(reference || engine) in nats, and how often both have the
same most probable token. Rows are read a few at a time, so gigabyte files need no memory.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

ROWS = 32


def log_softmax(rows: np.ndarray) -> np.ndarray:
    """Row-wise log-probabilities in float64."""
    rows = rows.astype(np.float64)
    rows -= rows.max(-1, keepdims=True)
    return rows - np.log(np.exp(rows).sum(-1, keepdims=True))


def divergences(logits: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """KL(reference || engine) of each row [n], and whether the arg-max agrees [n].

    Both arrays are [n, vocab]; the reference is normalised again, so that half precision does not
    leave a probability mass other than one. Raises ValueError when the shapes differ or an engine's
    logit is not a number.
    """
    if logits.shape != reference.shape:
        raise ValueError(f"logits: expected {reference.shape}, found {logits.shape}")
    kld = np.empty(len(logits))
    same = np.empty(len(logits), bool)
    for start in range(0, len(logits), ROWS):
        part = slice(start, start + ROWS)
        engine = log_softmax(np.asarray(logits[part]))
        if not np.isfinite(engine).all():
            raise ValueError(f"logits: rows {start}..: expected finite values, found NaN or inf")
        truth = log_softmax(np.asarray(reference[part]))
        kld[part] = (np.exp(truth) * (truth - engine)).sum(-1)
        same[part] = truth.argmax(-1) == engine.argmax(-1)
    return kld, same


def bucketed(logits: np.ndarray, golden: dict[str, np.ndarray], window: int) -> np.ndarray:
    """Lower bound of the divergence at the positions a golden file keeps, float64 [n_kept].

    `logits` are the engine's logits of those positions [n_kept, vocab]; `golden` is a loaded
    *.window2048.npz. The top ids stay apart and everything else is one event: merging events can
    only lower a divergence, so the exact value is at least this.
    """
    top = golden["top_ids"][window].astype(np.int64)
    truth = np.concatenate(
        [golden["top_logp"][window], golden["rest_logp"][window][:, None]], axis=-1
    ).astype(np.float64)
    engine = log_softmax(logits)
    rest = np.exp(engine)
    np.put_along_axis(rest, top, 0.0, axis=-1)
    found = np.concatenate(
        [np.take_along_axis(engine, top, axis=-1), np.log(rest.sum(-1, keepdims=True))], axis=-1
    )
    return (np.exp(truth) * (truth - found)).sum(-1)


def summary(kld: np.ndarray, same: np.ndarray) -> dict[str, float]:
    """The figures that `kvengine perplexity` reports, by the same names."""
    return {
        "kld_mean": float(kld.mean()),
        "kld_median": float(np.median(kld)),
        "kld_p99": float(np.quantile(kld, 0.99)),
        "kld_p999": float(np.quantile(kld, 0.999)),
        "same_top": float(same.mean()),
        "rows": len(kld),
    }


def main() -> None:
    """Prints the summary as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("logits", type=Path)
    parser.add_argument("reference", type=Path)
    args = parser.parse_args()
    logits = np.load(args.logits, mmap_mode="r")
    reference = np.load(args.reference, mmap_mode="r")
    print(json.dumps(summary(*divergences(logits, reference)), indent=2))


if __name__ == "__main__":
    main()
