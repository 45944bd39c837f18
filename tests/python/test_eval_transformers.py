"""Tasks by likelihood against transformers in float32: the same prompts, the same decisions.

The tasks themselves run twice, once with a runner that has transformers compute what is likely.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from conftest import evaluation_file, optional_module, real_model

import kvengine as kv
from kvengine.eval.runner import Likelihood, Runner, likelihood
from kvengine.eval.task import Record, parse, run_task

pytestmark = [pytest.mark.model, pytest.mark.slow]

TASKS = {
    "lambada": "qa/lambada_openai_test.jsonl.gz",
    "hellaswag": "qa/hellaswag_validation.jsonl.gz",
    "piqa": "qa/piqa_validation.jsonl",
    "arc_easy": "qa/arc_easy_validation.jsonl",
    "boolq": "qa/boolq_validation.jsonl.gz",
    "mmlu": "qa/mmlu_validation.jsonl.gz",
}
N_ITEMS = 200
AGREEMENT = 0.99


@dataclass
class Prefix:
    """What stands for a session: keys and values of transformers, and the last logits."""

    past: Any
    last: np.ndarray


class TransformersRunner(Runner):
    """Computes likelihoods with transformers."""

    def __init__(self, model: kv.Model, reference: Any) -> None:
        super().__init__(model)
        self._reference = reference
        self._kept: tuple[list[int], Prefix] | None = None

    def prefill(self, tokens: Sequence[int], room: int) -> Any:
        past, logits = self._feed(None, tokens)
        return Prefix(past, logits[-1:])

    def shared_prefix(self, tokens: Sequence[int], room: int) -> Any:
        if self._kept is None or self._kept[0] != list(tokens):
            self._kept = (list(tokens), self.prefill(tokens, room))
        return self._kept[1]

    def go_on(self, prefix: Any, prompts: Sequence[Sequence[int]]) -> list[Any]:
        fed = [self._feed(prefix.past, prompt) for prompt in prompts]
        return [Prefix(past, logits[-1:]) for past, logits in fed]

    def score(self, pairs: Sequence[tuple[Any, Sequence[int]]]) -> list[Likelihood]:
        results = []
        for prefix, tokens in pairs:
            logits = prefix.last
            if len(tokens) > 1:
                logits = np.concatenate([logits, self._feed(prefix.past, tokens[:-1])[1]])
            results.append(likelihood(logits, tokens))
        return results

    def _feed(self, past: Any, tokens: Sequence[int]) -> tuple[Any, np.ndarray]:
        torch = optional_module("torch")
        with torch.inference_mode():
            found = self._reference(
                torch.tensor([list(tokens)]), past_key_values=copy.deepcopy(past), use_cache=True
            )
        return found.past_key_values, found.logits[0].numpy()


@pytest.fixture(scope="module")
def reference() -> Any:
    torch = optional_module("torch")
    transformers = optional_module("transformers")
    optional_module("gguf")
    path = real_model("smollm2-135m")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    return model.eval()


def decision(item: Record) -> tuple[int, ...]:
    """What is decided about an item: the answer, or whether the word is right."""
    if "scores" in item:
        return (int(np.argmax(item["scores"])), item["acc_norm"])
    return item["accuracy"], item["last_token"]


@pytest.mark.parametrize("name", TASKS)
def test_decisions_are_those_of_transformers(
    name: str, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVENGINE_DATA", str(evaluation_file(TASKS[name]).parents[1]))
    model = kv.Model.load(real_model("smollm2-135m"))
    task = parse(f"{name}:limit={N_ITEMS}")
    ours = run_task(task, Runner(model, "f32", exact=True))
    theirs = run_task(task, TransformersRunner(model, reference))
    assert len(ours.items) == len(theirs.items) == N_ITEMS
    same = [decision(a) == decision(b) for a, b in zip(ours.items, theirs.items, strict=True)]
    shown = {key: (ours.metrics[key], theirs.metrics[key]) for key in ours.metrics}
    print(f"{name}: {sum(same)} of {N_ITEMS} decisions are the same; {shown}")
    assert np.mean(same) >= AGREEMENT
