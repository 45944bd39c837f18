"""The Karhunen-Loeve transform of keys in the metric of the queries, from a text.

What an error of a key costs is the error of its scores. Keys are therefore weighted by the mean
squares M of the queries before their components are found: U are the eigenvectors of M^(1/2) C
M^(1/2), where C is the covariance, within pages of 64 tokens, of keys that are turned back to the
first position of their page. A cache fits the same to its own first tokens (``klt``); bases of a
file (``klt:basis=FILE``) let it code rows without waiting for those.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvengine.compress.grams import Matrix, Report, read_windows, turned_back_by
from kvengine.model import Model

PAGE = 64
SINKS = 4
"""First tokens that are left out, as caches keep them exact: those of the presets."""
LEAST_SHARE = 1e-3
"""Of the mean channel: what every channel counts for besides its queries (klt.cpp)."""


@dataclass(frozen=True)
class Transform:
    """rows: U^T, orthonormal, [dim, dim], those of most energy first. energy: eigenvalues, [dim].

    metric: what channels count, above 0, [dim].
    """

    rows: NDArray[np.float32]
    energy: NDArray[np.float32]
    metric: NDArray[np.float32]


def find_transforms(
    model: Model, text: str, window: int, most: int, report: Report
) -> list[list[Transform]]:
    """Read up to `most` windows of a text: the transforms of every layer's kv heads.

    Raises ConfigError for a text that is shorter than a window.
    """
    layers = model.layers
    covariances = [
        [np.zeros((layer["head_dim"],) * 2) for _ in range(layer["n_kv_heads"])] for layer in layers
    ]
    squares = [
        [np.zeros(layer["head_dim"]) for _ in range(layer["n_kv_heads"])] for layer in layers
    ]
    # Never fitted: as long as keys wait, the cache sums up squares of queries.
    fit = (window // PAGE + 1) * PAGE
    n_windows = 0
    for session in read_windows(model, text, window, most, report, f"k=klt:fit={fit}+k=f16+v=f16"):
        n_windows += 1
        for i, layer in enumerate(layers):
            for head in range(layer["n_kv_heads"]):
                covariances[i][head] += scatter(session.cache.keys(i, head), layer)
                squares[i][head] += session.cache.query_squares(i, head)
    return [
        [
            transform(covariance / (n_windows * window), average_pairs(square / n_windows, layer))
            for covariance, square in zip(covariances[i], squares[i], strict=True)
        ]
        for i, layer in enumerate(layers)
    ]


def scatter(keys: NDArray[np.float32], layer: dict[str, Any]) -> Matrix:
    """Sum of outer products of what the keys [tokens, dim] of a text, turned back to the start of
    their pages, deviate from the means of these by."""
    n_pages = (len(keys) - SINKS) // PAGE
    rows = keys[SINKS : SINKS + n_pages * PAGE]
    starts = SINKS + np.arange(len(rows)) // PAGE * PAGE
    pages = turned_back_by(rows, starts, layer).reshape(n_pages, PAGE, keys.shape[1])
    deviations = (pages - pages.mean(axis=1, keepdims=True)).reshape(rows.shape)
    return deviations.T @ deviations


def average_pairs(squares: NDArray[np.float64], layer: dict[str, Any]) -> NDArray[np.float64]:
    """The two channels of a rotation pair get their mean: keys and queries meet at any angle."""
    n = len(layer["key_frequencies"])
    if layer["key_pairs_interleaved"]:
        first, second = slice(0, 2 * n, 2), slice(1, 2 * n, 2)
    else:
        first, second = slice(0, n), slice(n, 2 * n)
    out = squares.copy()
    out[first] = out[second] = (squares[first] + squares[second]) / 2
    return out


def transform(covariance: Matrix, squares: NDArray[np.float64]) -> Transform:
    """Of means over tokens. Heads of a layer are compared, so neither may be normalised."""
    mean = float(squares.mean())
    metric = squares + (LEAST_SHARE * mean if mean > 1e-30 else 1.0)
    root = np.sqrt(metric)
    energy, vectors = np.linalg.eigh(covariance * np.outer(root, root))
    energy = np.maximum(energy[::-1], 0)
    return Transform(
        np.ascontiguousarray(vectors[:, ::-1].T, np.float32),
        energy.astype(np.float32),
        metric.astype(np.float32),
    )
