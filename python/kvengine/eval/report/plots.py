"""The pictures of a report, by matplotlib: dark text, colours that colour-blind readers tell apart,
names beside what they name.
"""

from __future__ import annotations

import itertools
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kvengine._core import UnsupportedError
from kvengine.eval.report.data import Curve, HeatMap, Point
from kvengine.eval.report.names import label

# Okabe and Ito's colours (jfly.uni-koeln.de/color) without the yellow, which is too light for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--", ":", "-.")
TEXT = "#222222"
QUIET = "#8a8a8a"
FAMILIES = {
    "exact": ("#000000", "s"),
    "quantized": (COLOURS[0], "o"),
    "dropped": (COLOURS[1], "v"),
    "shortened": (COLOURS[2], "D"),
}
"""Colour and marker of what a cache does; those that do several things have one of their own."""
_SEVERAL = (COLOURS[3], "P")
_FAMILY_NAMES = {
    "exact": "not compressed",
    "dropped": "tokens dropped",
    "shortened": "prompt shortened",
}
MOST_NAMED = 24  # caches of a picture; of more, only those on the Pareto front are named or drawn
_FEW = 14  # names that a picture of the usual size has room for
_NAME_CHARS = 34
_TITLE_CHARS = 72
_FEW_DECADES = 1e4  # a range whose ticks are at 1, 2 and 5 times powers of ten
_FLOOR = 1e-6  # of the largest value: what is below it does not stretch a logarithmic axis
_WHOLE = 0.97  # a share that the tails begin at

Spot = tuple[float, float]
"""A point of a plot: MiB, metric."""


def can_draw() -> bool:
    """Whether matplotlib is there."""
    try:
        require_matplotlib()
    except UnsupportedError:
        return False
    return True


def require_matplotlib() -> Any:
    """The module pyplot, set up. Raises UnsupportedError where it is absent."""
    try:
        import matplotlib
    except ImportError:
        raise UnsupportedError(
            "report: expected the Python package matplotlib, found none; "
            "pip install 'kvengine[eval]' brings it"
        ) from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update(
        {
            "svg.hashsalt": "kvengine",  # the same picture is the same file
            "svg.fonttype": "path",
            "font.size": 10,
            "font.family": "DejaVu Sans",  # comes with matplotlib
            "text.color": TEXT,
            "axes.labelcolor": TEXT,
            "axes.edgecolor": QUIET,
            "xtick.color": TEXT,
            "ytick.color": TEXT,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#dddddd",
            "grid.linewidth": 0.6,
            "figure.dpi": 100,
            "savefig.dpi": 160,
            "text.parse_math": False,  # a $ in a name is a $
        }
    )
    return pyplot


def save(figure: Any, stem: Path) -> list[Path]:
    """Write STEM.svg and STEM.png and forget the figure."""
    pyplot = require_matplotlib()
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("svg", "png")]
    for path in paths:
        metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            figure.savefig(
                partial,
                format=path.suffix[1:],
                metadata=metadata,
                bbox_inches="tight",
                facecolor="white",
            )
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    pyplot.close(figure)
    return paths


