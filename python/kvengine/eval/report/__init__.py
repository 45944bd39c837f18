"""Reports of an evaluation: report.html, report.md and pictures as SVG and PNG.

Shown are, for each model and task: a table; quality against bytes with the Pareto front; and, where
the items of the task have what it takes, maps of a needle's depth and length, tails of the
divergence, and speed against depth.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kvengine._core import ConfigError, IoError
from kvengine.eval.report import data, plots
from kvengine.eval.report.data import Group
from kvengine.eval.report.names import slug
from kvengine.eval.report.page import html
from kvengine.eval.report.text import Picture, Section, markdown, section
from kvengine.eval.task import Result

WITHOUT_PICTURES = (
    "Without pictures, for want of matplotlib: pip install 'kvengine[eval]' brings it."
)

_LIKELIHOOD = "logprob"
_SPEEDS = {"tps": "tokens per second, one by one", "prefill_tps": "tokens of the prompt per second"}


def write(out_dir: str | os.PathLike[str], results: Sequence[Result]) -> Path:
    """Write the report of results into a folder, which is made, and return the path of its page.

    Files of an earlier report in it are replaced. Where matplotlib is absent there are tables alone,
    and the report says so.

    Raises:
        ConfigError: there are no results.
        IoError: the folder cannot be written.
    """
    if not results:
        raise ConfigError("report: expected at least one result, found none")
    out = Path(out_dir)
    try:
        out.mkdir(parents=True, exist_ok=True)
        drawn = plots.can_draw()
        sections = [_section(group, out, drawn) for group in data.grouped(results)]
        models = [
            (own[0].group.model, own)
            for _, each in itertools.groupby(sections, lambda each: each.group.model_id)
            for own in [list(each)]
        ]
        engine = ", ".join(dict.fromkeys(result.engine for result in results))
        about = f"kvengine {engine}." if drawn else f"kvengine {engine}. {WITHOUT_PICTURES}"
        _replace(out / "report.md", markdown(models, about))
        page = html(models, about, lambda stem: (out / f"{stem}.svg").read_bytes())
        _replace(out / "report.html", page)
    except OSError as error:
        raise IoError(f"{error.filename or out}: could not be written ({error.strerror})") from None
    return out / "report.html"


def _section(group: Group, out: Path, drawn: bool) -> Section:
    pictures = []
    for kind, title, figure in _figures(group) if drawn else ():
        stem = f"{slug(f'{group.model} {group.title}')}-{group.id}-{kind}"
        plots.save(figure, out / stem)
        pictures.append(Picture(stem, title))
    return section(group, pictures)


def _figures(group: Group) -> Iterator[tuple[str, str, Any]]:
    """Kind, title and matplotlib figure of all that a group has data for."""
    what = f"{group.title}, {group.model}"
    points = data.points(group)
    if len(points) > 1:
        first = group.good[0]
        title = f"{first.primary} against bytes: {what}"
        yield "bytes", title, plots.quality(points, title, first.primary, first.higher_is_better)
    # Where few answers are right, the likelihood of the right one still tells caches apart.
    likely = data.points(group, _LIKELIHOOD)
    if len(likely) > 1 and group.good[0].primary != _LIKELIHOOD:
        title = f"{_LIKELIHOOD} of the right answer against bytes: {what}"
        yield f"bytes-{_LIKELIHOOD}", title, plots.quality(likely, title, _LIKELIHOOD, True)
    unit = "words" if group.results[0].name == "needle" else "tokens"
    for metric in data.MAPPED:
        maps = data.heat_maps(group, metric)
        if maps:
            title = f"{metric} by depth and length: {what}"
            yield f"map-{metric}", title, plots.heat(maps, title, metric, unit)
    front = {point.name for point in points if point.best}
    tails = data.tails(group)
    if len(tails) > plots.MOST_NAMED:
        tails = [curve for curve in tails if curve.name in front]
    if tails:
        title = f"tails of the divergence: {what}"
        yield "tails", title, plots.tails(tails, title)
    for metric, label in _SPEEDS.items():
        curves = data.speeds(group, metric)
        if curves:
            title = f"speed against depth: {what}"
            yield slug(metric), title, plots.depths(curves, title, label)


def _replace(path: Path, text: str) -> None:
    """The file is whole at any time."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
