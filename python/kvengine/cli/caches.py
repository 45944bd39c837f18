"""`kvengine caches`: the caches there are."""

from __future__ import annotations

import argparse

from kvengine import caches
from kvengine.cli.arguments import add_json
from kvengine.cli.output import print_json, print_table

DESCRIPTION = (
    "List what a cache spec (--cache) may name. A spec is a name with parameters, for keys and "
    "values or for one of them: 'int4:group=32,tail=64', 'k=q8_0 + v=q4_0'. Any may be for some "
    "layers or kv heads (first=2, last=1, layers=3-5, heads=0), a codec for old pages (older=1024)."
)

_KEYS = ("name", "kind", "spec", "parameters", "paper", "bits_per_value")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    rows = [{key: getattr(each, key) for key in _KEYS} for each in caches()]
    if args.json:
        print_json(rows)
    else:
        print_table([key.replace("_", " ") for key in _KEYS], [list(row.values()) for row in rows])
