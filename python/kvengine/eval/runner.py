"""What tasks compute with: a model and a cache; likelihoods of continuations, and answers.

**Where the cache is compressed.** A task splits what the model reads into a *prefix* and what
follows. The prefix is the prompt of a session: it is read by one forward call, at the end of which
selectors (caches that drop tokens) have dropped what they drop, and codecs have coded what their
tail does not keep. What follows - continuations that are scored, an answer, another question about
the same document - reads the prefix from the cache, compressed. So a prefix that holds the question
is compressed with the question in sight, and one that ends before it is not; tasks say which.

A prefix is read once for each cache, however many continuations there are: the session is forked,
and all continuations are scored in one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvengine._core import ConfigError, canonical_cache
from kvengine.batch import BatchAnswer
from kvengine.eval.perplexity import log_softmax
from kvengine.model import Model, Session

_MOST_FORKS = 16  # continuations scored at once: each row of logits is vocab_size floats


@dataclass(frozen=True)
class Likelihood:
    """How likely a continuation is.

    logprob: natural logarithm of its probability. greedy: whether each token was the likeliest.
    ranks: for each token, how many tokens were likelier. logprobs: of each token.
    """

    logprob: float
    greedy: bool
    ranks: list[int]
    logprobs: list[float]


class Runner:
    """A model with a cache.

    model: the model. cache: canonical spec. exact: f32 activations.
    """

    def __init__(self, model: Model, cache: str = "f16", exact: bool = False) -> None:
        """Raises ConfigError: a bad spec (whether it suits the model is found out later)."""
        self.model = model
        self.cache = canonical_cache(cache)
        self.exact = exact
        self._stats: dict[str, Any] | None = None
        self._report: Callable[[float], None] = lambda part: None

    def begin(self, on_part: Callable[[float], None] | None = None) -> None:
        """Begin a unit: forget `largest_cache`. on_part is told the part of the unit that is done."""
        self._stats = None
        self._report = on_part or (lambda part: None)

    def progress(self, part: float) -> None:
        """Tell how much of the unit is done: 0 to 1."""
        self._report(part)

    @property
    def largest_cache(self) -> dict[str, Any] | None:
        """Statistics of the session with the most tokens since `begin`."""
        return self._stats

    def note(self, session: Session) -> None:
        """Keep the statistics of a session if none with more tokens was seen."""
        if self._stats is None or session.n_tokens >= self._stats["tokens_seen"]:
            self._stats = session.cache.stats().as_dict()

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Tokens of a text; with `special`, BOS is put before it if the vocabulary asks for it."""
        return self.model.tokenizer.encode(text, add_special=special)

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of a context and of what follows it, as lm-eval 0.4 splits them.

        White space at the end of the context goes to the continuation, whose tokens are those that
        both together have beyond those of the context. An empty context is one token: BOS, or what
        ends a text.
        """
        bare = context.rstrip()
        continuation = context[len(bare) :] + continuation
        if not bare:
            start = self._start_token()
            tokens = self.encode(continuation, special=False)
            return [start], tokens
        whole = self.encode(bare + continuation)
        prefix = self.encode(bare)
        return prefix, whole[len(prefix) :]

    def _start_token(self) -> int:
        tokenizer = self.model.tokenizer
        for token in (tokenizer.bos, tokenizer.eos):
            if token is not None:
                return token
        raise ConfigError("context: expected some text for a model without BOS and EOS, found none")

    def session(self, n_ctx: int) -> Session:
        """An empty session of the cache for up to n_ctx tokens."""
        return self.model.session(n_ctx=n_ctx, cache=self.cache, exact=self.exact)

    def prefill(self, tokens: Sequence[int], room: int) -> Session:
        """A session that has read a prefix, with room for more tokens."""
        session = self.session(len(tokens) + room)
        session.forward(tokens)
        self.note(session)
        return session

    def loglikelihoods(
        self, prefix: Session | Sequence[int], continuations: Sequence[Sequence[int]]
    ) -> list[Likelihood]:
        """How likely each continuation is after a prefix, which is read once.

        Args:
            prefix: tokens, at least one; or a session that has read them, which stays as it is.
            continuations: each at least one token.
        """
        if not isinstance(prefix, Session):
            prefix = self.prefill(prefix, max(map(len, continuations)))
        first = prefix.last_logits
        if first is None or not all(map(len, continuations)):
            raise ConfigError(
                "likelihoods: expected tokens before and in continuations, found none"
            )
        first = first.reshape(1, -1)
        results: list[Likelihood] = []
        for start in range(0, len(continuations), _MOST_FORKS):
            group = [list(tokens) for tokens in continuations[start : start + _MOST_FORKS]]
            long = [i for i, tokens in enumerate(group) if len(tokens) > 1]
            rows: dict[int, NDArray[np.float32]] = {}
            if long:
                forks = [prefix.fork() for _ in long]
                feeds = [group[i][:-1] for i in long]
                logits = self.model.forward_batch(forks, feeds, all_logits=True)
                rows = dict(zip(long, logits, strict=True))
            for i, tokens in enumerate(group):
                whole = np.concatenate([first, rows[i]]) if i in rows else first
                results.append(likelihood(whole, tokens))
        return results

    def answer(
        self,
        sessions: Sequence[Session],
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        done: Callable[[int, str], bool] | None = None,
        **options: Any,
    ) -> list[BatchAnswer]:
        """Answers to prompts (at least one token each) that follow what sessions hold, in a batch.

        Args:
            done: called with the index and the text of an answer as it grows; once it has said yes
                for all answers, those still going on are cut short.
            options: of :meth:`Session.generate`; by default the likeliest token is taken.
        """
        options = {"temperature": 0.0} | options
        stream = self.model.stream_batch(
            prompts, max_tokens, sessions=sessions, parallel=len(prompts), **options
        )
        waiting = set(range(len(prompts)))
        for index, _ in stream:
            if done and index in waiting and done(index, stream.answers[index].text):
                waiting.discard(index)
            over = {i for i in waiting if stream.answers[i].finish_reason}
            if done and not waiting - over:
                break
        stream.close()
        for session in sessions:
            self.note(session)
        return stream.answers


def likelihood(logits: NDArray[np.float32], tokens: Sequence[int]) -> Likelihood:
    """Of tokens; logits [n_tokens, vocab_size] are of the positions before each."""
    index = np.arange(len(tokens))
    targets = np.asarray(tokens, dtype=np.int64)
    log_p = log_softmax(logits[: len(tokens)])[index, targets]
    ranks = (logits[: len(tokens)] > logits[index, targets][:, None]).sum(axis=-1)
    return Likelihood(
        logprob=float(log_p.sum()),
        greedy=bool((logits[: len(tokens)].argmax(axis=-1) == targets).all()),
        ranks=ranks.tolist(),
        logprobs=log_p.tolist(),
    )
