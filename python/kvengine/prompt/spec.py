"""Specs of prompt compression, ``name:key=value,...``, and the values they may have."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from kvengine._core import ConfigError

Method = TypeVar("Method")


def split_spec(spec: str) -> tuple[str, dict[str, str]]:
    """'selfinfo:keep=0.5,unit=word' -> 'selfinfo', its parameters as text."""
    name, colon, rest = spec.strip().partition(":")
    given: dict[str, str] = {}
    for part in rest.split(",") if colon else ():
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not (key and equals and value):
            raise ConfigError(f"{name}: expected parameters like key=value, found '{part[:40]}'")
        if key in given:
            raise ConfigError(f"{name}: expected {key} once, found it twice")
        given[key] = value
    return name.strip(), given


def parameters(method: type[Method], name: str, given: dict[str, str]) -> Method:
    """An instance of a dataclass, whose fields say what a method's parameters are."""
    known = {field.name: field.default for field in dataclasses.fields(method)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, text in given.items():
        if key not in known:
            raise ConfigError(f"{name}: expected one of {', '.join(known)}, found '{key[:40]}'")
        try:
            values[key] = _value(text, type(known[key]))
        except ValueError:
            kind = {bool: "yes or no", int: "a whole number", float: "a number"}[type(known[key])]
            raise ConfigError(f"{name}: expected {kind} for {key}, found '{text[:40]}'") from None
    return method(**values)


def _value(text: str, kind: type) -> Any:
    if kind is bool:
        if text not in ("yes", "no"):
            raise ValueError
        return text == "yes"
    return kind(text)


def spelled(name: str, method: Any) -> str:
    """The canonical spec: all parameters that differ from their defaults, and keep."""
    parts = []
    for field in dataclasses.fields(method):
        value = getattr(method, field.name)
        if field.name == "keep" or value != field.default:
            parts.append(f"{field.name}={_plain(value)}")
    return f"{name}:{','.join(parts)}"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def check(name: str, key: str, value: float, low: float, high: float) -> None:
    """Raises ConfigError for a number out of its range, or no number."""
    if not low <= value <= high:
        most = "" if high == float("inf") else f" to {high:g}"
        raise ConfigError(f"{name}: expected {key} from {low:g}{most}, found {value:g}")
