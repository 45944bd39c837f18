"""Which heads need all tokens and which only the first and newest ones, told without training.

DuoAttention (arXiv 2410.10819) learns a gate per kv head; where nobody has, ``kvpress`` judges a head
by its mean query and mean key before their rotary embedding. Repeated at positions 0, 1, ... they
show how the head's attention falls with distance: the area under the cumulative weights of the last
query is near 1 where the first positions get them, and near 0 where the newest do. Areas are
averaged over the query heads of a group and over texts; those of the lowest become streaming heads.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvengine._core import ConfigError, IoError
from kvengine.compress.grams import turned_back, turned_back_by
from kvengine.model import Model

LENGTH = 500
"""Positions at which the means are repeated."""
TEXTS = 50
MOST_TOKENS = 1024
"""Of a text: queries that a cache can show."""


@dataclass(frozen=True)
class Gates:
    """areas: [n_layers][n_kv_heads], from 0 to 1; 0 for all heads of layers with a sliding window,
    which are streaming heads by their nature.
    """

    areas: list[list[float]]
    texts: int
    tokens: int  # of each text

    def write(self, path: str | Path) -> None:
        """As the file that ``duo:gates=FILE`` reads: a line per layer, a number per kv head.

        Raises IoError.
        """
        lines = ["\t".join(f"{area:.9f}" for area in layer) for layer in self.areas]
        target = Path(path)
        partial = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            partial.write_text("\n".join(lines) + "\n")
            partial.replace(target)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise IoError(f"{path}: could not be written ({error.strerror})") from None


def calibrate_gates(
    model: Model,
    text: str,
    n_tokens: int = MOST_TOKENS,
    texts: int = TEXTS,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Gates:
    """Read up to `texts` pieces of n_tokens tokens of a text.

    Raises ConfigError for a text that is shorter than a piece, or pieces that are too long.
    """
    if not 1 <= n_tokens <= MOST_TOKENS:
        raise ConfigError(f"gates: expected texts of 1 to {MOST_TOKENS} tokens, found {n_tokens}")
    tokens = model.tokenizer.encode(text, add_special=False)
    n_texts = min(len(tokens) // n_tokens, texts)
    if n_texts < 1:
        raise ConfigError(f"gates: expected at least {n_tokens} tokens, found {len(tokens)}")
    bos = model.tokenizer.bos if model.tokenizer.add_bos else None
    areas = [np.zeros(layer["n_kv_heads"]) for layer in model.layers]
    for i in range(n_texts):
        ids = list(tokens[i * n_tokens : (i + 1) * n_tokens])
        if bos is not None:
            ids[0] = bos
        for total, found in zip(areas, areas_of_text(model, ids), strict=True):
            total += found / n_texts
        report(i + 1, n_texts)
    return Gates([[float(area) for area in layer] for layer in areas], n_texts, n_tokens)


def areas_of_text(model: Model, ids: list[int]) -> list[NDArray[np.float64]]:
    """Of one text, per layer [n_kv_heads]."""
    layers = model.layers
    areas = [np.zeros(layer["n_kv_heads"]) for layer in layers]
    # The scorer is asked for one head after the other, in order.
    heads = iter(
        [
            (i, head)
            for i, layer in enumerate(layers)
            if not layer["window"]
            for head in range(layer["n_kv_heads"])
        ]
    )

    def scorer(
        keys: NDArray[np.float32], _: Any, queries: NDArray[np.float32], __: Any
    ) -> NDArray[np.float32]:
        i, head = next(heads)
        layer = layers[i]
        key = turned_back(keys, 0, layer).mean(axis=0)
        means = [turned_back(queries[:, g], 0, layer).mean(axis=0) for g in range(queries.shape[1])]
        areas[i][head] = np.mean([area(query, key, layer) for query in means])
        return np.zeros(len(keys), np.float32)

    session = model.session(
        n_ctx=len(ids), cache=f"custom:keep=1,window={len(ids)}", exact=True, scorer=scorer
    )
    session.forward(ids)
    return areas


def area(query: NDArray[np.float64], key: NDArray[np.float64], layer: dict[str, Any]) -> float:
    """Under the cumulative weights of `query` at the last of LENGTH positions, of `key` at all."""
    positions = np.arange(LENGTH)
    keys = turned_back_by(np.tile(key, (LENGTH, 1)), -positions, layer)
    last = turned_back_by(query[None], -positions[-1:], layer)[0]
    scores = keys @ last / np.sqrt(len(key))
    weights = np.exp(scores - scores.max())
    return float(np.cumsum(weights / weights.sum()).mean())
