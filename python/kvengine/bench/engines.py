"""What can be measured, and this engine as one of them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from kvengine.model import Model, Session


class Engine(Protocol):
    """What is measured. Tokens are random: which ones they are does not matter for speed."""

    name: str
    cache: str
    threads: int
    batches: bool
    """Whether decode() takes more than one sequence."""

    def fill(self, tokens: list[int]) -> None:
        """Hold these tokens, however long it takes."""

    def read(self, tokens: list[int]) -> float:
        """Seconds for reading tokens after those, all at once; they are forgotten again."""

    def decode(self, tokens: list[int], sequences: int) -> float:
        """Seconds for reading them one by one, each into all sequences; they are forgotten."""

    def load(self, tokens: list[int]) -> float:
        """Seconds for loading the model anew, reading the tokens and choosing the next one."""

    def cache_bytes(self) -> int:
        """What the cache of one sequence held at the end of the last measurement."""

    def cache_bits(self) -> float:
        """The same, per cached number."""


class OwnEngine:
    """Sessions of this engine."""

    name = "kvengine"
    batches = True

    def __init__(self, model: Model, cache: str, n_ctx: int, exact: bool) -> None:
        self.cache = cache
        self.threads = model.threads
        self._model, self._n_ctx, self._exact = model, n_ctx, exact
        self._base = self._last = self._new(model)

    def fill(self, tokens: list[int]) -> None:
        # In one go, as one prompt: what a cache drops depends on where the prompt ends.
        self._base = self._last = self._new(self._model)
        if tokens:
            self._base.forward(tokens)

    def read(self, tokens: list[int]) -> float:
        return self._timed([tokens], 1)

    def decode(self, tokens: list[int], sequences: int) -> float:
        return self._timed([[token] for token in tokens], sequences)

    def load(self, tokens: list[int]) -> float:
        begin = time.perf_counter()
        path, repack = Path(self._model.path), self._model.repacked_bytes > 0
        device = self._model.device
        session = self._new(Model.load(path, threads=self.threads, repack=repack, device=device))
        session.forward(tokens)[-1].argmax()
        seconds = time.perf_counter() - begin
        self._last = session
        return seconds

    def cache_bytes(self) -> int:
        return self._last.cache.stats().bytes

    def cache_bits(self) -> float:
        return self._last.cache.stats().bits_per_value

    def _new(self, model: Model) -> Session:
        return model.session(self._n_ctx, self.cache, self._exact)

    def _timed(self, steps: Iterable[Sequence[int]], sequences: int) -> float:
        sessions = [self._base.fork() for _ in range(sequences)]
        begin = time.perf_counter()
        for tokens in steps:
            if sequences == 1:
                sessions[0].forward(tokens)
            else:
                self._model.forward_batch(sessions, [tokens] * sequences)
        seconds = time.perf_counter() - begin
        self._last = sessions[0]
        return seconds
