"""Write the golden files of the cache codecs (cpp/formats/cache) to tests/fixtures/codecs.

    values.f32   float32 [40, 32]: what is coded, one scale per group of 32
    groups.bin   for every coding: its name in 24 bytes; uint8 [40, 32]: codes; uint16 [40, 2]: scale
                 and zero as stored
    search.bin   for codings that search: name in 24 bytes; float64 [40]: the squared error to reach
    page.f32     float32 [40, 24]: a page for two-axis normalisation
    page_AXIS.f32  float32 [24 + 40]: its channel and token factors when AXIS comes first
    kvarn.f32    float32 [64, 32]: a tile for KVarN, in its rotated basis
    kvarn_SIDEn.f32  float32 [64, 32]: what n-bit codes of that tile decode to as keys or values
    rows.f32     float32 [16, 48]: rows for plain floats
    rows.f16, rows.bf16   uint16 [16, 48]: the same in other types, saturating

Oracles: ggml's blocks come from ggml itself (the library inside llama-cpp-python 0.3.36; the gguf
package must agree), 8-bit floats and bfloat16 from ml_dtypes, the rest from the definitions in
float64. Groups in which float32 arithmetic could choose another code or scale are drawn again.

Run from anywhere: `python tests/oracle/make_codec_golden.py`. The output is deterministic.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist

import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType, quants

OUT = Path(__file__).resolve().parent.parent / "fixtures" / "codecs"
GROUPS = 40
SIZE = 32
NAME_BYTES = 24
HALF_MAX = 65504.0
CLIPS = {1: 0.35, 2: 0.6, 3: 0.75, 4: 0.85}
GGML_BLOCKS = {  # name: numpy type of a block
    "q8_0": [("d", "<u2"), ("qs", "i1", 32)],
    "q5_1": [("d", "<u2"), ("m", "<u2"), ("qh", "<u4"), ("qs", "u1", 16)],
    "q5_0": [("d", "<u2"), ("qh", "<u4"), ("qs", "u1", 16)],
    "q4_1": [("d", "<u2"), ("m", "<u2"), ("qs", "u1", 16)],
    "q4_0": [("d", "<u2"), ("qs", "u1", 16)],
    "iq4_nl": [("d", "<u2"), ("qs", "u1", 16)],
}

# Codes [groups, 32], scales and zeros as decoded [groups]; `nudge` scales what is about to be
# rounded, which must not change anything.
Coded = tuple[np.ndarray, np.ndarray, np.ndarray]
Coder = Callable[[np.ndarray, float], Coded]


def half(values: np.ndarray) -> np.ndarray:
    """The nearest binary16 numbers, saturating, as float64."""
    return np.clip(values, -HALF_MAX, HALF_MAX).astype(np.float16).astype(np.float64)


def log8(values: np.ndarray) -> np.ndarray:
    """The nearest of zero and the numbers (1 + m / 8) * 2^e, e from -18 to 13; 2^-18 is zero."""
    grid = np.array([(1 + m / 8) * 2.0**e for e in range(-18, 14) for m in range(8)])
    grid = np.concatenate([[2.0**-18 * 15 / 16], grid])
    nearest = grid[np.abs(values[..., None] - grid).argmin(axis=-1)]
    return np.where(nearest <= 2.0**-18, 0.0, nearest)


def safe(scales: np.ndarray) -> np.ndarray:
    """Scales to divide by: 1 for 0."""
    return np.where(scales == 0, 1.0, scales)[:, None]


def asym(bits: int, rounded: Callable[[np.ndarray], np.ndarray] = half) -> Coder:
    """Codes over the range of a group."""

    def code(x: np.ndarray, nudge: float) -> Coded:
        top = 2**bits - 1
        low = half(x.min(axis=1))
        scale = rounded((x.max(axis=1) - x.min(axis=1)) / top * nudge)
        codes = np.clip(np.rint((x - low[:, None]) / safe(scale) * nudge), 0, top)
        return np.where(scale[:, None] == 0, 0, codes), scale, low

    return code


def sym(bits: int, rounded: Callable[[np.ndarray], np.ndarray] = half) -> Coder:
    """Codes around zero."""

    def code(x: np.ndarray, nudge: float) -> Coded:
        top = 2 ** (bits - 1) - 1
        scale = rounded(np.abs(x).max(axis=1) / top * nudge)
        codes = np.clip(np.rint(x / safe(scale) * nudge), -top, top)
        return np.where(scale[:, None] == 0, 0, codes) + top + 1, scale, 0 * scale

    return code


def nf4_levels() -> np.ndarray:
    """QLoRA's construction: quantiles on both sides of zero, 8 above and 7 below."""
    quantile = NormalDist().inv_cdf
    above = [quantile(p) for p in np.linspace(0.9677083, 0.5, 9)[:-1]]
    below = [-quantile(p) for p in np.linspace(0.9677083, 0.5, 8)[:-1]]
    levels = np.sort([*above, 0.0, *below])
    return levels / levels.max()


