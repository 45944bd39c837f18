"""`kvengine pull`: fetch a model."""

from __future__ import annotations

import argparse

from kvengine import pull
from kvengine.cli.arguments import add_json
from kvengine.cli.inputs import obtain
from kvengine.cli.output import human_bytes, print_json, print_table, say

DESCRIPTION = "Fetch a model, check it and keep it in $KVENGINE_HOME (default ~/.cache/kvengine)."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name",
        nargs="?",
        default=pull.DEFAULT_MODEL,
        help=f"{', '.join(pull.MODELS)} or hf:OWNER/REPO/FILE.gguf",
    )
    parser.add_argument("--list", action="store_true", help="list the models known by name")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    if args.list:
        _list(args.json)
        return
    path = obtain(args.name, verify=True)
    if args.json:
        print_json(
            {
                "path": str(path),
                "name": args.name,
                "bytes": path.stat().st_size,
                "sha256": pull.sha256_of(path),
            }
        )
    else:
        print(path)
        say(f"{args.name}: {human_bytes(path.stat().st_size)}, ready")


def _list(as_json: bool) -> None:
    models = pull.MODELS.values()
    if as_json:
        print_json(
            [
                {
                    "name": model.name,
                    "path": str(pull.home() / model.file),
                    "bytes": model.bytes,
                    "sha256": model.sha256,
                    "license": model.license,
                    "present": pull.is_present(model),
                }
                for model in models
            ]
        )
        return
    print_table(
        ["name", "size", "license", "here", "file"],
        [
            [
                model.name,
                human_bytes(model.bytes),
                model.license,
                "yes" if pull.is_present(model) else "no",
                pull.home() / model.file,
            ]
            for model in models
        ],
    )
