"""`kvengine compress`: a model with fewer heads of keys and values."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from kvengine.cli.arguments import InputError, add_json, whole
from kvengine.cli.inputs import decoded, named_model, read_file
from kvengine.cli.output import Progress, human_bytes, print_json, print_table, say
from kvengine.compress import METHODS, MODES, HeadOptions, HeadReport, compress_kv_heads

DESCRIPTION = (
    "Write a model whose cache holds fewer heads of keys and values (arXiv 2406.07056). svd-a "
    "finds what groups of heads have in common in the activations of a calibration text, svd-w in "
    "the weights; mean-pool averages heads (GQA), mqa all of them. Nothing is trained."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="IN.gguf", help="GGUF file, or a model to pull")
    parser.add_argument("target", metavar="OUT.gguf")
    parser.add_argument("--method", choices=METHODS, default="svd-a", help="what shares a head")
    parser.add_argument(
        "--mode",
        choices=MODES,
        default="projection",
        help="of svd-a: merge keys after their rotary embedding (in the weights of models that have "
        "none), or keep what they had in common "
        "before it and lift them out of that for every token that is read (latent)",
    )
    parser.add_argument(
        "--groups", type=whole(1), help="heads of keys and values that remain; mqa: 1"
    )
    parser.add_argument("--calibration", metavar="FILE", help="text that svd-a reads, may be .gz")
    parser.add_argument(
        "--chunks", type=whole(1), default=16, help="most windows of the text that are read"
    )
    parser.add_argument("-c", "--ctx-size", type=whole(1), default=2048, help="tokens of a window")
    parser.add_argument(
        "--type", default="F16", help="weight type of the tensors that change: F32, F16, Q8_0, ..."
    )
    parser.add_argument(
        "-t", "--threads", type=whole(0, 1024), default=0, help="threads; 0: all processors"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    text = None
    if args.calibration is not None:
        text = decoded(read_file(Path(args.calibration)), args.calibration)
    source = named_model(args.source, "IN.gguf")
    if Path(args.target).exists() and Path(args.target).samefile(source):
        raise InputError(f"{args.target}: expected another file than the one that is read")
    options = HeadOptions(
        method=args.method,
        groups=args.groups,
        mode=args.mode,
        type=args.type.upper(),
        n_ctx=args.ctx_size,
        windows=args.chunks,
        threads=args.threads,
    )
    with Progress("reading the calibration text") as progress:
        report = compress_kv_heads(source, args.target, options, text, progress.update)
    if report.warning:
        say(f"warning: {report.warning}")
    if args.json:
        print_json(dataclasses.asdict(report) | {"path": str(report.path)})
    else:
        _print(report)


def _print(report: HeadReport) -> None:
    if report.key_energy:
        energies = zip(report.key_energy, report.value_energy, strict=True)
        print_table(
            ["layer", "keys kept", "values kept"],
            [[i, f"{100 * k:.1f} %", f"{100 * v:.1f} %"] for i, (k, v) in enumerate(energies)],
        )
    before, after = report.kv_bytes_per_token_before, report.kv_bytes_per_token
    print(
        f"{report.path}: {human_bytes(report.path.stat().st_size)}, {report.n_kv_heads} -> "
        f"{report.groups} heads of keys and values, cache in f16 {before} -> {after} bytes per token"
    )
