"""Write the golden files of the cache codecs to tests/fixtures/codecs.

    values.f32   float32 [64, 64]: the rows of one page
    NAME.page    the page's bytes, as cpp/formats/cache/ lays them out
    NAME.f32     float32 [64, 64]: the values that the page decodes to

The oracle of int8 and int4 is the definition in float64 (rows in which float32 arithmetic could
round differently are drawn again, so that only exact ties are left); of the ggml blocks and bf16
it is the `gguf` package (0.19).

Run from anywhere: `python tests/oracle/make_codec_golden.py`. The output is deterministic.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, quants

OUT = Path(__file__).resolve().parent.parent / "fixtures" / "codecs"
ROWS = 64
WIDTH = 64
INT_CODECS = [(8, 8), (8, 32), (4, 32), (4, 64)]  # bits, group
HALF_MAX = 65504.0


def to_half(values: np.ndarray) -> np.ndarray:
    """The nearest binary16, saturating."""
    return np.clip(values, -HALF_MAX, HALF_MAX).astype(np.float16)


def asym(rows: np.ndarray, bits: int, group: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes [rows, width], scales and minima [rows, width / group] of float64 rows."""
    levels = 2**bits - 1
    groups = rows.reshape(len(rows), -1, group)
    low = groups.min(axis=-1)
    scale = to_half((groups.max(axis=-1) - low) / levels)
    minimum = to_half(low)
    quotient = exact_quotient(groups, scale, minimum)
    codes = np.clip(np.rint(quotient), 0, levels).astype(np.uint8)
    return codes.reshape(rows.shape), scale, minimum


def exact_quotient(groups: np.ndarray, scale: np.ndarray, minimum: np.ndarray) -> np.ndarray:
    """(x - minimum) / scale with the stored scale and minimum; 0 where the scale is 0."""
    wide = scale.astype(np.float64)[..., None]
    shifted = groups - minimum.astype(np.float64)[..., None]
    return np.divide(shifted, wide, out=np.zeros_like(groups), where=wide != 0)


def is_ambiguous(row: np.ndarray) -> bool:
    """Whether float32 could choose another code or scale than float64 for this row."""
    for bits, group in INT_CODECS:
        groups = row.astype(np.float64).reshape(1, -1, group)
        low = groups.min(axis=-1)
        scale = (groups.max(axis=-1) - low) / (2**bits - 1)
        if (to_half(scale * (1 - 1e-6)) != to_half(scale * (1 + 1e-6))).any():
            return True
        quotient = exact_quotient(groups, to_half(scale), to_half(low))
        to_tie = np.abs(quotient - np.floor(quotient) - 0.5)
        if ((to_tie < 1e-4) & (to_tie > 0)).any():
            return True
    return False


def random_row(rng: np.random.Generator, kind: int) -> np.ndarray:
    """A row of one of several shapes that keys and values take."""
    row = rng.normal(size=WIDTH)
    if kind % 4 == 1:
        row = row * 10.0 ** rng.integers(-6, 5)
    elif kind % 4 == 2:
        row[rng.integers(0, WIDTH, 3)] *= 50  # outlier channels
    elif kind % 4 == 3:
        row = row + 30 * rng.normal()
    return row.astype(np.float32)


def edge_rows() -> list[np.ndarray]:
    """Rows whose scales are zero, whose codes are ties, or whose fields saturate."""
    ties = np.arange(WIDTH) / 2 % 15.5  # minimum 0 and scale 1 in groups of 32 and 4 bits
    reference = [0, 0.5, -1, 2, 3.5, -0.25, 1.25, -2]  # the vector of the method specification
    one = np.zeros(WIDTH)
    one[0] = 4
    rows = [
        np.zeros(WIDTH),
        np.full(WIDTH, 3.0),
        np.full(WIDTH, 0.1),
        np.full(WIDTH, -1e-9),
        ties,
        np.tile(reference, 8),
        one,
        -one,
        np.linspace(-4e5, 4e5, WIDTH),
        np.linspace(-1e-6, 1e-6, WIDTH),
        np.where(np.arange(WIDTH) % 2 == 0, 1.0, -1.0),
    ]
    return [row.astype(np.float32) for row in rows]


def division_row(rng: np.random.Generator) -> np.ndarray:
    """A row for which x * (1 / d) and x / d give different q4_0 codes."""
    while True:
        row = rng.normal(size=WIDTH).astype(np.float32)
        block = row[:32]
        # x / d = k + 0.5 exactly, or nearly so, for eight of its values.
        d = block[np.abs(block).argmax()] / np.float32(-8)
        ties = np.float32(d) * (np.arange(-4, 4, dtype=np.float32) + np.float32(0.5))
        row[8:16] = np.where(np.abs(block[8:16]) < np.abs(block).max(), ties, block[8:16])
        block = row[:32]
        by_inverse = np.trunc(block * (np.float32(1) / d) + np.float32(8.5))
        by_division = np.trunc(block / d + np.float32(8.5))
        if (by_inverse != by_division).any() and not is_ambiguous(row):
            return row


def all_rows() -> np.ndarray:
    """float32 [ROWS, WIDTH]."""
    rng = np.random.default_rng(20240701)
    rows = [*edge_rows(), division_row(rng)]
    while len(rows) < ROWS:
        row = random_row(rng, len(rows))
        if not is_ambiguous(row):
            rows.append(row)
    return np.stack(rows)


def int_page(rows: np.ndarray, bits: int, group: int) -> tuple[bytes, np.ndarray]:
    """Bytes of the page, and what it decodes to."""
    codes, scale, minimum = asym(rows.astype(np.float64), bits, group)
    packed = codes if bits == 8 else codes[:, 0::2] | (codes[:, 1::2] << 4)
    pairs = np.stack([scale, minimum], axis=-1)
    wide = pairs.astype(np.float64)
    grouped = codes.reshape(ROWS, -1, group).astype(np.float64)
    decoded = grouped * wide[..., :1] + wide[..., 1:]
    return packed.tobytes() + pairs.tobytes(), decoded.reshape(rows.shape)


def main() -> None:
    """Write every file."""
    OUT.mkdir(parents=True, exist_ok=True)
    rows = all_rows()
    pages: dict[str, tuple[bytes, np.ndarray]] = {}
    for bits, group in INT_CODECS:
        pages[f"int{bits}_g{group}"] = int_page(rows, bits, group)
    for name in ["Q8_0", "Q4_0", "BF16"]:
        kind = GGMLQuantizationType[name]
        coded = quants.quantize(rows, kind)
        pages[name.lower()] = (coded.tobytes(), quants.dequantize(coded, kind))
    pages["f16"] = (to_half(rows).tobytes(), to_half(rows))
    (OUT / "values.f32").write_bytes(rows.tobytes())
    for name, (page, decoded) in pages.items():
        (OUT / f"{name}.page").write_bytes(page)
        (OUT / f"{name}.f32").write_bytes(decoded.astype(np.float32).tobytes())


if __name__ == "__main__":
    main()
