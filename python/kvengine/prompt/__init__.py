"""Prompt compression: fewer tokens of a prompt are read, so that fewer reach the cache.

>>> short = kv.compress_prompt(model, article + "\n\nWho won?", "selfinfo:keep=0.5")
>>> session.generate(short.tokens)

``selfinfo`` drops what the model itself finds easy to guess; ``llmlingua2`` asks a small encoder (the
package llmlingua). Special tokens, the chat template, system messages and the question stay always.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kvengine._core import ConfigError
from kvengine.model import Model, Progress, Prompt
from kvengine.prompt.layout import layout_of
from kvengine.prompt.llmlingua2 import Llmlingua2
from kvengine.prompt.result import CompressedPrompt
from kvengine.prompt.selfinfo import SelfInfo
from kvengine.prompt.spec import parameters, split_spec

METHODS: dict[str, Any] = {"selfinfo": SelfInfo, "llmlingua2": Llmlingua2}


def parse_method(spec: str) -> SelfInfo | Llmlingua2:
    """The method that a spec such as ``"selfinfo:keep=0.5,unit=word"`` names.

    Raises:
        ConfigError: an unknown method, or a parameter it lacks or refuses.
    """
    name, given = split_spec(spec)
    if name not in METHODS:
        raise ConfigError(
            f"prompt compression: expected one of {', '.join(METHODS)}, found '{name[:40]}'"
        )
    return parameters(METHODS[name], name, given)


def compress_prompt(
    model: Model,
    prompt: Prompt,
    method: str | SelfInfo | Llmlingua2 = "selfinfo:keep=0.5",
    question: str | None = None,
    progress: Progress | None = None,
    context: str | None = None,
    parse_special: bool = True,
) -> CompressedPrompt:
    """Shorten a prompt; the result's ``tokens`` are for an empty session.

    Args:
        prompt: text, token ids, or messages, whose contents (but for system messages) are shortened.
        method: see :data:`METHODS`.
        question: a text in the prompt (of messages: in the last) that stays as it is, at its last
            occurrence; None: what follows the last empty line, or else the last line break. Of
            token ids there is no question: protect them by ``last=``.
        progress: called with the tokens done and to do.
        context: instead of a question, the only part of the prompt (of messages: of the last) that
            is shortened, at its first occurrence.
        parse_special: whether control tokens that a text spells are read as such, as
            :meth:`Session.generate` does; messages are read as :meth:`Model.encode_chat` does.

    Raises:
        ConfigError: a bad spec, an empty prompt, a question or context that the prompt does not hold.
        UnsupportedError: the method's package is absent, messages but no chat template.
        CancelledError: ``progress`` returned False.
    """
    chosen = parse_method(method) if isinstance(method, str) else method
    if isinstance(chosen, Llmlingua2):
        return chosen.compress(model, prompt, question, context, parse_special)
    layout = layout_of(model, prompt, question, context, parse_special)
    kept, information = chosen.select(model, layout, progress)
    tokens = [layout.tokens[i] for i in np.flatnonzero(kept)]
    return CompressedPrompt(
        tokens=tokens,
        text=model.tokenizer.decode(tokens, render_special=True),
        original_tokens=len(layout.tokens),
        method=str(chosen),
        kept=np.flatnonzero(kept),
        information=information,
    )


__all__ = [
    "METHODS",
    "CompressedPrompt",
    "Llmlingua2",
    "SelfInfo",
    "compress_prompt",
    "parse_method",
]
