"""report.html: one file with everything in it; no script, nothing fetched."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from html import escape

from kvengine.eval.report.names import slug
from kvengine.eval.report.text import SIZES, Section, Table, overview

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 2rem auto;
  max-width: 78rem; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; margin: 2rem 0 0.6rem; }
h2 { border-bottom: 1px solid #ccc; padding-bottom: 0.3rem; }
h3 { overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.5rem; border-bottom: 1px solid #ddd; text-align: right; }
th { vertical-align: bottom; border-bottom: 2px solid #888; }
th:first-child, td:first-child { text-align: left; min-width: 11rem; max-width: 20rem;
  overflow-wrap: anywhere; }
tr.front td { background: #e8f1f8; font-weight: 600; }
figure { margin: 1.2rem 0; }
img { max-width: 100%; height: auto; }
.failed { color: #8a1f00; }
nav a { display: inline-block; margin-right: 1rem; color: #0b5394; }
@media print { nav { display: none; } }
"""


def html(
    models: Sequence[tuple[str, list[Section]]], about: str, picture: Callable[[str], bytes]
) -> str:
    """The page. about: who made it. `picture` returns the SVG of a stem."""
    body = [
        "<h1>What compressed caches cost in quality</h1>",
        f"<p>{escape(about)} Shaded rows are on the Pareto front: no other cache of the "
        "table is both smaller and better. ↑: higher is better, ↓: lower is better. "
        f"{escape(SIZES)}</p>",
        _contents(models),
    ]
    for model, sections in models:
        body.append(f"<h2>{escape(model)}</h2>")
        body.append(_table(overview([each.group for each in sections])))
        for each in sections:
            body += _section(each, picture)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n<title>kvengine report</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )


def _contents(models: Sequence[tuple[str, list[Section]]]) -> str:
    links = [
        f'<a href="#{_anchor(each)}">{_breakable(each.group.title)}</a>'
        for _, sections in models
        for each in sections
    ]
    return f"<nav>{' '.join(links)}</nav>"


def _anchor(each: Section) -> str:
    return f"{slug(each.group.title)}-{each.group.id}"


def _section(each: Section, picture: Callable[[str], bytes]) -> list[str]:
    parts = [f'<h3 id="{_anchor(each)}">{_breakable(each.group.title)}</h3>', _table(each.table)]
    parts += [
        f'<p class="failed">{escape(name)}: no result: {escape(reason)}</p>'
        for name, reason in each.failed
    ]
    for shown in each.pictures:
        data = base64.b64encode(picture(shown.stem)).decode()
        parts.append(
            f'<figure><img alt="{escape(shown.title)}" src="data:image/svg+xml;base64,{data}">'
            "</figure>"
        )
    if each.details:
        parts.append(f"<details><summary>Parts</summary>{_table(each.details)}</details>")
    return parts


def _table(table: Table) -> str:
    head = "".join(f"<th>{_breakable(cell)}</th>" for cell in table.header)
    rows = [
        f"<tr{_FRONT if i in table.marked else ''}><td>{_breakable(row[0])}</td>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for i, row in enumerate(table.rows)
    ]
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


_FRONT = ' class="front"'


def _breakable(name: str) -> str:
    """A name with places where a line may end, of which a browser finds none; arrows stay with it."""
    kept = re.sub(r" (?=[↑↓])", "\u00a0", name)
    marks = ",:+" if re.search("[,:+]", kept) else "_"
    return re.sub(rf"(?<=[{marks}])(?=\S)", "<wbr>", escape(kept))
