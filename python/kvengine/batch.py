"""Several prompts answered together, so that they share the reads of the weights."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvengine import _core

if TYPE_CHECKING:
    from kvengine.model import Model, Session


@dataclass
class BatchAnswer:
    """The answer to one prompt of a batch.

    ``finish_reason`` is ``"stop"`` (end token or stop string), ``"length"`` (``max_tokens`` or the
    context is full) or ``"error"``; then ``error`` says what went wrong, and what was generated
    before is still here. None while the answer is going on.
    """

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    prompt_tokens: int = 0
    error: str = ""

    @property
    def logprob(self) -> float:
        """Natural log of the probability of all tokens."""
        return math.fsum(self.logprobs)


Open = Callable[[int], "tuple[Session, Sequence[int]]"]
"""The session and the prompt's tokens of the i-th answer; called when its turn comes."""


class BatchStream(Iterator["tuple[int, _core.Piece]"]):
    """Iterator over (index of the prompt, piece) as pieces come; see :meth:`Model.stream_batch`.

    ``answers`` holds what has come so far, one for each prompt. Closing it cancels the rest.
    """

    def __init__(
        self, model: Model, count: int, parallel: int, options: _core.GenerateOptions, open: Open
    ) -> None:
        if parallel < 1:
            raise _core.ConfigError(f"parallel: expected at least 1 sequence, found {parallel}")
        self.answers = [BatchAnswer() for _ in range(count)]
        self._batch = _core.BatchGeneration(model)
        self._options = options
        self._open = open
        self._parallel = parallel
        self._waiting = deque(range(count))
        self._running: dict[int, int] = {}  # number of the sequence: index of the prompt
        self._ready: deque[tuple[int, _core.Piece]] = deque()

    def __next__(self) -> tuple[int, _core.Piece]:
        while not self._ready:
            self._begin()
            if not self._running:
                raise StopIteration
            self._step()
        index, piece = self._ready.popleft()
        answer = self.answers[index]
        answer.text += piece.text
        if piece.token is not None:
            answer.tokens.append(piece.token)
            answer.logprobs.append(piece.logprob)
        return index, piece

    def close(self) -> None:
        """Cancel the answers that have not ended; their ``finish_reason`` stays None."""
        for number in self._running:
            self._batch.remove(number)
        self._running.clear()
        self._waiting.clear()
        self._ready.clear()

    @property
    def prompt_seconds(self) -> float:
        """Time spent reading prompts."""
        return self._batch.prompt_seconds

    @property
    def decode_seconds(self) -> float:
        """Time spent sampling and decoding."""
        return self._batch.decode_seconds

    def _begin(self) -> None:
        while self._waiting and len(self._running) < self._parallel:
            index = self._waiting.popleft()
            answer = self.answers[index]
            try:
                session, tokens = self._open(index)
                answer.prompt_tokens = len(tokens)
                self._running[self._batch.add(session, tokens, self._options)] = index
            except _core.CapacityError as error:  # this prompt is too long; others may fit
                answer.finish_reason, answer.error = "error", str(error)

    def _step(self) -> None:
        for number, piece in self._batch.step():
            self._ready.append((self._running[number], piece))
        for number in list(self._running):
            reason = self._batch.finish_reason(number)
            if reason is not None:
                answer = self.answers[self._running.pop(number)]
                answer.finish_reason, answer.error = reason, self._batch.error(number)
                self._batch.remove(number)
