"""`kvengine logits`: logits of a prompt, to a file or as a table."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from kvengine import Session
from kvengine.cli.arguments import InputError, add_common, add_prompt, add_tokenizing
from kvengine.cli.inputs import load_session, prompt_text
from kvengine.cli.output import Progress, print_json, print_table, say

DESCRIPTION = "Compute logits: float32 [n_tokens, vocab_size] with --all, else [1, vocab_size]."

_CHUNK = 256  # tokens per forward pass: bounds the memory, whatever the length of the prompt
_LIKELIEST = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_prompt(parser, tokens=True)
    parser.add_argument("--all", action="store_true", help="of every token, not only the last")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE.npy",
        default=argparse.SUPPRESS,
        help="file to write; without it the likeliest next tokens are shown",
    )
    add_tokenizing(parser)
    add_common(parser)


def run(args: argparse.Namespace) -> None:
    output = getattr(args, "output", None)
    if args.all and output is None:
        raise InputError("-o/--output: expected a file to write with --all, found none")
    if output is not None and not Path(output).absolute().parent.is_dir():
        raise InputError(f"-o/--output: expected a file in a folder that exists, found '{output}'")
    text = None if hasattr(args, "tokens") else prompt_text(args)
    session = load_session(args)
    model = session.model
    if text is None:
        tokens = args.tokens
    else:
        tokens = model.tokenizer.encode(text, args.add_special, args.parse_special)
    if len(tokens) > session.n_ctx:
        raise InputError(
            f"context: expected at most {session.n_ctx} tokens (raise -c), found {len(tokens)}"
        )
    shape = [len(tokens) if args.all else 1, model.vocab_size]
    with Progress("computing logits") as progress:
        if output is not None:
            write_npy(Path(output), shape, _rows(session, tokens, args.all, progress))
        else:
            last = session.forward(tokens, progress=progress.update)
    if args.json:
        print_json({"shape": shape, "file": output})
    elif output is not None:
        say(f"{output}: float32 {shape}")
    else:
        _print_likeliest(session, last[0])


def _rows(
    session: Session, tokens: list[int], every: bool, progress: Progress
) -> Iterator[np.ndarray]:
    if not every:
        yield session.forward(tokens, progress=progress.update)
        return
    for first in range(0, len(tokens), _CHUNK):
        chunk = tokens[first : first + _CHUNK]
        yield session.forward(chunk, all_logits=True)
        progress.update(first + len(chunk), len(tokens))


def write_npy(path: Path, shape: list[int], blocks: Iterator[np.ndarray]) -> None:
    """Write a float32 array block by block; the file appears when it is complete."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": tuple(shape)}
            np.lib.format.write_array_header_1_0(file, header)
            for block in blocks:
                file.write(np.ascontiguousarray(block, dtype="<f4").data)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp's files are private
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _print_likeliest(session: Session, logits: np.ndarray) -> None:
    wide = logits.astype(np.float64)
    log_p = wide - wide.max()
    log_p -= np.log(np.exp(log_p).sum())
    tokenizer = session.model.tokenizer
    rows = []
    for token in np.argsort(-log_p)[:_LIKELIEST].tolist():
        piece = tokenizer.piece(token) if token < tokenizer.vocab_size else b""
        text = repr(piece.decode("utf-8", "backslashreplace"))
        rows.append([token, f"{np.exp(log_p[token]):.4f}", f"{logits[token]:.4f}", text])
    print_table(["token", "probability", "logit", "text"], rows)
