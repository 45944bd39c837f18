"""What tasks share that ask questions: prompts that fit, sessions that have read them, answers.

Several questions about one document can be asked of one session that has read the document
(`shared`): it is read once, forked for each question, and compressed before any question is seen.
Otherwise each prompt is read in one pass, so that caches that drop tokens see the question.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import numpy as np

from kvengine._core import ConfigError, Tokenizer
from kvengine.eval.runner import Runner
from kvengine.model import Session


def cut_middle(tokenizer: Tokenizer, text: str, most: int) -> str:
    """A text of at most `most` tokens or so: its first and last halves, as LongBench cuts."""
    tokens = tokenizer.encode(text, add_special=False)
    if len(tokens) <= most:
        return text
    half = most // 2
    return tokenizer.decode(tokens[:half]) + tokenizer.decode(tokens[len(tokens) - half :])


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens all sequences begin with in common."""
    shortest = min(map(len, sequences))
    for i in range(shortest):
        if any(sequence[i] != sequences[0][i] for sequence in sequences):
            return i
    return shortest


def read(
    runner: Runner, prompts: Sequence[Sequence[int]], room: int, shared: bool = False
) -> list[Session]:
    """A session for each prompt, which has read it and has room for more tokens."""
    if not shared:
        return [runner.prefill(prompt, room) for prompt in prompts]
    # Of each prompt one token at least is read by its own session, whose logits it gives.
    before = min(common_prefix(prompts), min(map(len, prompts)) - 1)
    if before == 0:
        return [runner.prefill(prompt, room) for prompt in prompts]
    document = runner.prefill(prompts[0][:before], max(map(len, prompts)) - before + room)
    sessions = [document.fork() for _ in prompts]
    for session, prompt in zip(sessions, prompts, strict=True):
        session.forward(prompt[before:])
    return sessions


def mean_logprob(runner: Runner, session: Session, right: str) -> float:
    """Mean log-probability of the tokens of the right answer after what a session has read."""
    tokens = runner.encode(right, special=False)
    if not tokens:
        raise ConfigError("answer: expected some text to measure, found none")
    return runner.loglikelihoods(session, [tokens])[0].logprob / len(tokens)


def answer(
    runner: Runner,
    sessions: Sequence[Session],
    max_tokens: int,
    done: Callable[[str], bool] | None = None,
    begins: bool = False,
    stop: str | None = None,
) -> list[str]:
    """What follows what sessions have read, greedily.

    Args:
        done: all answers end early once it has said so of each text.
        begins: the first token is the likeliest that is neither a line break nor an end.
        stop: what ends an answer, and is no part of it.
    """
    first = [[_first_token(session)] for session in sessions] if begins else [[] for _ in sessions]
    decode = runner.model.tokenizer.decode
    texts = list(map(decode, first))
    if max_tokens == len(first[0]):
        return texts
    found = runner.answer(
        sessions,
        first,
        max_tokens - len(first[0]),
        (lambda index, text: done(texts[index] + text)) if done else None,
        stop=stop,
    )
    if not begins:
        return [each.text for each in found]
    return [decode([*one, *each.tokens]) for one, each in zip(first, found, strict=True)]


def _first_token(session: Session) -> int:
    """The likeliest token that begins an answer; see :func:`answer`."""
    tokenizer = session.model.tokenizer
    line_breaks = tokenizer.encode("\n", add_special=False)
    order = np.argsort(-np.ravel(session.last_logits), kind="stable")
    return next(
        int(token)
        for token in order
        if token not in line_breaks[-1:] and not tokenizer.is_end_of_generation(int(token))
    )


def first_line(text: str) -> str:
    """The first line after leading line breaks."""
    return text.lstrip("\n").split("\n")[0]


def has_line(text: str) -> bool:
    """Whether the first line is complete: something, then a line break."""
    return "\n" in text.lstrip("\n")


def mean(numbers: Sequence[float]) -> float:
    return statistics.fmean(numbers)
