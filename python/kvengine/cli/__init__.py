"""The command ``kvengine``: one verb, one file.

A verb's module has ``DESCRIPTION``, ``add_arguments(parser)`` and ``run(args)``, which returns an
exit status or None for success. Its result goes to standard output, everything else to standard
error. Exit status: 0 done, 2 bad usage or bad input (one line), 130 interrupted, 1 anything else.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

VERBS = {
    "pull": "fetch a model",
    "inspect": "show what a GGUF file holds",
    "tokenize": "turn text into tokens",
    "detokenize": "turn tokens into text",
    "template": "write a conversation the way the model's chat template does",
    "generate": "answer a prompt",
    "chat": "talk with a model",
    "logits": "compute logits, to a file or as a table",
    "perplexity": "measure the quality of a cache on a text",
    "eval": "measure what caches cost in quality, task by task",
    "compare": "measure many caches by many tasks, with a report",
    "bench": "measure speed",
    "calibrate": "measure what each layer's cache can bear, for --cache auto",
    "compress": "write a model with fewer heads of keys and values",
    "caches": "list the caches there are",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (by default the process's own) and return its exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage(), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    try:
        return _run(argv)
    except BrokenPipeError:
        # Whoever read our output has left. Nothing may be flushed into the closed pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("kvengine: interrupted", file=sys.stderr)
        return 130


def _run(argv: list[str]) -> int:
    from kvengine import _core
    from kvengine.cli.arguments import InputError, Parser

    verb = argv[0]
    name = "kvengine"
    try:
        if verb in ("-V", "--version"):
            print(f"kvengine {_core.__version__}")
            return 0
        if verb not in VERBS:
            raise InputError(f"verb: expected one of {', '.join(VERBS)}, found '{verb[:40]}'")
        name = f"kvengine {verb}"
        module = importlib.import_module(f"kvengine.cli.{verb}")
        parser = Parser(prog=name, description=module.DESCRIPTION)
        module.add_arguments(parser)
        arguments = parser.parse_args(argv[1:])
        with _told_warnings(name):
            status = module.run(arguments) or 0
        sys.stdout.flush()
        return status
    except _core.Error as error:
        return _fail(name, error, status=_status_of(error))
    except InputError as error:
        return _fail(name, error, status=2)
    except BrokenPipeError:
        raise
    except MemoryError:
        return _fail(name, "memory: expected enough, found the system out of it", status=1)
    except OSError as error:
        return _fail(name, f"{error.filename or 'system'}: {error.strerror or error}", status=1)


@contextlib.contextmanager
def _told_warnings(name: str) -> Iterator[None]:
    """Warnings about caches are told as everything else is: one line each, and once."""
    from kvengine.model import CacheWarning

    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: Any) -> None:
            if issubclass(category, CacheWarning):
                print(f"{name}: warning: {message}", file=sys.stderr, flush=True)
            else:
                usual(message, category, *rest)

        warnings.simplefilter("once", CacheWarning)
        warnings.showwarning = show
        yield


def _status_of(error: Exception) -> int:
    from kvengine import _core
    from kvengine.pull import PullError

    if isinstance(error, _core.CancelledError):
        return 130
    return 1 if isinstance(error, PullError | _core.DeviceError) else 2


def _fail(name: str, reason: object, status: int) -> int:
    sentence = " ".join(str(reason).split())
    print(f"{name}: {sentence}", file=sys.stderr)
    return status


def _usage() -> str:
    lines = [
        "usage: kvengine VERB [options]",
        "",
        "Runs GGUF language models and keeps their key/value cache compressed.",
        "",
        *(f"  {verb:<12}{summary}" for verb, summary in VERBS.items()),
        "",
        "kvengine VERB --help says more; kvengine --version tells the version.",
    ]
    return "\n".join(lines)
