"""What a comparison compares: a cache, and maybe a way of shortening prompts before they reach it.

A setting is spelled as caches are, with the prompt compression (:mod:`kvengine.prompt`) as its first
stage: `selfinfo:keep=0.5` (before an f16 cache), `selfinfo:keep=0.5+best4`. So the families of the
KV cache benchmark (arXiv 2407.01527) - quantized, dropped, prompt-compressed - and what combines
them are entries of one list.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvengine.cache_names import canonical_cache
from kvengine.prompt import METHODS, Llmlingua2, SelfInfo, parse_method


@dataclass(frozen=True)
class Setting:
    """cache: canonical spec. method: how prompts are shortened, None: not at all."""

    cache: str
    method: SelfInfo | Llmlingua2 | None = None

    def __str__(self) -> str:
        """The canonical spelling, which :func:`parse_setting` takes."""
        return self.cache if self.method is None else f"{self.method}+{self.cache}"


def parse_setting(spec: str) -> Setting:
    """Raises ConfigError: a bad spec of a cache or of prompt compression."""
    first, plus, rest = spec.partition("+")
    if first.partition(":")[0].strip() not in METHODS:
        return Setting(canonical_cache(spec))
    method = parse_method(first)
    return Setting(canonical_cache(rest if plus else "f16"), method)


def canonical_setting(spec: str) -> str:
    """The one spelling of all that mean the same. Raises ConfigError."""
    return str(parse_setting(spec))
