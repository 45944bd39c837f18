"""The environment chat templates run in: Hugging Face's helpers, and limits for hostile ones.

A chat template is a program out of a downloaded file. Jinja's sandbox keeps it from Python's
internals but not from looping for years or filling the memory, so everything that repeats or grows
(loops, macros, calls, arithmetic, text) is charged to a :class:`Budget`.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from functools import wraps
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import make_attrgetter
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.visitor import NodeTransformer

MAX_TEMPLATE_CHARS = 1 << 20
# Of one run: text and values made on the way, items of lists looked at, and loops and calls.
MAX_CHARS = 1 << 26
MAX_CHARS_PER_INPUT_CHAR = 64
MAX_ITEMS = 1 << 23
MAX_STEPS = 2_000_000
MAX_SECONDS = 10.0
MAX_INTEGER_BITS = 4096
MAX_INDENT = 100


class Budget:
    """What one run of a template may still do.

    Args:
        input_chars: characters of the variables it is given.
    """

    def __init__(self, input_chars: int) -> None:
        self._chars = MAX_CHARS + MAX_CHARS_PER_INPUT_CHAR * input_chars
        self._items = MAX_ITEMS
        self._steps = MAX_STEPS
        self._deadline = time.monotonic() + MAX_SECONDS

    def charge(self, chars: int) -> None:
        """Count one step that makes up to `chars` characters (or items of a list).

        Raises:
            SecurityError: it is one too many.
        """
        self._steps -= 1
        self._chars -= max(chars, 0)
        if self._chars < 0:
            raise SecurityError("it makes too much text")
        if self._steps < 0 or time.monotonic() > self._deadline:
            raise SecurityError("it takes too many steps")

    def charge_items(self, count: int) -> None:
        """Count items of a list that were looked at.

        Raises:
            SecurityError: they are too many.
        """
        self._items -= count
        if self._items < 0:
            raise SecurityError("it makes too long lists")


_budget: ContextVar[Budget] = ContextVar("budget")


@contextmanager
def limited(input_chars: int) -> Iterator[None]:
    """Templates compiled and run inside draw on a new :class:`Budget`."""
    token = _budget.set(Budget(input_chars))
    try:
        yield
    finally:
        _budget.reset(token)


def _weigh(value: Any) -> int:
    """Characters that a nested list or dict has when it is written, about.

    Its parts may be shared: forty lists that each hold the one before twice are small in memory and
    endless on paper. So items are charged for as often as they would be written.
    """
    budget = _budget.get()
    total = 0
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, Mapping):
            budget.charge_items(2 * len(item))
            stack.extend(item.keys())
            stack.extend(item.values())
        elif isinstance(item, (list, tuple)):
            budget.charge_items(len(item))
            stack.extend(item)
        else:
            total += 8
    return total


def _charge_written(value: Any) -> None:
    """Pay for a value before it is turned into text."""
    if isinstance(value, (Mapping, list, tuple)):
        _budget.get().charge(_weigh(value))


# Filters that turn what they are given into text.
_WRITING = (
    "capitalize", "center", "e", "escape", "forceescape", "format", "indent", "lower", "pprint",
    "replace", "safe", "string", "striptags", "title", "trim", "truncate", "upper", "urlencode",
    "urlize", "wordcount", "wordwrap", "xmlattr",
)  # fmt: skip

# Functions and filters whose result may be much longer than what they are given.
_PADDING = {"center", "ljust", "rjust", "zfill"}
_MULTIPLYING = {"expandtabs", "indent", "batch", "slice"}
_FORMATTING = {"format", "format_map"}


def _longest_number(text: str) -> int:
    return max((len(digits) for digits in re.findall(r"\d+", text)), default=0)


def _size(value: Any) -> int:
    """Characters of a text; a list counts as much memory as it takes."""
    if isinstance(value, str):
        return len(value)
    return 8 * len(value) if isinstance(value, (list, tuple, Mapping)) else 1


def _formatted_size(text: str, args: tuple[Any, ...]) -> int:
    fields = text.count("%") + text.count("{")
    if fields and _longest_number(text) > 6:
        raise SecurityError("it formats text to too large a width")  # nobody's layout
    widest = max((len(arg) for arg in args if isinstance(arg, str)), default=0)
    return len(text) + fields * max(widest, 10 ** _longest_number(text))


def _result_size(name: str, subject: Any, args: tuple[Any, ...]) -> int:
    """At least the length of ``subject.name(*args)`` for the functions named above."""
    numbers = [abs(value) for value in args if isinstance(value, int)]
    largest = max(numbers, default=1)
    if name in _PADDING:
        return _size(subject) + largest
    if name in _MULTIPLYING:
        return (_size(subject) + 1) * max(largest, 4)
    if name == "replace" and len(args) >= 2:
        return _size(subject) + (str(subject).count(str(args[0])) + 1) * len(str(args[1]))
    if name in _FORMATTING:
        return _formatted_size(str(subject), args)
    return _size(subject)


def _joined_size(separator: Any, items: list[Any]) -> int:
    return sum(len(item) if isinstance(item, str) else 32 for item in items) + len(items) * len(
        str(separator)
    )


def _charged_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    # The environment or context that Jinja passes first, if any, is not the subject.
    first = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def charged(*args: Any, **kwargs: Any) -> Any:
        given = (*args[first + 1 :], *kwargs.values())
        for value in (args[first], *given):
            _charge_written(value)
        _budget.get().charge(_result_size(name, args[first], given))
        return function(*args, **kwargs)

    return charged


def _charged_join(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def charged(eval_ctx: Any, value: Any, d: Any = "", attribute: str | int | None = None) -> Any:
        items = list(value)
        if attribute is not None:
            items = list(map(make_attrgetter(eval_ctx.environment, attribute), items))
        _budget.get().charge(_joined_size(d, items))
        return function(eval_ctx, items, d)

    return charged


def _charged_sum(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def charged(environment: Any, value: Any, attribute: Any = None, start: Any = 0) -> Any:
        items = list(value)
        if attribute is not None:
            items = list(map(make_attrgetter(environment, attribute), items))
        length = cost = 0
        for item in items:  # lists are copied again for each one that is added
            length += _size(item)
            cost += length if isinstance(item, (list, tuple)) else 1
        _budget.get().charge(cost)
        return function(environment, items, None, start)

    return charged


def _charge_output(value: Any) -> str:
    """Every expression that is written passes here."""
    _charge_written(value)
    text = str(value)
    _budget.get().charge(len(text))
    return text


@jinja2.pass_context  # keeps the compiler from running it once and for all
def _charge(_: Any, chars: int) -> str:
    _budget.get().charge(chars)
    return ""


@jinja2.pass_context
def _charge_part(_: Any, value: Any) -> Any:
    """Every part of a text joined by ``~`` passes here."""
    _charge_written(value)
    _budget.get().charge(_size(value))
    return value


@jinja2.pass_context
def _charge_items(_: Any, value: Any) -> Any:
    """Every list and dict that a template makes passes here."""
    _weigh(value)
    return value


@jinja2.pass_context
def _charge_copy(_: Any, value: Any) -> Any:
    """Every slice passes here."""
    _budget.get().charge(_size(value))
    return value


def _charged_list(value: Any) -> list[Any]:
    """Jinja's `list`; its items may be new objects too, as those of a range are."""
    items = list(value)
    _budget.get().charge(5 * _size(items))
    return items


