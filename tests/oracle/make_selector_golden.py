"""Write the golden files of the selectors to tests/fixtures/selectors.

A layer of 2 kv heads, 2 query heads each, head_dim 16, 160 tokens, rotary embeddings (half-split,
base 10,000). The oracle is the definition of each method in float64, attention as a whole matrix.

    queries.f32          [160, 4 * 16] before their rotary embedding
    keys.f32             [2, 160, 16] rotated
    values.f32           [2, 160, 16]
    mass_all.f32         [2, 160]: weights summed over all queries and the heads of a group
    mass_16.f32          [2, 160]: over the newest 16 queries
    mass_1.f32           [2, 160]: over the newest
    future_mean.f32      [4, 16]: of 512 future positions, queries but the first 4
    future_spread.f32    [4, 16, 16]
    <scorer>.f64         [2, 160] (snapkv: [2, 144], those before the window)
    kept_<scorer>.i32    [2, 40]: positions of the 40 best
    kept_adakv.i32       [2 + 80]: how many each head keeps, then the positions

Run from anywhere: `python tests/oracle/make_selector_golden.py`. The output is deterministic.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

OUT = Path(__file__).resolve().parent.parent / "fixtures" / "selectors"
N, D, HEADS, KV_HEADS = 160, 16, 4, 2
GROUP = HEADS // KV_HEADS
WINDOW, KERNEL, SINKS, FUTURE, KEPT = 16, 5, 4, 512, 40
FREQUENCIES = 10000.0 ** (-2 * np.arange(D // 2) / D)


def rope(rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Rotates [n, D] (half-split)."""
    angles = positions[:, None] * FREQUENCIES
    a, b = rows[:, : D // 2], rows[:, D // 2 :]
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=1)


