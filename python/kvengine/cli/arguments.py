"""Command-line arguments that several verbs share; spelled as llama.cpp spells them."""

from __future__ import annotations

import argparse
import secrets
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

INT_MAX = 2**31 - 1
SEED_MAX = 2**64 - 1


class InputError(Exception):
    """Bad usage or bad input; the message is one line."""


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows default values, except those that say nothing."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or isinstance(action.default, bool):
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Reports bad usage by InputError instead of several lines and an exit."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False, formatter_class=_HelpFormatter)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")

    def parse_args(self, argv: Sequence[str]) -> argparse.Namespace:  # type: ignore[override]
        return super().parse_args(self._with_values_attached(argv))

    def _with_values_attached(self, argv: Sequence[str]) -> list[str]:
        """Write `-p TEXT` as `--prompt=TEXT` where TEXT begins with a dash.

        argparse would take such a text for an option.
        """
        takes_value = {
            name: action.option_strings[-1]
            for action in self._actions
            for name in action.option_strings
            if action.nargs is None
        }
        result: list[str] = []
        rest = list(argv)
        while rest:
            word = rest.pop(0)
            dashed = bool(rest) and rest[0].startswith("-") and rest[0] != "-"
            if word in takes_value and dashed and rest[0] not in self._option_string_actions:
                result.append(f"{takes_value[word]}={rest.pop(0)}")
            else:
                result.append(word)
        return result


def whole(low: int, high: int = INT_MAX) -> Callable[[str], int]:
    """Type of an argument that is a whole number from low to high."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(
                f"expected a whole number from {low} to {high}, found '{text[:40]}'"
            )
        return value

    return parse


def whole_list(low: int, high: int = INT_MAX) -> Callable[[str], list[int]]:
    """Type of an argument that is a list like 512,2048."""
    one = whole(low, high)

    def parse(text: str) -> list[int]:
        return [one(part.strip()) for part in text.split(",")]

    return parse


class AddUp(argparse.Action):
    """Lists of an argument that is repeated add up; the default gives way to the first."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: list[int],
        option_string: str | None = None,
    ) -> None:
        before = getattr(namespace, self.dest)
        # Never changes a list in place: the default serves other calls.
        setattr(namespace, self.dest, values if before is self.default else before + values)


