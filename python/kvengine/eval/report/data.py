"""What a report shows, taken out of results: groups, fronts, maps and curves; nothing is drawn here."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvengine.eval.report.names import UNCOMPRESSED, family, short_name
from kvengine.eval.task import Result

_SHORTEST_TAIL = 10  # scored positions: a curve of fewer says nothing


@dataclass(frozen=True)
class Group:
    """Results of one task and one model, a result for each cache (the newest of several)."""

    model: str
    task: str
    seed: int
    results: list[Result]

    @property
    def model_id(self) -> tuple[str, bool]:
        """What tells models apart whose names are the same."""
        return self.results[0].model["fingerprint"], self.results[0].exact

    @property
    def id(self) -> str:
        """Of file names and anchors: no other group has it."""
        parts = repr((self.model_id, self.task, self.seed))
        return hashlib.sha256(parts.encode()).hexdigest()[:8]

    @property
    def title(self) -> str:
        return self.task if self.seed == 0 else f"{self.task} (seed {self.seed})"

    @property
    def good(self) -> list[Result]:
        """Those that did not fail."""
        return [result for result in self.results if result.error is None]

    @property
    def names(self) -> dict[str, str]:
        """Short names of the caches by spec."""
        return {result.cache: short_name(result.cache) for result in self.results}

    @property
    def baseline(self) -> Result | None:
        """What the others are compared with: the first cache that is not compressed."""
        return baseline(self.results)


def baseline(results: Sequence[Result]) -> Result | None:
    """Of the results of one task and model, see Group.baseline."""
    good = (result for result in results if result.error is None)
    return next((each for each in good if each.cache in UNCOMPRESSED), None)


def grouped(results: Sequence[Result]) -> list[Group]:
    """By model, then task, in the order in which they first come."""
    found: dict[tuple[Any, ...], dict[str, Result]] = {}
    for result in results:
        key = (result.model["fingerprint"], result.exact, result.task, result.seed)
        found.setdefault(key, {})[result.cache] = result
    models = list(dict.fromkeys(key[:2] for key in found))
    keys = sorted(found, key=lambda key: models.index(key[:2]))  # stable: tasks keep their order
    plain = {key[:2]: _model_name(next(iter(found[key].values()))) for key in found}
    shared = [name for name, count in Counter(plain.values()).items() if count > 1]
    names = {
        model: f"{name} ({model[0]})" if name in shared else name for model, name in plain.items()
    }
    return [Group(names[key[:2]], key[2], key[3], list(found[key].values())) for key in keys]


def _model_name(result: Result) -> str:
    name = " ".join(str(result.model.get("name") or result.model["fingerprint"]).split())
    return f"{name}, f32 activations" if result.exact else name


# --- Quality against bytes ---------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """A cache: its bytes, a metric, and whether no other is both smaller and better."""

    cache: str
    name: str
    family: str
    bytes: int
    value: float
    best: bool


def points(group: Group, metric: str | None = None) -> list[Point]:
    """Of all caches that were filled and measured, by size.

    metric: of which more is better; None: the primary one.
    """
    measured = [
        (int(result.cache_stats["bytes"]), float(value), result)
        for result in group.good
        for value in [result.metrics.get(metric or result.primary)]
        if result.cache_stats and value is not None and math.isfinite(value)
    ]
    measured.sort(key=lambda each: each[0])
    sign = 1 if metric or not measured or measured[0][2].higher_is_better else -1
    front = pareto([size for size, _, _ in measured], [sign * value for _, value, _ in measured])
    return [
        Point(result.cache, group.names[result.cache], family(result.cache), size, value, best)
        for (size, value, result), best in zip(measured, front, strict=True)
    ]


def whole_bytes(results: Sequence[Result], result: Result) -> float | None:
    """What an f16 cache of the task's longest prompt would take, a whole one where it was shortened:
    that is told by a result among `results`, of the same task and model, whose cache is not
    compressed.
    """
    stats = _whole(results, result)
    return None if stats is None else float(stats["f16_bytes"])


def _whole(results: Sequence[Result], result: Result) -> dict[str, Any] | None:
    """Statistics of a cache of whole prompts, see :func:`whole_bytes`."""
    if not family(result.cache).startswith("shortened"):
        return result.cache_stats
    whole = baseline(results)
    return whole.cache_stats if whole else None


def bits_per_value(results: Sequence[Result], result: Result) -> float | None:
    """Mean bits that a cache took for each value of whole prompts; see :func:`whole_bytes`.

    Whole are prompts as the cache that is not compressed read them: a task that cuts out the middle
    of what is longer than its context (longbench) has cut them.
    """
    stats, whole = result.cache_stats, _whole(results, result)
    if not stats or not whole:
        return None
    mean = float(stats.get("mean_bits", stats["bits_per_value"]))
    # Older results tell the bytes of the largest cache alone.
    summed = all("all_f16_bytes" in each for each in (stats, whole))
    size = "all_f16_bytes" if summed else "f16_bytes"
    return mean * stats[size] / whole[size] if whole[size] else None


def pareto(sizes: Sequence[float], qualities: Sequence[float]) -> list[bool]:
    """Which points no other point beats: at most as large and at least as good, and not equal."""

    def beaten(i: int) -> bool:
        return any(
            sizes[j] <= sizes[i]
            and qualities[j] >= qualities[i]
            and (sizes[j], qualities[j]) != (sizes[i], qualities[i])
            for j in range(len(sizes))
        )

    return [not beaten(i) for i in range(len(sizes))]


# --- Needle ------------------------------------------------------------------------------------

MAPPED = ("exact", "partial", "logprob", "score")
"""Items' numbers that are shown by depth and length, where items have both."""


