"""Names that transformers and kvpress give to caches, as specs of this engine.

A stage of a cache spec may be written as those libraries write it, with its parameters in
parentheses or after a colon, and among other stages:

    SnapKVPress(compression_ratio=0.5, window_size=32)         snapkv:keep=0.5,window=32
    KnormPress:compression_ratio=0.75 + kivi2                  knorm:keep=0.25 + kivi2
    AdaKVPress(SnapKVPress(compression_ratio=0.5))             adakv:score=snapkv,keep=0.5
    QuantizedCache(backend="quanto", nbits=2)                  int2:group=64,tail=128,...

The text of a press of kvpress, `str(press)`, is such a stage. What is dropped and how rows are
written is what those libraries do; a prompt is compressed once, when it has been read, as they do
(kvpress's decoding presses have no counterpart). `compression_ratio` is the share that is dropped,
and has to be told: kvpress's own value, 0, would drop nothing.

Names that have no counterpart raise ConfigError with what comes nearest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation

from kvengine import _core
from kvengine._core import ConfigError

Arguments = dict[str, str]

_CALL = re.compile(r"\s*([A-Za-z_]\w*)\s*(?:\((.*)\)|:(.*))?\s*", re.DOTALL)
_MOST = 4096  # characters of a spec with such names


def canonical_cache(spec: str) -> str:
    """The canonical form of a cache spec, which may have names of transformers and kvpress.

    Raises:
        ConfigError: a bad spec.
    """
    return _core.canonical_cache(translate(spec))


def translate(spec: str) -> str:
    """A cache spec with names of transformers and kvpress replaced; others stay as they are.

    Raises:
        ConfigError: such a name has no counterpart, or its parameters have none.
    """
    if not _BEGINS.search(spec):
        return spec
    if len(spec) > _MOST:
        raise ConfigError(f"cache: expected at most {_MOST} characters, found {len(spec)}")
    return " + ".join(_stage(part) for part in split(spec, "+"))


def known_names() -> list[str]:
    """The names that have a counterpart."""
    return list(_KNOWN)


def _stage(text: str) -> str:
    """A stage of ours for one of theirs; a stage of ours as it is."""
    call = _CALL.fullmatch(text)
    name = call[1] if call else ""
    if not _FOREIGN.fullmatch(name):
        return text.strip()
    if name in _REFUSED:
        raise ConfigError(f"cache: {name} has no counterpart here: {_REFUSED[name]}")
    if name not in _KNOWN:
        raise ConfigError(
            f"cache: of the names of transformers and kvpress {', '.join(_KNOWN)} have a "
            f"counterpart, found {name[:40]}"
        )
    given = call[2] if call[2] is not None else call[3] or ""
    found = _Parameters(name, _arguments(name, given))
    stage = _KNOWN[name](found)
    found.check()
    return stage


def _arguments(name: str, text: str) -> Arguments:
    """`press, a=1, b="x"` as {"press": "press", "a": "1", "b": "x"}."""
    found: Arguments = {}
    for index, part in enumerate(split(text, ",") if text.strip() else []):
        match = re.fullmatch(r"\s*([A-Za-z_]\w*)\s*=(.*)", part, re.DOTALL)
        if not match and index > 0:
            raise ConfigError(f"cache: {name}: expected parameter=value, found '{part[:40]}'")
        key, value = (match[1], match[2]) if match else ("", part)
        if key in found:
            raise ConfigError(f"cache: {name}: expected {key} once, found it twice")
        found[key] = value.strip().strip("'\"")
    return found


def split(text: str, separator: str) -> list[str]:
    """Parts between separators that are in no parentheses."""
    parts, depth, start = [], 0, 0
    for i, each in enumerate(text):
        depth += (each == "(") - (each == ")")
        if depth < 0:
            break
        if each == separator and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    if depth:
        raise ConfigError(f"cache: expected as many '(' as ')', found '{text[:40]}'")
    return [*parts, text[start:]]


class _Parameters:
    """The parameters that a name was given, each of which has to be taken."""

    def __init__(self, name: str, given: Arguments) -> None:
        self._name = name
        self._left = given
        self._known: list[str] = []  # what was asked for
        self._missing = ""  # why there is no stage, unless a misspelt parameter tells more

    def take(self, name: str, usual: str | None = None, first: bool = False) -> str | None:
        """A parameter, which may be told without its name if it is the first one."""
        self._known.append(name)
        if first and "" in self._left:
            return self._left.pop("")
        return self._left.pop(name, usual)

    def fixed(self, **values: str) -> None:
        """Parameters of which only one value has a counterpart."""
        for name, value in values.items():
            found = self.take(name, value)
            if found != value:
                raise ConfigError(
                    f"cache: {self._name}: {name}: there is a counterpart of {value}, none of "
                    f"{found[:40]}"
                )

    def whole(self, name: str, usual: int) -> int:
        text = self.take(name, str(usual))
        if not re.fullmatch(r"\d{1,9}", text):
            raise ConfigError(f"cache: {self._name}: {name}: expected a number, found {text[:40]}")
        return int(text)

    def one_of(self, name: str, usual: str, values: Mapping[str, str]) -> str:
        """What stands for one of a few values."""
        text = self.take(name, usual)
        if text == "None":
            text = usual
        if text not in values:
            expected = " or ".join(values)
            raise ConfigError(
                f"cache: {self._name}: {name}: expected {expected}, found {text[:40]}"
            )
        return values[text]

    def share(self, name: str = "compression_ratio") -> Decimal:
        """A share in 0 to below 1, which has to be told."""
        text = self.take(name, first=True)
        if text is None:
            self._missing = f"expected {name}=, the share that is dropped, found none"
            return Decimal(0)
        try:
            value = Decimal(text)
        except InvalidOperation:
            value = Decimal(-1)
        if not value.is_finite() or not 0 <= value < 1 or len(text) > 20:
            raise ConfigError(
                f"cache: {self._name}: {name}: expected 0 to below 1, found {text[:40]}"
            )
        return value

    def keep(self) -> str:
        """`keep=` for a compression ratio.

        The count that is kept may differ by one token from that of kvpress, which rounds
        `length * (1 - compression_ratio)` as floats have it.
        """
        return f"keep={round(1 - self.share(), 9).normalize():f}"

    def press(self, known: Sequence[str]) -> str:
        """The stage for a press among the parameters; one without its own has those that are left."""
        text = self.take("press", "", first=True) or ""
        name = text.partition("(")[0].strip()
        if name not in known:
            raise ConfigError(
                f"cache: {self._name}: expected a press among {', '.join(known)}, "
                f"found '{name[:40]}'"
            )
        if "(" in text:
            return _stage(text)
        left, self._left = self._left, {}
        return _stage(f"{name}({','.join(f'{key}={value}' for key, value in left.items())})")

    def check(self) -> None:
        """Raises ConfigError: a parameter was not taken, or one is missing."""
        for name, value in self._left.items():
            what = f"{name}={value}" if name else value
            known = f"; known: {', '.join(self._known)}" if self._known else ""
            raise ConfigError(
                f"cache: {self._name}: there is no counterpart of the parameter {what[:60]}{known}"
            )
        if self._missing:
            raise ConfigError(f"cache: {self._name}: {self._missing}")


def _scored(name: str) -> Callable[[_Parameters], str]:
    return lambda found: f"{name}:{found.keep()}"


def _windowed(name: str, *more: tuple[str, str, int]) -> Callable[[_Parameters], str]:
    """A press that scores by a window of queries; more: our name, theirs, the usual value."""

    def stage(found: _Parameters) -> str:
        rest = (("window", "window_size", 64), ("kernel", "kernel_size", 5), *more)
        return f"{name}:{found.keep()}" + "".join(
            f",{ours}={found.whole(theirs, usual)}" for ours, theirs, usual in rest
        )

    return stage


def _tova(found: _Parameters) -> str:
    return f"tova:{found.keep()},interval=0"  # ours would go on dropping while it decodes


def _streaming(found: _Parameters) -> str:
    return f"streaming:{found.keep()},sinks={found.whole('n_sink', 4)},interval=0"


def _expected(found: _Parameters) -> str:
    found.fixed(use_covariance="True", use_vnorm="True")
    stage = f"expected:{found.keep()},future={found.whole('n_future_positions', 512)}"
    stage += f",sinks={found.whole('n_sink', 4)}"
    epsilon = found.take("epsilon", "0.0")
    return stage if epsilon in ("0", "0.0") else f"{stage},epsilon={epsilon}"


def _random(found: _Parameters) -> str:
    """Random either way: torch draws other numbers from the same seed."""
    stage = f"random:{found.keep()}"
    seed = found.take("seed", "None")
    return stage if seed == "None" else f"{stage},seed={seed}"


def _adaptive(found: _Parameters) -> str:
    """A budget that heads share, by the scores of another press; how that shares its own is unused."""
    alpha = found.take("alpha_safeguard", "0.2")
    name, _, rest = found.press(_SCORERS).partition(":")
    if name == "pyramidkv":  # snapkv with a budget for each layer
        name, rest = "snapkv", rest.partition(",beta=")[0]
    return f"adakv:score={name},{rest},alpha={alpha}"


def _rerotated(found: _Parameters) -> str:
    """Positions without gaps, which here streaming has."""
    return f"{found.press(('StreamingLLMPress',))},positions=reassigned"


def _kvzip(found: _Parameters) -> str:
    found.fixed(layerwise="False")
    plus = found.one_of("kvzip_plus_normalization", "False", {"False": "0", "True": "1"})
    sinks, chunk = found.whole("n_sink", 4), found.whole("chunk_size", 2048)
    return f"kvzip:{found.keep()},sinks={sinks},chunk={chunk},plus={plus}"


def _think(found: _Parameters) -> str:
    """Theirs overwrites channels of the newest keys as well; ours leaves these whole."""
    share = found.share("key_channel_compression_ratio").normalize()
    return f"think:ratio={share:f},window={found.whole('window_size', 32)}"


def _duo(found: _Parameters) -> str:
    gates = found.take("gates")
    if gates is None:
        raise ConfigError(
            "cache: DuoAttentionPress: expected gates=FILE beside its parameters "
            "(of kvengine calibrate --gates), found none"
        )
    found.fixed(on_the_fly_scoring="False")
    share = found.share("head_compression_ratio").normalize()
    return f"duo:gates={gates},streaming={share:f}"


def _unquantized(found: _Parameters) -> str:
    found.take("max_cache_len")  # n_ctx= of a session is that
    return "f16"


def _sink(found: _Parameters) -> str:
    """SinkCache of transformers up to 4.52: keys are turned to their place in the window."""
    length = found.take("window_length", first=True) or ""
    if not re.fullmatch(r"\d{1,9}", length) or int(length) < 2:  # keep=1 would be all tokens
        raise ConfigError(
            f"cache: SinkCache: expected window_length=, at least 2 tokens, found '{length[:40]}'"
        )
    sinks = found.whole("num_sink_tokens", 4)
    return f"streaming:keep={int(length)},sinks={sinks},positions=reassigned"


def _quantized(found: _Parameters) -> str:
    """Quanto's codes: a scale and a minimum for each group of tokens or channels.

    Its groups lie in memory one after the other: along the channels of a token (axis 0), or along
    the tokens of a channel (axis -1). Codes are made of `residual_length` tokens at a time; what a
    prompt has beyond a multiple of them, transformers codes at its end, and this engine later.
    """
    backend = found.take("backend", "quanto", first=True)
    if backend.lower() != "quanto":
        raise ConfigError(
            f"cache: QuantizedCache: the backend quanto has a counterpart, {backend[:20]} has none: "
            "int4:fit=search is nearest to hqq, e4m3 to fp8"
        )
    bits = found.one_of("nbits", "4", {"2": "2", "4": "4"})
    group, tail = found.whole("q_group_size", 64), found.whole("residual_length", 128)
    if tail == 0:
        raise ConfigError("cache: QuantizedCache: residual_length: expected at least 1, found 0")
    stages = []
    for side, axis in (("k", "axis_key"), ("v", "axis_value")):
        per = found.one_of(axis, "0", {"0": "token", "-1": "channel"})
        stages.append(
            f"{side}=int{bits}:group={group},per={per},tail={tail},seal=window,prefill=exact"
        )
    return " + ".join(stages)


_KNOWN: dict[str, Callable[[_Parameters], str]] = {
    "DynamicCache": _unquantized,
    "dynamic": _unquantized,
    "StaticCache": _unquantized,
    "static": _unquantized,
    "QuantizedCache": _quantized,
    "QuantoQuantizedCache": _quantized,
    "quantized": _quantized,
    "SinkCache": _sink,
    "StreamingLLMPress": _streaming,
    "SnapKVPress": _windowed("snapkv"),
    "PyramidKVPress": _windowed("pyramidkv", ("beta", "beta", 20)),
    "TOVAPress": _tova,
    "KnormPress": _scored("knorm"),
    "KeyDiffPress": _scored("keydiff"),
    "ObservedAttentionPress": _scored("observed"),
    "ExpectedAttentionPress": _expected,
    "RandomPress": _random,
    "AdaKVPress": _adaptive,
    "KeyRerotationPress": _rerotated,
    "KVzipPress": _kvzip,
    "DuoAttentionPress": _duo,
    "ThinKPress": _think,
}

_SCORERS = (
    *("SnapKVPress", "PyramidKVPress", "KnormPress", "KeyDiffPress", "ObservedAttentionPress"),
    *("ExpectedAttentionPress", "RandomPress"),
)

_REFUSED: dict[str, str] = {
    "HQQQuantizedCache": "its half-quadratic fit is not built; int4:fit=search is nearest",
    "SlidingWindowCache": "windows are the model's own with f16; window:keep=N has one for others",
    "HybridCache": "windows of layers are the model's own; f16 is the same cache",
    "OffloadedCache": "rows are in main memory anyway; f16 is the same cache",
    "OffloadedStaticCache": "rows are in main memory anyway; f16 is the same cache",
    "EncoderDecoderCache": "models with an encoder are not supported",
    "ComposedPress": "a spec has one selector; codecs follow it after +",
    "DecodingPress": "selectors with interval=N drop while they decode",
    "PrefillDecodingPress": "selectors with interval=N drop while they decode",
    "ChunkPress": "prompt=chunked drops after each chunk of a prompt",
    "BlockPress": "prompt=chunked drops after each chunk of a prompt",
    "ExpectedAttentionStatsPress": "expected takes the statistics of the prompt itself",
    "FastKVzipPress": "its gates are not built; kvzip is nearest",
    "KVzapPress": "its predictor is not built; kvzip is nearest",
    "CriticalKVPress": "scores are not weighted by output projections; adakv is nearest",
    "CriticalAdaKVPress": "scores are not weighted by output projections; adakv is nearest",
}

_FOREIGN = re.compile(r"[A-Z]\w*(?:Press|Cache)|dynamic|static|quantized")
_BEGINS = re.compile(rf"(?:^|\+)\s*(?:{_FOREIGN.pattern})\b")
