"""Short names of caches: `best4` instead of the paragraph that it stands for."""

from __future__ import annotations

import functools
import hashlib
import re

from kvengine._core import caches, canonical_cache

_SLUG_CHARS = 60


def short_name(spec: str) -> str:
    """What a user would have typed for a canonical spec; the spec itself where nothing is shorter."""
    known = _names()
    if spec in known:
        return known[spec]
    # A selector is followed by whatever codes what it keeps.
    first, plus, rest = spec.partition("+")
    if plus and not first.startswith(("k=", "v=")):
        coded = known.get(rest, rest)
        return first if coded == "f16" else f"{first} + {coded}"
    return spec


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
