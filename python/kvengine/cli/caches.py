"""`kvengine caches`: the caches there are."""

from __future__ import annotations

import argparse
import itertools
import shutil
import textwrap
from collections.abc import Sequence

from kvengine import caches
from kvengine._core import CacheListing
from kvengine.cache_names import known_names
from kvengine.cli.arguments import add_json
from kvengine.cli.output import print_json

DESCRIPTION = (
    "List what a cache spec (--cache) may name. A spec is a name with parameters, for keys and "
    "values or for one of them: 'int4:group=32,tail=64', 'k=q8_0 + v=q4_0'. Any may be for some "
    "layers or kv heads (first=2, last=1, layers=3-5, heads=0), a codec for old pages (older=1024)."
)

_KEYS = ("name", "kind", "spec", "parameters", "paper", "bits_per_value")
_TITLES = {
    "preset": "Presets: whole specs",
    "selector": "Selectors: which tokens stay",
    "projector": "Projectors: the basis that rows are written in",
    "codec": "Codecs: how numbers are written",
}
_INDENT = " " * 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    listings = caches()
    if args.json:
        print_json([{key: getattr(each, key) for key in _KEYS} for each in listings])
        return
    for kind, title in _TITLES.items():
        of_kind = [each for each in listings if each.kind == kind]
        print(f"{title}\n")
        for _, alike in itertools.groupby(of_kind, lambda each: (each.parameters, each.paper)):
            _print_alike(list(alike), with_spec=kind == "preset")
    print("Names of transformers and kvpress, as in 'SnapKVPress(compression_ratio=0.5) + kivi2'\n")
    _print_wrapped(", ".join(known_names()))


def _print_alike(listings: Sequence[CacheListing], *, with_spec: bool) -> None:
    """Entries with the same parameters, which are printed once below them."""
    for each in listings:
        origin = f"arXiv {each.paper}" if each.paper[:1].isdigit() else each.paper
        bits = "" if each.kind == "selector" else f"{each.bits_per_value:.5g} bits"
        print(f"  {each.name:<14}{bits:<14}{origin}")
        if with_spec:
            _print_wrapped(each.spec.replace("+", " + "))
    if listings[0].parameters:
        _print_wrapped(listings[0].parameters)
    print()


def _print_wrapped(text: str) -> None:
    width = max(40, min(100, shutil.get_terminal_size().columns))
    print(
        textwrap.fill(
            text,
            width,
            initial_indent=_INDENT,
            subsequent_indent=_INDENT,
            break_long_words=False,
            break_on_hyphens=False,
        )
    )