def _paid(filter_name: str, node: Any) -> nodes.Filter:
    return nodes.Filter(node, filter_name, [], [], None, None, lineno=node.lineno)


class _Metering(NodeTransformer):
    """Makes a template pay for every round of a loop, every macro and every joined text."""

    def _pay(self, node: Any) -> Any:
        self.generic_visit(node)
        literal = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        literal += sum(_size(const.value) for const in node.find_all(nodes.Const))
        price = _paid("_charge", nodes.Const(literal, lineno=node.lineno))
        node.body.insert(0, nodes.Output([price], lineno=node.lineno))
        if getattr(node, "test", None) is not None:  # for ... if: rounds that do not reach the body
            node.test = _paid("_charge_part", node.test)
        return node

    visit_For = visit_Macro = visit_CallBlock = visit_AssignBlock = _pay

    def visit_Concat(self, node: nodes.Concat) -> nodes.Concat:
        self.generic_visit(node)
        node.nodes = [_paid("_charge_part", part) for part in node.nodes]
        return node

    def _weigh(self, node: Any) -> Any:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") != "load" else _paid("_charge_items", node)

    def visit_Getitem(self, node: nodes.Getitem) -> Any:
        self.generic_visit(node)
        return _paid("_charge_copy", node) if isinstance(node.arg, nodes.Slice) else node

    visit_List = visit_Dict = visit_Tuple = _weigh


