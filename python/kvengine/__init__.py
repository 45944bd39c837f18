"""kvengine runs GGUF language models and keeps their key/value cache compressed while it does so.

>>> import kvengine as kv
>>> model = kv.Model.load("model.gguf", threads=2)
>>> session = model.session(n_ctx=8192, cache="int4:group=32,tail=64")
>>> for piece in session.generate("Tell me about Lyon.", max_tokens=200, temperature=0.7):
...     print(piece.text, end="", flush=True)
>>> session.cache.stats().ratio

Everything raises :class:`Error` or one of its subclasses, whose message is one sentence that names
the thing, what was expected and what was found.
"""

from kvengine._core import (
    Cache,
    CacheListing,
    CachePlan,
    CacheStats,
    CancelledError,
    CapacityError,
    ConfigError,
    DeviceError,
    Error,
    FormatError,
    Generation,
    GgufFile,
    GgufWriter,
    IoError,
    Piece,
    Tensor,
    Tokenizer,
    UnsupportedError,
    WeightFormat,
    __version__,
    caches,
    decode_weights,
    encode_weights,
    machine_limits,
    peak_resident_bytes,
    resident_bytes,
    weight_formats,
)
from kvengine.batch import BatchAnswer, BatchStream
from kvengine.cache_names import canonical_cache
from kvengine.model import CacheWarning, Message, Model, Session
from kvengine.prompt import CompressedPrompt, compress_prompt

__all__ = [
    "BatchAnswer",
    "BatchStream",
    "Cache",
    "CacheListing",
    "CachePlan",
    "CacheStats",
    "CacheWarning",
    "CancelledError",
    "CapacityError",
    "CompressedPrompt",
    "ConfigError",
    "DeviceError",
    "Error",
    "FormatError",
    "Generation",
    "GgufFile",
    "GgufWriter",
    "IoError",
    "Message",
    "Model",
    "Piece",
    "Session",
    "Tensor",
    "Tokenizer",
    "UnsupportedError",
    "WeightFormat",
    "__version__",
    "caches",
    "canonical_cache",
    "compress_prompt",
    "decode_weights",
    "encode_weights",
    "machine_limits",
    "peak_resident_bytes",
    "resident_bytes",
    "weight_formats",
]
