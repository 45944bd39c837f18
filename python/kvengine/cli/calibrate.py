"""`kvengine calibrate`: what each layer's cache can bear."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from kvengine import Model
from kvengine.cli.arguments import add_common, add_prompt, whole
from kvengine.cli.inputs import load_model, prompt_text
from kvengine.cli.output import Progress, print_json, print_table, say
from kvengine.compress import calibrate_bases, calibrate_gates
from kvengine.compress.bases import GROUP
from kvengine.compress.gates import MOST_TOKENS, TEXTS
from kvengine.eval.calibration import calibrate

DESCRIPTION = (
    "Code the keys and the values of each layer alone at 2 bits and measure the divergence over a "
    "text. --cache auto --kv-budget SIZE --kv-calibration FILE then spends bits where they count. "
    "With --bases, find instead what groups of heads have in common, for --cache "
    "palu:basis=FILE and lowrank:basis=FILE (arXiv 2407.21118). With --gates, which heads need all "
    "tokens, for --cache duo:gates=FILE (arXiv 2410.10819)."
)

_DEFAULT_WINDOW = 1024
_BASES_WINDOW = 2048
_BASES_WINDOWS = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_prompt(parser)
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FILE",
        help="JSON, GGUF with --bases, text with --gates",
    )
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--bases", action="store_true", help="write bases of keys and values")
    kinds.add_argument("--gates", action="store_true", help="write gates of kv heads")
    parser.add_argument(
        "--group",
        type=whole(1),
        default=GROUP,
        help=f"with --bases: most kv heads that are joined ({GROUP})",
    )
    parser.add_argument(
        "--chunks",
        type=whole(1),
        help="with --bases, --gates: most windows (of -c tokens, 2048 or 1024) of the text that "
        f"are read ({_BASES_WINDOWS}, {TEXTS})",
    )
    add_common(parser, cache=False)


def _write_bases(args: argparse.Namespace, model: Model, text: str) -> None:
    with Progress("reading the text") as progress:
        found = calibrate_bases(
            model,
            text,
            args.output,
            args.group,
            args.ctx_size or _BASES_WINDOW,
            args.chunks or _BASES_WINDOWS,
            progress.update,
        )
    if found.warning:
        say(f"warning: {found.warning}")
    if args.json:
        print_json(asdict(found) | {"path": str(found.path)})
        return
    energies = zip(found.key_energy, found.value_energy, strict=True)
    print_table(
        ["layer", "keys in half", "values in half"],
        [[i, f"{100 * k:.1f} %", f"{100 * v:.1f} %"] for i, (k, v) in enumerate(energies)],
    )
    print(
        f"{found.path}: groups of {found.group} heads, {found.tokens} tokens; "
        f"--cache palu:basis={found.path}"
    )


def _write_gates(args: argparse.Namespace, model: Model, text: str) -> None:
    with Progress("reading the text") as progress:
        found = calibrate_gates(
            model, text, args.ctx_size or MOST_TOKENS, args.chunks or TEXTS, progress.update
        )
    found.write(args.output)
    if args.json:
        print_json(asdict(found) | {"path": str(Path(args.output))})
        return
    heads = max(map(len, found.areas))
    print_table(
        ["layer", *(f"head {head}" for head in range(heads))],
        [[i, *(f"{area:.4f}" for area in layer)] for i, layer in enumerate(found.areas)],
    )
    print(
        f"{args.output}: {found.texts} texts of {found.tokens} tokens; "
        f"--cache duo:gates={args.output}"
    )


def run(args: argparse.Namespace) -> None:
    text = prompt_text(args)
    model = load_model(args)
    if args.bases:
        _write_bases(args, model, text)
    elif args.gates:
        _write_gates(args, model, text)
    else:
        _write_damage(args, model, text)


def _write_damage(args: argparse.Namespace, model: Model, text: str) -> None:
    with Progress("measuring layers") as progress:
        found = calibrate(model, text, args.ctx_size or _DEFAULT_WINDOW, progress.update)
    found.write(args.output)
    if args.json:
        print_json(asdict(found) | {"path": str(Path(args.output))})
        return
    pairs = zip(found.damage[::2], found.damage[1::2], strict=True)
    print_table(
        ["layer", "keys", "values"],
        [[i, f"{keys:.6f}", f"{values:.6f}"] for i, (keys, values) in enumerate(pairs)],
    )
