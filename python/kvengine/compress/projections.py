"""The weights that make queries, keys and values: three tensors, or one with the rows of all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvengine._core import GgufFile
from kvengine.compress.geometry import Geometry

# A changed tensor: its values when it is written, [rows, columns] or [size].
Change = Callable[[], NDArray[Any]]
# Of a layer's weights [heads * dim, d_model] or biases [heads * dim] makes others.
Transform = Callable[[int, NDArray[np.float64]], NDArray[np.float64]]


def projection(file: GgufFile, geometry: Geometry, layer: int, side: str) -> NDArray[np.float64]:
    """The weights of a layer's queries ("q"), keys ("k") or values ("v")."""
    if not geometry.fused:
        return file.tensor(f"blk.{layer}.attn_{side}.weight").decode().astype(np.float64)
    return _split(file.tensor(f"blk.{layer}.attn_qkv.weight").decode(), geometry)[side]


def changed_projections(
    file: GgufFile, geometry: Geometry, transforms: dict[str, Transform]
) -> dict[str, Change]:
    """The tensors, biases included, that change when `transforms` ("q", "k", "v") do."""
    changes: dict[str, Change] = {}
    names = {tensor.name for tensor in file.tensors}
    for layer in range(geometry.n_layers):
        for part in ("weight", "bias"):
            if geometry.fused:
                name = f"blk.{layer}.attn_qkv.{part}"
                changes[name] = _fused_change(file, geometry, name, layer, transforms)
                continue
            for side, transform in transforms.items():
                name = f"blk.{layer}.attn_{side}.{part}"
                changes[name] = _change(file, name, layer, transform)
    return {name: change for name, change in changes.items() if name in names}


def rows_after(geometry: Geometry, groups: int, name: str) -> int:
    """Of a tensor of changed_projections, where `groups` kv heads remain."""
    after = {**geometry.widths, "k": groups * geometry.head_dim, "v": groups * geometry.value_dim}
    side = name.split(".attn_")[1].split(".")[0]
    return sum(after[each] for each in side)


def _change(file: GgufFile, name: str, layer: int, transform: Transform) -> Change:
    return lambda: transform(layer, file.tensor(name).decode().astype(np.float64))


def _fused_change(
    file: GgufFile, geometry: Geometry, name: str, layer: int, transforms: dict[str, Transform]
) -> Change:
    def changed() -> NDArray[np.float64]:
        parts = _split(file.tensor(name).decode(), geometry)
        return np.concatenate(
            [transforms[side](layer, x) if side in transforms else x for side, x in parts.items()]
        )

    return changed


def _split(rows: NDArray[np.float32], geometry: Geometry) -> dict[str, NDArray[np.float64]]:
    ends = np.cumsum(list(geometry.widths.values()))[:-1]
    parts = np.split(rows.astype(np.float64), ends)
    return dict(zip(geometry.widths, parts, strict=True))
