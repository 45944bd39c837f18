"""Chat templates: a model's own Jinja program that writes a conversation as the model expects it.

The program is run as Hugging Face transformers runs it, so the text is the same, with limits for
hostile files (see :mod:`kvengine.sandbox`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import jinja2

from kvengine._core import ConfigError
from kvengine.sandbox import MAX_TEMPLATE_CHARS, ChatEnvironment, limited

# Names under which a message's reasoning is passed. Templates read the first, some the second.
_REASONING = ("reasoning_content", "thinking", "reasoning")


def render_template(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    bos_token: str = "",
    eos_token: str = "",
    **extra: Any,
) -> str:
    """Write a conversation the way a chat template does.

    Args:
        template: Jinja source, as GGUF files hold it under ``tokenizer.chat_template``.
        messages: dicts with ``role`` and ``content`` (a string, or a list of parts that are dicts);
            ``content`` may be missing or None beside other keys such as ``tool_calls``.
        add_generation_prompt: end with what begins an answer.
        tools: JSON schemas of functions the model may call.
        bos_token: text of the token a sequence begins with.
        eos_token: text of the token that ends one.
        **extra: further variables of the template, e.g. ``documents`` or ``enable_thinking``.

    Returns:
        The text. It holds special tokens by their text, most often a leading BOS too: encode it
        with special tokens parsed and none added.

    Raises:
        ConfigError: the messages are malformed, or the template is, refuses them or does too much.
    """
    _check_template(template)
    _check_messages(messages)
    _check_dicts("tools", tools)
    _check_dicts("documents", extra.get("documents"))
    try:
        variables = _plain(
            {
                **extra,
                "messages": [_alias_reasoning(message) for message in messages],
                "tools": tools,
                "documents": extra.get("documents"),
                "add_generation_prompt": add_generation_prompt,
                "bos_token": bos_token,
                "eos_token": eos_token,
            }
        )
        with limited(_chars(variables)):
            return "".join(_compile(template).generate(variables))
    except Exception as error:
        # A template may raise anything that Python does: division by zero, recursion, ...
        raise ConfigError(_explain(error)) from error


@lru_cache(maxsize=8)
def _compile(template: str) -> jinja2.Template:
    return ChatEnvironment().compile_metered(template)


def _explain(error: Exception) -> str:
    where = f", line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
    if isinstance(error, RecursionError):
        what = "it calls itself too often"
    elif isinstance(error, MemoryError):
        what = "it needs too much memory"
    elif isinstance(error, jinja2.TemplateError):
        what = str(error.message or type(error).__name__)
    else:
        what = f"{type(error).__name__}: {error}"
    what = " ".join(what.split())
    return f"chat template{where}: {what[:500]}"


def _check_template(template: Any) -> None:
    if not isinstance(template, str):
        raise ConfigError(f"chat template: expected text, found {_kind(template)}")
    if len(template) > MAX_TEMPLATE_CHARS:
        raise ConfigError(
            f"chat template: expected at most {MAX_TEMPLATE_CHARS} characters, "
            f"found {len(template)}"
        )


def _check_messages(messages: Any) -> None:
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise ConfigError(f"messages: expected a list of dicts, found {_kind(messages)}")
    if not messages:
        raise ConfigError("messages: expected at least one, found none")
    for index, message in enumerate(messages):
        name = f"messages[{index}]"
        if not isinstance(message, Mapping):
            raise ConfigError(f"{name}: expected a dict, found {_kind(message)}")
        if "role" not in message:
            raise ConfigError(f"{name}: expected a role, found none")
        role = message["role"]
        if not isinstance(role, str) or not role:
            raise ConfigError(f"{name}.role: expected text, found {_kind(role)}")
        _check_content(name, message)


def _check_content(name: str, message: Mapping[str, Any]) -> None:
    content = message.get("content")
    if content is None:
        if not message.keys() - {"role", "content"}:
            raise ConfigError(f"{name}: expected content, found none")
    elif isinstance(content, list):
        for index, part in enumerate(content):
            if not isinstance(part, Mapping):
                raise ConfigError(f"{name}.content[{index}]: expected a dict, found {_kind(part)}")
    elif not isinstance(content, str):
        raise ConfigError(
            f"{name}.content: expected text or a list of parts, found {_kind(content)}"
        )


def _check_dicts(name: str, values: Any) -> None:
    if values is None:
        return
    if not isinstance(values, (list, tuple)):
        raise ConfigError(f"{name}: expected a list of dicts, found {_kind(values)}")
    for index, value in enumerate(values):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name}[{index}]: expected a dict, found {_kind(value)}")


def _kind(value: Any) -> str:
    if value is None:
        return "None"
    return "empty text" if value == "" else type(value).__name__


def _alias_reasoning(message: Mapping[str, Any]) -> dict[str, Any]:
    """Pass a message's reasoning under every name that templates look for."""
    found = next((message[key] for key in _REASONING if message.get(key) is not None), None)
    if found is None:
        return dict(message)
    return {"thinking": found, **message, "reasoning_content": found}


def _plain(value: Any) -> Any:
    """Rebuild a value out of JSON's types, whose methods the sandbox knows."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    for base in (str, int, float):
        if isinstance(value, base):
            return base(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return f"<{type(value).__name__}>"


def _chars(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(_chars(key) + _chars(item) for key, item in value.items())
    if isinstance(value, list):
        return sum(_chars(item) for item in value) + len(value)
    return 8