@dataclass(frozen=True)
class HeatMap:
    """values: [depths, lengths] means of the items of a cell, NaN where there is none."""

    name: str
    depths: list[float]
    lengths: list[int]
    values: NDArray[np.float64]


def heat_maps(group: Group, metric: str) -> list[HeatMap]:
    """One for each cache; none where items have no such metric, depth or length."""
    maps = []
    for result in group.good:
        items = [item for item in result.items if {"depth", "length", metric} <= item.keys()]
        if not items:
            continue
        depths = sorted({item["depth"] for item in items})
        lengths = sorted({item["length"] for item in items})
        cells: dict[tuple[float, int], list[float]] = {}
        for item in items:
            cells.setdefault((item["depth"], item["length"]), []).append(float(item[metric]))
        values = np.full((len(depths), len(lengths)), np.nan)
        for (depth, length), numbers in cells.items():
            values[depths.index(depth), lengths.index(length)] = np.mean(numbers)
        maps.append(HeatMap(group.names[result.cache], depths, lengths, values))
    return maps


# --- Curves ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """One line of a plot."""

    name: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]


def tails(group: Group, most_points: int = 400) -> list[Curve]:
    """Share of the scored positions whose divergence is at least x, for each cache but exact ones."""
    curves = []
    for result in group.good:
        parts = [item["kld"] for item in result.items if isinstance(item.get("kld"), list)]
        divergences = np.sort(np.concatenate(parts).astype(np.float64)) if parts else np.zeros(0)
        above = divergences > 0
        if above.sum() < _SHORTEST_TAIL:
            continue
        shares = 1 - np.arange(len(divergences)) / len(divergences)
        x, y = divergences[above], shares[above]
        # As many points for each decade of the share: the tail is what matters.
        wanted = np.geomspace(1, len(x), most_points).astype(int)
        index = np.unique(len(x) - wanted)
        curves.append(Curve(group.names[result.cache], x[index], y[index]))
    return curves


def speeds(group: Group, metric: str) -> list[Curve]:
    """Tokens per second by the tokens that were in the cache, for each cache."""
    curves = []
    for result in group.good:
        rows: dict[int, list[float]] = {}
        for item in result.items:
            if {"past", metric} <= item.keys():
                rows.setdefault(item["past"], []).append(float(item[metric]))
        if rows:
            x = sorted(rows)
            y = np.array([np.median(rows[past]) for past in x])
            curves.append(Curve(group.names[result.cache], np.array(x, dtype=np.float64), y))
    return curves
