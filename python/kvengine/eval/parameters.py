"""Parameters of tasks as text: `lengths=512,1024,depths=5`, see :mod:`kvengine.eval.task`."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kvengine._core import ConfigError
from kvengine.eval.setting import parse_setting


def read_values(
    task: str, text: str, hints: Mapping[str, Any], fields: Iterable[dataclasses.Field[Any]]
) -> dict[str, Any]:
    """Values of a task's parameters from `a=1,b=2,3`; hints: what each is annotated with.

    Raises ConfigError: an unknown parameter, one that is given twice, or a bad value.
    """
    known = [field.name for field in fields]
    found: dict[str, list[str]] = {}
    last = None
    for part in text.split(",") if text.strip() else []:
        name, equals, value = part.partition("=")
        key = name.strip() if equals else None
        if last and _goes_on(found[last][-1], part, key, known):
            if key in known and not _open(found[last][-1]):
                _refuse_ambiguous(task, last, found[last][-1], part, key, hints[key])
            found[last][-1] += f",{part.rstrip()}"
        elif equals:
            last = name.strip()
            if last not in known:
                raise ConfigError(
                    f"{task}: expected a parameter among {', '.join(known)}, found '{last[:40]}'"
                )
            if last in found:
                raise ConfigError(f"{task}: {last}: expected it once, found it twice")
            found[last] = [value.strip()]
        elif last is None:
            raise ConfigError(f"{task}: expected parameter=value, found '{part[:40]}'")
        else:
            found[last].append(part.strip())
    return {name: _value(f"{task}: {name}", parts, hints[name]) for name, parts in found.items()}


def _goes_on(value: str, part: str, name: str | None, known: Sequence[str]) -> bool:
    """Whether what follows a comma belongs to a value that is a spec: `selfinfo:keep=0.5,unit=word`.

    It does where a parenthesis is open, where it is a parameter that the task has not, and where it
    is one of the spec.
    """
    if _open(value):
        return True
    if ":" not in value or value.startswith("(") or name is None:
        return False
    return name not in known or _is_setting(f"{value},{part}")


def _open(value: str) -> bool:
    return value.count("(") > value.count(")")


def _is_setting(text: str) -> bool:
    try:
        parse_setting(text)
    except ConfigError:
        return False
    return True


def _refuse_ambiguous(task: str, last: str, value: str, part: str, name: str, hint: Any) -> None:
    """Raises ConfigError: `part` could be the task's parameter `name`, or go on with a spec."""
    try:
        _value(name, [part.partition("=")[2].strip()], hint)
    except ConfigError:
        return
    raise ConfigError(
        f"{task}: {name}: the task and {last}={value[:60]} both have it: write "
        f"{last}=({value[:60]},{part.strip()}), or {part.strip()} before {last}="
    )


def _value(where: str, parts: list[str], kind: Any) -> Any:
    """Parts of a list as the kind of value that a field is annotated with."""
    options = typing.get_args(kind) if typing.get_origin(kind) in _UNIONS else (kind,)
    for option in options:
        if typing.get_origin(option) is tuple:
            element = typing.get_args(option)[0]
            return tuple(_scalar(where, part, element) for part in parts)
    if len(parts) > 1:
        raise ConfigError(f"{where}: expected one value, found {','.join(parts)[:40]}")
    if parts[0] == "none" and type(None) in options:
        return None
    return _scalar(where, parts[0], next(each for each in options if each is not type(None)))


_UNIONS = (typing.Union, types.UnionType)
_EXPECTED = {int: "a whole number", float: "a number", str: "a word", bool: "yes or no"}


def _scalar(where: str, text: str, kind: type) -> Any:
    try:
        if kind is bool:
            return {"yes": True, "no": False}[text]
        if kind is int and abs(value := int(text)) < 2**31:
            return value
        if kind is float and abs(number := float(text)) < 1e9:
            return number
        if kind is str and (bare := _without_parentheses(text)):
            return bare
    except (ValueError, KeyError):
        pass
    raise ConfigError(f"{where}: expected {_EXPECTED[kind]}, found '{text[:40]}'") from None


def _without_parentheses(text: str) -> str:
    """`(random:keep=0.5,seed=3)` without the parentheses around it."""
    return text[1:-1].strip() if text.startswith("(") and text.endswith(")") else text


def spelled(value: Any) -> str:
    """A value as :func:`read_values` takes it."""
    if isinstance(value, str) and "," in value and ":" in value:
        return f"({value})"
    if isinstance(value, tuple):
        return ",".join(map(spelled, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
