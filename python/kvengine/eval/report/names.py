"""Short names of caches, `best4` instead of the paragraph that it stands for, and their families."""

from __future__ import annotations

import functools
import hashlib
import re

from kvengine._core import caches, canonical_cache
from kvengine.prompt import METHODS

UNCOMPRESSED = ("f32", "f16", "bf16")
_SLUG_CHARS = 60
_LABELS = {
    "ppl": "perplexity",
    "kld_mean": "mean KL divergence, nats",
    "exact": "exact: share of answers with the key",
    "partial": "partial: share of the key that is found",
    "logprob": "logprob of the right answer, nats per token",
    "edit": "edit: similarity to the right line",
    "accuracy": "accuracy: share of right answers",
    "acc": "acc: share of right answers",
    "acc_norm": "acc_norm: share of right answers",
    "rouge_l": "rouge_l: F of ROUGE-L",
    "tps": "tps: tokens per second, one by one",
}


def short_name(spec: str) -> str:
    """What a user would have typed for a canonical spec; the spec itself where nothing is shorter."""
    known = _names()
    if spec in known:
        return known[spec]
    # Prompt compression and a selector are followed by whatever codes what they keep.
    first, plus, rest = spec.partition("+")
    if plus and not first.startswith(("k=", "v=")):
        coded = short_name(rest)
        return first if coded == "f16" else f"{first} + {coded}"
    return spec


def family(spec: str) -> str:
    """What a canonical spec does, as the benchmark (arXiv 2407.01527) sorts it: "exact" (nothing),
    "quantized" (or projected), "dropped" (tokens, or they are read no more), "shortened" (the
    prompt), or several of these with "and" between them.
    """
    parts = []
    rest = spec
    for does, names in (("shortened", METHODS.keys()), ("dropped", _selectors())):
        first, plus, after = rest.partition("+")
        if plus and _stage(first) in names:
            parts.append(does)
            rest = after
    if rest not in UNCOMPRESSED:
        parts.append("quantized")
    return " and ".join(parts) or "exact"


def label(metric: str) -> str:
    """What a metric is and its unit, for the axis of a picture; the metric where nothing is known."""
    return _LABELS.get(metric, metric)


def _stage(text: str) -> str:
    """The name of a stage such as `snapkv:keep=0.25`."""
    return text.partition(":")[0].strip()


@functools.lru_cache(maxsize=1)
def _selectors() -> frozenset[str]:
    return frozenset(listing.name for listing in caches() if listing.kind == "selector")


def slug(text: str) -> str:
    """A text as a part of a file name; long texts that differ have names that differ."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower()
    if len(name) > _SLUG_CHARS:
        name = f"{name[:_SLUG_CHARS]}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
    return name or "unnamed"


@functools.lru_cache(maxsize=1)
def _names() -> dict[str, str]:
    """Names of presets and codecs by canonical spec; of several names the shortest."""
    names: dict[str, str] = {}
    for listing in caches():
        if listing.kind in ("codec", "preset") and "FILE" not in listing.spec:
            spec = canonical_cache(listing.spec)
            if spec not in names or len(listing.name) < len(names[spec]):
                names[spec] = listing.name
    return names
