"""LLMLingua-2 (arXiv 2403.12968): a small encoder says of every word whether it is needed.

The package llmlingua does it, with the settings of the KV cache benchmark (arXiv 2407.01527): line
breaks and . ! ? , always stay, chunks end at full stops and line breaks, repeated marks are dropped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from kvengine._core import ConfigError, IoError, UnsupportedError
from kvengine.model import Model, Prompt
from kvengine.prompt.layout import Span, decoded, free_spans, is_conversation
from kvengine.prompt.result import CompressedPrompt
from kvengine.prompt.spec import spelled

_ENCODER = "microsoft/llmlingua-2-xlm-roberta-large-meetingbank"
_KNOWN_ENCODERS = ("xlm-roberta-large", "bert-base-multilingual-cased")
_FORCED = ["\n", ".", "!", "?", ","]
_CHUNK_ENDS = [".", "\n"]


@dataclass(frozen=True)
class Llmlingua2:
    """keep: share of the text's tokens, in those of GPT-3.5; model: the encoder's name or folder."""

    keep: float = 0.5
    model: str = _ENCODER

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1 or math.isnan(self.keep):
            raise ConfigError(f"llmlingua2: expected keep above 0 and up to 1, found {self.keep:g}")
        if not any(name in self.model for name in _KNOWN_ENCODERS):
            raise ConfigError(
                f"llmlingua2: expected {' or '.join(_KNOWN_ENCODERS)} in model, by which the package "
                f"knows how its tokens spell words, found '{self.model[:80]}'"
            )

    def __str__(self) -> str:
        return spelled("llmlingua2", self)

    def compress(
        self,
        model: Model,
        prompt: Prompt,
        question: str | None,
        context: str | None = None,
        parse_special: bool = True,
    ) -> CompressedPrompt:
        """See :func:`kvengine.prompt.compress_prompt`. Text only: the encoder has its own tokens."""
        encoder = _encoder(self.model)
        if isinstance(prompt, bytes):
            prompt = decoded(prompt)
        if isinstance(prompt, str):
            before = model.tokenizer.encode(prompt, parse_special=parse_special)
            short = self._shorten(encoder, prompt, free_spans(prompt, question, context))
            after = model.tokenizer.encode(short, parse_special=parse_special)
        elif is_conversation(prompt):
            before = model.encode_chat(prompt)  # type: ignore[arg-type]
            after = model.encode_chat(self._messages(encoder, prompt, question, context))
        else:
            raise ConfigError("llmlingua2: expected text or messages, found token ids")
        return CompressedPrompt(
            tokens=after,
            text=model.tokenizer.decode(after, render_special=True),
            original_tokens=len(before),
            method=str(self),
        )

    def _messages(
        self, encoder: Any, messages: Any, question: str | None, context: str | None
    ) -> list[dict[str, Any]]:
        result = []
        for index, message in enumerate(messages):
            content = message.get("content") or ""
            if not isinstance(content, str):
                raise ConfigError("messages: expected contents of text only, found parts")
            last = index + 1 == len(messages)
            free = free_spans(content, question, context) if last else [(0, len(content))]
            if message.get("role") != "system" and (last or context is None):
                content = self._shorten(encoder, content, free)
            result.append({**message, "content": content})
        return result

    def _shorten(self, encoder: Any, text: str, free: Sequence[Span]) -> str:
        parts, at = [], 0
        for start, end in free:
            parts.append(text[at:start])
            part = text[start:end]
            if part.strip():
                part = encoder.compress_prompt(
                    part,
                    rate=self.keep,
                    force_tokens=_FORCED,
                    chunk_end_tokens=_CHUNK_ENDS,
                    drop_consecutive=True,
                )["compressed_prompt"]
            parts.append(part)
            at = end
        return "".join([*parts, text[at:]])


@lru_cache(maxsize=1)
def _encoder(name: str) -> Any:
    try:
        from llmlingua import PromptCompressor
    except ImportError:
        raise UnsupportedError(
            "llmlingua2: expected the Python package llmlingua, found none; "
            "pip install 'kvengine[llmlingua]' brings it"
        ) from None
    try:
        return PromptCompressor(name, use_llmlingua2=True, device_map="cpu")
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise IoError(f"llmlingua2: could not load the encoder {name} ({reason[:200]})") from None
