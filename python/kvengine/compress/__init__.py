"""Compression that is found once, from a text, and kept in a file.

``kv_heads`` makes a model with fewer heads of keys and values; ``bases`` finds what groups of heads
have in common, for caches that keep only that; ``gates`` which heads need all tokens.
"""

from kvengine.compress.bases import BasesReport, calibrate_bases
from kvengine.compress.gates import Gates, calibrate_gates
from kvengine.compress.kv_heads import METHODS, MODES, HeadOptions, HeadReport, compress_kv_heads

__all__ = [
    "METHODS",
    "MODES",
    "BasesReport",
    "Gates",
    "HeadOptions",
    "HeadReport",
    "calibrate_bases",
    "calibrate_gates",
    "compress_kv_heads",
]
