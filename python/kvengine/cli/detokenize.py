"""`kvengine detokenize`: tokens into text."""

from __future__ import annotations

import argparse
import sys

from kvengine.cli.arguments import add_common, whole_list
from kvengine.cli.inputs import open_vocabulary
from kvengine.cli.output import print_json

DESCRIPTION = "Turn tokens into text. Works on files that hold a vocabulary only."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tokens", type=_tokens, required=True, metavar="1,2,3", help="token ids")
    parser.add_argument(
        "--special", action="store_true", help="spell control tokens out instead of dropping them"
    )
    add_common(parser, computes=False)


def _tokens(text: str) -> list[int]:
    return whole_list(0)(text) if text.strip() else []


def run(args: argparse.Namespace) -> None:
    _, tokenizer = open_vocabulary(args)
    text = tokenizer.decode(args.tokens, render_special=args.special)
    if args.json:
        print_json({"text": text})
    else:
        sys.stdout.write(text + "\n" * sys.stdout.isatty())