def quality(points: Sequence[Point], title: str, metric: str, higher_is_better: bool) -> Any:
    """Quality against bytes; filled points are on the Pareto front, which is a line of steps. Colours
    and shapes say what kind of cache a point is.

    Where less is better and values differ much, their axis is logarithmic; values far below all
    others (a reference compared with itself) then lie at its lower end, and their names say them.
    """
    pyplot = require_matplotlib()
    named = len(points) if len(points) <= MOST_NAMED else sum(point.best for point in points)
    figure, axis = pyplot.subplots(figsize=(7.4, 4.6) if named <= _FEW else (9.6, 6.4))
    heights = [point.value for point in points]
    unnamed = "" if len(points) <= MOST_NAMED else ", whose caches alone are named"
    names = [_cut(point.name) for point in points]
    if not higher_is_better and min(heights) >= 0 and max(heights) > 30 * min(heights):
        axis.set_yscale("log")
        floor = max(min(height for height in heights if height > 0), _FLOOR * max(heights))
        names = [
            name if height >= floor else f"{name} ({height:.2g})"
            for name, height in zip(names, heights, strict=True)
        ]
        heights = [max(height, floor) for height in heights]
    spots = [(point.bytes / 2**20, height) for point, height in zip(points, heights, strict=True)]
    front = [spot for spot, point in zip(spots, points, strict=True) if point.best]
    axis.step(
        *zip(*front, strict=True),
        where="post",
        color=QUIET,
        linewidth=1.2,
        zorder=2,
    )
    for spot, point in zip(spots, points, strict=True):
        colour, marker = FAMILIES.get(point.family, _SEVERAL)
        axis.plot(
            *spot,
            marker,
            markersize=7,
            markeredgewidth=1.4,
            color=colour,
            markerfacecolor=colour if point.best else "white",
            zorder=3,
        )
    _name_families(axis, points)
    axis.set_xscale("log")
    axis.margins(x=0.12, y=0.14)
    for each in (axis.xaxis, axis.yaxis):
        if each.get_scale() == "log":
            _plain_ticks(each)
    axis.set_xlabel("cache, MiB")
    sense = "higher" if higher_is_better else "lower"
    axis.set_ylabel(f"{label(metric)}\n({sense} is better)")
    axis.set_title(f"{_wrapped(title)}\nfilled: Pareto front{unnamed}", fontsize=11, loc="left")
    labels = [
        label
        for label in zip(names, spots, points, strict=True)
        if label[2].best or len(points) <= MOST_NAMED
    ]
    _label_points(figure, axis, labels, front)
    return figure


def _name_families(axis: Any, points: Sequence[Point]) -> None:
    """A line below the plot that says what colours and shapes mean."""
    present = dict.fromkeys(point.family for point in points)
    order = sorted(present, key=lambda name: [*FAMILIES, name].index(name))
    handles = []
    for name in order:
        colour, marker = FAMILIES.get(name, _SEVERAL)
        shown = _FAMILY_NAMES.get(name, name)
        (handle,) = axis.plot([], [], marker, color=colour, markersize=7, label=shown)
        handles.append(handle)
    axis.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(-0.01, -0.12),
        ncols=len(handles),
        frameon=False,
        fontsize=9,
        handletextpad=0.2,
        columnspacing=1.2,
    )


