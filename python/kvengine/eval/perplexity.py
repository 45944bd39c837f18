"""Perplexity by llama.cpp's protocol, with the cache under test really being read.

The text is cut into windows of `n_ctx` tokens; if the vocabulary asks for BOS, it replaces the
first token of every window. The second half of each window is scored: position i predicts token
i + 1, for i from n_ctx // 2 to n_ctx - 2. A window is fed a few tokens at a time, and every feed
reads what earlier feeds left in the cache. For caches that drop tokens when a prompt has been read,
the beginning of a window may be read in one go first (`prefill`).

With a reference, a second session reads the same tokens, and the Kullback-Leibler divergence of the
distributions, KL(reference || tested), is measured at every scored position.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvengine._core import CacheStats, ConfigError, Error
from kvengine.eval.references import References
from kvengine.model import Model, Session

_BLOCK = 1 << 17  # logits handled at once in float64: they stay in the second cache


@dataclass(frozen=True)
class PerplexityOptions:
    """What is measured.

    n_ctx: tokens of a window, at least 3.
    feed: tokens per forward pass.
    prefill: tokens of a window that are read as its prompt, in one go, before it is fed; at most
        n_ctx - 2, so that something is predicted from what is left of them.
    chunks: most windows; None: all that are complete.
    stride: distance between the starts of windows, whose last `stride` tokens are then scored;
        None: windows do not overlap and their second half is scored.
    cache: spec of the cache under test.
    reference: spec of the cache to compare with; None: no divergence is measured.
    exact: f32 activations, in both sessions.
    """

    n_ctx: int = 512
    feed: int = 32
    prefill: int = 0
    chunks: int | None = None
    stride: int | None = None
    cache: str = "f16"
    reference: str | None = None
    exact: bool = False

    def __post_init__(self) -> None:
        _check("n_ctx", self.n_ctx, 3)
        _check("feed", self.feed, 1)
        _check("prefill", self.prefill, 0)
        if self.prefill > self.n_ctx - 2:
            raise ConfigError(
                f"prefill: expected at most n_ctx - 2 = {self.n_ctx - 2}, found {self.prefill}"
            )
        if self.chunks is not None:
            _check("chunks", self.chunks, 1)
        if self.stride is not None:
            _check("stride", self.stride, 1)
            if self.stride > self.n_ctx - 1:
                raise ConfigError(
                    f"stride: expected at most n_ctx - 1 = {self.n_ctx - 1}, found {self.stride}"
                )


@dataclass(frozen=True)
class Comparison:
    """Per scored position: the reference's nll and KL(reference || tested) in nats."""

    nll: NDArray[np.float64]
    kld: NDArray[np.float64]
    same_top: NDArray[np.bool_]


@dataclass(frozen=True)
class Scores:
    """Per scored position: the negative log-likelihood in nats."""

    nll: NDArray[np.float64]
    compared: Comparison | None = None


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
    cache: CacheStats

    def as_dict(self) -> dict[str, Any]:
        """The document that `kvengine perplexity --json` prints."""
        names = (field.name for field in dataclasses.fields(self))
        return {name: getattr(self, name) for name in names} | {"cache": self.cache.as_dict()}


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
    windows = windows_of(model, text, options)
    total = len(windows) * options.n_ctx
    parts: list[Scores] = []
    for index, window in enumerate(windows):

        def report(read: int, before: int = index * options.n_ctx) -> None:
            if on_feed:
                on_feed(before + read, total)

        scores, stats = score_window(model, window, options, report)
        parts.append(scores)
        if on_window:
            on_window(_window(index, len(windows), scores, join(parts)))
    scores = join(parts)
    return PerplexityResult(
        **figures(scores),  # type: ignore[arg-type]
        windows=len(windows),
        scored_tokens=len(scores.nll),
        exact=options.exact,
        cache=stats,
    )


