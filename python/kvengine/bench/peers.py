"""Other engines that `kvengine bench` can measure beside ours."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kvengine.cli.arguments import InputError
from kvengine.cli.output import say

INSTALL = """CMAKE_ARGS="-DGGML_NATIVE=ON" pip install 'kvengine[peers]'"""
"""Compiles the peer for the machine at hand, which it needs to be at its best."""

MakePeers = Callable[[Path, list[str], int, int], list[Any]]
"""Model file, canonical cache specs, context length, threads -> engines."""


def _llama_cpp_python() -> MakePeers:
    try:
        import llama_cpp
    except ImportError:
        raise InputError(
            f"--peer: expected llama-cpp-python to be installed, found no such package ({INSTALL})"
        ) from None

    def make(path: Path, specs: list[str], n_ctx: int, threads: int) -> list[LlamaCpp]:
        names = [name for name in specs if _ggml_types(llama_cpp, name)]
        if len(names) < len(specs):
            names += [name for name in STAND_INS if _ggml_types(llama_cpp, name)]
        engines = []
        for name in dict.fromkeys(names):
            try:
                engines.append(LlamaCpp(llama_cpp, path, name, n_ctx, threads))
            except ValueError as error:  # such as blocks that do not fit the model's heads
                say(f"--peer: llama.cpp does not run this model with {name} ({error})")
        if not engines:
            raise InputError("--peer: expected a cache that llama.cpp runs this model with")
        return engines

    return make


STAND_INS = ("f16", "q8_0", "q4_0")
"""What to compare with caches that llama.cpp does not have."""


PEERS: dict[str, Callable[[], MakePeers]] = {"llama-cpp-python": _llama_cpp_python}
"""Name -> checks that the package is there and returns what makes its engines."""


def _ggml_types(llama_cpp: Any, spec: str) -> tuple[int, int] | None:
    """The numbers of llama.cpp's cache types that a canonical spec names; None if it has others."""
    names = _type_names(spec)
    types = [getattr(llama_cpp, f"GGML_TYPE_{name.upper()}", None) for name in names or ()]
    return (types[0], types[1]) if types and None not in types else None


def _type_names(spec: str) -> tuple[str, str] | None:
    """Of keys and values."""
    sides = [part.strip() for part in spec.split("+")]
    keys = [side.removeprefix("k=") for side in sides if not side.startswith("v=")]
    values = [side.removeprefix("v=") for side in sides if not side.startswith("k=")]
    if len(keys) != 1 or len(values) != 1 or not _TYPE_BITS.keys() >= {keys[0], values[0]}:
        return None
    return keys[0], values[0]


# What ggml's blocks of 32 numbers cost, scales included, per number.
_TYPE_BITS = {
    **{"f32": 32.0, "f16": 16.0, "bf16": 16.0, "q8_0": 8.5, "q5_1": 6.0},
    **{"q5_0": 5.5, "q4_1": 5.0, "q4_0": 4.5, "iq4_nl": 4.5},
}


class LlamaCpp:
    """llama.cpp through llama-cpp-python."""

    batches = False

    def __init__(self, llama_cpp: Any, path: Path, cache: str, n_ctx: int, threads: int) -> None:
        self._api = llama_cpp
        self.name = f"llama-cpp-python {llama_cpp.__version__}"
        self.cache = cache
        self.threads = threads
        type_k, type_v = _ggml_types(llama_cpp, cache) or (None, None)
        self._cache_bits = sum(_TYPE_BITS[name] for name in _type_names(cache) or ()) / 2
        self._open = lambda: llama_cpp.Llama(
            model_path=str(path),
            n_ctx=n_ctx,
            n_batch=2048,
            n_ubatch=512,
            n_threads=threads,
            n_threads_batch=threads,
            type_k=type_k,
            type_v=type_v,
            flash_attn=True,  # as llama.cpp's own programs; quantized values need it
            verbose=False,
        )
        self._llama = self._open()
        self._held: list[int] = []
        self._cache_bytes = 0

    def fill(self, tokens: list[int]) -> None:
        n = len(self._held)
        if tokens[:n] != self._held:
            n = 0
        self._llama.n_tokens = n
        if tokens[n:]:
            self._llama.eval(tokens[n:])
        self._held = list(tokens)

    def read(self, tokens: list[int]) -> float:
        return self._timed([tokens])

    def decode(self, tokens: list[int], sequences: int) -> float:
        assert sequences == 1
        return self._timed([[token] for token in tokens])

    def load(self, tokens: list[int]) -> float:
        begin = time.perf_counter()
        llama = self._open()
        llama.eval(tokens)
        logits = self._api.llama_get_logits_ith(llama.ctx, -1)
        np.ctypeslib.as_array(logits, (llama.n_vocab(),)).argmax()
        seconds = time.perf_counter() - begin
        self._cache_bytes = self._bytes_of(llama)
        llama.close()
        return seconds

    def cache_bytes(self) -> int:
        return self._cache_bytes

    def cache_bits(self) -> float:
        return self._cache_bits

    def _bytes_of(self, llama: Any) -> int:
        return int(self._api.llama_state_seq_get_size(llama.ctx, 0))

    def _timed(self, steps: list[list[int]]) -> float:
        self._llama.n_tokens = len(self._held)  # eval() forgets what lies beyond
        begin = time.perf_counter()
        for tokens in steps:
            self._llama.eval(tokens)
        self._api.llama_synchronize(self._llama.ctx)
        seconds = time.perf_counter() - begin
        self._cache_bytes = self._bytes_of(self._llama)
        return seconds