def attention(queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Causal softmax [N, N] of rotated queries and keys."""
    scores = queries @ keys.T / np.sqrt(D)
    scores[np.triu_indices(N, 1)] = -np.inf
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def snapkv(weights: np.ndarray) -> np.ndarray:
    """Votes of the window for the rows before it: [KV_HEADS, N - WINDOW]."""
    votes = weights[:, -WINDOW:, :-WINDOW].mean(axis=1)
    padded = np.pad(votes, ((0, 0), (KERNEL // 2, KERNEL // 2)))
    pooled = sum(padded[:, i : i + N - WINDOW] for i in range(KERNEL)) / KERNEL
    return pooled.reshape(KV_HEADS, GROUP, -1).mean(axis=1)


def average_rotation() -> np.ndarray:
    """[D, D]: of the positions N ... N + FUTURE - 1, as a matrix."""
    positions = np.arange(N, N + FUTURE)
    out = np.zeros((D, D))
    for p, frequency in enumerate(FREQUENCIES):
        cos, sin = np.cos(positions * frequency).mean(), np.sin(positions * frequency).mean()
        i, j = p, p + D // 2
        out[i, i] = out[j, j] = cos
        out[i, j], out[j, i] = -sin, sin
    return out


def expected(keys, values, means, spreads) -> np.ndarray:
    """[KV_HEADS, N]; infinity for sinks."""
    out = np.full((KV_HEADS, N), np.inf)
    for h in range(KV_HEADS):
        rows = keys[h, SINKS:]
        weights = np.zeros(N - SINKS)
        for q in range(h * GROUP, (h + 1) * GROUP):
            z = rows @ means[q] / np.sqrt(D)
            z += np.einsum("ni,ij,nj->n", rows, spreads[q], rows) / D / 2
            z = np.exp(z - z.max())
            weights += z / z.sum() / GROUP
        out[h, SINKS:] = weights * np.linalg.norm(values[h, SINKS:], axis=1)
    return out


def best(scores: np.ndarray, n: int) -> np.ndarray:
    """Rising positions of the n highest, of equal ones the first."""
    return np.sort(np.argsort(-scores, kind="stable")[:n]).astype(np.int32)


def adakv(scores: np.ndarray) -> np.ndarray:
    """Rows of both heads compete, but for each head's best fifth of its budget."""
    ranked = scores.copy()
    for row in ranked:
        row[np.argsort(-row, kind="stable")[: int(KEPT * 0.2)]] = np.inf
    chosen = np.argsort(-ranked.ravel(), kind="stable")[: KV_HEADS * KEPT]
    heads = [np.sort(chosen[chosen // N == h] % N) for h in range(KV_HEADS)]
    return np.concatenate([[len(h) for h in heads], *heads]).astype(np.int32)


def main() -> None:
    """Writes every file."""
    random = np.random.default_rng(5)
    positions = np.arange(N)
    queries = (random.standard_normal((N, HEADS, D)) + random.standard_normal((HEADS, D))) * 0.9
    queries = queries.astype(np.float32)
    # Few tokens are heavy: their keys point towards the mean query.
    raw = random.standard_normal((KV_HEADS, N, D))
    for h in range(KV_HEADS):
        heavy = random.choice(N, 12, replace=False)
        raw[h, heavy] += queries[:, h * GROUP].mean(axis=0) * 1.5
    keys = np.stack([rope(rows, positions) for rows in raw]).astype(np.float32)
    values = random.standard_normal((KV_HEADS, N, D)) * np.exp(random.normal(0, 0.5, (2, N, 1)))
    values = values.astype(np.float32)

    exact = queries.astype(np.float64)
    weights = np.stack(
        [
            attention(rope(exact[:, q], positions), keys[q // GROUP].astype(np.float64))
            for q in range(HEADS)
        ]
    )
    grouped = weights.reshape(KV_HEADS, GROUP, N, N).sum(axis=1)
    means = exact[SINKS:].mean(axis=0)
    centred = exact[SINKS:] - means
    spreads = np.einsum("nhi,nhj->hij", centred, centred) / (N - SINKS)
    turn = average_rotation()
    means = means @ turn.T
    spreads = turn @ spreads @ turn.T

    directions = keys.astype(np.float64)
    directions /= np.linalg.norm(directions, axis=2, keepdims=True)
    anchors = directions.mean(axis=1)
    anchors /= np.linalg.norm(anchors, axis=1, keepdims=True)
    votes = snapkv(weights)
    whole_votes = np.concatenate([votes, np.full((KV_HEADS, WINDOW), np.inf)], axis=1)
    tova = np.repeat(weights[:, -1].mean(axis=0)[None], KV_HEADS, axis=0)
    tova[:, -1] = np.inf
    scores = {
        "tova": tova,
        "observed": grouped.sum(axis=1) / (N - positions) / GROUP,
        "knorm": -np.linalg.norm(keys.astype(np.float64), axis=2),
        "keydiff": -np.einsum("hnd,hd->hn", directions, anchors),
        "expected": expected(keys.astype(np.float64), values.astype(np.float64), means, spreads),
    }

    OUT.mkdir(parents=True, exist_ok=True)
    arrays = {
        "queries.f32": queries,
        "keys.f32": keys,
        "values.f32": values,
        "mass_all.f32": grouped.sum(axis=1),
        "mass_16.f32": grouped[:, -WINDOW:].sum(axis=1),
        "mass_1.f32": grouped[:, -1],
        "future_mean.f32": means,
        "future_spread.f32": spreads,
        "snapkv.f64": votes,
        "kept_adakv.i32": adakv(whole_votes),
    }
    for name, rows in scores.items():
        arrays[f"{name}.f64"] = rows
    for name, rows in (scores | {"snapkv": whole_votes}).items():
        arrays[f"kept_{name}.i32"] = np.stack([best(row, KEPT) for row in rows])
    types = {"f32": "<f4", "f64": "<f8", "i32": "<i4"}
    for name, array in arrays.items():
        np.asarray(array).astype(types[name.rsplit(".", 1)[1]]).tofile(OUT / name)


if __name__ == "__main__":
    main()
