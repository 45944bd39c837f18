"""Fewer heads of keys and values (arXiv 2406.07056, "Effectively Compress KV Heads").

The H heads of keys and of values are cut into g groups of t = H / g neighbours, each of which gets
one place in the cache:

* svd-a, svd-w: psi_i [d, t d] are the leading d right singular vectors of the group's keys (svd-a:
  of a calibration text, svd-w: of the weights), omega_i those of its values. Values absorb them:
  Wv' = omega_i Wv, Wo'_h = Wo_h omega_is^T for query heads h that read head s of the group. Keys
  turn with their position (RoPE), which psi does not commute with, so it is applied after the
  rotation, to keys and queries (`blk.N.attn_k_psi.weight`; the projection mode of the method).
  Without RoPE (bloom, gpt2, mpt) weights absorb psi as well: Wk' = psi_i Wk, Wq'_h = psi_is Wq_h,
  and their biases likewise. The result is a model with fewer kv heads and nothing else.
* The same with mode "latent" (svd-a only; the method's other mode): psi is found for keys before
  their rotary embedding, which have more in common, and kept beside the weights, which stay
  (`blk.N.attn_k_latent.weight`, `blk.N.attn_v_latent.weight`). The engine's cache holds psi and
  omega times a token's keys and values, and applies the rotary embedding to what it lifts from them.
* mean-pool: the weights of a group's heads are averaged (GQA, arXiv 2305.13245). mqa: the same with
  one group.

The result is a GGUF file. Those of mean-pool, mqa and models without RoPE run in any engine. No weights are trained:
with real compression a model loses much until it is tuned, by svd-a the least.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvengine._core import (
    ConfigError,
    GgufFile,
    GgufWriter,
    UnsupportedError,
    encode_weights,
    weight_formats,
)
from kvengine.compress.geometry import Geometry
from kvengine.compress.grams import Grams, Matrix, Report, of_activations, of_weights
from kvengine.compress.projections import Change, changed_projections, rows_after
from kvengine.model import Model

METHODS = ("svd-a", "svd-w", "mean-pool", "mqa")
MODES = ("projection", "latent")


@dataclass(frozen=True)
class HeadOptions:
    """What is made.

    method: one of METHODS.
    groups: heads of keys and values that remain; mqa: None or 1.
    type: weight type of the tensors that change ('F16', 'Q8_0', ...); psi is F32 or F16.
    n_ctx: tokens of a window of the calibration text; svd-w: positions that keys turn over.
    windows: most windows that are read.
    threads: of the engine that reads them; 0: all processors.
    mode: one of MODES; latent: for svd-a of models with RoPE.
    """

    method: str = "svd-a"
    groups: int | None = None
    type: str = "F16"
    n_ctx: int = 2048
    windows: int = 16
    threads: int = 0
    mode: str = "projection"


@dataclass(frozen=True)
class HeadReport:
    """What was made.

    key_energy, value_energy: for each layer the share of squares that the bases keep, the mean
        over its groups; empty for methods without bases.
    tokens: of the calibration text that were read.
    warning: why the result may be poor, or None.
    """

    path: Path
    method: str
    n_kv_heads: int
    groups: int
    kv_bytes_per_token: int  # f16
    kv_bytes_per_token_before: int
    tokens: int
    key_energy: list[float]
    value_energy: list[float]
    warning: str | None


def compress_kv_heads(
    source: str | Path,
    target: str | Path,
    options: HeadOptions | None = None,
    calibration: str | None = None,
    report: Report = lambda done, total: None,
) -> HeadReport:
    """Write `target`, a model whose cache has `groups` heads instead of those of `source`.

    calibration: a text, for svd-a.
    Raises ConfigError, UnsupportedError, FormatError, IoError; `target` is then as it was.
    """
    options = options or HeadOptions()
    file = GgufFile(source)
    geometry = Geometry.read(file)
    groups = _groups(options, geometry)
    _check_type(options.type, geometry)
    grams = _grams(options, file, geometry, groups, calibration, report)
    changes, key_energy, value_energy = {}, [], []
    if grams is None:
        changes = _pooled(file, geometry, groups)
    else:
        keys = [[leading(c, geometry.head_dim) for c in layer] for layer in grams.keys]
        values = [[leading(c, geometry.value_dim) for c in layer] for layer in grams.values]
        psi, omega = ([[b.rows for b in layer] for layer in side] for side in (keys, values))
        if options.mode == "latent":
            changes = _latents(psi, omega)
        else:
            changes = _absorbed(file, geometry, psi, omega)
        key_energy = [float(np.mean([b.energy for b in layer])) for layer in keys]
        value_energy = [float(np.mean([b.energy for b in layer])) for layer in values]
    _write(file, Path(target), geometry, groups, options, changes)
    return HeadReport(
        path=Path(target),
        method=options.method,
        n_kv_heads=geometry.n_kv_heads,
        groups=groups,
        kv_bytes_per_token=geometry.kv_bytes_per_token(groups),
        kv_bytes_per_token_before=geometry.kv_bytes_per_token(geometry.n_kv_heads),
        tokens=grams.tokens if grams else 0,
        key_energy=key_energy,
        value_energy=value_energy,
        warning=_warning(grams, geometry, groups),
    )


@dataclass(frozen=True)
class Basis:
    """rows: orthonormal, [rank, size]. energy: share of the trace that they keep."""

    rows: Matrix
    energy: float


def leading(gram: Matrix, rank: int) -> Basis:
    """The eigenvectors of the largest eigenvalues."""
    values, vectors = np.linalg.eigh(gram)
    total = float(values.sum())
    kept = float(values[-rank:].sum())
    return Basis(vectors[:, ::-1][:, :rank].T.copy(), kept / total if total > 0 else 1.0)


def _absorbed(
    file: GgufFile, geometry: Geometry, psi: list[list[Matrix]], omega: list[list[Matrix]]
) -> dict[str, Change]:
    """The weights of values and of the output absorb omega; without RoPE those of queries and keys
    absorb psi, which is kept beside them otherwise."""
    transforms = {"v": lambda layer, rows: _apply(omega[layer], rows)}
    if not geometry.rotary:
        transforms["k"] = lambda layer, rows: _apply(psi[layer], rows)
        transforms["q"] = lambda layer, rows: _absorb_queries(psi[layer], rows, geometry)
    changes = changed_projections(file, geometry, transforms)
    for layer in range(geometry.n_layers):
        prefix = f"blk.{layer}."
        if geometry.rotary:
            changes[prefix + "attn_k_psi.weight"] = lambda rows=psi[layer]: np.concatenate(rows)
        output = prefix + "attn_output.weight"
        changes[output] = lambda name=output, bases=omega[layer]: _absorb_output(
            file.tensor(name).decode(), bases, geometry
        )
    return changes


def _latents(psi: list[list[Matrix]], omega: list[list[Matrix]]) -> dict[str, Change]:
    return {
        f"blk.{layer}.attn_{side}_latent.weight": lambda rows=rows[layer]: np.concatenate(rows)
        for side, rows in (("k", psi), ("v", omega))
        for layer in range(len(rows))
    }


def _apply(bases: list[Matrix], weights: Matrix) -> Matrix:
    """Wv (Wk) or its bias, group by group: omega_i (psi_i) W_i."""
    parts = np.split(weights, len(bases))
    return np.concatenate([basis @ part for basis, part in zip(bases, parts, strict=True)])


def _absorb_queries(psi: list[Matrix], weights: Matrix, geometry: Geometry) -> Matrix:
    """Wq or its bias, query head by query head: psi_is W_h."""
    dim = geometry.head_dim
    heads = np.split(weights, geometry.n_heads)
    return np.concatenate(
        [_slice(psi, head, dim, geometry) @ part for head, part in enumerate(heads)]
    )


def _slice(bases: list[Matrix], head: int, dim: int, geometry: Geometry) -> Matrix:
    """[dim, dim]: the columns of its group's basis that belong to what a query head reads."""
    kv_head = head // (geometry.n_heads // geometry.n_kv_heads)
    per_group = geometry.n_kv_heads // len(bases)
    slot = kv_head % per_group * dim
    return bases[kv_head // per_group][:, slot : slot + dim]


def _absorb_output(wo: NDArray[np.float32], omega: list[Matrix], geometry: Geometry) -> Matrix:
    """[d_model, heads * value_dim]: the columns of every query head times omega_is^T."""
    dim = geometry.value_dim
    result = np.empty(wo.shape)
    for head in range(geometry.n_heads):
        columns = slice(head * dim, (head + 1) * dim)
        basis = _slice(omega, head, dim, geometry)
        result[:, columns] = wo[:, columns].astype(np.float64) @ basis.T
    return result


def _pooled(file: GgufFile, geometry: Geometry, groups: int) -> dict[str, Change]:
    return changed_projections(
        file,
        geometry,
        {
            "k": lambda _, rows: _mean_heads(rows, groups, geometry.head_dim),
            "v": lambda _, rows: _mean_heads(rows, groups, geometry.value_dim),
        },
    )


def _mean_heads(weights: Matrix, groups: int, dim: int) -> Matrix:
    heads = weights.reshape(groups, -1, dim, *weights.shape[1:])
    return heads.mean(axis=1).reshape(groups * dim, *weights.shape[1:])


def _write(
    file: GgufFile,
    target: Path,
    geometry: Geometry,
    groups: int,
    options: HeadOptions,
    changes: dict[str, Change],
) -> None:
    writer = GgufWriter()
    for key in file:
        writer.copy(key, file)
    attention = f"{geometry.prefix}.attention"
    writer.set("kvengine.compress.method", options.method, "string")
    if options.mode == "latent":
        _write_latent(file, writer, geometry, groups, changes)
        writer.write(target)
        return
    writer.set(f"{attention}.head_count_kv", groups, "u32")
    merged = any(name.endswith("attn_k_psi.weight") for name in changes)
    if merged:
        writer.set(f"{attention}.key_head_count", geometry.n_kv_heads, "u32")
    for tensor in file.tensors:
        change = changes.get(tensor.name)
        if change is None:
            writer.add_tensor(tensor.name, tensor.type, tensor.shape, tensor.data)
            continue
        bias = tensor.name.endswith(".bias")
        shape = list(tensor.shape)
        if ".attn_output." not in tensor.name:
            shape[-1] = rows_after(geometry, groups, tensor.name)
        _add(writer, tensor.name, "F32" if bias else options.type, shape, change)
    if merged:
        size = geometry.n_kv_heads // groups * geometry.head_dim
        psi_type = "F32" if options.type == "F32" else "F16"
        for layer in range(geometry.n_layers):
            name = f"blk.{layer}.attn_k_psi.weight"
            _add(writer, name, psi_type, [size, groups * geometry.head_dim], changes[name])
    writer.write(target)


def _write_latent(
    file: GgufFile,
    writer: GgufWriter,
    geometry: Geometry,
    groups: int,
    changes: dict[str, Change],
) -> None:
    """All tensors as they are, and what groups have in common beside them."""
    size = geometry.n_kv_heads // groups
    writer.set(f"{geometry.prefix}.attention.latent_group", size, "u32")
    for tensor in file.tensors:
        writer.add_tensor(tensor.name, tensor.type, tensor.shape, tensor.data)
    for name, change in changes.items():
        dim = geometry.value_dim if ".attn_v_" in name else geometry.head_dim
        _add(writer, name, "F32", [size * dim, groups * dim], change)


def _add(writer: GgufWriter, name: str, type: str, shape: list[int], change: Change) -> None:
    def encoded() -> bytes:
        return encode_weights(type, np.ascontiguousarray(change(), dtype=np.float32))

    writer.add_tensor(name, type, shape, encoded)


def _groups(options: HeadOptions, geometry: Geometry) -> int:
    if options.method not in METHODS:
        raise ConfigError(f"method: expected {', '.join(METHODS)}, found '{options.method:.40}'")
    if options.mode not in MODES:
        raise ConfigError(f"mode: expected {' or '.join(MODES)}, found '{options.mode:.40}'")
    if options.mode == "latent" and options.method != "svd-a":
        raise ConfigError(f"mode: expected projection with {options.method}, found latent")
    _check_model(options, geometry)
    if options.method == "mqa":
        if options.groups not in (None, 1):
            raise ConfigError(f"groups: expected 1 with mqa, found {options.groups}")
        return 1
    if options.groups is None:
        raise ConfigError("groups: expected how many heads of keys and values remain, found none")
    geometry.check_groups(options.groups)
    return options.groups


def _check_model(options: HeadOptions, geometry: Geometry) -> None:
    if options.mode == "latent" and not geometry.rotary:
        raise ConfigError(
            f"mode: expected projection with {geometry.prefix}, whose keys have no rotary embedding "
            "that latents could come before, found latent"
        )
    if geometry.clamped and options.method.startswith("svd"):
        raise UnsupportedError(
            f"{geometry.prefix}.attention.clamp_kqv: {options.method} changes weights that make "
            "keys and values, found ones that are clamped afterwards; use mean-pool or mqa"
        )


def _check_type(type: str, geometry: Geometry) -> None:
    known = {each.name: each for each in weight_formats() if each.can_encode}
    if type not in known:
        raise ConfigError(f"type: expected one of {', '.join(known)}, found '{type:.40}'")
    block = known[type].block_values
    for width in (geometry.d_model, geometry.n_heads * geometry.value_dim):
        if width % block != 0:
            raise ConfigError(f"type: {type} has blocks of {block} values, found rows of {width}")


def _grams(
    options: HeadOptions,
    file: GgufFile,
    geometry: Geometry,
    groups: int,
    calibration: str | None,
    report: Report,
) -> Grams | None:
    if options.method == "svd-w":
        return of_weights(file, geometry, groups, options.n_ctx)
    if options.method != "svd-a":
        return None
    if not calibration:
        raise ConfigError("calibration: expected a text that svd-a can read, found none")
    model = Model.load(file.path, threads=options.threads)
    return of_activations(
        model,
        calibration,
        geometry,
        groups,
        options.n_ctx,
        options.windows,
        report,
        rotated=options.mode == "projection",
    )


def _warning(grams: Grams | None, geometry: Geometry, groups: int) -> str | None:
    size = geometry.n_kv_heads // groups * max(geometry.head_dim, geometry.value_dim)
    if grams is None or grams.tokens == 0 or grams.tokens >= size:
        return None
    return f"{grams.tokens} tokens were read, fewer than the {size} values of a group of heads"
