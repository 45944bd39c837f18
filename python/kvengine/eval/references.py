"""What the reference cache says about texts, kept from one cache under test to the next.

Measuring the divergence of a cache reads every text twice: through the cache, and through the
reference. Caches that are measured one after the other by the same task read it through the same
reference, so that its logits are kept, in memory and up to a bound. Kept is also what the cache under
test made of each text, so that its perplexity is known once its divergence is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvengine._core import CacheStats

Rows = NDArray[np.float32]

MOST_BYTES = 1 << 30  # the default task with a vocabulary of 49,152: 805 MB


class References:
    """Rows of logits by what they are of: a setting (all that windows share) and a window's tokens.

    Rows of one setting are kept at a time, those of its first windows, as many as fit. (Windows come
    in the same order again for every cache: keeping the newest ones would never find one.)
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._left = self._most = most_bytes
        self._setting: Any = None
        self._rows: dict[bytes, Rows] = {}
        self._scored: dict[Any, tuple[NDArray[np.float64], CacheStats]] = {}

    def find_scored(
        self, setting: Any, window: Sequence[int]
    ) -> tuple[NDArray[np.float64], CacheStats] | None:
        """What :meth:`keep_scored` was given of a setting and a window."""
        return self._scored.get((setting, _name(window)))

    def keep_scored(
        self, setting: Any, window: Sequence[int], nll: NDArray[np.float64], stats: CacheStats
    ) -> None:
        """Keep the negative log-likelihoods that a cache gave a window, and its statistics."""
        self._scored[setting, _name(window)] = nll, stats

    def find(self, setting: Any, window: Sequence[int]) -> Rows | None:
        """The rows of a window, which are not to be changed; None where none are kept."""
        return self._rows.get(_name(window)) if setting == self._setting else None

    def room(self, setting: Any, shape: tuple[int, int]) -> Rows | None:
        """Rows to be filled and then handed to :meth:`keep`; None where they would not fit.

        Forgets the rows of other settings.
        """
        if setting != self._setting:
            self._setting, self._rows, self._left = setting, {}, self._most
        size = shape[0] * shape[1] * np.dtype(np.float32).itemsize
        return np.empty(shape, dtype=np.float32) if size <= self._left else None

    def keep(self, setting: Any, window: Sequence[int], rows: Rows) -> None:
        """Keep rows that :meth:`room` gave, once all of them are there."""
        if setting == self._setting and _name(window) not in self._rows:
            self._rows[_name(window)] = rows
            self._left -= rows.nbytes


def _name(window: Sequence[int]) -> bytes:
    return hashlib.sha256(np.asarray(window, dtype=np.int64).tobytes()).digest()
