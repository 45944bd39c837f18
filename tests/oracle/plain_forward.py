"""A second oracle: the forward pass written out in double precision from a GGUF file's own names.

It reads only the file (metadata and tensors as llama.cpp's converter lays them out), so it proves
that a written file means what the golden logits were computed from, also where transformers' GGUF
loader gives up: rope scaling, sliding windows of `llama` files, head sizes unlike d_model/n_heads.
Plain and slow; a few dozen tokens of a tiny model, or a few hundred of a real one.

    python tests/oracle/plain_forward.py MODEL.gguf IDS.npy -o LOGITS.npy
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGUFReader, dequantize

GEMMA3_PATTERN = 6  # every sixth layer is global
GEMMA3_LOCAL_BASE = 10_000.0  # files carry no key for it, or rope.freq_base_swa


@dataclass
class Rope:
    """Angles of one kind of layer: frequencies [rotary_dim / 2] and a factor on cos and sin."""

    frequencies: np.ndarray
    magnitude: float
    interleaved: bool  # pairs (2i, 2i+1) as converted llama files want, or (i, i + rotary_dim/2)

    def apply(self, x: np.ndarray) -> np.ndarray:
        """Rotates x [n_tokens, n_heads, head_dim] by positions 0..n_tokens-1."""
        half = len(self.frequencies)
        angle = np.arange(len(x))[:, None] * self.frequencies
        cos = (np.cos(angle) * self.magnitude)[:, None, :]
        sin = (np.sin(angle) * self.magnitude)[:, None, :]
        out = x.copy()
        if self.interleaved:
            first, second = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
        else:
            first, second = slice(0, half), slice(half, 2 * half)
        out[..., first] = x[..., first] * cos - x[..., second] * sin
        out[..., second] = x[..., first] * sin + x[..., second] * cos
        return out


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu_erf(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


ACTIVATIONS = {
    "bloom": gelu_tanh,
    "gemma3": gelu_tanh,
    "gpt2": gelu_tanh,
    "llama": silu,
    "mpt": gelu_erf,
}


def alibi_slopes(n_heads: int, max_bias: float) -> np.ndarray:
    """arXiv:2108.12409, as its authors' code extends it to any number of heads."""
    whole = 1 << (n_heads.bit_length() - 1)
    slopes = [2 ** (-max_bias * (i + 1) / whole) for i in range(whole)]
    slopes += [2 ** (-max_bias * (i + 1) / (2 * whole)) for i in range(0, 2 * whole, 2)]
    return np.array(slopes[:n_heads])


