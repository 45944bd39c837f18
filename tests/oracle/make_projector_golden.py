"""Write the golden files of the projectors to tests/fixtures/projectors.

    keys.f32             float32 [192, 32]: three pages of keys of one head, with a large mean,
                         few strong directions, and channels of very different size
    queries.f64          float64 [32]: mean squared query per channel
    klt_values.f64       float64 [32]: eigenvalues of M^1/2 C M^1/2, falling
    klt_rows.f32         float32 [192, 32]: |U^T M^1/2 key| (signs of eigenvectors are arbitrary)
    singular.f64         float64 [32]: singular values of the keys
    low_rank5.f32        float32 [192, 32]: the closest keys of rank 5
    few_singular.f64     float64 [20]: singular values of the first 20 keys
    few_low_rank5.f32    float32 [20, 32]: the closest of those of rank 5
    mpo_values.f64       float64 [16]: singular values of the keys' pieces of 16
    mpo_rows.f32         float32 [192, 32]: |T_L|
    mpo_chain3.f32       float32 [192, 32]: of tensors of sizes 4 and 4 behind T_L, with bonds of 10
                         and 3 before them
    mpo_chain3_inner.f32 float32 [192, 32]: the same with a bond of 3 before the last alone
    mpo_chain4.f32       float32 [192, 32]: of sizes 2, 2 and 4, with bonds of 9, 6 and 3
    mpo_bond7.f32        float32 [192, 32]: of two tensors, with a bond of 7
    residual_coded.f32   float32 [192, 32]: the keys in float16 as a part of rank 5 and 2-bit codes
                         (per channel and 64 tokens, scale and minimum in float16) of the rest
    residual_fitted.f32  float32 [192, 32]: the same codes of the keys and a part of rank 5 of what
                         they miss (GEAR, arXiv 2403.05527, without its outliers)
    eigen.f64            float64 [48, 48]: a symmetric matrix with repeated and zero eigenvalues
    eigen_values.f64     float64 [48]: its eigenvalues, falling

The oracle is LAPACK in float64, through numpy's svd and eigvalsh.
Run from anywhere: `python tests/oracle/make_projector_golden.py`. The output is deterministic.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

OUT = Path(__file__).resolve().parent.parent / "fixtures" / "projectors"
PAGE = 64
WIDTH = 32
BLOCK = 16
RANK = 5
FEW = 20


def make_keys(random: np.random.Generator) -> np.ndarray:
    """Keys float32 [192, 32]."""
    directions = random.standard_normal((WIDTH, WIDTH))
    strengths = 4.0 * 0.8 ** np.arange(WIDTH)
    keys = (random.standard_normal((3 * PAGE, WIDTH)) * strengths) @ directions
    keys *= np.exp(random.uniform(-1.5, 1.5, WIDTH))
    keys[:, 3] += 120.0
    return keys.astype(np.float32)


def klt(keys: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, and the magnitudes of the keys' components."""
    pages = keys.reshape(-1, PAGE, WIDTH)
    deviations = (pages - pages.mean(axis=1, keepdims=True)).reshape(-1, WIDTH)
    root = np.sqrt(queries + 1e-3 * queries.mean())
    # Through the singular values of the weighted deviations, not through their covariance.
    _, values, vectors = np.linalg.svd(deviations * root, full_matrices=False)
    return values**2 / len(keys), np.abs((keys * root) @ vectors.T)


def closest(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Singular values, and the closest matrix of rank RANK."""
    left, values, right = np.linalg.svd(rows, full_matrices=False)
    return values, (left[:, :RANK] * values[:RANK]) @ right[:RANK]


def mpo(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Singular values of the pieces, and the magnitudes of T_L."""
    left, values, _ = np.linalg.svd(keys.reshape(-1, BLOCK), full_matrices=False)
    return values, np.abs(left * np.sqrt(values)).reshape(keys.shape)


def quantized(rows: np.ndarray) -> np.ndarray:
    """2-bit codes per channel and page, as they show the rows."""
    pages = rows.reshape(-1, PAGE, WIDTH)
    low = pages.min(axis=1, keepdims=True).astype(np.float16).astype(np.float64)
    span = pages.max(axis=1, keepdims=True) - pages.min(axis=1, keepdims=True)
    step = (span / 3).astype(np.float16).astype(np.float64)
    codes = np.clip(np.rint((pages - low) / step), 0, 3)
    return (codes * step + low).reshape(rows.shape)


def residual_coded(keys: np.ndarray) -> np.ndarray:
    """The closest rows of rank RANK, and codes of what they leave."""
    _, near = closest(keys)
    return near + quantized(keys - near)


def residual_fitted(keys: np.ndarray) -> np.ndarray:
    """Codes of the rows, and the closest rows of rank RANK to what these leave."""
    shown = quantized(keys)
    return shown + closest(keys - shown)[1]


def mpo_chain(keys: np.ndarray, sizes: list[int], bonds: list[int]) -> np.ndarray:
    """The product of the chain: from the last tensor to the first, the leading right vectors."""
    rows = keys
    for i in reversed(range(len(sizes))):
        pieces = rows.reshape(-1, int(np.prod(sizes[i:])))
        left, values, right = np.linalg.svd(pieces, full_matrices=False)
        rows = (left[:, : bonds[i]] * values[: bonds[i]]) @ right[: bonds[i]]
    return rows.reshape(keys.shape)


def make_symmetric(random: np.random.Generator) -> np.ndarray:
    """Symmetric [48, 48]: eigenvalues 5 (ten times), 0 (eight times), the others spread out."""
    vectors, _ = np.linalg.qr(random.standard_normal((48, 48)))
    values = np.concatenate([np.full(10, 5.0), np.zeros(8), random.standard_normal(30) * 20])
    matrix = (vectors * values) @ vectors.T
    return (matrix + matrix.T) / 2


def main() -> None:
    """Write every file."""
    random = np.random.default_rng(20240611)
    stored = make_keys(random)
    keys = stored.astype(np.float64)
    queries = np.exp(random.uniform(-3, 3, WIDTH))
    queries[7] = 0.0
    arrays = {"keys.f32": stored, "queries.f64": queries}
    arrays["klt_values.f64"], arrays["klt_rows.f32"] = klt(keys, queries)
    arrays["singular.f64"], arrays["low_rank5.f32"] = closest(keys)
    arrays["few_singular.f64"], arrays["few_low_rank5.f32"] = closest(keys[:FEW])
    arrays["mpo_values.f64"], arrays["mpo_rows.f32"] = mpo(keys)
    arrays["mpo_chain3.f32"] = mpo_chain(keys, [4, 4], [10, 3])
    arrays["mpo_chain3_inner.f32"] = mpo_chain(keys, [4, 4], [16, 3])
    arrays["mpo_chain4.f32"] = mpo_chain(keys, [2, 2, 4], [9, 6, 3])
    arrays["mpo_bond7.f32"] = mpo_chain(keys, [BLOCK], [7])
    halves = stored.astype(np.float16).astype(np.float64)
    arrays["residual_coded.f32"] = residual_coded(halves)
    arrays["residual_fitted.f32"] = residual_fitted(halves)
    arrays["eigen.f64"] = make_symmetric(random)
    arrays["eigen_values.f64"] = np.linalg.eigvalsh(arrays["eigen.f64"])[::-1]
    OUT.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        kind = np.float32 if name.endswith(".f32") else np.float64
        (OUT / name).write_bytes(array.astype(kind).tobytes())


if __name__ == "__main__":
    main()
