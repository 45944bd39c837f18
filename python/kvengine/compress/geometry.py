"""The shape of a model's attention, as its GGUF file states it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvengine._core import ConfigError, GgufFile, UnsupportedError

WITHOUT_ROPE = ("bloom", "gpt2", "mpt")
"""Architectures whose keys do not turn with their position."""


@dataclass(frozen=True)
class Geometry:
    """What is common to all layers.

    prefix: of metadata keys, the name of the architecture.
    fused: one tensor holds the rows of queries, keys and values (attn_qkv).
    clamped: queries, keys and values are cut to a range, so that they are no product of weights.
    """

    prefix: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    value_dim: int
    d_model: int
    fused: bool = False
    clamped: bool = False

    @property
    def rotary(self) -> bool:
        """Whether keys and queries turn with their position."""
        return self.prefix not in WITHOUT_ROPE

    @property
    def widths(self) -> dict[str, int]:
        """Rows of all heads of queries, keys and values."""
        return {
            "q": self.n_heads * self.head_dim,
            "k": self.n_kv_heads * self.head_dim,
            "v": self.n_kv_heads * self.value_dim,
        }

    @staticmethod
    def read(file: GgufFile) -> Geometry:
        """Raises UnsupportedError for files whose layers differ or that are compressed already."""
        prefix = file.get("general.architecture")
        if any(f"{prefix}.attention.{key}" in file for key in ("key_head_count", "latent_group")):
            raise UnsupportedError(
                f"{file.path}: expected a model as it was trained, found one with merged heads"
            )

        def number(key: str, default: int | None = None) -> int:
            value = file.get(f"{prefix}.{key}", default)
            if type(value) is not int or value < 1:
                raise UnsupportedError(
                    f"{prefix}.{key}: expected one number for all layers, found {value!r:.80}"
                )
            return value

        heads = number("attention.head_count")
        d_model = number("embedding_length")
        head_dim = number("attention.key_length", d_model // heads)
        return Geometry(
            prefix=str(prefix),
            n_layers=number("block_count"),
            n_heads=heads,
            n_kv_heads=number("attention.head_count_kv", heads),
            head_dim=head_dim,
            value_dim=number("attention.value_length", head_dim),
            d_model=d_model,
            fused=any(tensor.name == "blk.0.attn_qkv.weight" for tensor in file.tensors),
            clamped=file.get(f"{prefix}.attention.clamp_kqv", 0.0) > 0,
        )

    def kv_bytes_per_token(self, n_kv_heads: int) -> int:
        """In f16, all layers."""
        return 2 * self.n_layers * n_kv_heads * (self.head_dim + self.value_dim)

    def check_groups(self, groups: int) -> None:
        """Raises ConfigError unless `groups` equal groups can be made of the heads."""
        if groups < 1 or self.n_kv_heads % groups != 0:
            divisors = [str(g) for g in range(1, self.n_kv_heads + 1) if self.n_kv_heads % g == 0]
            raise ConfigError(
                f"groups: expected a divisor of the model's {self.n_kv_heads} kv heads "
                f"({', '.join(divisors)}), found {groups}"
            )


def rotary_frequencies(file: GgufFile, geometry: Geometry) -> NDArray[np.float64]:
    """Radians per position of each rotated pair, [rotary_dim / 2].

    Raises UnsupportedError where they are not the same for all layers and positions.
    """
    prefix = geometry.prefix
    if not geometry.rotary:
        return np.zeros(0)
    scaling = file.get(f"{prefix}.rope.scaling.type", "none")
    if prefix != "llama" or scaling not in ("none", "linear"):
        raise UnsupportedError(
            f"{prefix} with rope scaling '{scaling}': svd-w knows the rotation of llama models "
            "without scaling or with linear scaling; use svd-a"
        )
    dim = file.get(f"{prefix}.rope.dimension_count", geometry.head_dim)
    theta = file.get(f"{prefix}.rope.freq_base", 10000.0)
    frequencies = float(theta) ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    if scaling == "linear":
        frequencies /= float(file.get(f"{prefix}.rope.scaling.factor", 1.0))
    factors = [tensor for tensor in file.tensors if tensor.name == "rope_freqs.weight"]
    return frequencies / factors[0].decode().astype(np.float64) if factors else frequencies
