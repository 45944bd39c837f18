"""Write the golden files of the weight formats to tests/fixtures/weights.

The oracle is the `gguf` package (0.19): `gguf.quants.dequantize` and `gguf.quants.quantize`.
Two kinds of files, little-endian, without padding:

    NAME.decode   uint32 n_blocks | the blocks' bytes | float32 values
    NAME.encode   uint32 n_blocks | float32 values | the blocks' bytes

Run from anywhere: `python tests/oracle/make_weight_golden.py`. The output is deterministic.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

OUT = Path(__file__).resolve().parent.parent / "fixtures" / "weights"
RANDOM_BLOCKS = 12

# Byte offsets of the binary16 fields of each type's block.
HALF_OFFSETS: dict[str, tuple[int, ...]] = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ2_XXS": (0,),
    "IQ2_XS": (0,),
    "IQ2_S": (0,),
    "IQ3_XXS": (0,),
    "IQ3_S": (0,),
    "IQ1_S": (0,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
}
# Zeros, smallest and largest subnormals, largest number, infinity, NaN.
EDGE_HALVES = (0x0000, 0x8000, 0x0001, 0x83FF, 0x7BFF, 0xFC00, 0x7E01)
EDGE_FLOATS = (0.0, -0.0, 1e-45, -1.1754942e-38, 3.4028235e38, -np.inf, np.nan)
# Types without an encoder in gguf.quants that this project encodes too are tested by their error.
ENCODED = ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
NUMBERS = {
    "I8": np.int8,
    "I16": np.int16,
    "I32": np.int32,
    "I64": np.int64,
    "F32": np.float32,
    "F64": np.float64,
}


def sizes(name: str) -> tuple[int, int]:
    """Values and bytes of a block."""
    return GGML_QUANT_SIZES[GGMLQuantizationType[name]]


def set_halves(name: str, blocks: np.ndarray, values: np.ndarray) -> None:
    """Write uint16 `values` [n_blocks, n_fields] into the binary16 fields of `blocks`."""
    if name == "IQ1_M":  # four nibbles atop four uint16, lowest first
        words = blocks[:, 48:56].copy().view(np.uint16)
        nibbles = (values[:, :1] >> np.array([0, 4, 8, 12], np.uint16)) & 15
        blocks[:, 48:56] = ((words & 0x0FFF) | (nibbles << 12)).astype(np.uint16).view(np.uint8)
        return
    for field, offset in enumerate(HALF_OFFSETS[name]):
        column = np.ascontiguousarray(values[:, field % values.shape[1]]).astype(np.uint16)
        blocks[:, offset : offset + 2] = column.view(np.uint8).reshape(-1, 2)


def set_floats(blocks: np.ndarray, values: np.ndarray) -> None:
    """Write the float32 scales of Q8_K blocks."""
    blocks[:, :4] = values.astype(np.float32).view(np.uint8).reshape(-1, 4)


def edge_blocks(name: str, rng: np.random.Generator) -> np.ndarray:
    """Blocks whose scales are unusual, and blocks of all zero or all one bits."""
    n_bytes = sizes(name)[1]
    n_edges = len(EDGE_HALVES)
    edges = rng.integers(0, 256, (n_edges, n_bytes), np.uint8)
    if name == "Q8_K":
        set_floats(edges, np.array(EDGE_FLOATS))
    elif name == "MXFP4":
        edges = rng.integers(0, 256, (256, n_bytes), np.uint8)
        edges[:, 0] = np.arange(256)
    else:
        # The second field (a minimum) walks the same list backwards.
        halves = np.array([EDGE_HALVES, EDGE_HALVES[::-1]], np.uint16).T
        set_halves(name, edges, halves)
    flat = np.repeat(np.array([[0x00], [0xFF], [0x80], [0x7F]], np.uint8), n_bytes, axis=1)
    if name == "Q8_K":
        set_floats(flat, np.array([1.0, 0.1, -0.3, 2.5]))
    elif name != "MXFP4":
        set_halves(name, flat, np.array([[0x3C00], [0x2E66], [0xB4CD], [0x4100]], np.uint16))
    return np.concatenate([edges, flat])


def every_index(name: str) -> np.ndarray:
    """Blocks that between them use every codebook entry (IQ types) or byte (TQ1_0)."""
    n_bytes = sizes(name)[1]
    if name == "IQ2_XXS":
        blocks = np.zeros((8, n_bytes), np.uint8)
        blocks[:, 2:].reshape(8, 8, 8)[:, :, :4] = np.arange(256).reshape(8, 8, 4)
        blocks[:, 2:].reshape(8, 8, 8)[:, :, 7] = 0x10
    elif name == "IQ2_XS":
        indices = np.arange(512, dtype=np.uint16) | (np.arange(512, dtype=np.uint16) % 128 << 9)
        blocks = np.zeros((16, n_bytes), np.uint8)
        blocks[:, 2:66] = indices.astype(np.uint16).view(np.uint8).reshape(16, 64)
    elif name == "IQ2_S":
        index = np.arange(1024).reshape(32, 32)
        blocks = np.zeros((32, n_bytes), np.uint8)
        blocks[:, 2:34] = index & 255
        high = (index >> 8).reshape(32, 8, 4) << np.array([0, 2, 4, 6])
        blocks[:, 66:74] = high.sum(axis=-1)
    elif name == "IQ3_XXS":
        blocks = np.zeros((4, n_bytes), np.uint8)
        blocks[:, 2:66] = np.arange(256).reshape(4, 64)
    elif name == "IQ3_S":
        blocks = np.zeros((8, n_bytes), np.uint8)
        blocks[:, 2:66] = (np.arange(512) & 255).reshape(8, 64)
        blocks[4:, 66:74] = 255
    elif name == "IQ1_S":
        index = np.arange(2048).reshape(64, 32)
        blocks = np.zeros((64, n_bytes), np.uint8)
        blocks[:, 2:34] = index & 255
        high = ((index >> 8).reshape(64, 8, 4) << np.array([0, 3, 6, 9])).sum(axis=-1)
        blocks[:, 34:] = high.astype(np.uint16).view(np.uint8).reshape(64, 16)
    elif name == "TQ1_0":
        blocks = np.zeros((6, n_bytes), np.uint8)
        blocks[:, :48] = np.arange(6 * 48).reshape(6, 48) & 255
    else:
        return np.zeros((0, n_bytes), np.uint8)
    set_halves(name, blocks, np.full((len(blocks), 1), 0x3C00, np.uint16))
    return blocks


def random_blocks(name: str, rng: np.random.Generator) -> np.ndarray:
    """Random bytes with scales of both signs around the size that weights have."""
    blocks = rng.integers(0, 256, (RANDOM_BLOCKS, sizes(name)[1]), np.uint8)
    scales = rng.normal(0, 0.01, (RANDOM_BLOCKS, 2))
    if name == "Q8_K":
        set_floats(blocks, scales[:, 0])
    elif name == "MXFP4":
        blocks[:, 0] = rng.integers(100, 140, RANDOM_BLOCKS)
    else:
        set_halves(name, blocks, scales.astype(np.float16).view(np.uint16))
    return blocks


def dequantize(name: str, blocks: np.ndarray) -> np.ndarray:
    """float32 [n_blocks, values] of uint8 [n_blocks, bytes]."""
    if name == "Q8_K":  # not in gguf.quants: value = scale * code
        scales = np.ascontiguousarray(blocks[:, :4]).view(np.float32)
        return scales * blocks[:, 4:260].view(np.int8).astype(np.float32)
    return quants.dequantize(blocks, GGMLQuantizationType[name])


def write_decode(name: str, blocks: np.ndarray, values: np.ndarray) -> None:
    """Write NAME.decode."""
    count = np.array([len(blocks)], "<u4").tobytes()
    OUT.joinpath(f"{name}.decode").write_bytes(
        count + blocks.tobytes() + values.astype("<f4", copy=False).tobytes()
    )


def number_edges(name: str, rng: np.random.Generator) -> np.ndarray:
    """Plain numbers: extremes, values that need rounding to float32, random ones."""
    dtype = np.dtype(NUMBERS[name])
    if dtype.kind == "i":
        info = np.iinfo(dtype)
        odd = [v for v in (16777217, -16777219, 2**53 + 1) if info.min <= v <= info.max]
        fixed = np.array([0, 1, -1, info.min, info.max, *odd], dtype)
        return np.concatenate([fixed, rng.integers(info.min, info.max, 32, dtype)])
    fixed = np.array([0, -0.0, 1e-45, 1e300, -1e-300, 1 / 3, np.inf, -np.inf, np.nan], np.float64)
    return np.concatenate([fixed, rng.normal(size=32)]).astype(dtype)


def encoder_inputs(rng: np.random.Generator) -> np.ndarray:
    """float32 [n, 32]: the kinds of blocks an encoder meets."""
    blocks = [
        *rng.normal(0, 0.02, (8, 32)),
        *rng.standard_t(2, (8, 32)),
        *rng.uniform(3, 4, (2, 32)),
        *rng.integers(-127, 128, (2, 32)),  # exact codes
        *(rng.integers(-16, 16, (2, 32)) / 2),  # ties
        *rng.normal(0, 1e-7, (2, 32)),  # subnormal binary16 scales
        *rng.normal(0, 1e4, (2, 32)),
        np.zeros(32),
        np.full(32, 0.7),
        np.full(32, -0.7),
        np.eye(1, 32, 5)[0],
        -np.eye(1, 32, 31)[0],
        np.where(np.arange(32) % 2, 1.0, -1.0),  # the extreme occurs with both signs
    ]
    return np.array(blocks).astype(np.float32)


def main() -> None:
    """Write every file."""
    OUT.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1234)
    with np.errstate(all="ignore"):
        for name in (*HALF_OFFSETS, "IQ1_M", "Q8_K", "MXFP4"):
            blocks = np.concatenate(
                [random_blocks(name, rng), edge_blocks(name, rng), every_index(name)]
            )
            write_decode(name, blocks, dequantize(name, blocks))
        for name in NUMBERS:
            numbers = number_edges(name, rng)
            write_decode(name, numbers, numbers.astype(np.float32))
        for name in ("F16", "BF16"):
            bits = np.concatenate(
                [np.array([0, 1, 0x3FF, 0x400, 0x7BFF, 0x7C00, 0x7E01, 0x7F80, 0x7FC1], np.uint16),
                 np.arange(0, 65536, 61, dtype=np.uint16)]
            )  # fmt: skip
            blocks = np.concatenate([bits, bits | 0x8000]).view(np.uint8).reshape(-1, 2)
            write_decode(name, blocks, dequantize(name, blocks))
        for name in ENCODED:
            values = encoder_inputs(rng)
            encoded = quants.quantize(values, GGMLQuantizationType[name])
            count = np.array([values.size // sizes(name)[0]], "<u4").tobytes()
            OUT.joinpath(f"{name}.encode").write_bytes(count + values.tobytes() + encoded.tobytes())


if __name__ == "__main__":
    main()