class PlainModel:
    """A GGUF file of an architecture in ACTIVATIONS, evaluated token by token in float64.

    `ignore` names features to leave out on purpose (`rope_scaling`, `rope_freqs`, `window`, `bias`,
    `qk_norm`, `local_base`, `alibi`, `positions`, `clamp`, `embed_norm`): tiny models use it to
    prove that each feature moves the logits.
    """

    def __init__(self, path: Path, ignore: Iterable[str] = ()) -> None:
        reader = GGUFReader(path)
        self.meta = {key: field.contents() for key, field in reader.fields.items()}
        self.tensors = {
            t.name: dequantize(t.data, t.tensor_type).reshape(t.shape[::-1]).astype(np.float64)
            for t in reader.tensors
        }
        self.ignore = set(ignore)
        self.arch = str(self.meta["general.architecture"])
        if self.arch not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ValueError(f"{path}: architecture: expected one of {known}, found {self.arch}")
        self.rotary = self.arch in ("llama", "gemma3")  # others: layer norms, no gates
        self.gemma = self.arch == "gemma3"
        self.n_heads = int(self._get("attention.head_count"))
        self.n_kv_heads = int(self._get("attention.head_count_kv", self.n_heads))
        self.d_model = int(self._get("embedding_length"))
        self.head_dim = int(self._get("attention.key_length", self.d_model // self.n_heads))
        if not self.rotary:
            return
        self.rope_global = self._rope(float(self._get("rope.freq_base", 10_000.0)), scaled=True)
        local_base = float(self._get("rope.freq_base_swa", GEMMA3_LOCAL_BASE))
        self.rope_local = self._rope(local_base, scaled=False)

    def _get(self, key: str, fallback: object = None) -> object:
        value = self.meta.get(f"{self.arch}.{key}", fallback)
        if value is None:
            raise KeyError(f"{self.arch}.{key}: missing")
        return value

    def _rope(self, base: float, scaled: bool) -> Rope:
        dim = int(self._get("rope.dimension_count", self.head_dim))
        freq = base ** (-np.arange(0, dim, 2) / dim)
        magnitude = 1.0
        kind = str(self._get("rope.scaling.type", "none")) if scaled else "none"
        if "rope_scaling" in self.ignore:
            kind = "none"
        if kind == "linear":
            freq = freq / float(self._get("rope.scaling.factor"))
        elif kind == "yarn":
            freq, magnitude = self._yarn(freq, base, dim)
        elif kind != "none":
            raise ValueError(f"rope.scaling.type: expected none, linear or yarn, found {kind}")
        if scaled and "rope_freqs.weight" in self.tensors and "rope_freqs" not in self.ignore:
            freq = freq / self.tensors["rope_freqs.weight"]
        return Rope(freq, magnitude, interleaved=not self.gemma)

    def _yarn(self, freq: np.ndarray, base: float, dim: int) -> tuple[np.ndarray, float]:
        """YaRN, arXiv:2309.00071: interpolate low frequencies, keep high ones, ramp between."""
        factor = float(self._get("rope.scaling.factor"))
        context = float(self._get("rope.scaling.original_context_length"))

        def dimension(rotations: float) -> float:
            return dim * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(base))

        fast = float(self._get("rope.scaling.yarn_beta_fast", 32.0))
        slow = float(self._get("rope.scaling.yarn_beta_slow", 1.0))
        low = max(math.floor(dimension(fast)), 0)
        high = min(math.ceil(dimension(slow)), dim - 1)
        ramp = np.clip((np.arange(dim // 2) - low) / max(high - low, 0.001), 0.0, 1.0)
        return freq / factor * ramp + freq * (1 - ramp), 0.1 * math.log(factor) + 1.0

    def _linear(self, name: str, x: np.ndarray) -> np.ndarray:
        out = x @ self.tensors[f"{name}.weight"].T
        bias = self.tensors.get(f"{name}.bias")
        return out if bias is None or "bias" in self.ignore else out + bias

    def _norm(self, name: str, x: np.ndarray) -> np.ndarray:
        if not self.rotary:
            eps = float(self._get("attention.layer_norm_epsilon"))
            centred = x - x.mean(-1, keepdims=True)
            out = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
            bias = 0 if "bias" in self.ignore else self.tensors.get(f"{name}.bias", 0)
            return out * self.tensors[f"{name}.weight"] + bias
        eps = float(self._get("attention.layer_norm_rms_epsilon"))
        scale = 1.0 / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
        return x * scale * self.tensors[f"{name}.weight"]

    def _window(self, layer: int) -> int | None:
        """Tokens a query of this layer sees, itself included; None: all."""
        window = self.meta.get(f"{self.arch}.attention.sliding_window")
        if not window or "window" in self.ignore or self._is_global(layer):
            return None
        return int(window)

    def _is_global(self, layer: int) -> bool:
        return self.gemma and (layer + 1) % GEMMA3_PATTERN == 0

    def _fused(self, name: str, x: np.ndarray) -> list[np.ndarray]:
        """Queries, keys and values of architectures that have one tensor for all rows."""
        rows = self._linear(f"{name}.attn_qkv", x)
        limit = float(self._get("attention.clamp_kqv", 0.0))
        if limit > 0 and "clamp" not in self.ignore:
            rows = rows.clip(-limit, limit)
        keys = self.n_kv_heads * self.head_dim
        return np.split(rows, [self.d_model, self.d_model + keys], axis=1)

    def _slopes(self) -> np.ndarray:
        max_bias = (
            8.0 if self.arch == "bloom" else float(self._get("attention.max_alibi_bias", 0.0))
        )
        if max_bias == 0 or "alibi" in self.ignore:
            return np.zeros(self.n_heads)
        return alibi_slopes(self.n_heads, max_bias)

    def _attention(self, layer: int, x: np.ndarray) -> np.ndarray:
        n, name = len(x), f"blk.{layer}"
        if self.rotary:
            q, k, v = (self._linear(f"{name}.attn_{side}", x) for side in "qkv")
        else:
            q, k, v = self._fused(name, x)
        q = q.reshape(n, self.n_heads, self.head_dim)
        k = k.reshape(n, self.n_kv_heads, self.head_dim)
        v = v.reshape(n, self.n_kv_heads, -1)
        if self.gemma and "qk_norm" not in self.ignore:
            q = self._norm(f"{name}.attn_q_norm", q)
            k = self._norm(f"{name}.attn_k_norm", k)
        if self.rotary:
            local = self.gemma and not self._is_global(layer) and "local_base" not in self.ignore
            rope = self.rope_local if local else self.rope_global
            q, k = rope.apply(q), rope.apply(k)
        slopes = np.zeros(self.n_heads) if self.rotary else self._slopes()
        age = np.arange(n)[:, None] - np.arange(n)[None, :]
        seen = age >= 0
        if (window := self._window(layer)) is not None:
            seen &= age < window
        heads = []
        for head in range(self.n_heads):
            shared = head * self.n_kv_heads // self.n_heads
            scores = q[:, head] @ k[:, shared].T / math.sqrt(self.head_dim) - slopes[head] * age
            scores = np.where(seen, scores, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(weights / weights.sum(-1, keepdims=True) @ v[:, shared])
        return self._linear(f"{name}.attn_output", np.concatenate(heads, axis=-1))

    def _ffn(self, layer: int, x: np.ndarray) -> np.ndarray:
        up = self._linear(f"blk.{layer}.ffn_up", x)
        if self.rotary:
            up = ACTIVATIONS[self.arch](self._linear(f"blk.{layer}.ffn_gate", x)) * up
        else:
            up = ACTIVATIONS[self.arch](up)
        return self._linear(f"blk.{layer}.ffn_down", up)

    def logits(self, ids: Iterable[int]) -> np.ndarray:
        """Logits of every position, float64 [n_tokens, vocab]."""
        x = self.tensors["token_embd.weight"][np.asarray(list(ids))]
        if self.gemma:
            x = x * math.sqrt(self.d_model)
        if "position_embd.weight" in self.tensors and "positions" not in self.ignore:
            x = x + self.tensors["position_embd.weight"][: len(x)]
        if self.arch == "bloom" and "embed_norm" not in self.ignore:
            x = self._norm("token_embd_norm", x)
        for layer in range(int(self._get("block_count"))):
            name = f"blk.{layer}"
            attended = self._attention(layer, self._norm(f"{name}.attn_norm", x))
            if self.gemma:
                attended = self._norm(f"{name}.post_attention_norm", attended)
            x = x + attended
            fed = self._ffn(layer, self._norm(f"{name}.ffn_norm", x))
            if self.gemma:
                fed = self._norm(f"{name}.post_ffw_norm", fed)
            x = x + fed
        head = "output" if "output.weight" in self.tensors else "token_embd"
        return self._norm("output_norm", x) @ self.tensors[f"{head}.weight"].T


def main() -> None:
    """Writes the logits of a model for the ids in a .npy file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("ids", type=Path, help=".npy, int32 [n_tokens]")
    parser.add_argument("-o", "--out", type=Path, required=True, help=".npy, float32")
    args = parser.parse_args()
    found = PlainModel(args.model).logits(np.load(args.ids))
    np.save(args.out, found.astype(np.float32))


if __name__ == "__main__":
    main()