def real(text: str) -> float:
    """Type of an argument that is a number; which numbers make sense is the engine's to say."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, found '{text[:40]}'") from None


def add_json(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document and nothing else"
    )


def add_common(parser: argparse.ArgumentParser, computes: bool = True, cache: bool = True) -> None:
    """The common flags; verbs that compute nothing accept them, so that scripts can share them."""

    def shown(text: str) -> str:
        return text if computes else argparse.SUPPRESS

    group = parser.add_argument_group("common options")
    group.add_argument(
        "-m",
        "--model",
        default=argparse.SUPPRESS,
        help="GGUF file, or a model to pull (default: smollm2-135m)",
    )
    group.add_argument(
        "-t", "--threads", type=whole(0, 1024), default=0, help=shown("threads; 0: all processors")
    )
    group.add_argument(
        "-c",
        "--ctx-size",
        type=whole(0),
        default=0,
        help=shown("most tokens held; 0: what the model was trained for"),
    )
    group.add_argument(
        "-s",
        "--seed",
        type=whole(-1, SEED_MAX),
        default=-1,
        help=shown("seed of the draws; -1: a random one"),
    )
    group.add_argument(
        "--exact", action="store_true", help=shown("f32 activations: slower, the reference")
    )
    group.add_argument(
        "--device",
        metavar="DEVICE",
        default=None,
        help=shown(
            "what computes: cpu (default), cuda (an NVIDIA GPU), or auto: a GPU where there is one; "
            "cuda:cache=SIZE: of its memory at most SIZE (8GiB) for pages of caches, others wait in "
            "the host's"
        ),
    )
    group.add_argument(
        "-ngl",
        "--gpu-layers",
        type=whole(-1),
        default=None,
        metavar="N",
        help=shown("0: --device cpu; all layers of the model or more, or -1: --device cuda"),
    )
    group.add_argument(
        "--no-repack",
        action="store_true",
        help=shown("read weights as they lie in the file: less memory, slower"),
    )
    if cache:
        add_cache(group, shown)
    add_json(group)


def add_cache(group: Any, shown: Callable[[str], str]) -> None:
    group.add_argument(
        "--cache",
        default=argparse.SUPPRESS,
        metavar="SPEC",
        help=shown("how keys and values are kept, see kvengine caches (default: f16)"),
    )
    group.add_argument(
        "--kv-budget",
        default=argparse.SUPPRESS,
        metavar="SIZE",
        help=shown(
            "most bytes of the cache (64MiB), or bits=3 per value; --cache auto is planned for it"
        ),
    )
    group.add_argument(
        "--kv-calibration",
        default=argparse.SUPPRESS,
        metavar="FILE",
        help=shown("with --cache auto: what kvengine calibrate wrote"),
    )
    for flag, name, side in (
        ("-ctk", "--cache-type-k", "keys"),
        ("-ctv", "--cache-type-v", "values"),
    ):
        group.add_argument(
            flag,
            name,
            default=argparse.SUPPRESS,
            metavar="TYPE",
            help=shown(f"how {side} are kept, instead of --cache"),
        )


def add_prompt(
    parser: argparse.ArgumentParser, required: bool = True, tokens: bool = False
) -> None:
    """-p TEXT, -f FILE and, for some verbs, --tokens."""
    group = parser.add_mutually_exclusive_group(required=required)
    group.add_argument("-p", "--prompt", metavar="TEXT", default=argparse.SUPPRESS)
    group.add_argument(
        "-f", "--file", metavar="FILE", default=argparse.SUPPRESS, help="text file, may be .gz"
    )
    if tokens:
        group.add_argument(
            "--tokens", type=whole_list(0), metavar="1,2,3", default=argparse.SUPPRESS
        )


def add_tokenizing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--add-special",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="add the BOS/EOS tokens that the vocabulary asks for",
    )
    parser.add_argument(
        "--parse-special",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="text that spells a control token becomes that token",
    )


def add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument("--temp", type=real, default=0.8, help="temperature; 0: the likeliest")
    group.add_argument("--top-k", type=whole(-INT_MAX), default=40, help="0: off")
    group.add_argument("--top-p", type=real, default=0.95, help="1: off")
    group.add_argument("--min-p", type=real, default=0.05, help="0: off")
    group.add_argument("--typical", type=real, default=1.0, help="typical p; 1: off")
    group.add_argument("--repeat-penalty", type=real, default=1.0, help="1: off")
    group.add_argument(
        "--repeat-last-n", type=whole(-1), default=64, help="tokens looked back; -1: all"
    )
    group.add_argument("--presence-penalty", type=real, default=0.0, help="0: off")
    group.add_argument("--frequency-penalty", type=real, default=0.0, help="0: off")
    group.add_argument(
        "--ignore-eos", action="store_true", help="go on after tokens that end an answer"
    )
    group.add_argument(
        "--stop",
        "-r",
        "--reverse-prompt",
        action="append",
        default=argparse.SUPPRESS,
        metavar="TEXT",
        help="text that ends the answer; may be repeated",
    )
    group.add_argument(
        "-n",
        "--n-predict",
        type=whole(-1),
        default=-1,
        help="most tokens of an answer; -1: until it ends or the context is full",
    )


def add_drafting(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("speculation: the same text, sooner")
    group.add_argument(
        "--draft-max",
        "--draft",
        type=whole(0),
        default=argparse.SUPPRESS,
        metavar="N",
        help="guess up to N tokens at a time (of which 7 are used), from what followed the same "
        "words before or by the draft model; 0: none (default: 0, with -md 7)",
    )
    group.add_argument(
        "-md",
        "--model-draft",
        default=argparse.SUPPRESS,
        metavar="MODEL",
        help="a smaller model with the same vocabulary, which guesses",
    )


def add_compression(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("prompt compression: fewer tokens are read")
    group.add_argument(
        "--compress-prompt",
        default=argparse.SUPPRESS,
        metavar="SPEC",
        help="shorten the prompt but for its question: selfinfo:keep=0.5 (also unit=word, "
        "iterative=no, segment=, first=, last=) or llmlingua2:keep=0.5",
    )
    group.add_argument(
        "--question",
        default=argparse.SUPPRESS,
        metavar="TEXT",
        help="ends the prompt, and is not shortened (else what follows its last empty line, or "
        "line break, is the question)",
    )


def sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    """What add_sampling() read, as arguments of Session.generate(). Draws the seed, if asked to."""
    if args.seed < 0:
        args.seed = secrets.randbelow(2**32)
    return {
        "max_tokens": args.n_predict,
        "temperature": args.temp,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "min_p": args.min_p,
        "typical_p": args.typical,
        "repeat_penalty": args.repeat_penalty,
        "repeat_last_n": args.repeat_last_n,
        "presence_penalty": args.presence_penalty,
        "frequency_penalty": args.frequency_penalty,
        "seed": args.seed,
        "stop": getattr(args, "stop", []),
        "ignore_eos": args.ignore_eos,
    }


def cache_spec(args: argparse.Namespace, may_be_limited: bool = False) -> str:
    """The canonical spec that --cache, or -ctk and -ctv, ask for; "auto" is for later.

    may_be_limited: --kv-budget may limit other caches than "auto".
    """
    from kvengine import canonical_cache

    spec = getattr(args, "cache", None)
    for flag in ("kv_budget", "kv_calibration"):
        limits = flag == "kv_budget" and may_be_limited
        if hasattr(args, flag) and spec != "auto" and not limits:
            raise InputError(f"--{flag.replace('_', '-')}: expected --cache auto beside it")
    key_type = getattr(args, "cache_type_k", None)
    value_type = getattr(args, "cache_type_v", None)
    if spec is not None and (key_type or value_type):
        raise InputError("cache: expected either --cache or -ctk and -ctv, found both")
    if spec == "auto":
        if not hasattr(args, "kv_budget"):
            raise InputError("--cache auto: expected --kv-budget beside it")
        return spec
    if spec is None:
        spec = f"k={key_type or 'f16'} + v={value_type or 'f16'}"
    return canonical_cache(spec)
