"""Named sets of caches and tasks for `kvengine compare`, and lists of cache specs."""

from __future__ import annotations

import itertools
import re

from kvengine._core import ConfigError
from kvengine.cache_names import split
from kvengine.eval.setting import canonical_setting

CACHES: dict[str, tuple[str, ...]] = {
    # One or two of each family: the reference, quantized to 4 and to 2-3 bits, and dropped to a
    # half or a quarter.
    "default": (
        "f16",
        "flexgen4",
        "decoquant4",
        "kivi2",
        "best3",
        "h2o_bench",
        "snapkv:keep=0.25",
        "streaming:keep=0.25",
    ),
    "quantized": ("f16", "q8_0", "flexgen4", "kivi4", "kivi2", "decoquant4", "turbo4", "kvarn2")
    + ("best8", "best4", "best3", "best2"),
    "dropped": ("f16",)
    + tuple(
        f"{name}:keep={keep}"
        for name in ("streaming", "h2o", "snapkv", "tova", "knorm", "random")
        for keep in (0.5, 0.25)
    ),
    # What the KV cache benchmark compares: codes, dropped tokens and shortened prompts, of like sizes.
    "families": ("f16", "kivi4", "kivi2", "best4", "best2", "decoquant4")
    + tuple(
        f"{name}:keep={keep}"
        for name in ("streaming", "h2o", "snapkv", "tova", "kvzip", "selfinfo")
        for keep in (0.5, 0.25)
    ),
}

TASKS: dict[str, tuple[str, ...]] = {
    # Half of each window is read as a prompt, for caches that drop tokens when one has been read,
    # and for those that code what a prompt had first of all (decoquant4).
    "default": (
        "kld:limit=4,context=2048,prefill=1024",
        "perplexity:limit=4,context=2048,prefill=1024",  # of the windows just read
        "needle:new_tokens=48",
        "lambada:limit=300",
        "mmlu:limit=200",
    ),
}


def task_specs(text: str, limit: int | None = None) -> str:
    """A list of tasks with the names of sets replaced by what they hold.

    limit: replaces the limits that sets have; None: those stay.
    """
    parts = []
    for part in text.split(","):
        specs = ",".join(TASKS.get(part.strip(), (part,)))
        if limit is not None and part.strip() in TASKS:
            specs = re.sub(r"\blimit=\d+", f"limit={limit}", specs)
        parts.append(specs)
    return ",".join(parts)


def cache_specs(text: str) -> list[str]:
    """The caches of a list like `f16,int4:group=32,tail=64,default`; each once.

    As specs have commas too, each is as much of the list as makes one; a comma in parentheses ends
    none.

    Raises ConfigError: a part that makes none.
    """
    parts = split(text, ",")
    found: dict[str, str] = {}  # canonical: as it was given, which is shorter
    last = ""
    while parts:
        named = CACHES.get(parts[0].strip())
        length = 1 if named else _longest_spec(parts)
        specs = named or (",".join(parts[:length]),)
        try:
            for spec in specs:
                found.setdefault(canonical_setting(spec), spec.strip())
        except ConfigError:
            # What follows may be its parameters, and it one of the spec before.
            lacks = ":" in last and _is_parameter(parts[0])
            begun, rest = ([last], parts) if lacks else (parts[:1], parts[1:])
            canonical_setting(",".join([*begun, *itertools.takewhile(_is_parameter, rest)]))
            raise
        last = "" if named else specs[0]
        del parts[:length]
    return list(found.values())


def _is_parameter(part: str) -> bool:
    return re.match(r"\s*\w+\s*=", part) is not None


def _longest_spec(parts: list[str]) -> int:
    for length in range(len(parts), 0, -1):
        try:
            canonical_setting(",".join(parts[:length]))
        except ConfigError:
            continue
        return length
    return 1
