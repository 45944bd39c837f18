"""How fast the machine could be: a test takes at least as long as its reads and its arithmetic.

What a test needs, whoever computes it: every weight and every cached row is read once per pass, and
each weight is multiplied once per token. Rates are measured (machine.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kvengine.bench.machine import Machine
from kvengine.bench.measure import Case, Measured
from kvengine.model import Model

_FLOATS = frozenset({"F32", "F16", "BF16", "F64"})


@dataclass(frozen=True)
class Limit:
    """The most tokens per second, and what sets it."""

    kind: Literal["memory", "compute"]
    tps: float


@dataclass(frozen=True)
class _Matrices:
    """Sums over weight matrices."""

    bytes: int = 0
    quantized: int = 0  # weights
    floats: int = 0

    def __add__(self, other: _Matrices) -> _Matrices:
        return _Matrices(
            self.bytes + other.bytes,
            self.quantized + other.quantized,
            self.floats + other.floats,
        )


class ModelCosts:
    """What passes of a model cost."""

    def __init__(self, model: Model, exact: bool) -> None:
        self._layers = [(layer, layer["window"]) for layer in model.layers]
        self._exact = exact
        self._backend = model.backend
        tensors = {each.name: each for each in model.file.tensors if len(each.shape) == 2}
        head = "output.weight" if "output.weight" in tensors else "token_embd.weight"
        self._head = self._body = _Matrices()
        for name, tensor in tensors.items():
            floats = tensor.type in _FLOATS
            matrices = _Matrices(
                tensor.bytes, 0 if floats else tensor.elements, tensor.elements if floats else 0
            )
            if name == head:
                self._head += matrices
            elif name.startswith("blk."):
                self._body += matrices

    def limits(self, measured: Measured) -> list[Limit]:
        """Of every repetition; none for loading."""
        found = (
            self.limit(measured.test, measured.cache_bytes, machine)
            for machine in measured.machines
        )
        return [limit for limit in found if limit]

    def limit(self, test: Case, cache_bytes: int, machine: Machine) -> Limit | None:
        """cache_bytes: what one sequence's cache holds at the end. None for loading."""
        if test.kind == "load":
            return None
        passes = test.n_tokens if test.kind == "tg" else 1
        tokens = test.n_tokens * test.sequences
        weights = self._body.bytes + self._head.bytes
        # The cache is as full as it is half-way through the test.
        middle = (test.depth + test.n_tokens / 2) / (test.depth + test.n_tokens)
        cache = cache_bytes * middle * test.sequences
        memory = passes * (weights + cache) / machine.read_bytes
        logits = tokens if test.kind == "tg" else 1
        compute = self._seconds(self._body, tokens, machine)
        compute += self._seconds(self._head, logits, machine)
        attention = test.sequences * self.attention_operations(test.depth, test.n_tokens)
        compute += attention / self._attention_rate(machine)
        kind: Literal["memory", "compute"] = "memory" if memory > compute else "compute"
        return Limit(kind, tokens / max(memory, compute))

    def attention_operations(self, depth: int, n: int) -> int:
        """Of n tokens after `depth`: scores and sums of values, in all layers."""
        total = 0
        for layer, window in self._layers:
            pairs = sum(_seen(position, window) for position in range(depth, depth + n))
            total += 2 * layer["n_heads"] * (layer["head_dim"] + layer["value_dim"]) * pairs
        return total

    def _seconds(self, matrices: _Matrices, tokens: int, machine: Machine) -> float:
        # Prompts are multiplied in bf16 where that is faster (by the tile unit).
        rate = machine.f32_ops if self._exact else max(machine.int8_ops, machine.bf16_ops)
        quantized = 2 * matrices.quantized * tokens / rate
        return quantized + 2 * matrices.floats * tokens / self._float_rate(machine)

    def _float_rate(self, machine: Machine) -> float:
        return machine.f32_ops if self._exact else max(machine.f32_ops, machine.bf16_ops)

    def _attention_rate(self, machine: Machine) -> float:
        # Its products there are of int16, half as many to an instruction as of int8.
        words = self._backend == "cpu-avx512" and not self._exact
        return max(self._float_rate(machine), machine.int8_ops / 2 if words else 0)


def _seen(position: int, window: int) -> int:
    """Cached tokens that the one at `position` attends to, itself included."""
    return min(position + 1, window) if window else position + 1
