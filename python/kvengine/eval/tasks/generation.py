"""Long texts: whether a cache drifts away, or begins to repeat itself, while thousands of tokens are
generated; and how fast it decodes with so many tokens in it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kvengine._core import ConfigError
from kvengine.eval.answering import mean
from kvengine.eval.data import list_files, read_text
from kvengine.eval.metrics import distinct_n, longest_loop
from kvengine.eval.perplexity import log_softmax, score_rows
from kvengine.eval.runner import Runner
from kvengine.eval.task import Record, Task, register

_BOOKS = "books"
_QUARTERS = 4
_DIGITS = 5  # significant ones of the divergences that are kept


@register
@dataclass(frozen=True)
class LongGeneration(Task):
    """tokens: of each text. prompt: tokens of a book before it. temperature: of both texts. reference:
    the cache that tested ones are compared with. limit: most texts.

    A text is drawn from the reference and read by both caches token by token (teacher forcing):
    kld: KL(reference || tested) at each token, kld_mean, and its quarters (kld@1 to kld@4), which rise
    where errors add up. The tested cache also goes on by itself, with the same draws: distinct_1 to
    distinct_4 and loop, the share of its longest loop (three copies or more); `@reference` tells the
    same of the reference's text.
    """

    name: ClassVar[str] = "long_generation"
    version: ClassVar[int] = 2  # 1: what is told of the reference was named otherwise
    primary: ClassVar[str] = "kld_mean"
    higher_is_better: ClassVar[bool] = False

    limit: int | None = 1
    tokens: int = 4096
    prompt: int = 256
    temperature: float = 0.8
    reference: str = "f16"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("tokens", self.tokens >= _QUARTERS, f"at least {_QUARTERS}")
        self.check("prompt", self.prompt >= 1, "at least 1")
        self.check("temperature", self.temperature > 0, "above 0")

    def data_files(self) -> tuple[str, ...]:
        return tuple(list_files(_BOOKS))

    def units(self, runner: Runner) -> Sequence[str]:
        return list_files(_BOOKS)[: self.limit]

    def run(self, runner: Runner, unit: str) -> list[Record]:
        prompt = _middle(runner, unit, self.prompt)
        text, divergence = self._forced(runner, prompt)
        runner.progress(0.7)
        own = self._own(runner, prompt)
        record: Record = {"book": unit, "kld": [float(f"{x:.{_DIGITS}g}") for x in divergence]}
        for suffix, tokens in (("", own), ("@reference", text)):
            loop = longest_loop(tokens)
            record[f"loop{suffix}"] = loop.length / len(tokens) if loop else 0.0
            for n in range(1, 5):
                record[f"distinct_{n}{suffix}"] = distinct_n(tokens, n)
        return [record]

    def _forced(self, runner: Runner, prompt: list[int]) -> tuple[list[int], NDArray[np.float64]]:
        """A text drawn from the reference, and the divergence before each of its tokens."""
        draw = np.random.default_rng(self.seed)
        reference = runner.model.session(
            len(prompt) + self.tokens, self.reference, exact=runner.exact
        )
        tested = runner.session(len(prompt) + self.tokens)
        right, found = reference.forward(prompt), tested.forward(prompt)
        text: list[int] = []
        divergence = np.zeros(self.tokens)
        for i in range(self.tokens):
            token = _drawn(right[-1:], self.temperature, draw)
            scores = score_rows(found[-1:], np.array([token]), right[-1:])
            assert scores.compared
            divergence[i] = scores.compared.kld[0]
            text.append(token)
            if i + 1 < self.tokens:
                right, found = reference.forward([token]), tested.forward([token])
            if i % 64 == 0:
                runner.progress(0.7 * i / self.tokens)
        runner.note(tested)
        return text, divergence

    def _own(self, runner: Runner, prompt: list[int]) -> list[int]:
        """What the tested cache says by itself."""
        draw = np.random.default_rng(self.seed)
        session = runner.prefill(prompt, self.tokens)
        logits = session.last_logits
        text: list[int] = []
        for i in range(self.tokens):
            assert logits is not None
            text.append(_drawn(np.reshape(logits, (1, -1)), self.temperature, draw))
            if i + 1 < self.tokens:
                logits = session.forward([text[-1]])
            if i % 64 == 0:
                runner.progress(0.7 + 0.3 * i / self.tokens)
        return text

    def summarize(self, items: Sequence[Record]) -> dict[str, float]:
        table = np.array([item["kld"] for item in items])  # [texts, tokens]
        metrics = {"kld_mean": float(table.mean())}
        names = [f"{name}{suffix}" for suffix in ("", "@reference") for name in _SHARES]
        metrics |= {name: mean([item[name] for item in items]) for name in names}
        for i, part in enumerate(np.array_split(table, _QUARTERS, axis=1), 1):
            metrics[f"kld@{i}"] = float(part.mean())
        return metrics


_SHARES = ("loop", "distinct_1", "distinct_2", "distinct_3", "distinct_4")


def _drawn(logits: NDArray[np.float32], temperature: float, draw: np.random.Generator) -> int:
    """A token; logits [1, vocab_size]."""
    cumulated = np.exp(log_softmax(logits / np.float32(temperature))[0]).cumsum()
    place = int(np.searchsorted(cumulated, draw.random() * cumulated[-1], side="right"))
    return min(place, len(cumulated) - 1)


def _middle(runner: Runner, book: str, count: int) -> list[int]:
    """Tokens from the middle of a book, after BOS where there is one."""
    text = read_text(book)
    start = text.find(" ", len(text) // 2) + 1
    tokens = runner.encode(text[start : start + 16 * count])[:count]
    if len(tokens) < count:
        raise ConfigError(f"{book}: expected {count} tokens, found {len(tokens)}")
    return tokens


@register
@dataclass(frozen=True)
class Speed(Task):
    """depths: tokens in the cache. tokens: decoded one by one at each depth. limit: most depths.

    tps: tokens per second at the deepest, one by one, the median of all tokens; prefill_tps: of the
    prompt there. `kvengine bench` measures more carefully, beside other engines and against limits.
    """

    name: ClassVar[str] = "speed"
    primary: ClassVar[str] = "tps"
    depends_on_machine: ClassVar[bool] = True

    depths: tuple[int, ...] = (128, 1024, 2048, 4096)
    tokens: int = 24

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("depths", min(self.depths) >= 1, "at least 1")
        self.check("tokens", self.tokens >= 1, "at least 1")

    def units(self, runner: Runner) -> Sequence[int]:
        return sorted(set(self.depths))[: self.limit]

    def run(self, runner: Runner, unit: int) -> list[Record]:
        # Which tokens these are makes no difference to speed.
        prompt = [(7 * i + 11) % runner.model.vocab_size for i in range(unit)]
        start = time.perf_counter()
        session = runner.prefill(prompt, self.tokens)
        prefill = time.perf_counter() - start
        seconds = []
        for token in prompt[:1] * self.tokens:
            start = time.perf_counter()
            session.forward([token])
            seconds.append(time.perf_counter() - start)
        runner.note(session)
        tps = 1 / max(statistics.median(seconds), 1e-9)
        return [{"past": unit, "tps": tps, "prefill_tps": unit / max(prefill, 1e-9)}]

    def summarize(self, items: Sequence[Record]) -> dict[str, float]:
        deepest: dict[str, Any] = max(items, key=lambda item: item["past"])
        metrics = {name: deepest[name] for name in ("tps", "prefill_tps")}
        for item in items:
            metrics[f"tps@{item['past']}"] = item["tps"]
        return metrics
