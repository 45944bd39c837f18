"""Perplexity by llama.cpp's protocol, with the cache under test really being read.

The text is cut into windows of `n_ctx` tokens; if the vocabulary asks for BOS, it replaces the first
token of every window. The second half of each window is scored: position i predicts token i + 1,
for i from n_ctx // 2 to n_ctx - 2. A window is fed a few tokens at a time, and every feed reads what
earlier feeds left in the cache.

With a reference, a second session reads the same tokens, and the Kullback-Leibler divergence of the
distributions, KL(reference || tested), is measured at every scored position.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kvengine._core import CacheStats, ConfigError
from kvengine.model import Model, Session

_ROWS = 16  # rows of logits handled at once in float64


@dataclass(frozen=True)
class PerplexityOptions:
    """What is measured.

    n_ctx: tokens of a window, at least 3.
    feed: tokens per forward pass.
    chunks: most windows; None: all that are complete.
    stride: distance between the starts of windows, whose last `stride` tokens are then scored;
        None: windows do not overlap and their second half is scored.
    cache: spec of the cache under test.
    reference: spec of the cache to compare with; None: no divergence is measured.
    exact: f32 activations, in both sessions.
    """

    n_ctx: int = 512
    feed: int = 32
    chunks: int | None = None
    stride: int | None = None
    cache: str = "f16"
    reference: str | None = None
    exact: bool = False

    def __post_init__(self) -> None:
        _check("n_ctx", self.n_ctx, 3)
        _check("feed", self.feed, 1)
        if self.chunks is not None:
            _check("chunks", self.chunks, 1)
        if self.stride is not None:
            _check("stride", self.stride, 1)
            if self.stride > self.n_ctx - 1:
                raise ConfigError(
                    f"stride: expected at most n_ctx - 1 = {self.n_ctx - 1}, found {self.stride}"
                )


@dataclass
class Scores:
    """Per scored position, in nats."""

    nll: NDArray[np.float64]
    nll_reference: NDArray[np.float64] | None = None
    kld: NDArray[np.float64] | None = None
    same_top: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Window:
    """One window that has been read. `ppl` is its own, `ppl_so_far` that of all until here."""

    index: int
    count: int
    ppl: float
    ppl_so_far: float
    kld_so_far: float | None


@dataclass(frozen=True)
class PerplexityResult:
    """ppl = exp(mean nll); ppl_error is one standard error of it. None without a reference."""

    ppl: float
    ppl_error: float
    ppl_reference: float | None
    kld_mean: float | None
    kld_median: float | None
    kld_p99: float | None
    kld_p999: float | None
    same_top: float | None
    windows: int
    scored_tokens: int
    exact: bool
    cache: CacheStats = field(repr=False)


def perplexity(
    model: Model,
    text: str | bytes | Sequence[int],
    options: PerplexityOptions | None = None,
    on_window: Callable[[Window], None] | None = None,
    on_feed: Callable[[int, int], None] | None = None,
) -> PerplexityResult:
    """Measure the perplexity of a text, or of token ids.

    Args:
        on_window: called after every window.
        on_feed: called after every feed with the tokens read and to read, over all windows.

    Raises:
        ConfigError: a bad option, or a text shorter than one window.
    """
    options = options or PerplexityOptions()
    tokens = model.tokenizer.encode(text) if isinstance(text, str | bytes) else list(text)
    starts = window_starts(len(tokens), options)
    total = len(starts) * options.n_ctx
    parts: list[Scores] = []
    for index, start in enumerate(starts):
        window = tokens[start : start + options.n_ctx]
        if model.tokenizer.add_bos:
            window[0] = model.tokenizer.bos
        done = index * options.n_ctx
        scores, stats = _score_window(
            model, window, options, lambda n, done=done: on_feed and on_feed(done + n, total)
        )
        parts.append(scores)
        if on_window:
            so_far = _join(parts)
            on_window(
                Window(
                    index=index,
                    count=len(starts),
                    ppl=math.exp(scores.nll.mean()),
                    ppl_so_far=math.exp(so_far.nll.mean()),
                    kld_so_far=None if so_far.kld is None else float(so_far.kld.mean()),
                )
            )
    return _summary(_join(parts), len(starts), options.exact, stats)


def window_starts(n_tokens: int, options: PerplexityOptions) -> list[int]:
    """First token of every complete window. Raises ConfigError if there is none."""
    if n_tokens < options.n_ctx:
        raise ConfigError(
            f"text: expected at least one window of {options.n_ctx} tokens, found {n_tokens}"
        )
    step = options.stride or options.n_ctx
    return list(range(0, n_tokens - options.n_ctx + 1, step))[: options.chunks]


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Natural log-probabilities of rows of logits, in float64; shape [n, vocab_size]."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide


def score_rows(
    logits: NDArray[np.float32],
    targets: NDArray[np.int64],
    reference: NDArray[np.float32] | None = None,
) -> Scores:
    """Score rows of logits against the tokens that followed, and against reference logits.

    Shapes: logits and reference [n, vocab_size], targets [n].
    """
    n = len(targets)
    scores = Scores(np.empty(n))
    if reference is not None:
        scores = Scores(np.empty(n), np.empty(n), np.empty(n), np.empty(n, dtype=np.bool_))
    for first in range(0, n, _ROWS):
        rows = slice(first, min(first + _ROWS, n))
        index = np.arange(rows.stop - rows.start)
        log_p = log_softmax(logits[rows])
        scores.nll[rows] = -log_p[index, targets[rows]]
        if reference is None:
            continue
        log_r = log_softmax(reference[rows])
        r = np.exp(log_r)
        # 0 * log 0 is 0: such a token costs nothing, whatever the other distribution says.
        difference = np.where(r > 0, log_r - log_p, 0.0)
        scores.nll_reference[rows] = -log_r[index, targets[rows]]
        scores.kld[rows] = (r * difference).sum(axis=-1)
        scores.same_top[rows] = logits[rows].argmax(axis=-1) == reference[rows].argmax(axis=-1)
    return scores


def _score_window(
    model: Model, window: list[int], options: PerplexityOptions, on_feed: Callable[[int], object]
) -> tuple[Scores, CacheStats]:
    n_ctx = options.n_ctx
    first = n_ctx // 2 if options.stride is None else n_ctx - 1 - options.stride
    tested = model.session(n_ctx, options.cache, options.exact)
    reference = None
    if options.reference is not None:
        reference = model.session(n_ctx, options.reference, options.exact)
    targets = np.asarray(window[1:], dtype=np.int64)
    parts = []
    for begin in range(0, n_ctx, options.feed):
        end = min(begin + options.feed, n_ctx)
        scored = slice(max(begin, first), min(end, n_ctx - 1))
        wanted = slice(scored.start - begin, scored.stop - begin)
        needed = scored.start < scored.stop
        rows = _feed(tested, window[begin:end], needed, wanted)
        reference_rows = None
        if reference is not None:
            reference_rows = _feed(reference, window[begin:end], needed, wanted)
        if needed:
            parts.append(score_rows(rows, targets[scored], reference_rows))
        on_feed(end)
    return _join(parts), tested.cache.stats()


def _feed(session: Session, tokens: list[int], needed: bool, wanted: slice) -> NDArray[np.float32]:
    logits = session.forward(tokens, all_logits=needed)
    return logits[wanted] if needed else logits


def _join(parts: list[Scores]) -> Scores:
    def joined(name: str) -> NDArray | None:
        arrays = [getattr(part, name) for part in parts]
        return None if arrays[0] is None else np.concatenate(arrays)

    return Scores(joined("nll"), joined("nll_reference"), joined("kld"), joined("same_top"))


def _summary(scores: Scores, windows: int, exact: bool, cache: CacheStats) -> PerplexityResult:
    n = len(scores.nll)
    ppl = math.exp(scores.nll.mean())
    # One standard error of the mean, carried through exp.
    error = ppl * math.sqrt(scores.nll.var() / (n - 1)) if n > 1 else 0.0
    compared = scores.kld is not None
    return PerplexityResult(
        ppl=ppl,
        ppl_error=error,
        ppl_reference=math.exp(scores.nll_reference.mean()) if compared else None,
        kld_mean=float(scores.kld.mean()) if compared else None,
        kld_median=float(np.median(scores.kld)) if compared else None,
        kld_p99=float(np.quantile(scores.kld, 0.99)) if compared else None,
        kld_p999=float(np.quantile(scores.kld, 0.999)) if compared else None,
        same_top=float(scores.same_top.mean()) if compared else None,
        windows=windows,
        scored_tokens=n,
        exact=exact,
        cache=cache,
    )


def _check(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{name}: expected at least {least}, found {value}")
