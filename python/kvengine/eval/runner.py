"""What tasks compute with: a model and a cache; likelihoods of continuations, and answers.

**Where the cache is compressed.** A task splits what the model reads into a *prefix* and what
follows. The prefix is the prompt of a session: it is read by one forward call, at the end of which
selectors (caches that drop tokens) have dropped what they drop, and codecs have coded what their
tail does not keep. What follows - continuations that are scored, an answer, another question about
the same document - reads the prefix from the cache, compressed. So a prefix that holds the question
is compressed with the question in sight, and one that ends before it is not; tasks say which.

A prefix is read once for each cache, however many continuations there are: the session is forked,
and all continuations are scored in one batch.

**Where prompts are shortened.** Tasks whose prompts have a context (`Task.shortens`) build them by
:meth:`Runner.prompt`, which drops some of the context's tokens if the setting has it so; what stands
around it, the question for one, stays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvengine._core import CacheStats, ConfigError, Error
from kvengine.batch import BatchAnswer
from kvengine.eval.perplexity import log_softmax
from kvengine.eval.references import References
from kvengine.eval.setting import parse_setting
from kvengine.model import Model, Prompt, Session
from kvengine.prompt import SelfInfo, compress_prompt

_MOST_FORKS = 16  # sessions fed at once
_MOST_ROWS = 128  # of logits at once: each is vocab_size floats
_MOST_ANSWERS = 8  # decoded together


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

    model: the model. cache: canonical spec of the setting. exact: f32 activations. references: where
    the logits of reference caches are kept, or None. method: how prompts are shortened, None: not at
    all.
    """

    def __init__(
        self,
        model: Model,
        cache: str = "f16",
        exact: bool = False,
        references: References | None = None,
    ) -> None:
        """cache: see :mod:`kvengine.eval.setting`. Runners that take turns may share `references`.

        Raises ConfigError: a bad spec (whether it suits the model is found out later).
        """
        setting = parse_setting(cache)
        self.model = model
        self.cache = str(setting)
        self.exact = exact
        self.references = references
        self.method = setting.method
        if exact and isinstance(self.method, SelfInfo):
            self.method = dataclasses.replace(self.method, exact=True)
        self._session_cache = setting.cache
        self._stats: dict[str, Any] | None = None
        self._shared: Session | None = None
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
        """Keep the statistics of a session's cache if none with more tokens was seen."""
        self.note_stats(session.cache.stats())

    def note_stats(self, stats: CacheStats) -> None:
        """As `note`, for who has the statistics at hand."""
        if self._stats is None or stats.tokens_seen >= self._stats["tokens_seen"]:
            self._stats = stats.as_dict()

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Tokens of a text; with `special`, BOS is put before it if the vocabulary asks for it."""
        return self.model.tokenizer.encode(text, add_special=special)

    def prompt(self, before: str, context: str, after: str = "", chat: bool = False) -> list[int]:
        """Tokens of a prompt, whose context is shortened first if the setting has it so.

        With `chat` it is the user's message, where the model has a template; else control tokens
        that the text spells are text, as :meth:`encode` has it.
        """
        text = before + context + after
        chat = chat and bool(self.model.chat_template)
        messages = [{"role": "user", "content": text}]
        if self.method is None or not context.strip():
            return self.model.encode_chat(messages) if chat else self.encode(text)
        prompt: Prompt = messages if chat else text
        return compress_prompt(
            self.model, prompt, self.method, context=context, parse_special=False
        ).tokens

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of a context and of what follows it, as lm-eval 0.4 splits them.

        White space at the end of the context goes to the continuation, whose tokens are those that
        both together have beyond those of the context. An empty context is one token: BOS, or what
        ends a text.
        """
        bare = context.rstrip()
        continuation = context[len(bare) :] + continuation
        if not bare:
            return [self.start_token()], self.encode(continuation, special=False)
        whole = self.encode(bare + continuation)
        prefix = self.encode(bare)
        return prefix, whole[len(prefix) :]

    def start_token(self, wanted: int | None = None) -> int:
        """What may stand before a text: `wanted` if there is such a token, else BOS, else EOS.

        Raises ConfigError: the vocabulary has none of them.
        """
        tokenizer = self.model.tokenizer
        for token in (wanted, tokenizer.bos, tokenizer.eos):
            if token is not None:
                return token
        raise ConfigError("vocabulary: expected a token for BOS or EOS, found none")

    def session(self, n_ctx: int) -> Session:
        """An empty session of the cache for n_ctx tokens or more."""
        n_ctx = max(n_ctx, self.model.n_ctx)  # budgets may exceed short prompts
        return self.model.session(n_ctx=n_ctx, cache=self._session_cache, exact=self.exact)

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
        return self.score([(prefix, tokens) for tokens in continuations])

    def score(self, pairs: Sequence[tuple[Session, Sequence[int]]]) -> list[Likelihood]:
        """How likely each continuation is after what its session holds; sessions stay as they are.

        Continuations of many sessions, or of one, share the reads of the weights.
        """
        for session, tokens in pairs:
            if session.last_logits is None or not tokens:
                raise ConfigError(
                    "likelihoods: expected tokens before and in continuations, found none"
                )
        results: list[Likelihood] = []
        for group in _groups(pairs):
            long = [i for i, (_, tokens) in enumerate(group) if len(tokens) > 1]
            rows: list[NDArray[np.float32]] = []
            if long:
                forks = [group[i][0].fork() for i in long]
                feeds = [list(group[i][1])[:-1] for i in long]
                rows = self.model.forward_batch(forks, feeds, all_logits=True)
            after_first = dict(zip(long, rows, strict=True))
            for i, (session, tokens) in enumerate(group):
                first = np.reshape(session.last_logits, (1, -1))
                rest = after_first.get(i)
                logits = first if rest is None else np.concatenate([first, rest])
                results.append(likelihood(logits, tokens))
        return results

    def go_on(self, prefix: Session, prompts: Sequence[Sequence[int]]) -> list[Session]:
        """Forks of a session that have each read a prompt (at least one token), in a batch."""
        forks = [prefix.fork() for _ in prompts]
        for start in range(0, len(forks), _MOST_FORKS):
            part = slice(start, start + _MOST_FORKS)
            self.model.forward_batch(forks[part], prompts[part])
        for fork in forks:
            self.note(fork)
        return forks

    def shared_prefix(self, tokens: Sequence[int], room: int) -> Session:
        """A session that has read a prefix, with room for more; kept for later calls with the same.

        Whoever has it forks it, and does not change it.
        """
        kept, needed = self._shared, len(tokens) + room
        if kept is None or kept.tokens != list(tokens) or kept.n_ctx < needed:
            self._shared = None  # its memory is free before the next one takes its own
            kept = self.prefill(tokens, max(needed, self.model.n_ctx) - len(tokens))
            self._shared = kept
        return kept

    def answer(
        self,
        sessions: Sequence[Session],
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        done: Callable[[int, str], bool] | None = None,
        **options: Any,
    ) -> list[BatchAnswer]:
        """Answers to prompts (at least one token each) that follow what sessions hold, in a batch.

        Raises Error: what kept one of them from going on.

        Args:
            done: called with the index and the text of an answer as it grows; once it has said yes
                for all answers, those still going on are cut short.
            options: of :meth:`Session.generate`; by default the likeliest token is taken.
        """
        options = {"temperature": 0.0} | options
        stream = self.model.stream_batch(
            prompts,
            max_tokens,
            sessions=sessions,
            parallel=min(len(prompts), _MOST_ANSWERS),
            **options,
        )
        waiting = set(range(len(prompts)))
        for index, _ in stream:
            if done and index in waiting and done(index, stream.answers[index].text):
                waiting.discard(index)
            over = {i for i in waiting if stream.answers[i].finish_reason}
            if done and not waiting - over:
                break
        stream.close()
        for each in stream.answers:
            if each.finish_reason == "error":
                raise Error(each.error)
        for session in sessions:
            self.note(session)
        return stream.answers


def _groups(
    pairs: Sequence[tuple[Session, Sequence[int]]],
) -> Iterator[list[tuple[Session, Sequence[int]]]]:
    """Pairs that are scored at once."""
    group: list[tuple[Session, Sequence[int]]] = []
    rows = 0
    for pair in pairs:
        if group and (len(group) == _MOST_FORKS or rows + len(pair[1]) > _MOST_ROWS):
            yield group
            group, rows = [], 0
        group.append(pair)
        rows += len(pair[1])
    if group:
        yield group


def common_prefix(sequences: Iterable[Sequence[int]]) -> int:
    """How many tokens all sequences begin with in common."""
    count = 0
    for column in zip(*sequences, strict=False):
        if len(set(column)) > 1:
            break
        count += 1
    return count


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
