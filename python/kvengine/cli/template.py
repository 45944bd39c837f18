"""`kvengine template`: a conversation as the model's chat template writes it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kvengine.cli.arguments import InputError, add_common
from kvengine.cli.inputs import open_vocabulary, read_json
from kvengine.cli.output import print_json
from kvengine.model import render_messages

DESCRIPTION = (
    "Write a conversation the way the model's own chat template does. "
    "Works on files that hold a vocabulary only."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--messages",
        required=True,
        metavar="FILE.json",
        help='a list of messages, or an object with "messages" and other variables such as "tools"',
    )
    parser.add_argument(
        "--add-generation-prompt",
        action=argparse.BooleanOptionalAction,
        help="end with what begins an answer",
    )
    add_common(parser, computes=False)


def run(args: argparse.Namespace) -> None:
    document = read_json(Path(args.messages))
    variables = dict(document) if isinstance(document, dict) else {"messages": document}
    messages = variables.pop("messages", None)
    if not isinstance(messages, list) or not all(isinstance(each, dict) for each in messages):
        raise InputError(f"{args.messages}: expected a list of messages, found something else")
    if args.add_generation_prompt is not None:
        variables["add_generation_prompt"] = args.add_generation_prompt
    variables.setdefault("add_generation_prompt", False)
    file, tokenizer = open_vocabulary(args)
    text = render_messages(file, tokenizer, messages, **variables)
    if args.json:
        print_json({"text": text})
    else:
        sys.stdout.write(text + "\n" * sys.stdout.isatty())
