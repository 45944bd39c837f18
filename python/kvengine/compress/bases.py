"""What groups of heads have in common, for caches that keep only that (Palu, arXiv 2407.21118).

A text is read once. The keys (before their rotary embedding) or values of a group's heads, joined,
have principal components: eigenvectors of their Gram matrix. They span what the leading left
singular vectors of the weights, whitened by the inputs, do, which is how the paper finds them. A
cache then keeps a few coefficients for the whole group: ``lowrank:basis=FILE``, ``palu:basis=FILE``.

Of every kv head the file also has the Karhunen-Loeve transform of its keys in the metric of its
queries, for ``k=klt:basis=FILE`` (see cpp/cache/project/klt.h and transforms.py).

The file is described in cpp/cache/calibrated_bases.h.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvengine._core import ConfigError, GgufWriter, hash64
from kvengine.compress.grams import Matrix, Report, add_text
from kvengine.compress.transforms import Transform, find_transforms
from kvengine.model import Model

GROUP = 4
"""Heads that are joined: the paper's G-LRD."""


@dataclass(frozen=True)
class BasesReport:
    """What was found.

    group: heads that are joined.
    key_energy, value_energy: for each layer the share of squares that the leading half of the
        components holds, the mean over its groups.
    warning: why the bases may be poor, or None.
    """

    path: Path
    group: int
    tokens: int
    key_energy: list[float]
    value_energy: list[float]
    warning: str | None


@dataclass(frozen=True)
class Components:
    """rows: orthonormal, [size, size], those of most energy first. energy: mean squares, [size]."""

    rows: NDArray[np.float32]
    energy: NDArray[np.float32]

    @property
    def half(self) -> float:
        total = float(self.energy.sum(dtype=np.float64))
        kept = float(self.energy[: len(self.energy) // 2].sum(dtype=np.float64))
        return kept / total if total > 0 else 1.0


def calibrate_bases(
    model: Model,
    text: str,
    target: str | Path,
    group: int = GROUP,
    n_ctx: int = 2048,
    windows: int = 16,
    report: Report = lambda done, total: None,
) -> BasesReport:
    """Read up to `windows` windows of n_ctx tokens of a text and write the components to `target`.

    group: most heads that are joined; fewer where so many do not divide a layer's.
    Raises ConfigError (a text shorter than a window, a bad option), IoError.
    """
    if group < 1:
        raise ConfigError(f"group: expected at least 1 head, found {group}")
    layers = model.layers
    heads = math.gcd(*(layer["n_kv_heads"] for layer in layers))
    group = max(size for size in range(1, min(group, heads) + 1) if heads % size == 0)
    keys, values = (_zeros(layers, group, dim) for dim in ("head_dim", "value_dim"))
    tokens = add_text(model, text, keys, values, n_ctx, windows, report, rotated=False)
    found = [
        [[_components(gram, tokens) for gram in grams] for grams in side] for side in (keys, values)
    ]
    transforms = find_transforms(model, text, n_ctx, windows, report)
    _write(Path(target), model, group, *found, transforms)
    key_energy, value_energy = (
        [float(np.mean([each.half for each in layer])) for layer in side] for side in found
    )
    return BasesReport(
        Path(target), group, tokens, key_energy, value_energy, _warning(tokens, keys, values)
    )


def _zeros(layers: list[dict[str, Any]], group: int, dim: str) -> list[list[Matrix]]:
    return [
        [np.zeros((group * layer[dim],) * 2) for _ in range(layer["n_kv_heads"] // group)]
        for layer in layers
    ]


def _components(gram: Matrix, tokens: int) -> Components:
    energy, vectors = np.linalg.eigh(gram)
    energy = np.maximum(energy[::-1], 0) / tokens
    return Components(
        np.ascontiguousarray(vectors[:, ::-1].T, np.float32), energy.astype(np.float32)
    )


def _write(
    target: Path,
    model: Model,
    group: int,
    keys: list[list[Components]],
    values: list[list[Components]],
    transforms: list[list[Transform]],
) -> None:
    arrays: dict[str, NDArray[np.float32]] = {}
    for layer, sides in enumerate(zip(keys, values, strict=True)):
        for side, groups in zip(("keys", "values"), sides, strict=True):
            for i, found in enumerate(groups):
                arrays[f"blk.{layer}.{side}.{i}"] = found.rows
                arrays[f"blk.{layer}.{side}.{i}.energy"] = found.energy
        for head, transform in enumerate(transforms[layer]):
            name = f"blk.{layer}.klt.{head}"
            arrays[name] = transform.rows
            arrays[f"{name}.energy"] = transform.energy
            arrays[f"{name}.metric"] = transform.metric
    writer = GgufWriter()
    checksum = 0
    for name, array in arrays.items():
        writer.add_tensor(name, "F32", list(array.shape[::-1]), array)
        checksum = hash64(name.encode(), checksum)
        checksum = hash64(array.tobytes(), checksum)
    prefix = "kvengine.bases"
    writer.set("general.architecture", "kvengine-bases", "string")
    writer.set(f"{prefix}.version", 1, "u32")
    writer.set(f"{prefix}.model", model.fingerprint, "u64")
    writer.set(f"{prefix}.layers", len(keys), "u32")
    writer.set(f"{prefix}.group", group, "u32")
    writer.set(f"{prefix}.checksum", checksum, "u64")
    writer.write(target)


def _warning(tokens: int, *sides: list[list[Matrix]]) -> str | None:
    size = max(len(gram) for side in sides for layer in side for gram in layer)
    if tokens >= size:
        return None
    return f"{tokens} tokens were read, fewer than the {size} values of a group of heads"
