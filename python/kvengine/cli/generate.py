"""`kvengine generate`: answer a prompt."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from kvengine import Generation, Session, peak_resident_bytes
from kvengine.cli.arguments import (
    add_common,
    add_compression,
    add_drafting,
    add_prompt,
    add_sampling,
    sampling_options,
)
from kvengine.cli.inputs import (
    compressed,
    compression_method,
    draft_options,
    load_session,
    prompt_text,
    with_question,
)
from kvengine.cli.output import Progress, cache_summary, print_json, say

DESCRIPTION = "Go on with a prompt, or answer it (--chat), and say what the cache cost."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_prompt(parser)
    parser.add_argument(
        "--chat", action="store_true", help="the prompt is a message; use the model's chat template"
    )
    add_system(parser)
    add_sampling(parser)
    add_drafting(parser)
    add_compression(parser)
    add_common(parser)


def add_system(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-sys", "--system-prompt", "--system", metavar="TEXT", help="system message (with --chat)"
    )


def run(args: argparse.Namespace) -> int:
    text = prompt_text(args)
    if hasattr(args, "file"):
        text = text.removesuffix("\n")  # as llama.cpp: the editor's, not the writer's
    text = with_question(args, text)
    method = compression_method(args)
    session = load_session(args)
    options = sampling_options(args) | draft_options(args)
    prompt: Any = conversation(args.system_prompt, text) if args.chat else text
    compression = None
    if method:
        compression = compressed(args, session.model, prompt, method)
        prompt = compression.tokens
    with Progress("reading the prompt") as progress:
        answer = session.generate(prompt, progress=progress.update, **options)
    pieces, interrupted = [], False
    try:
        for piece in answer:
            pieces.append(piece)
            if not args.json:
                sys.stdout.write(piece.text)
                sys.stdout.flush()
    except KeyboardInterrupt:
        interrupted = True
    if not args.json:
        print(flush=True)
        say(f"{cache_summary(session.cache.stats())}\n{speed_summary(answer)}, seed {args.seed}")
    elif not interrupted:
        document = _document(session, answer, pieces)
        if compression:
            document["prompt_compression"] = compression.as_dict()
        print_json(document)
    return 130 if interrupted else 0


def conversation(system: str | None, text: str) -> list[dict[str, str]]:
    """The messages of a conversation that begins with `text`."""
    head = [{"role": "system", "content": system}] if system else []
    return [*head, {"role": "user", "content": text}]


def prompt_tps(answer: Generation) -> float | None:
    """Tokens of the prompt read per second; None if none were."""
    if not answer.prompt_tokens or answer.prompt_seconds <= 0:
        return None
    return answer.prompt_tokens / answer.prompt_seconds


def decode_tps(answer: Generation) -> float | None:
    """Tokens decoded per second; None if none were: the first comes from the prompt's logits."""
    if answer.generated_tokens < 2 or answer.decode_seconds <= 0:
        return None
    return (answer.generated_tokens - 1) / answer.decode_seconds


def speed_summary(answer: Generation) -> str:
    def rate(tps: float | None) -> str:
        return f" at {tps:.1f} tokens/s" if tps else ""

    line = (
        f"prompt {answer.prompt_tokens} tokens{rate(prompt_tps(answer))}, "
        f"answer {answer.generated_tokens} tokens{rate(decode_tps(answer))}"
    )
    if answer.drafted_tokens:
        line += f", {answer.accepted_tokens} of {answer.drafted_tokens} guesses right"
    return line


def _document(session: Session, answer: Generation, pieces: list[Any]) -> dict[str, Any]:
    return {
        "text": "".join(piece.text for piece in pieces),
        "tokens": [piece.token for piece in pieces if piece.token is not None],
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "prompt_tps": prompt_tps(answer),
        "decode_tps": decode_tps(answer),
        "drafted": answer.drafted_tokens,
        "accepted": answer.accepted_tokens,
        "cache": session.cache.stats().as_dict(),
        "peak_rss_bytes": peak_resident_bytes(),
    }
