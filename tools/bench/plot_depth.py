"""Draws speed against depth from what `kvengine bench --json` printed.

    kvengine bench -p 512 -n 32 -d 0,2048,7936 --peer llama-cpp-python --json > depth.json
    python tools/bench/plot_depth.py depth.json -o depth.svg

Several files (of one model, say with other caches) make one picture. Needs matplotlib, which is
part of the extra "eval".
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

Points = list[tuple[int, float]]
"""(depth, tokens per second), in order of depth."""

_TEST = re.compile(r"(pp|tg)(\d+)(?:@d(\d+))?")
_TITLES = {"pp": "reading a prompt (pp{n})", "tg": "decoding (tg{n})"}
_OWN = "kvengine"


def read_series(documents: list[list[dict[str, Any]]]) -> dict[str, dict[str, Points]]:
    """The lines of each panel: {"tg32": {"kvengine f16": [(0, 310.0), ...]}}."""
    panels: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in (row for document in documents for row in document):
        test = _TEST.fullmatch(row["test"])
        if test:  # others do not depend on depth
            kind, n, depth = test.groups()
            line = panels[kind + n][f"{row['engine']} {row['cache']}"]
            line[int(depth or 0)] = row["tps_median"]
    return {
        panel: {name: sorted(points.items()) for name, points in lines.items()}
        for panel, lines in panels.items()
    }


def draw(panels: dict[str, dict[str, Points]], title: str, out: Path) -> None:
    """One panel per test, one line per engine and cache; a peer's lines are dashed."""
    import matplotlib

    matplotlib.use("Agg")
    # The same picture is the same file.
    matplotlib.rcParams.update({"svg.hashsalt": "kvengine", "svg.fonttype": "path"})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.6 * len(panels), 3.6), squeeze=False)
    colours = {}
    for axis, (panel, lines) in zip(axes[0], sorted(panels.items()), strict=True):
        for name, points in lines.items():
            colour = colours.setdefault(name, f"C{len(colours)}")
            style = "o-" if name.startswith(_OWN) else "s--"
            axis.plot(*zip(*points, strict=True), style, color=colour, label=name, markersize=4)
        kind, n = panel[:2], panel[2:]
        axis.set_title(_TITLES[kind].format(n=n), fontsize=10)
        axis.set_xlabel("tokens in the cache")
        axis.set_ylabel("tokens per second")
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda y, _: f"{y:g}"))
        axis.yaxis.set_minor_formatter(matplotlib.ticker.FuncFormatter(_sparse_label))
        axis.tick_params(axis="y", which="minor", labelsize=8)
        axis.grid(True, which="both", alpha=0.3)
    axes[0][-1].legend(fontsize=8)
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    metadata = {"Date": None} if out.suffix == ".svg" else {}
    figure.savefig(out, metadata=metadata)
    pyplot.close(figure)


def _sparse_label(value: float, _position: int) -> str:
    first = f"{value:.0e}"[0]
    return f"{value:g}" if first in "25" else ""


def main(argv: list[str] | None = None) -> int:
    """Exit status 2 for files that are not what the bench writes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, help="what `kvengine bench --json` printed")
    parser.add_argument("-o", "--out", type=Path, required=True, help="SVG or PNG file to write")
    parser.add_argument("--title", help="default: model and number of threads")
    args = parser.parse_args(argv)
    try:
        documents = [json.loads(path.read_text()) for path in args.files]
        panels = read_series(documents)
        first = documents[0][0]
        title = args.title or f"{first['model']}, {first['threads']} threads"
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        print(f"plot_depth: expected lists that the bench wrote, found {error!r}", file=sys.stderr)
        return 2
    if not panels:
        print("plot_depth: expected tests ppN or tgN, found none", file=sys.stderr)
        return 2
    draw(panels, title, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
