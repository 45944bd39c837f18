"""Which tokens of a prompt may be dropped: those of its texts, but not those of its frame.

The frame is the chat template, special tokens, system messages and the question, or all but the
context where one is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvengine._core import ConfigError, Tokenizer, UnsupportedError
from kvengine.model import Message, Model, Prompt

Span = tuple[int, int]
"""First and one past the last character of a text."""

_SPACES = (b" ", b"\t", b"\r", b"\n")


@dataclass(frozen=True)
class Layout:
    """A prompt's tokens, what they spell, and whether they may be dropped ([n] each)."""

    tokens: list[int]
    pieces: list[bytes]
    free: NDArray[np.bool_]

    def words(self) -> NDArray[np.int64]:
        """[n] The number of the word of each token: words begin at white space.

        A word ends where tokens begin or cease to be free, so that it is dropped as a whole. What is
        not free is a word for each token.
        """
        begins = np.ones(len(self.tokens), dtype=bool)
        for i in range(1, len(self.tokens)):
            before, piece = self.pieces[i - 1], self.pieces[i]
            apart = piece.startswith(_SPACES) or before.endswith(_SPACES)
            begins[i] = apart or not (self.free[i] and self.free[i - 1])
        return np.cumsum(begins) - 1


def question_span(text: str, question: str | None) -> Span:
    """Where the question of a prompt is, or of the last message.

    Raises:
        ConfigError: `text` does not hold the question.
    """
    if question:
        start = text.rfind(question)
        if start < 0:
            raise ConfigError(f"question: expected a part of the prompt, found '{question[:60]}'")
        return start, start + len(question)
    end = len(text.rstrip())
    for mark in ("\n\n", "\n"):
        start = text.rfind(mark, 0, end)
        if start >= 0:
            return start, len(text)
    return len(text), len(text)


def free_spans(text: str, question: str | None, context: str | None) -> list[Span]:
    """What of a prompt, or of the last message, may be shortened: the context, or, where none is
    named, all but the question.

    Raises:
        ConfigError: `text` does not hold them, or both are given.
    """
    if context is None:
        start, end = question_span(text, question)
        return [(0, start), (end, len(text))]
    if question:
        raise ConfigError("question: expected it or the context to be named, found both")
    start = text.find(context)
    if start < 0:
        raise ConfigError(f"context: expected a part of the prompt, found '{context[:60]}'")
    return [(start, start + len(context))]


def is_conversation(prompt: Prompt) -> bool:
    return not isinstance(prompt, str | bytes) and bool(prompt) and isinstance(prompt[0], Mapping)


def layout_of(
    model: Model,
    prompt: Prompt,
    question: str | None,
    context: str | None = None,
    parse_special: bool = True,
) -> Layout:
    """See :func:`kvengine.prompt.compress_prompt`.

    Raises ConfigError for an empty prompt or one without the question or the context."""
    tokenizer = model.tokenizer
    if isinstance(prompt, bytes):
        prompt = decoded(prompt)
    if isinstance(prompt, str):
        spans = free_spans(prompt, question, context)
        tokens = tokenizer.encode(prompt, parse_special=parse_special)
        return _layout(tokenizer, tokens, prompt, spans)
    if is_conversation(prompt):
        messages: Sequence[Message] = prompt  # type: ignore[assignment]
        text = model.render(messages)
        spans = _content_spans(text, messages, question, context)
        return _layout(tokenizer, model.encode_chat(messages), text, spans)
    if question or context is not None:
        name = "question" if question else "context"
        raise ConfigError(f"{name}: expected text or messages beside it, found token ids")
    tokens = [int(token) for token in prompt]  # type: ignore[call-overload]
    return _layout(tokenizer, tokens, None, [])


def decoded(data: bytes) -> str:
    """Text of UTF-8. Raises ConfigError for other bytes."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"prompt: expected UTF-8 text, found other bytes at {error.start}"
        ) from None


def _layout(
    tokenizer: Tokenizer, tokens: list[int], text: str | None, spans: Sequence[Span]
) -> Layout:
    """Tokens are free whose bytes all lie in the spans; of no text: all but special tokens."""
    if not tokens:
        raise ConfigError("prompt: expected at least one token, found none")
    pieces = [tokenizer.piece(token) for token in tokens]
    free = np.array([tokenizer.piece(token, False) != b"" for token in tokens])
    if text is not None:
        inside = _inside(text, spans)
        joined, spelled = b"".join(pieces), text.encode()
        lead = joined.find(spelled)  # BOS, and the space that some vocabularies begin with
        if lead < 0:
            raise UnsupportedError(
                "tokenizer: expected tokens that spell the prompt byte for byte, found others: "
                "give the prompt as token ids"
            )
        ends = np.cumsum([len(piece) for piece in pieces])
        for i, piece in enumerate(pieces):
            covered = inside[max(ends[i] - len(piece) - lead, 0) : max(ends[i] - lead, 0)]
            free[i] &= len(covered) == len(piece) and bool(covered.all())
    return Layout(tokens, pieces, free)


def _inside(text: str, spans: Sequence[Span]) -> NDArray[np.bool_]:
    """Of each UTF-8 byte of a text, whether it is in one of the spans of characters."""
    parts, at = [], 0
    for start, end in spans:
        parts += [(text[at:start], False), (text[start:end], True)]
        at = end
    parts.append((text[at:], False))
    return np.concatenate([np.full(len(part.encode()), flag) for part, flag in parts])


def _content_spans(
    text: str, messages: Sequence[Message], question: str | None, context: str | None
) -> list[Span]:
    """Where a rendered conversation has what may be shortened."""
    spans: list[Span] = []
    at = 0
    for index, message in enumerate(messages):
        content = _text_content(message)
        start = text.find(content, at)
        if start < 0:  # many templates strip contents
            content = content.strip()
            start = text.find(content, at)
        if start < 0:
            raise UnsupportedError(
                f"messages[{index}]: expected a chat template that copies its content, found one "
                "that changes it"
            )
        at = start + len(content)
        if message.get("role") == "system":
            continue
        if index + 1 == len(messages):
            question = question.strip() if question else None
            own = free_spans(content, question, context)
            spans += [(start + first, start + last) for first, last in own]
        elif context is None:
            spans.append((start, at))
    return spans


def _text_content(message: Message) -> str:
    content: Any = message.get("content") or ""
    if not isinstance(content, str):
        raise ConfigError("messages: expected contents of text only, found parts")
    return content