def heat(maps: Sequence[HeatMap], title: str, metric: str, unit: str) -> Any:
    """A map for each cache, at most four a row; cells say their value. unit: of lengths."""
    pyplot = require_matplotlib()
    columns = min(4, len(maps))
    rows = -(-len(maps) // columns)
    depths, lengths = (
        max(len(each) for each in lists) for lists in zip(*map(_ends, maps), strict=True)
    )
    size = (
        columns * max(2.6, 0.52 * lengths + 1.1) + 0.8,
        rows * max(2.0, 0.34 * depths + 1.1) + 0.5,
    )
    figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    low, high = _heat_range(maps)
    for axis, each in zip(axes.flat, maps, strict=False):
        image = axis.imshow(each.values, vmin=low, vmax=high, cmap="cividis", aspect="auto")
        axis.grid(False)
        axis.set_title(_cut(each.name), fontsize=9)
        axis.set_xticks(range(len(each.lengths)), [f"{length:,}" for length in each.lengths])
        axis.tick_params(axis="x", labelrotation=45 if len(each.lengths) > 4 else 0, labelsize=8)
        axis.set_yticks(range(len(each.depths)), [f"{100 * depth:.0f} %" for depth in each.depths])
        axis.tick_params(axis="y", labelsize=8)
        for (i, j), value in np.ndenumerate(each.values):
            if np.isfinite(value):
                light = (value - low) / (high - low) > 0.55
                colour = "black" if light else "white"  # cividis goes from dark to light
                axis.text(j, i, _short(value), ha="center", va="center", fontsize=7.5, color=colour)
    for axis in axes.flat[len(maps) :]:
        axis.set_visible(False)
    unit_of_values = textwrap.fill(label(metric), max(round(9 * size[1]), 12))
    figure.colorbar(image, ax=axes, fraction=0.03, aspect=40, label=unit_of_values)
    figure.supxlabel(f"length, {unit}", fontsize=10, color=TEXT)
    figure.supylabel("depth of the needle", fontsize=10, color=TEXT)
    wrapped = textwrap.fill(title, max(round(10 * size[0]), 24))
    figure.suptitle(wrapped, fontsize=11, color=TEXT)
    return figure


def depths(curves: Sequence[Curve], title: str, y_label: str) -> Any:
    """Speeds against the tokens in the cache; names at the right ends of the lines."""
    figure, axis = _lines(curves, title, marker="o", markersize=4)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("tokens in the cache")
    axis.set_ylabel(y_label)
    _label_ends(figure, axis, curves)
    return figure


def tails(curves: Sequence[Curve], title: str) -> Any:
    """Share of the positions whose divergence is at least x, in powers of ten."""
    # Nearly all positions are beyond this; what is to its left only takes room.
    left = min(float(curve.x[curve.y <= _WHOLE][0]) for curve in curves)
    left = max(left, _FLOOR * max(float(curve.x.max()) for curve in curves))
    curves = [curve for curve in curves if curve.x.max() > left]
    figure, axis = _lines(curves, title)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlim(left=left)
    _plain_ticks(axis.xaxis)
    _plain_ticks(axis.yaxis)
    axis.set_xlabel("KL divergence, nats")
    axis.set_ylabel("share of positions at least that far")
    _legend_beside(axis, curves)
    return figure


def _lines(curves: Sequence[Curve], title: str, **options: Any) -> tuple[Any, Any]:
    pyplot = require_matplotlib()
    figure, axis = pyplot.subplots(figsize=(8.4, 4.6))
    figure.subplots_adjust(left=0.09, right=0.7)
    for i, curve in enumerate(curves):
        axis.plot(curve.x, curve.y, linewidth=1.8, **_style(i), **options)
    axis.set_title(_wrapped(title), fontsize=11, loc="left")
    return figure, axis


# --- Names beside what they name -----------------------------------------------------------------

_PLACES = [
    (round(distance * x), round(distance * y), horizontal, vertical)
    for distance in (9, 20, 32, 46)
    for x, y, horizontal, vertical in (
        (1, 0, "left", "center"),
        (-1, 0, "right", "center"),
        (0, 1, "center", "bottom"),
        (0, -1, "center", "top"),
        (0.7, 0.7, "left", "bottom"),
        (0.7, -0.7, "left", "top"),
        (-0.7, 0.7, "right", "bottom"),
        (-0.7, -0.7, "right", "top"),
    )
]
"""Offsets of a name from its point in points, and its alignment there; the nearest first."""


def _label_points(
    figure: Any, axis: Any, labels: Sequence[tuple[str, Spot, Point]], front: Sequence[Spot]
) -> None:
    """Names around their points, where they cover least of what is there already."""
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    pixels = [axis.transData.transform(spot) for _, spot, _ in labels]
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in pixels]
    corners = [axis.transData.transform(spot) for spot in front]
    for (x0, y0), (x1, y1) in itertools.pairwise(corners):  # the steps of the front
        taken += [(x0, y0 - 2, x1, y0 + 2), (x1 - 2, min(y0, y1), x1 + 2, max(y0, y1))]
    frame = axis.get_window_extent(renderer).extents
    for name, spot, point in labels:
        text = axis.annotate(
            name,
            spot,
            (0, 0),
            textcoords="offset points",
            fontsize=8.5,
            color=TEXT,
            fontweight="bold" if point.best else "normal",
            zorder=4,
        )

        def covered(place: tuple[int, int, str, str], text: Any = text) -> float:
            _move(text, place)
            box = text.get_window_extent(renderer).extents
            area = (box[2] - box[0]) * (box[3] - box[1])
            return sum(_overlap(box, other) for other in taken) + area - _overlap(box, frame)

        place = min(_PLACES, key=covered)  # of several as good ones the first
        _move(text, place)
        taken.append(tuple(text.get_window_extent(renderer).extents))
        if max(abs(place[0]), abs(place[1])) > 10:
            axis.annotate(
                "",
                spot,
                place[:2],
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": QUIET, "linewidth": 0.7, "shrinkB": 4},
            )