def windows_of(
    model: Model, text: str | bytes | Sequence[int], options: PerplexityOptions
) -> list[list[int]]:
    """The windows of a text, or of token ids, as the model reads them: BOS may replace the first
    token. Raises ConfigError for a text shorter than one window.
    """
    tokens = model.tokenizer.encode(text) if isinstance(text, str | bytes) else list(text)
    bos = [model.tokenizer.bos] if model.tokenizer.add_bos else []
    return [
        bos + tokens[start + len(bos) : start + options.n_ctx]
        for start in window_starts(len(tokens), options)
    ]


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
    step = max(_BLOCK // logits.shape[-1], 1)
    parts = [
        _score_block(
            logits[first : first + step],
            targets[first : first + step],
            None if reference is None else reference[first : first + step],
        )
        for first in range(0, len(targets), step)
    ]
    return join(parts)


def _score_block(
    logits: NDArray[np.float32],
    targets: NDArray[np.int64],
    reference: NDArray[np.float32] | None,
) -> Scores:
    rows = np.arange(len(targets))
    p, _, log_sum_p = _shifted(logits)
    nll = log_sum_p - p[rows, targets]
    if np.isnan(nll).any():
        raise Error("logits: expected numbers, found NaN")
    if reference is None:
        return Scores(nll)
    r, exp_r, log_sum_r = _shifted(reference)
    nll_reference = log_sum_r - r[rows, targets]
    # The mean of log r - log p over r, whose sums leave the mean. 0 * log 0 is 0: such a token costs
    # nothing, whatever the other distribution says.
    difference = np.subtract(r, p, out=np.zeros_like(r), where=exp_r > 0)
    difference *= exp_r
    compared = Comparison(
        nll=nll_reference,
        kld=difference.sum(axis=-1) / np.exp(log_sum_r) + log_sum_p - log_sum_r,
        same_top=logits.argmax(axis=-1) == reference.argmax(axis=-1),
    )
    return Scores(nll, compared)


def _shifted(
    logits: NDArray[np.float32],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Logits [n, vocab_size] less the largest of their row, their exponentials, the log of the sums
    [n] of these.
    """
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    exp = np.exp(wide)
    return wide, exp, np.log(exp.sum(axis=-1))


def join(parts: Sequence[Scores]) -> Scores:
    """One after the other."""
    nll = np.concatenate([part.nll for part in parts])
    compared = [part.compared for part in parts if part.compared]
    if not compared:
        return Scores(nll)
    return Scores(
        nll,
        Comparison(
            nll=np.concatenate([each.nll for each in compared]),
            kld=np.concatenate([each.kld for each in compared]),
            same_top=np.concatenate([each.same_top for each in compared]),
        ),
    )


def first_scored(options: PerplexityOptions) -> int:
    """The first position of a window whose prediction is scored; the last is n_ctx - 2."""
    return options.n_ctx // 2 if options.stride is None else options.n_ctx - 1 - options.stride


def score_window(
    model: Model,
    window: list[int],
    options: PerplexityOptions,
    on_feed: Callable[[int], None],
    references: References | None = None,
) -> tuple[Scores, CacheStats]:
    """Score a window with the cache under test.

    Args:
        on_feed: told how many tokens were read.
        references: where the logits of the reference are looked for, and kept; and the scores of
            windows that were read before, with a reference or without.
    """
    n_ctx, first = options.n_ctx, first_scored(options)
    alone = dataclasses.replace(options, reference=None, chunks=None)
    if references and not options.reference:
        known = references.find_scored((model.fingerprint, alone), window)
        if known:
            return Scores(known[0]), known[1]
    tested = model.session(n_ctx, options.cache, options.exact)
    reference = _Reference(model, window, options, references) if options.reference else None
    targets = np.asarray(window[1:], dtype=np.int64)
    parts = []
    for begin, end in _feeds(options):
        scored = slice(max(begin, first), min(end, n_ctx - 1))
        needed = scored.start < scored.stop
        rows = _feed(tested, window, begin, end, scored)
        reference_rows = reference.rows(begin, end, scored) if reference else None
        if needed:
            parts.append(score_rows(rows, targets[scored], reference_rows))
        on_feed(end)
    if reference:
        reference.keep()
    scores, stats = join(parts), tested.cache.stats()
    if references:
        references.keep_scored((model.fingerprint, alone), window, scores.nll, stats)
    return scores, stats


class _Reference:
    """A window as the reference cache has it: kept from before, or read beside the other."""

    def __init__(
        self,
        model: Model,
        window: list[int],
        options: PerplexityOptions,
        references: References | None,
    ) -> None:
        self._window, self._first = window, first_scored(options)
        self._n_rows = options.n_ctx - 1 - self._first
        self._references = references or References(0)
        shared = dataclasses.replace(options, cache="", chunks=None)
        self._setting = (model.fingerprint, shared)
        self._kept = self._references.find(self._setting, window)
        self._new: NDArray[np.float32] | None = None
        self._session: Session | None = None
        if self._kept is None:
            self._session = model.session(options.n_ctx, str(options.reference), options.exact)

    def rows(self, begin: int, end: int, scored: slice) -> NDArray[np.float32]:
        """Logits of the scored positions, of which the pass reads those from begin to end."""
        place = slice(scored.start - self._first, scored.stop - self._first)
        if self._session is None:
            assert self._kept is not None
            return self._kept[place]
        rows = _feed(self._session, self._window, begin, end, scored)
        if scored.start < scored.stop:
            if scored.start == self._first:
                shape = (self._n_rows, rows.shape[-1])
                self._new = self._references.room(self._setting, shape)
            if self._new is not None:
                self._new[place] = rows
        return rows

    def keep(self) -> None:
        """The window has been read to its end."""
        if self._new is not None:
            self._references.keep(self._setting, self._window, self._new)


def _feeds(options: PerplexityOptions) -> Iterator[tuple[int, int]]:
    """First token of each forward pass over a window, and one past its last."""
    if options.prefill:
        yield 0, options.prefill
    for begin in range(options.prefill, options.n_ctx, options.feed):
        yield begin, min(begin + options.feed, options.n_ctx)


def _feed(
    session: Session, window: list[int], begin: int, end: int, scored: slice
) -> NDArray[np.float32]:
    """Read tokens of a window; the logits of the scored positions, if any are among them."""
    needed = scored.start < scored.stop
    logits = session.forward(window[begin:end], all_logits=needed)
    return logits[scored.start - begin : scored.stop - begin] if needed else logits


def _exp_mean(nll: NDArray[np.float64]) -> float:
    with np.errstate(over="ignore"):  # infinity is the answer then
        return float(np.exp(nll.mean()))


def _window(index: int, count: int, own: Scores, so_far: Scores) -> Window:
    return Window(
        index=index,
        count=count,
        ppl=_exp_mean(own.nll),
        ppl_so_far=_exp_mean(so_far.nll),
        kld_so_far=float(so_far.compared.kld.mean()) if so_far.compared else None,
    )


def figures(scores: Scores) -> dict[str, float | None]:
    """The figures of a :class:`PerplexityResult` that the scores decide."""
    n = len(scores.nll)
    ppl = _exp_mean(scores.nll)
    compared = scores.compared
    return {
        "ppl": ppl,
        # One standard error of the mean, carried through exp.
        "ppl_error": ppl * math.sqrt(scores.nll.var() / (n - 1)) if n > 1 else 0.0,
        "ppl_reference": _exp_mean(compared.nll) if compared else None,
        "kld_mean": float(compared.kld.mean()) if compared else None,
        "kld_median": float(np.median(compared.kld)) if compared else None,
        "kld_p99": float(np.quantile(compared.kld, 0.99)) if compared else None,
        "kld_p999": float(np.quantile(compared.kld, 0.999)) if compared else None,
        "same_top": float(compared.same_top.mean()) if compared else None,
    }


def _check(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{name}: expected at least {least}, found {value}")
