"""`kvengine tokenize`: text into tokens."""

from __future__ import annotations

import argparse

from kvengine.cli.arguments import add_common, add_prompt, add_tokenizing
from kvengine.cli.inputs import open_vocabulary, prompt_bytes
from kvengine.cli.output import print_json

DESCRIPTION = "Turn text into tokens. Works on files that hold a vocabulary only."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_prompt(parser)
    add_tokenizing(parser)
    add_common(parser, computes=False)


def run(args: argparse.Namespace) -> None:
    text = prompt_bytes(args)
    _, tokenizer = open_vocabulary(args)
    tokens = tokenizer.encode(text, args.add_special, args.parse_special)
    # A piece may be part of a character: such bytes are spelled \xe2.
    pieces = [tokenizer.piece(token).decode("utf-8", "backslashreplace") for token in tokens]
    if args.json:
        print_json({"tokens": tokens, "pieces": pieces})
        return
    for token, piece in zip(tokens, pieces, strict=True):
        print(f"{token:>7} {piece!r}")
