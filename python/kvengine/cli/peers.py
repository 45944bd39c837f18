"""Other engines that `kvengine bench` can measure beside ours."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kvengine.cli.arguments import InputError

MakePeers = Callable[[Path, list[str], int, int], list[Any]]
"""Model file, canonical cache specs, context length, threads -> engines."""


def _llama_cpp_python() -> MakePeers:
    try:
        import llama_cpp
    except ImportError:
        raise InputError(
            "--peer: expected llama-cpp-python to be installed, found no such package "
            "(try: pip install 'kvengine[peers]')"
        ) from None

    def make(path: Path, specs: list[str], n_ctx: int, threads: int) -> list[LlamaCpp]:
        types = {name: _ggml_types(llama_cpp, name) for name in specs}
        # f16 stands for those that llama.cpp does not have.
        names = [name for name in specs if types[name]] or ["f16"]
        return [LlamaCpp(llama_cpp, path, name, n_ctx, threads) for name in names]

    return make


PEERS: dict[str, Callable[[], MakePeers]] = {"llama-cpp-python": _llama_cpp_python}
"""Name -> checks that the package is there and returns what makes its engines."""


def _ggml_types(llama_cpp: Any, spec: str) -> tuple[int, int] | None:
    """The numbers of llama.cpp's cache types that a canonical spec names; None if it has others."""
    known = {
        name: getattr(llama_cpp, f"GGML_TYPE_{name.upper()}")
        for name in ("f32", "f16", "bf16", "q8_0", "q4_0")
        if hasattr(llama_cpp, f"GGML_TYPE_{name.upper()}")
    }
    sides = [part.strip() for part in spec.split("+")]
    keys = [side.removeprefix("k=") for side in sides if not side.startswith("v=")]
    values = [side.removeprefix("v=") for side in sides if not side.startswith("k=")]
    if len(keys) != 1 or len(values) != 1 or keys[0] not in known or values[0] not in known:
        return None
    return known[keys[0]], known[values[0]]


class LlamaCpp:
    """llama.cpp through llama-cpp-python."""

    def __init__(self, llama_cpp: Any, path: Path, cache: str, n_ctx: int, threads: int) -> None:
        self._api = llama_cpp
        self.name = f"llama-cpp-python {llama_cpp.__version__}"
        self.cache = cache
        self.threads = threads
        type_k, type_v = _ggml_types(llama_cpp, cache) or (None, None)
        self._llama = llama_cpp.Llama(
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
        self._depth = 0

    def fill(self, tokens: list[int]) -> None:
        self._llama.n_tokens = 0
        if tokens:
            self._llama.eval(tokens)
        self._depth = len(tokens)

    def read(self, tokens: list[int]) -> float:
        return self._timed([tokens])

    def decode(self, tokens: list[int]) -> float:
        return self._timed([[token] for token in tokens])

    def cache_bytes(self) -> int:
        return int(self._api.llama_state_seq_get_size(self._llama.ctx, 0))

    def _timed(self, steps: list[list[int]]) -> float:
        self._llama.n_tokens = self._depth  # eval() forgets what lies beyond
        begin = time.perf_counter()
        for tokens in steps:
            self._llama.eval(tokens)
        self._api.llama_synchronize(self._llama.ctx)
        return time.perf_counter() - begin
