"""The tables of a report, and report.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from kvengine.eval.report.data import Group, bits_per_value, points, whole_bytes
from kvengine.eval.task import Result

SIZES = (
    "MiB and × f16 are of the longest prompt; mean bits are per value, averaged over all prompts: most "
    "caches leave the newest or the first tokens as they are, so that short prompts take more."
)


@dataclass(frozen=True)
class Table:
    """Cells as text; `marked` are the numbers of the rows on the Pareto front."""

    header: list[str]
    rows: list[list[str]]
    marked: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Picture:
    """A picture that was written: the stem of its file names, and what it shows."""

    stem: str
    title: str


@dataclass(frozen=True)
class Section:
    """What a report says of one task and model."""

    group: Group
    table: Table
    details: Table | None
    pictures: list[Picture]
    failed: list[tuple[str, str]]
    """Short name of the cache and why there is no result."""


def section(group: Group, pictures: list[Picture]) -> Section:
    names = group.names
    return Section(
        group=group,
        table=_main_table(group),
        details=_details(group),
        pictures=pictures,
        failed=[
            (names[result.cache], " ".join(result.error.split()))
            for result in group.results
            if result.error is not None
        ],
    )


def number(value: float | None) -> str:
    """Four significant digits, more of large whole numbers; a dash for none."""
    if value is None or math.isnan(value):
        return "–"
    if abs(value) >= 1000 and math.isfinite(value):
        return f"{value:,.0f}"
    return f"{value:.4g}"


def mebibytes(count: float) -> str:
    """In MiB, with three significant digits or more."""
    mib = count / 2**20
    return f"{mib:,.0f}" if mib >= 1000 else f"{mib:.3g}"


def overview(groups: Sequence[Group]) -> Table:
    """A row for each cache, a column for each task (of one model): primary metrics."""
    caches = list(dict.fromkeys(result.cache for group in groups for result in group.results))
    names = {cache: name for group in groups for cache, name in group.names.items()}
    sizes = [_bits(groups, cache) for cache in caches]
    header = ["cache", "mean bits"]
    header += [f"{group.title} ({_sense(group.results[0])})" for group in groups]
    rows = []
    for cache, bits in zip(caches, sizes, strict=True):
        row = [names[cache], number(bits)]
        for group in groups:
            own = next((each for each in group.results if each.cache == cache), None)
            row.append(_cell(own))
        rows.append(row)
    return Table(header, rows)


def _cell(result: Result | None) -> str:
    if result is None:
        return "–"
    return "failed" if result.error is not None else number(result.value)


def _sense(result: Result) -> str:
    return f"{result.primary} {'↑' if result.higher_is_better else '↓'}"


def _bits(groups: Sequence[Group], cache: str) -> float | None:
    """Of the task that filled the cache most."""
    sizes = [
        (int(each.cache_stats["tokens_seen"]), bits)
        for group in groups
        for each in group.good
        if each.cache == cache and each.cache_stats
        for bits in [bits_per_value(group.results, each)]
        if bits is not None
    ]
    return max(sizes)[1] if sizes else None


def _main_table(group: Group) -> Table:
    """A row for each cache; metrics of parts (`exact@512`) are for the details."""
    metrics = [name for name in _metric_names(group) if "@" not in name]
    front = {point.cache for point in points(group) if point.best}
    baseline = group.baseline
    header = ["cache", "cache, MiB", "mean bits", "× f16"]
    header += [f"{name} {_arrow(group)}" if _is_primary(group, name) else name for name in metrics]
    if baseline:
        header.append(f"{group.good[0].primary} − {group.names[baseline.cache]}")
    rows, marked = [], set()
    for result in group.good:
        row = [group.names[result.cache], *_size(group, result)]
        row += [number(result.metrics.get(name)) for name in metrics]
        if baseline:
            row.append(_difference(result, baseline))
        if result.cache in front:
            marked.add(len(rows))
        rows.append(row)
    return Table(header, rows, marked)


def _size(group: Group, result: Result) -> list[str]:
    """Bytes, bits per value, and how many times smaller than f16 a cache was."""
    if result.cache_stats is None:
        return [number(None)] * 3
    size, whole = result.cache_stats["bytes"], whole_bytes(group.results, result)
    times = whole / size if size and whole else None
    return [mebibytes(size), number(bits_per_value(group.results, result)), number(times)]


def _details(group: Group) -> Table | None:
    """Metrics of parts, a row for each; None where there are none."""
    parts = [name for name in _metric_names(group) if "@" in name]
    if not parts:
        return None
    rows = [[name, *(number(result.metrics.get(name)) for result in group.good)] for name in parts]
    return Table(["metric", *(group.names[result.cache] for result in group.good)], rows)


def _metric_names(group: Group) -> list[str]:
    """The primary one first."""
    names = dict.fromkeys(name for result in group.good for name in result.metrics)
    return sorted(names, key=lambda name: not _is_primary(group, name))


def _is_primary(group: Group, name: str) -> bool:
    return any(result.primary == name for result in group.good)


def _arrow(group: Group) -> str:
    return "↑" if group.good[0].higher_is_better else "↓"


def _difference(result: Result, baseline: Result) -> str:
    if result.value is None or baseline.value is None:
        return "–"
    change = result.value - baseline.value
    if change == 0:
        return "0"
    return f"{'+' if change > 0 else '−'}{number(abs(change))}"


# --- Markdown ------------------------------------------------------------------------------------


def markdown(models: Sequence[tuple[str, list[Section]]], about: str) -> str:
    """report.md: tables, and links to the pictures beside it. about: who made it."""
    lines = ["# What compressed caches cost in quality", "", about]
    lines.append(f"Bold: no other cache of the table is both smaller and better. {SIZES}")
    for model, sections in models:
        lines += ["", f"## {model}", "", _table(overview([each.group for each in sections]))]
        for each in sections:
            lines += ["", f"### {each.group.title}", "", _table(each.table)]
            lines += [f"- {name}: no result: {reason}" for name, reason in each.failed]
            for picture in each.pictures:
                lines += ["", f"![{picture.title}]({picture.stem}.svg)"]
            if each.details:
                lines += ["", _table(each.details)]
    return "\n".join(lines) + "\n"


def _table(table: Table) -> str:
    def line(cells: Sequence[str], bold: bool = False) -> str:
        escaped = [cell.replace("|", "\\|") for cell in cells]
        if bold:
            escaped[0] = f"**{escaped[0]}**"
        return f"| {' | '.join(escaped)} |"

    rule = ["---", *("--:" for _ in table.header[1:])]
    rows = [line(row, i in table.marked) for i, row in enumerate(table.rows)]
    return "\n".join([line(table.header), f"|{'|'.join(rule)}|", *rows]) + "\n"