def nearest(levels: np.ndarray, scaled: np.ndarray) -> np.ndarray:
    """Indices of the nearest levels; halfway, the upper."""
    middles = (levels[1:] + levels[:-1]) / 2
    return np.searchsorted(middles, scaled, side="right")


def centroids(bits: int) -> np.ndarray:
    """Lloyd's iteration for normal numbers: levels, ascending, that are the means of their cells."""

    def density(t: float) -> float:
        return math.exp(-t * t / 2) / math.sqrt(2 * math.pi)

    def above(t: float) -> float:
        return math.erfc(t / math.sqrt(2)) / 2

    n = 2 ** (bits - 1)
    levels = [NormalDist().inv_cdf(0.5 + (k + 0.5) / (2 * n)) for k in range(n)]
    while True:
        ends = [0.0, *((a + b) / 2 for a, b in pairwise(levels)), 40.0]
        means = [(density(a) - density(b)) / (above(a) - above(b)) for a, b in pairwise(ends)]
        moved = max(abs(a - b) for a, b in zip(levels, means, strict=True))
        levels = means
        if moved < 1e-13:
            return np.concatenate([-np.array(levels)[::-1], levels])


def lloyd(bits: int, fit: str, rounded: Callable[[np.ndarray], np.ndarray] = half) -> Coder:
    """Centroids of the normal distribution."""

    levels = centroids(bits)

    def code(x: np.ndarray, nudge: float) -> Coded:
        rms = np.sqrt((x * x).mean(axis=1))
        if fit == "norm":
            scale = rounded(rms * nudge)
            codes = nearest(levels, np.where(scale[:, None] == 0, 0, x) / safe(scale) * nudge)
            return codes, scale, 0 * scale
        y = x / safe(rms)
        codes = nearest(levels, y * nudge)
        c = levels[codes]
        common = (y * c).sum(axis=1)
        ratio = (y * y).sum(axis=1) / safe(common)[:, 0]
        if fit == "least":
            ratio = common / (c * c).sum(axis=1)
        scale = rounded(rms * ratio * nudge)
        return codes, scale, 0 * scale

    return code


def nf4(rounded: Callable[[np.ndarray], np.ndarray] = half) -> Coder:
    """QLoRA's levels."""
    levels = nf4_levels()

    def code(x: np.ndarray, nudge: float) -> Coded:
        scale = rounded(np.abs(x).max(axis=1) * nudge)
        scaled = np.where(scale[:, None] == 0, 0, x) / safe(scale)
        return nearest(levels, scaled * nudge), scale, 0 * scale

    return code


def fp8(kind: type, shift: int, rounded: Callable[[np.ndarray], np.ndarray] = half) -> Coder:
    """8-bit floats times 2^-shift, the largest of which is 1.75."""

    def code(x: np.ndarray, nudge: float) -> Coded:
        scale = rounded(np.abs(x).max(axis=1) / 1.75 * nudge)
        most = 1.75 * 2.0**shift
        scaled = np.where(scale[:, None] == 0, 0, x) / safe(scale) * 2.0**shift * nudge
        codes = np.clip(scaled, -most, most).astype(kind).view(np.uint8)
        return np.where(scale[:, None] == 0, 0, codes), scale, 0 * scale

    return code