class _Generation(Extension):
    """``{% generation %}`` marks what a model wrote, for training: here only its content counts."""

    tags = {"generation"}  # noqa: RUF012 - declared so by Jinja

    def parse(self, parser: Any) -> Any:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=lineno)


class TemplateNamespace(jinja2.utils.Namespace):
    """``namespace()`` without the names that lead to Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that namespace(self=...) works
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            TemplateNamespace._check(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        TemplateNamespace._check(name)
        super().__setitem__(name, value)

    @staticmethod
    def _check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace cannot hold {name!r}")


class TemplateDict:
    """``dict`` as a function only, not as the type that could be asked for its attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without Jinja's escaping of HTML."""
    if (indent if isinstance(indent, int) else len(indent or "")) > MAX_INDENT:
        raise SecurityError(f"tojson: expected an indent of at most {MAX_INDENT}")
    _charge_written(value)
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """What Hugging Face transformers runs chat templates in, metered."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
            finalize=_charge_output,
        )
        for name in (*_WRITING, "batch", "slice"):
            self.filters[name] = _charged_filter(name, self.filters[name])
        self.filters["join"] = _charged_join(self.filters["join"])
        self.filters["sum"] = _charged_sum(self.filters["sum"])
        self.filters.update(
            tojson=_tojson,
            list=_charged_list,
            _charge=_charge,
            _charge_copy=_charge_copy,
            _charge_part=_charge_part,
            _charge_items=_charge_items,
        )
        self.globals.update(
            raise_exception=_raise_exception,
            strftime_now=_strftime_now,
            dict=TemplateDict(),
            namespace=TemplateNamespace,
        )
        del self.globals["lipsum"]  # makes text without end

    def compile_metered(self, source: str) -> jinja2.Template:
        """Compile a template. Only inside :class:`limited`.

        Raises:
            jinja2.TemplateError: it is malformed.
        """
        tree = _Metering().visit(self.parse(source))
        return self.template_class.from_code(self, self.compile(tree), self.make_globals(None))

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Every call in a template passes here."""
        size = 1
        # The sandbox hands out str.format wrapped in its own.
        subject = getattr(getattr(function, "__wrapped__", function), "__self__", None)
        if isinstance(subject, str):
            name = getattr(function, "__name__", "")
            if name == "join" and args:
                args = (list(args[0]), *args[1:])
                size = _joined_size(subject, args[0])
            else:
                size = _result_size(name, subject, (*args, *kwargs.values()))
        _budget.get().charge(size)
        result = super().call(context, function, *args, **kwargs)
        if isinstance(result, (Mapping, list, tuple)):
            _weigh(result)
        return result

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Sums, products, powers and remainders pass here."""
        _budget.get().charge(self._binop_size(operator, left, right))
        result = super().call_binop(context, operator, left, right)
        if isinstance(result, (list, tuple)):
            _weigh(result)
        return result

    @staticmethod
    def _binop_size(operator: str, left: Any, right: Any) -> int:
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * (right if operator == "**" else 1) + right.bit_length()
            if bits > MAX_INTEGER_BITS and operator in ("*", "**"):
                raise SecurityError("it computes too large a number")
            return 1
        if operator == "*":
            factor = left if isinstance(left, int) else right if isinstance(right, int) else 1
            return max(factor, 0) * max(_size(left), _size(right))
        if operator == "%" and isinstance(left, str):
            _charge_written(right)
            return _formatted_size(left, right if isinstance(right, tuple) else (right,))
        return _size(left) + _size(right)
