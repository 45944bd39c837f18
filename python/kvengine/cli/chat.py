"""`kvengine chat`: talk with a model in a terminal."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from kvengine import CapacityError, Error, Session
from kvengine.cli.arguments import (
    InputError,
    add_common,
    add_compression,
    add_drafting,
    add_prompt,
    add_sampling,
    sampling_options,
)
from kvengine.cli.generate import add_system, conversation, speed_summary
from kvengine.cli.inputs import (
    compressed,
    compression_method,
    decoded,
    draft_options,
    load_session,
    prompt_text,
    read_json,
    with_question,
)
from kvengine.cli.output import Progress, cache_summary, say

DESCRIPTION = "Talk with a model. -p or -f gives the first message."

HELP = """\
/help         this
/stats        what the cache costs
/reset        forget the conversation
/save FILE    write the conversation and its cache (FILE and FILE.json)
/load FILE    go on with a saved conversation
/exit         leave, as Ctrl-D does
Ctrl-C stops an answer. A line that ends with \\ goes on in the next line; a line of three quotes
(\"\"\") begins and ends a message of several lines."""

_BLOCK = '"""'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_prompt(parser, required=False)
    add_system(parser)
    add_sampling(parser)
    add_drafting(parser)
    add_compression(parser)
    add_common(parser)


def run(args: argparse.Namespace) -> None:
    if args.json:
        raise InputError("--json: expected a single answer (kvengine generate --chat), found chat")
    first = None
    if hasattr(args, "prompt") or hasattr(args, "file"):
        first = with_question(args, prompt_text(args))
    elif hasattr(args, "compress_prompt") or hasattr(args, "question"):
        raise InputError("--compress-prompt and --question: expected -p or -f beside them")
    method = compression_method(args)
    options = sampling_options(args)
    session = load_session(args)
    options |= draft_options(args)
    model = session.model
    chat = Chat(session, args.system_prompt, options)
    # Rendered once beforehand: a model without a template is refused before anybody has typed.
    model.render(conversation(args.system_prompt, "Hello"))
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (gives input() editing and history)

        say(f"{model.name or model.path}, cache {chat.session.cache.spec} (/help for commands)")
    if first:
        if method:
            first = model.tokenizer.decode(compressed(args, model, first, method).tokens)
        chat.answer(first)
    while (message := read_message()) is not None:
        if not message.strip():
            continue
        if message.startswith("/") and "\n" not in message:
            if not chat.command(message):
                return
        else:
            chat.answer(message)


def read_message() -> str | None:
    """One message from standard input; None at its end."""
    prompt = ("> ", ". ") if sys.stdin.isatty() else ("", "")
    lines: list[str] = []
    in_block = False
    while True:
        try:
            line = input(prompt[bool(lines) or in_block])
        except EOFError:
            return "\n".join(lines) if lines else None
        except KeyboardInterrupt:  # drops what was typed
            say("")
            lines, in_block = [], False
            continue
        except UnicodeDecodeError:
            raise InputError("standard input: expected UTF-8 text, found other bytes") from None
        if line.strip() == _BLOCK:
            if in_block:
                return "\n".join(lines)
            in_block = True
        elif in_block:
            lines.append(line)
        elif line.endswith("\\"):
            lines.append(line[:-1])
        else:
            return "\n".join([*lines, line])


class Chat:
    """A conversation and the session that has read it."""

    def __init__(self, session: Session, system: str | None, options: dict[str, Any]) -> None:
        self.session = session
        self._system = [{"role": "system", "content": system}] if system else []
        self.messages = list(self._system)
        self._options = options

    def answer(self, message: str) -> None:
        """Read a message and print the answer. Ctrl-C stops it; what was said until then stays."""
        decoded(message.encode("utf-8", "surrogateescape"), "message")
        self.messages.append({"role": "user", "content": message})
        text, answer = "", None
        try:
            with Progress("reading") as progress:
                answer = self.session.generate(
                    self.messages, progress=progress.update, **self._options
                )
            for piece in answer:
                text += piece.text
                sys.stdout.write(piece.text)
                sys.stdout.flush()
        except KeyboardInterrupt:
            say(" (stopped)" if text else "(stopped)")
        except CapacityError as error:
            say(f"{error}: /reset begins anew, -c gives more room")
        finally:
            if text:
                self.messages.append({"role": "assistant", "content": text})
            else:
                self.messages.pop()
        print(flush=True)
        if answer and answer.finish_reason == "length":
            say("(the answer was cut off: -n or the context is used up)")
        if answer and sys.stderr.isatty():
            say(f"[{speed_summary(answer)}]")

    def command(self, line: str) -> bool:
        """Carry out a command such as /stats; False to leave."""
        name, _, argument = line.strip().partition(" ")
        argument = argument.strip()
        try:
            if name in ("/exit", "/quit", "/bye"):
                return False
            if name == "/help":
                say(HELP)
            elif name == "/stats":
                say(cache_summary(self.session.cache.stats()))
            elif name == "/reset":
                self.messages = list(self._system)
                self.session.truncate(0)
                say("forgotten")
            elif name in ("/save", "/load") and not argument:
                say(f"{name}: expected a file name, found none")
            elif name == "/save":
                self._save(Path(argument))
            elif name == "/load":
                self._load(Path(argument))
            else:
                say(f"{name}: expected a command that /help tells, found none of them")
        except (Error, InputError, OSError) as error:
            say(f"{name}: {error}")
        return True

    def _save(self, path: Path) -> None:
        self.session.save(path)
        messages = _messages_path(path)
        temporary = messages.with_name(messages.name + ".tmp")
        temporary.write_text(json.dumps(self.messages, ensure_ascii=False), encoding="utf-8")
        temporary.replace(messages)
        say(f"saved {path} and {messages}")

    def _load(self, path: Path) -> None:
        messages = read_json(_messages_path(path))
        if not isinstance(messages, list) or not all(
            isinstance(each, dict) and {"role", "content"} <= each.keys() for each in messages
        ):
            raise InputError(f"{_messages_path(path)}: expected a list of messages")
        self.session = self.session.model.restore(path)
        self.messages = messages
        say(f"loaded {self.session.n_tokens} tokens, {len(messages)} messages")


def _messages_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")