def search_errors(x: np.ndarray, bits: int, rounded: Callable[[np.ndarray], np.ndarray]):
    """The least squared error of the clipped ranges, each with refitted parameters."""
    top = 2**bits - 1
    low, high = x.min(axis=1), x.max(axis=1)

    def error(scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
        codes = np.clip(np.rint((x - zero[:, None]) / safe(scale)), 0, top)
        return ((x - zero[:, None] - scale[:, None] * codes) ** 2).sum(axis=1)

    best = error(rounded((high - low) / top), half(low))
    for clip in np.linspace(CLIPS.get(bits, 0.92), 1, 6):
        start = low + (high - low) * (1 - clip) / 2
        step = (high - low) * clip / top
        codes = np.clip(np.rint((x - start[:, None]) / safe(step)), 0, top)
        u = x - start[:, None]
        spread = SIZE * (codes**2).sum(axis=1) - codes.sum(axis=1) ** 2
        common = SIZE * (codes * u).sum(axis=1) - codes.sum(axis=1) * u.sum(axis=1)
        scale = rounded(common / np.where(spread > 0, spread, 1))
        zero = half(start + (u.sum(axis=1) - scale * codes.sum(axis=1)) / SIZE)
        best = np.minimum(best, error(scale, zero))
    return best


def coders() -> dict[str, Coder]:
    """All codings but ggml's, by name."""
    out: dict[str, Coder] = {}
    for end, rounded in (("", half), ("_log8", log8)):
        out |= {f"asym{bits}{end}": asym(bits, rounded) for bits in range(1, 9)}
        out |= {f"sym{bits}{end}": sym(bits, rounded) for bits in range(2, 9)}
        for fit in ("norm", "energy", "least"):
            out |= {f"lloyd{bits}_{fit}{end}": lloyd(bits, fit, rounded) for bits in range(1, 5)}
        out[f"nf4{end}"] = nf4(rounded)
        out[f"e4m3{end}"] = fp8(ml_dtypes.float8_e4m3fn, 8, rounded)
        out[f"e5m2{end}"] = fp8(ml_dtypes.float8_e5m2, 15, rounded)
    return out


CODERS = coders()


def is_ambiguous(group: np.ndarray) -> bool:
    """Whether rounding errors of float32 could change a code or a scale."""
    x = group.astype(np.float64)[None]
    for coder in CODERS.values():
        plain = coder(x, 1.0)
        for nudge in (1 - 4e-6, 1 + 4e-6):
            if any((a != b).any() for a, b in zip(coder(x, nudge), plain, strict=True)):
                return True
    return False


def division_group(rng: np.random.Generator) -> np.ndarray:
    """A group for which x * (1 / d) and x / d give different q4_0 codes."""
    while True:
        group = rng.normal(size=SIZE).astype(np.float32)
        most = np.abs(group).max()
        d = group[np.abs(group).argmax()] / np.float32(-8)
        # x / d = k + 0.5, or nearly so, for eight of its values.
        ties = d * (np.arange(-4, 4, dtype=np.float32) + np.float32(0.5))
        group[8:16] = np.where(np.abs(group[8:16]) < most, ties, group[8:16])
        by_inverse = np.trunc(group * (np.float32(1) / d) + np.float32(8.5))
        by_division = np.trunc(group / d + np.float32(8.5))
        if (by_inverse != by_division).any() and not is_ambiguous(group):
            return group


def all_groups() -> np.ndarray:
    """float32 [GROUPS, SIZE]."""
    rng = np.random.default_rng(20250301)
    one = np.zeros(SIZE)
    one[3] = -4
    groups = [np.zeros(SIZE, np.float32), one.astype(np.float32), division_group(rng)]
    while len(groups) < GROUPS:
        group = rng.normal(size=SIZE)
        kind = len(groups) % 5
        if kind == 1:
            group = group * 10.0 ** rng.integers(-5, 4)
        elif kind == 2:
            group[rng.integers(0, SIZE, 2)] *= 40  # outliers
        elif kind == 3:
            group = group + 20 * rng.normal()  # a mean far from zero
        elif kind == 4:
            group = rng.exponential(size=SIZE)
        group = group.astype(np.float32)
        if not is_ambiguous(group):
            groups.append(group)
    return np.stack(groups)


def stored(scale: np.ndarray, zero: np.ndarray, is_log8: bool) -> np.ndarray:
    """uint16 [groups, 2] of decoded parameters."""
    bits = scale.astype(np.float16).view(np.uint16)
    if is_log8:
        exponent = np.floor(np.log2(np.where(scale == 0, 1, scale)))
        code = (exponent + 18) * 8 + (scale / 2.0**exponent - 1) * 8
        bits = np.where(scale == 0, 0, code).astype(np.uint16)
    return np.stack([bits, zero.astype(np.float16).view(np.uint16)], axis=1)


def ggml_library() -> ctypes.CDLL:
    """ggml as llama-cpp-python ships it."""
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None and spec.origin is not None
    return ctypes.CDLL(str(Path(spec.origin).parent / "lib" / "libggml-base.so"))


def ggml_blocks(library: ctypes.CDLL, name: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes [groups, 32] and stored parameters [groups, 2]."""
    kind = np.dtype(GGML_BLOCKS[name])
    blocks = np.zeros(len(x), kind)
    reference = getattr(library, f"quantize_row_{name}_ref")
    pointer = ctypes.c_void_p
    reference(pointer(x.ctypes.data), pointer(blocks.ctypes.data), ctypes.c_int64(x.size))
    if name != "iq4_nl":
        same = quants.quantize(x, GGMLQuantizationType[name.upper()])
        assert same.tobytes() == blocks.tobytes(), name
    qs = blocks["qs"]
    if name == "q8_0":
        codes = qs.astype(np.int32) + 128
    else:
        codes = np.concatenate([qs & 15, qs >> 4], axis=1).astype(np.int32)
    if "qh" in (kind.names or ()):
        codes |= ((blocks["qh"][:, None] >> np.arange(32, dtype=np.uint32)) & 1).astype(int) << 4
    if name == "iq4_nl":  # versions differ in whether a block of zeros has codes of zero or any
        codes[blocks["d"] == 0] = 0
    zero = blocks["m"] if "m" in (kind.names or ()) else np.zeros(len(x), np.uint16)
    return codes.astype(np.uint8), np.stack([blocks["d"], zero], axis=1)


def two_axes(page: np.ndarray, tokens_first: bool) -> np.ndarray:
    """Channel and token factors (arXiv 2606.03458) of a page [tokens, channels], in logarithms."""
    tile = page.T if tokens_first else page  # columns first, as in the paper's listing
    log_columns = np.zeros((1, tile.shape[1]))
    log_rows = np.zeros((tile.shape[0], 1))

    def uneven(m: np.ndarray) -> float:
        deviations = [m.std(axis=axis, ddof=1) for axis in (0, 1)]
        return sum(float(d.max() / max(d.min(), 1e-8)) for d in deviations)

    now = tile
    best = (uneven(now), log_columns, log_rows)
    for _ in range(16):
        deviation = now.std(axis=0, ddof=1, keepdims=True).clip(1e-3, 1e3)
        log_columns = (log_columns + np.log(deviation)).clip(-0.3, 10)
        now = tile / np.exp(log_columns) / np.exp(log_rows)
        deviation = now.std(axis=1, ddof=1, keepdims=True).clip(1e-3, 1e3)
        log_rows = (log_rows + np.log(deviation)).clip(-0.3, 10)
        now = tile / np.exp(log_columns) / np.exp(log_rows)
        if uneven(now) <= best[0]:
            best = (uneven(now), log_columns, log_rows)
    columns, rows = np.exp(best[1]).ravel(), np.exp(best[2]).ravel()
    return np.concatenate([rows, columns] if tokens_first else [columns, rows])


def record(name: str, *arrays: np.ndarray) -> bytes:
    """One entry of a file of several."""
    return name.encode().ljust(NAME_BYTES, b"\0") + b"".join(a.tobytes() for a in arrays)


def write_groups(values: np.ndarray) -> None:
    """Codes and parameters of every coding, errors of those that search."""
    wide = values.astype(np.float64)
    groups = b""
    for name, coder in CODERS.items():
        codes, scale, zero = coder(wide, 1.0)
        groups += record(name, codes.astype(np.uint8), stored(scale, zero, "log8" in name))
    library = ggml_library()
    for name in GGML_BLOCKS:
        groups += record(name, *ggml_blocks(library, name, values))
    searches = b""
    for end, rounded in (("", half), ("_log8", log8)):
        for bits in range(1, 9):
            errors = search_errors(wide, bits, rounded)
            searches += record(f"asym{bits}_search{end}", errors)
    (OUT / "values.f32").write_bytes(values.tobytes())
    (OUT / "groups.bin").write_bytes(groups)
    (OUT / "search.bin").write_bytes(searches)


def write_two_axes() -> None:
    """A page and its factors."""
    rng = np.random.default_rng(7)
    page = rng.normal(size=(40, 24)) * rng.lognormal(size=24) * rng.lognormal(size=(40, 1))
    page = (page + 3 * rng.normal(size=24)).astype(np.float32)
    (OUT / "page.f32").write_bytes(page.tobytes())
    for axis in ("tokens", "channels"):
        factors = two_axes(page.astype(np.float64), axis == "tokens")
        (OUT / f"page_{axis}.f32").write_bytes(factors.astype(np.float32).tobytes())


def kvarn(tile: np.ndarray, bits: int, keys: bool) -> np.ndarray:
    """What KVarN (arXiv 2606.03458) decodes of a tile [tokens, channels], with binary16 parameters.

    Lines are channels of keys and tokens of values; they are coded asymmetrically, and their own
    factors enter their scales and zeros.
    """
    factors = two_axes(tile, tokens_first=keys)
    channels, tokens = factors[: tile.shape[1]], factors[tile.shape[1] :]
    lines, line_factors, others = tile, tokens[:, None], channels[None]
    if keys:
        lines, line_factors, others = tile.T, channels[:, None], tokens[None]
    balanced = lines / line_factors / others
    low = balanced.min(axis=1, keepdims=True)
    scale = (balanced.max(axis=1, keepdims=True) - low) / (2**bits - 1)
    codes = np.rint((balanced - low) / scale)
    decoded = (codes * half(line_factors * scale) + half(line_factors * low)) * half(others)
    return decoded.T if keys else decoded


def write_kvarn() -> None:
    """A tile with uneven tokens and channels, and what becomes of it."""
    rng = np.random.default_rng(2606)
    tile = rng.normal(size=(64, 32)) + rng.normal(size=32)
    tile = tile * rng.lognormal(size=32) * rng.lognormal(sigma=0.5, size=(64, 1))
    tile = tile.astype(np.float32)
    (OUT / "kvarn.f32").write_bytes(tile.tobytes())
    for side in ("keys", "values"):
        for bits in (2, 4):
            decoded = kvarn(tile.astype(np.float64), bits, side == "keys").astype(np.float32)
            (OUT / f"kvarn_{side}{bits}.f32").write_bytes(np.ascontiguousarray(decoded).tobytes())


def write_floats() -> None:
    """Rows of plain floats: ordinary ones, ties, subnormal and huge ones."""
    rng = np.random.default_rng(8)
    rows = rng.normal(size=(16, 48)) * 10.0 ** rng.integers(-9, 6, size=(16, 48))
    rows[0] = 1 + np.arange(48) * 2.0**-11  # every other one is halfway between two halves
    rows[1] = 1 + np.arange(48) * 2.0**-8  # the same for bfloat16
    rows[2, :8] = [65504, 65519, 65520, -65520, 3.4e38, -3.4e38, 1e-45, 0]
    rows = rows.astype(np.float32)
    largest = np.array([0x7F7F], np.uint16).view(ml_dtypes.bfloat16).astype(np.float32)
    (OUT / "rows.f32").write_bytes(rows.tobytes())
    (OUT / "rows.f16").write_bytes(np.clip(rows, -HALF_MAX, HALF_MAX).astype(np.float16).tobytes())
    bf16 = np.clip(rows, -largest, largest).astype(ml_dtypes.bfloat16)
    (OUT / "rows.bf16").write_bytes(bf16.tobytes())


def main() -> None:
    """Write every file."""
    OUT.mkdir(parents=True, exist_ok=True)
    write_groups(all_groups())
    write_two_axes()
    write_kvarn()
    write_floats()


if __name__ == "__main__":
    main()
