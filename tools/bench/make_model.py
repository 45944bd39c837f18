"""Writes a llama-shaped GGUF model with seeded random weights, to measure speed with.

What such a model says is noise; what it costs is what a trained model of its shape costs. The
vocabulary is copied from another model. By default the shape is that of a 1.1B model.

    python tools/bench/make_model.py --type Q4_K_M big.gguf
"""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path

import numpy as np

import kvengine as kv
from kvengine import pull

# Distinct rows of each weight type and length; matrices take theirs out of these. Encoding every
# row of a K-quantized model would take minutes and change no speed.
POOL_ROWS = 256
MIXES = ("Q4_K_M", "Q5_K_M")


def matrix_type(mix: str, name: str, layer: int, n_layers: int) -> str:
    """The weight type of a matrix, as llama.cpp's quantization mixes choose it."""
    if mix in MIXES:
        base = mix.removesuffix("_M")
        eighth = n_layers // 8
        more = layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2
        if name == "output" or (name in ("attn_v", "ffn_down") and more):
            return "Q6_K"
        return base
    small = mix in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K")
    return "Q6_K" if name == "output" and small else mix


class Weights:
    """Makes tensors, one at a time."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    @functools.lru_cache(maxsize=8)  # noqa: B019 - lives as long as the program
    def _pool(self, weight_type: str, cols: int) -> np.ndarray:
        """Encoded rows: uint8 [POOL_ROWS, bytes of a row]."""
        draw = np.random.default_rng((self._seed, cols))
        rows = draw.standard_normal((POOL_ROWS, cols), dtype=np.float32) / np.sqrt(np.float32(cols))
        encoded = np.frombuffer(kv.encode_weights(weight_type, rows), dtype=np.uint8)
        return encoded.reshape(POOL_ROWS, -1)

    def matrix(self, number: int, weight_type: str, rows: int, cols: int) -> np.ndarray:
        draw = np.random.default_rng((self._seed, 1, number))
        return self._pool(weight_type, cols)[draw.integers(POOL_ROWS, size=rows)]


def build(args: argparse.Namespace, vocabulary: kv.GgufFile) -> kv.GgufWriter:
    """The whole model; its tensors are made while they are written."""
    writer = kv.GgufWriter()
    writer.set("general.architecture", "llama", "string")
    writer.set("general.name", f"random {args.type}", "string")
    head_dim = args.d_model // args.heads
    for key, value in {
        "block_count": args.layers,
        "context_length": args.context,
        "embedding_length": args.d_model,
        "feed_forward_length": args.ffn,
        "attention.head_count": args.heads,
        "attention.head_count_kv": args.kv_heads,
        "rope.dimension_count": head_dim,
    }.items():
        writer.set(f"llama.{key}", value, "u32")
    writer.set("llama.attention.layer_norm_rms_epsilon", 1e-5, "f32")
    for key in vocabulary:
        if key.startswith("tokenizer."):
            writer.copy(key, vocabulary)
    vocab_size = len(vocabulary["tokenizer.ggml.tokens"])

    weights = Weights(args.seed)
    count = 0

    def matrix(name: str, rows: int, cols: int, layer: int = -1) -> None:
        nonlocal count
        kind = name.split(".")[-2]
        weight_type = matrix_type(args.type, kind, layer, args.layers)
        make = functools.partial(weights.matrix, count, weight_type, rows, cols)
        writer.add_tensor(name, weight_type, [cols, rows], make)
        count += 1

    def norm(name: str) -> None:
        writer.add_tensor(name, "F32", [args.d_model], np.ones(args.d_model, np.float32))

    matrix("token_embd.weight", vocab_size, args.d_model)
    for i in range(args.layers):
        prefix = f"blk.{i}."
        norm(prefix + "attn_norm.weight")
        matrix(prefix + "attn_q.weight", args.d_model, args.d_model, i)
        matrix(prefix + "attn_k.weight", args.kv_heads * head_dim, args.d_model, i)
        matrix(prefix + "attn_v.weight", args.kv_heads * head_dim, args.d_model, i)
        matrix(prefix + "attn_output.weight", args.d_model, args.d_model, i)
        norm(prefix + "ffn_norm.weight")
        matrix(prefix + "ffn_gate.weight", args.ffn, args.d_model, i)
        matrix(prefix + "ffn_up.weight", args.ffn, args.d_model, i)
        matrix(prefix + "ffn_down.weight", args.d_model, args.ffn, i)
    norm("output_norm.weight")
    matrix("output.weight", vocab_size, args.d_model)
    return writer


def main(argv: list[str] | None = None) -> int:
    """Exit status 2 for bad arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    types = [each.name for each in kv.weight_formats() if each.can_encode]
    parser.add_argument("out", type=Path, help="GGUF file to write")
    parser.add_argument("--type", choices=[*types, *MIXES], default="Q4_0", help="of the matrices")
    parser.add_argument("--d-model", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=4)
    parser.add_argument("--ffn", type=int, default=5632, help="width of the feed-forward blocks")
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--vocabulary", help=f"GGUF file to copy it from (default: {pull.DEFAULT_MODEL}, fetched)"
    )
    args = parser.parse_args(argv)
    try:
        vocabulary = kv.GgufFile(args.vocabulary or pull.obtain(pull.DEFAULT_MODEL))
        writer = build(args, vocabulary)
        writer.write(args.out)
    except kv.Error as error:
        print(f"make_model: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