def _move(text: Any, place: tuple[int, int, str, str]) -> None:
    text.set_position(place[:2])
    text.set_ha(place[2])
    text.set_va(place[3])


def _label_ends(figure: Any, axis: Any, curves: Sequence[Curve]) -> None:
    """Names to the right of the frame, as high as their lines end, moved apart."""
    figure.canvas.draw()
    points = 72 / figure.dpi  # of a pixel: pictures are saved at other resolutions
    frame = axis.get_window_extent()
    ends = [axis.transData.transform((curve.x[-1], curve.y[-1]))[1] * points for curve in curves]
    heights = spread(ends, 12.5, frame.y0 * points, frame.y1 * points)
    for i, (curve, height) in enumerate(zip(curves, heights, strict=True)):
        axis.annotate(
            _cut(curve.name),
            (curve.x[-1], curve.y[-1]),
            (frame.x1 * points + 12, height),
            textcoords="figure points",
            va="center",
            fontsize=8.5,
            color=TEXT,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "relpos": (0, 0.5),
                "linewidth": 1.0,
                "shrinkA": 1,
                "shrinkB": 0,
            }
            | _style(i),
        )


def _legend_beside(axis: Any, curves: Sequence[Curve]) -> None:
    """Names from the rightmost line to the leftmost; the lines end too near each other for labels."""
    handles = axis.get_lines()
    order = sorted(range(len(curves)), key=lambda i: -float(np.median(curves[i].x)))
    axis.legend(
        [handles[i] for i in order],
        [_cut(curves[i].name) for i in order],
        loc="upper left",
        bbox_to_anchor=(1.02, 1),
        borderaxespad=0,
        frameon=False,
        fontsize=8.5,
        handlelength=2.6,
        title="from right to left",
        title_fontsize=8.5,
        alignment="left",
    )


def _style(i: int) -> dict[str, str]:
    """Colour and dashes of the i-th line."""
    return {
        "color": COLOURS[i % len(COLOURS)],
        "linestyle": DASHES[i // len(COLOURS) % len(DASHES)],
    }


def spread(wanted: Sequence[float], apart: float, low: float, high: float) -> list[float]:
    """Heights near the wanted ones, in their order, at least `apart` from each other."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    heights = [0.0] * len(wanted)
    last = low - apart
    for i in order:
        last = heights[i] = max(wanted[i], last + apart)
    above = high
    for i in reversed(order):  # back down from where the highest had to go beyond the frame
        above = heights[i] = min(heights[i], above)
        above -= apart
    return heights


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0)


# --- Numbers -------------------------------------------------------------------------------------


def _ends(each: HeatMap) -> tuple[list[float], list[int]]:
    return each.depths, each.lengths


def _heat_range(maps: Sequence[HeatMap]) -> tuple[float, float]:
    """Shares from 0 to 1; other numbers as far as they go."""
    values = np.concatenate([each.values.ravel() for each in maps])
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    return (low, high) if high > low else (low, low + 1)


def _short(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}".removesuffix(".00")  # + 0.0: no minus before zeros


def _wrapped(title: str) -> str:
    return textwrap.fill(title, _TITLE_CHARS)


def _cut(name: str) -> str:
    return name if len(name) <= _NAME_CHARS else f"{name[: _NAME_CHARS - 1]}…"


def _plain_ticks(axis: Any) -> None:
    """Numbers such as 0.5 and 20 on a logarithmic axis, as many as there is room for."""
    from matplotlib import ticker

    low, high = axis.get_view_interval()
    steps = (1, 2, 5) if high < _FEW_DECADES * low else (1,)
    axis.set_major_locator(ticker.LogLocator(subs=steps, numticks=12))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(ticker.NullFormatter())
