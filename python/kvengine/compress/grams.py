"""Gram matrices of the heads that are to share a place in the cache.

A group of t neighbouring heads of size d is described by C = sum over tokens of x x^T, [t d, t d],
where x holds the token's t vectors one after the other. Its leading eigenvectors are the right
singular vectors of the matrix of all x.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvengine._core import ConfigError, GgufFile
from kvengine.compress.geometry import Geometry, rotary_frequencies
from kvengine.compress.projections import projection
from kvengine.model import Model, Session

Matrix = NDArray[np.float64]
Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Grams:
    """keys, values: [layers][groups] of matrices [t d, t d]; keys as attention sees them, rotated."""

    keys: list[list[Matrix]]
    values: list[list[Matrix]]
    tokens: int  # that were read; 0 where weights were


def of_activations(
    model: Model,
    text: str,
    geometry: Geometry,
    groups: int,
    window: int,
    most: int,
    report: Report,
    rotated: bool = True,
) -> Grams:
    """Read up to `most` windows of a text with the model and sum over the keys and values it makes.

    rotated: keys as attention sees them; else as before their rotary embedding.
    Raises ConfigError for a text that is shorter than a window.
    """
    sides = (
        _zeros(geometry, groups, geometry.head_dim),
        _zeros(geometry, groups, geometry.value_dim),
    )
    tokens = add_text(model, text, *sides, window, most, report, rotated)
    return Grams(*sides, tokens=tokens)


def add_text(
    model: Model,
    text: str,
    keys: list[list[Matrix]],
    values: list[list[Matrix]],
    window: int,
    most: int,
    report: Report,
    rotated: bool,
) -> int:
    """Add what up to `most` windows of a text make to the matrices of every layer's groups.

    Returns the number of tokens read. Raises ConfigError for a text that is shorter than a window.
    """
    n_windows = 0
    for session in read_windows(model, text, window, most, report):
        n_windows += 1
        for i, layer in enumerate(model.layers):
            heads = range(layer["n_kv_heads"])
            found = [session.cache.keys(i, head) for head in heads]
            if not rotated:  # windowed layers may have dropped the first rows
                found = [turned_back(rows, window - len(rows), layer) for rows in found]
            add_rows(keys[i], found)
            add_rows(values[i], [session.cache.values(i, head) for head in heads])
    return n_windows * window


def read_windows(
    model: Model, text: str, window: int, most: int, report: Report, cache: str = "f32"
) -> Iterator[Session]:
    """A session that holds each of up to `most` windows of a text, one after the other.

    Raises ConfigError for a text that is shorter than a window.
    """
    tokens = model.tokenizer.encode(text, add_special=False)
    n_windows = min(len(tokens) // window, most)
    if n_windows == 0:
        raise ConfigError(
            f"calibration: expected a text of at least {window} tokens, found {len(tokens)}"
        )
    bos = model.tokenizer.bos if model.tokenizer.add_bos else None
    session = model.session(n_ctx=window, cache=cache)
    for i in range(n_windows):
        ids: Sequence[int] = tokens[i * window : (i + 1) * window]
        if bos is not None:
            ids = [bos, *ids[1:]]
        session.truncate(0)
        session.forward(ids)
        yield session
        report(i + 1, n_windows)


def of_weights(file: GgufFile, geometry: Geometry, groups: int, window: int) -> Grams:
    """The same of the weights: what inputs without any correlation would give.

    Keys are averaged over the rotations of the positions of a window.
    Raises UnsupportedError where keys are normalised after the product.
    """
    norm = "blk.0.attn_k_norm.weight"
    if any(tensor.name == norm for tensor in file.tensors):
        raise ConfigError(
            "svd-w: expected keys that are a product of weights, found keys that are "
            f"normalised ({norm}); use svd-a"
        )
    frequencies = rotary_frequencies(file, geometry)
    keys, values = [], []
    for layer in range(geometry.n_layers):
        wk = projection(file, geometry, layer, "k")
        wv = projection(file, geometry, layer, "v")
        keys.append(
            [
                average_rotation(w @ w.T, frequencies, geometry.head_dim, window)
                for w in np.split(wk, groups)
            ]
        )
        values.append([w @ w.T for w in np.split(wv, groups)])
    return Grams(keys, values, tokens=0)


def average_rotation(gram: Matrix, frequencies: Matrix, head_dim: int, n: int) -> Matrix:
    """Mean over positions p < n of R_p C R_p^T, where R_p rotates the pairs (2i, 2i + 1) of heads.

    Every 2 x 2 block between two pairs, of frequencies a and b, is a sum of a part that turns with
    a - b and one that turns with a + b; each is scaled by its mean.
    """
    if len(frequencies) == 0:
        return gram
    n_pairs = head_dim // 2
    angles = np.zeros(n_pairs)
    angles[: len(frequencies)] = frequencies
    heads = len(gram) // head_dim
    turns = np.tile(angles, heads)  # of each pair
    # With z = x[2i] + i x[2i + 1]: rotation multiplies z by exp(i a p).
    pairs = gram.reshape(len(turns), 2, len(turns), 2)
    xx, xy, yx, yy = pairs[:, 0, :, 0], pairs[:, 0, :, 1], pairs[:, 1, :, 0], pairs[:, 1, :, 1]
    difference = (xx + yy) + 1j * (yx - xy)  # z conj(w)
    total = (xx - yy) + 1j * (yx + xy)  # z w
    difference = difference * _mean_turn(turns[:, None] - turns[None, :], n)
    total = total * _mean_turn(turns[:, None] + turns[None, :], n)
    result = np.empty_like(pairs)
    result[:, 0, :, 0] = (difference.real + total.real) / 2
    result[:, 1, :, 1] = (difference.real - total.real) / 2
    result[:, 1, :, 0] = (total.imag + difference.imag) / 2
    result[:, 0, :, 1] = (total.imag - difference.imag) / 2
    return result.reshape(gram.shape)


def turned_back(
    rows: NDArray[np.float32], first_pos: int, layer: dict[str, Any]
) -> NDArray[np.float64]:
    """Keys [tokens, head_dim] from position first_pos on, as before their rotary embedding."""
    return turned_back_by(rows, first_pos + np.arange(len(rows)), layer)


def turned_back_by(
    rows: NDArray[np.floating], positions: NDArray[np.integer], layer: dict[str, Any]
) -> NDArray[np.float64]:
    """Keys [tokens, head_dim], each turned back by so many positions."""
    frequencies = np.asarray(layer["key_frequencies"], np.float64)
    n = len(frequencies)
    angles = np.outer(positions, frequencies)
    cosines, sines = np.cos(angles), np.sin(angles)
    if layer["key_pairs_interleaved"]:
        first, second = slice(0, 2 * n, 2), slice(1, 2 * n, 2)
    else:
        first, second = slice(0, n), slice(n, 2 * n)
    out = rows.astype(np.float64)
    x, y = out[:, first].copy(), out[:, second].copy()
    out[:, first] = cosines * x + sines * y
    out[:, second] = cosines * y - sines * x
    return out


def _mean_turn(angle: Matrix, n: int) -> NDArray[np.complex128]:
    """Mean of exp(i angle p) over p = 0 .. n - 1."""
    step = np.exp(1j * angle) - 1
    still = np.abs(step) < 1e-12
    turned = np.exp(1j * angle * n) - 1
    return np.where(still, 1.0, turned / np.where(still, 1.0, n * step))


def _zeros(geometry: Geometry, groups: int, dim: int) -> list[list[Matrix]]:
    size = geometry.n_kv_heads // groups * dim
    return [[np.zeros((size, size)) for _ in range(groups)] for _ in range(geometry.n_layers)]


def add_rows(sums: list[Matrix], heads: Sequence[NDArray[np.floating]]) -> None:
    """Add the rows [tokens, dim] of all heads of a layer to the matrices of their groups."""
    per_group = len(heads) // len(sums)
    for group, gram in enumerate(sums):
        rows = np.concatenate(heads[group * per_group : (group + 1) * per_group], axis=1)
        rows64 = rows.astype(np.float64)
        gram += rows64.T @ rows64
