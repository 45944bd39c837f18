"""How well a text is predicted: perplexity, and the divergence from the f32 cache.

The protocol is that of :mod:`kvengine.eval.perplexity`: windows of `context` tokens, fed `feed` at a
time, the second half of each scored. Every feed reads what earlier ones left in the cache, and
selectors drop at its end; those that judge a whole prompt want `prefill`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kvengine.cache_names import canonical_cache
from kvengine.eval.data import read_text
from kvengine.eval.perplexity import (
    Comparison,
    PerplexityOptions,
    Scores,
    figures,
    score_window,
    windows_of,
)
from kvengine.eval.runner import Runner
from kvengine.eval.task import Record, Task, register

_BUCKETS = 4  # of the scored positions of a window, for divergence by depth
_DIGITS = 7  # significant ones of the numbers that are kept for each position


@dataclass(frozen=True)
class _Text(Task):
    """limit: most windows. text: a file of the data folder. prefill: tokens read in one go first."""

    limit: int | None = 8
    text: str = "ppl/wikitext2_raw_test.txt"
    context: int = 1024
    feed: int = 32
    prefill: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("context", self.context >= 3, "at least 3")
        self.check("feed", self.feed >= 1, "at least 1")
        most = self.context - 2
        self.check("prefill", 0 <= self.prefill <= most, f"0 to context - 2 = {most}")

    def data_files(self) -> tuple[str, ...]:
        return (self.text,)

    def options(self, runner: Runner) -> PerplexityOptions:
        return PerplexityOptions(
            n_ctx=self.context,
            feed=self.feed,
            prefill=self.prefill,
            chunks=self.limit,
            cache=runner.cache,
            exact=runner.exact,
        )

    def units(self, runner: Runner) -> Sequence[Any]:
        windows = windows_of(runner.model, read_text(self.text), self.options(runner))
        return list(enumerate(windows))

    def score(self, runner: Runner, window: list[int], options: PerplexityOptions) -> Scores:
        def on_feed(read: int) -> None:
            runner.progress(read / self.context)

        scores, stats = score_window(runner.model, window, options, on_feed, runner.references)
        runner.note_stats(stats)
        return scores


@register
@dataclass(frozen=True)
class Perplexity(_Text):
    """Perplexity of a text, read through the cache."""

    name: ClassVar[str] = "perplexity"
    primary: ClassVar[str] = "ppl"
    higher_is_better: ClassVar[bool] = False

    def run(self, runner: Runner, unit: tuple[int, list[int]]) -> list[Record]:
        index, window = unit
        scores = self.score(runner, window, self.options(runner))
        return [{"window": index, "nll": _numbers(scores.nll)}]

    def summarize(self, items: Sequence[Record]) -> dict[str, float]:
        return _metrics(Scores(_joined(items, "nll")))


@register
@dataclass(frozen=True)
class Divergence(_Text):
    """KL(reference || tested) per scored position; the reference reads the same through another cache.

    Records have `nll`, `kld` and `same_top` of each scored position of a window.
    """

    name: ClassVar[str] = "kld"
    primary: ClassVar[str] = "kld_mean"
    higher_is_better: ClassVar[bool] = False

    reference: str = "f32"

    def __post_init__(self) -> None:
        super().__post_init__()
        canonical_cache(self.reference)

    def options(self, runner: Runner) -> PerplexityOptions:
        options = super().options(runner)
        return dataclasses.replace(options, reference=canonical_cache(self.reference))

    def run(self, runner: Runner, unit: tuple[int, list[int]]) -> list[Record]:
        index, window = unit
        scores = self.score(runner, window, self.options(runner))
        assert scores.compared
        return [
            {
                "window": index,
                "nll": _numbers(scores.nll),
                "nll_reference": _numbers(scores.compared.nll),
                "kld": _numbers(scores.compared.kld),
                "same_top": scores.compared.same_top.astype(int).tolist(),
            }
        ]

    def summarize(self, items: Sequence[Record]) -> dict[str, float]:
        compared = Comparison(
            nll=_joined(items, "nll_reference"),
            kld=_joined(items, "kld"),
            same_top=_joined(items, "same_top").astype(bool),
        )
        metrics = _metrics(Scores(_joined(items, "nll"), compared))
        table = compared.kld.reshape(len(items), -1)  # [windows, scored positions]
        positions = np.arange(table.shape[1])
        for part in np.array_split(positions, min(_BUCKETS, len(positions))):
            first, last = self.context // 2 + part[[0, -1]]
            metrics[f"kld_mean@{first}-{last}"] = float(table[:, part].mean())
        return metrics


def _metrics(scores: Scores) -> dict[str, float]:
    return {name: value for name, value in figures(scores).items() if value is not None}


def _numbers(values: NDArray[np.float64]) -> list[float]:
    return [float(f"{value:.{_DIGITS}g}") for value in values]


def _joined(items: Sequence[Record], name: str) -> NDArray[np.float64]:
    return np.concatenate([np.asarray(item[name], dtype=np.float64) for item in items])
