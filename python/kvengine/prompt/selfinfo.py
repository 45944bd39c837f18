"""Self-information: tokens that the model itself finds easy to guess are dropped.

Once (Selective-Context, arXiv 2310.06201): every unit has the sum of -ln p of its tokens given all
that precedes; those at or above the (1 - keep) percentile stay. Iterative (the token stage of
LLMLingua, arXiv 2310.05736): a segment at a time is read behind what is left of the text before it;
units above the value at rank int(n * keep) - 1 of the segment's n stay. (LLMLingua's own code ranks
the losses of what was kept before along with the segment's; here every segment keeps its share.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvengine._core import CancelledError, ConfigError, Error
from kvengine.model import Model, Progress, Session
from kvengine.prompt.layout import Layout
from kvengine.prompt.spec import check, spelled

_ROWS = 256  # of logits at a time


@dataclass(frozen=True)
class SelfInfo:
    """How much of what may be dropped is kept, and how it is chosen.

    keep: a share, or (above 1) the number of tokens that all of the prompt shall have about.
    unit: "token", or "word": what white space separates is kept or dropped as a whole.
    iterative: segment by segment, given what is left before; else all at once.
    segment: tokens of a segment.
    first, last: so many tokens at the beginning and end stay, whatever they are.
    exact: f32 activations.
    """

    keep: float = 0.5
    unit: str = "token"
    iterative: bool = True
    segment: int = 200
    first: int = 0
    last: int = 0
    exact: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.keep < math.inf or (self.keep > 1 and self.keep != int(self.keep)):
            raise ConfigError(
                f"selfinfo: expected keep as a share up to 1 or a whole number of tokens, found "
                f"{self.keep:g}"
            )
        if self.unit not in ("token", "word"):
            raise ConfigError(f"selfinfo: expected unit token or word, found '{self.unit[:40]}'")
        check("selfinfo", "segment", self.segment, 2, math.inf)
        check("selfinfo", "first", self.first, 0, math.inf)
        check("selfinfo", "last", self.last, 0, math.inf)

    def __str__(self) -> str:
        return spelled("selfinfo", self)

    def select(
        self, model: Model, layout: Layout, progress: Progress | None = None
    ) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """Of each token whether it stays, and -ln p of those that were measured, else NaN."""
        n = len(layout.tokens)
        free = layout.free.copy()
        free[0] = False  # it has no probability
        free[: self.first] = False
        free[max(n - self.last, 0) :] = False
        protected = Layout(layout.tokens, layout.pieces, free)
        units = protected.words() if self.unit == "word" else np.arange(n)
        share = self._share(free)
        if share == 1 or not free.any():
            return np.ones(n, dtype=bool), np.full(n, np.nan)
        reader = _Reader(model, protected.tokens, self.exact, progress)
        if self.iterative:
            return _iteratively(reader, free, units, share, self.segment)
        return _once(reader, free, units, share)

    def _share(self, free: NDArray[np.bool_]) -> float:
        """Of the free tokens."""
        if self.keep <= 1:
            return self.keep
        fixed = int((~free).sum())
        if self.keep <= fixed:
            raise ConfigError(
                f"selfinfo: expected keep above the {fixed} tokens that are protected, found "
                f"{self.keep:g}"
            )
        return min(1.0, (self.keep - fixed) / max(int(free.sum()), 1))


class _Reader:
    """Measures tokens behind a text that changes little from one measurement to the next."""

    def __init__(
        self, model: Model, tokens: list[int], exact: bool, progress: Progress | None
    ) -> None:
        # The window may not be longer than what the model was trained for.
        self.window = max(min(model.n_ctx, len(tokens)), 2)
        self.tokens = tokens
        self._session: Session = model.session(self.window, exact=exact)
        self._progress = progress

    def information(self, prefix: list[int], segment: list[int]) -> NDArray[np.float64]:
        """[len(segment)] -ln p given the prefix, which is not empty; the common part is not re-read."""
        reused = self._session.reuse_prefix(prefix[:-1])
        if reused < len(prefix) - 1:
            self._session.forward(prefix[reused:-1])
        fed = [prefix[-1], *segment[:-1]]
        parts = []
        for start in range(0, len(fed), _ROWS):
            rows = self._session.forward(fed[start : start + _ROWS], all_logits=True)
            parts.append(_surprise(rows, np.asarray(segment[start : start + _ROWS])))
        return np.concatenate(parts)

    def report(self, done: int) -> None:
        if self._progress and self._progress(done, len(self.tokens)) is False:
            raise CancelledError("prompt compression: cancelled")


def _surprise(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """[n] -ln p of targets; logits [n, vocab_size]. float32 is enough to rank tokens by."""
    top = logits.max(axis=1, keepdims=True)
    total = np.exp(logits - top).sum(axis=1, dtype=np.float64)
    if np.isnan(total).any():
        raise Error("logits: expected numbers, found NaN")
    own = logits[np.arange(len(targets)), targets].astype(np.float64)
    return np.log(total) + top[:, 0] - own


def _once(
    reader: _Reader,
    free: NDArray[np.bool_],
    units: NDArray[np.int64],
    share: float,
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    n = len(free)
    information = np.full(n, np.nan)
    for start in range(0, n, reader.window):  # the first token of each window is not measured
        end = min(start + reader.window, n)
        for first in range(start + 1, end, _ROWS):
            last = min(first + _ROWS, end)
            information[first:last] = reader.information(
                reader.tokens[start:first], reader.tokens[first:last]
            )
            reader.report(last)
    ranked = free & ~np.isnan(information)
    scores = _unit_scores(information, units, ranked)
    least = np.percentile(scores[np.unique(units[ranked])], 100 * (1 - share))
    return ~ranked | (scores[units] >= least), information


def _iteratively(
    reader: _Reader,
    free: NDArray[np.bool_],
    units: NDArray[np.int64],
    share: float,
    most: int,
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    n = len(free)
    information = np.full(n, np.nan)
    kept = np.ones(n, dtype=bool)
    # Half of the window at least is for what is left of the text before.
    most = max(min(most, reader.window // 2), 1)
    prefix = reader.tokens[:1]
    for start, end in _segments(units, 1, most):
        if len(prefix) + end - start > reader.window:
            prefix = prefix[-max((reader.window - most) // 2, 1) :]
        segment = slice(start, end)
        information[segment] = reader.information(prefix, reader.tokens[segment])
        here = free[segment]
        if here.any():
            local = units[segment] - units[start]
            scores = _unit_scores(information[segment], local, here)
            ranked = np.sort(scores[np.unique(local[here])])[::-1]
            rank = max(0, min(len(ranked) - 1, int(len(ranked) * share) - 1))
            kept[segment] = ~here | (scores[local] > ranked[rank])
        prefix = prefix + [reader.tokens[i] for i in range(start, end) if kept[i]]
        reader.report(end)
    return kept, information


def _segments(units: NDArray[np.int64], start: int, most: int) -> Iterator[tuple[int, int]]:
    """Stretches of `most` tokens, shorter where a unit that would be cut fits the next one whole."""
    n = len(units)
    while start < n:
        end = min(start + most, n)
        cut = end
        while end < n and cut > start and units[cut] == units[cut - 1]:
            cut -= 1
        end = cut if cut > start else end
        yield start, end
        start = end


def _unit_scores(
    information: NDArray[np.float64], units: NDArray[np.int64], ranked: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """[number of units] The sums of their ranked tokens; 0 where there is none."""
    return np.bincount(units[ranked], information[ranked], minlength=int(units[-1]) + 1)
