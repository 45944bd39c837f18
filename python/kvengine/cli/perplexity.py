"""`kvengine perplexity`: the quality of a cache on a text."""

from __future__ import annotations

import argparse

from kvengine import canonical_cache
from kvengine.cli.arguments import InputError, add_common, add_prompt, cache_spec, whole
from kvengine.cli.inputs import load_model, planned_cache, prompt_text
from kvengine.cli.output import Progress, cache_summary, print_json, say
from kvengine.eval.perplexity import PerplexityOptions, PerplexityResult, Window, perplexity

DESCRIPTION = (
    "Measure perplexity by llama.cpp's protocol: windows of -c tokens (default 512), the second "
    "half of each scored. Each window is fed --feed tokens at a time, so that the cache is read."
)

_DEFAULT_WINDOW = 512


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_prompt(parser)
    parser.add_argument(
        "--chunks", type=whole(-1), default=-1, help="most windows; -1: all there are"
    )
    parser.add_argument("--feed", type=whole(1), default=32, help="tokens per forward pass")
    parser.add_argument(
        "--prefill",
        type=whole(0),
        default=0,
        help="tokens of each window that are read in one go first, as a prompt, at whose end "
        "selectors drop tokens",
    )
    parser.add_argument(
        "--stride",
        "--ppl-stride",
        type=whole(0),
        default=0,
        help="start windows that far apart and score the last tokens of each; 0: no overlap",
    )
    parser.add_argument(
        "--reference",
        nargs="?",
        const="f32",
        metavar="SPEC",
        default=argparse.SUPPRESS,
        help="also measure the divergence from this cache (f32 if none is named)",
    )
    add_common(parser)


def run(args: argparse.Namespace) -> None:
    reference = getattr(args, "reference", None)
    spec = cache_spec(args)
    if reference is not None:
        reference = canonical_cache(reference)
    if args.chunks == 0:
        raise InputError("--chunks: expected 1 or more windows, or -1 for all, found 0")
    text = prompt_text(args)
    model = load_model(args)
    spec = planned_cache(args, model, spec, args.ctx_size or _DEFAULT_WINDOW)
    options = PerplexityOptions(
        n_ctx=args.ctx_size or _DEFAULT_WINDOW,
        feed=args.feed,
        prefill=args.prefill,
        chunks=None if args.chunks < 0 else args.chunks,
        stride=args.stride or None,
        cache=spec,
        reference=reference,
        exact=args.exact,
    )
    with Progress("measuring") as progress:
        result = perplexity(model, text, options, _say_window, progress.update)
    if args.json:
        print_json(result.as_dict())
    else:
        _print(result)


def _say_window(window: Window) -> None:
    line = (
        f"window {window.index + 1}/{window.count}: ppl {window.ppl:.4f}, "
        f"so far {window.ppl_so_far:.4f}"
    )
    if window.kld_so_far is not None:
        line += f", mean kld {window.kld_so_far:.6f}"
    say(line)


def _print(result: PerplexityResult) -> None:
    print(f"ppl            {result.ppl:.4f} +/- {result.ppl_error:.4f}")
    if result.ppl_reference is not None and result.same_top is not None:
        print(f"ppl reference  {result.ppl_reference:.4f}")
        print(f"kld mean       {result.kld_mean:.6f}")
        print(f"kld median     {result.kld_median:.6f}")
        print(f"kld p99        {result.kld_p99:.6f}")
        print(f"kld p99.9      {result.kld_p999:.6f}")
        print(f"same top       {100 * result.same_top:.2f} %")
    activations = "f32" if result.exact else "rounded (int8 or bf16)"
    print(
        f"{result.windows} windows, {result.scored_tokens} tokens scored, {activations} activations"
    )
    print(cache_summary(result.cache))
