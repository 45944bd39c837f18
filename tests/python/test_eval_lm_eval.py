"""The adapter for the harness lm-eval, which is an extra."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import optional_module

import kvengine as kv
from kvengine.eval.runner import Runner

ROWS = [
    {"question": f"Is {i} even?", "choices": ["yes it is", "no"], "label": i % 2} for i in range(12)
]
TASK = """
task: evenness
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: label
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""


@pytest.fixture(scope="module")
def adapter() -> ModuleType:
    optional_module("lm_eval")
    return optional_module("kvengine.eval.lm_eval_adapter")


@pytest.fixture
def lm(adapter: ModuleType, tiny_path: Path) -> Any:
    return adapter.KvengineLM(
        str(tiny_path), cache="int4:group=8;tail=0", exact="True", threads="2"
    )


def instances(kind: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, each, i) for i, each in enumerate(arguments)]


def test_models_of_the_harness_stay_known(adapter: ModuleType) -> None:
    from lm_eval.api.registry import get_model

    assert get_model("kvengine") is adapter.KvengineLM
    assert get_model("dummy").__module__ == "lm_eval.models.dummy"


def test_loglikelihoods(lm: Any, tiny: kv.Model) -> None:
    asked = [("Is it so?", " yes"), ("Is it so?", " no, never"), ("", "Begin"), ("Or ", "not")]
    found = lm.loglikelihood(instances("loglikelihood", asked), disable_tqdm=True)
    runner = Runner(tiny, "int4:group=8,tail=0", exact=True)
    for (context, continuation), (logprob, greedy) in zip(asked, found, strict=True):
        prefix, tokens = runner.encode_pair(context, continuation)
        expected = runner.loglikelihoods(prefix, [tokens])[0]
        assert logprob == pytest.approx(expected.logprob, abs=1e-5)
        assert greedy == expected.greedy


def test_long_contexts_lose_their_beginning(adapter: ModuleType, tiny_path: Path) -> None:
    lm = adapter.KvengineLM(str(tiny_path), cache="f32", exact=True, max_length=12)
    long = "a a a a a a b c d e f g"
    tokens = lm.tok_encode(long)
    assert len(tokens) > 12
    asked = instances("loglikelihood", [(long, " h")])
    (found,) = lm.loglikelihood(asked, disable_tqdm=True)
    continuation = lm.tok_encode(f"{long} h")[len(tokens) :]
    rest = 12 - len(continuation)
    runner = Runner(lm._model, "f32", exact=True)
    expected = runner.loglikelihoods(tokens[-rest:], [continuation])[0]
    assert found[0] == pytest.approx(expected.logprob, abs=1e-5)


def test_rolling(adapter: ModuleType, tiny_path: Path) -> None:
    text = "The cache keeps what it has seen and forgets the rest of what it was told."
    lm = adapter.KvengineLM(str(tiny_path), cache="f32", exact=True)
    (found,) = lm.loglikelihood_rolling(
        instances("loglikelihood_rolling", [(text,)]), disable_tqdm=True
    )
    tokens = [lm.prefix_token_id, *lm.tok_encode(text, add_special_tokens=False)]
    rows = lm._model.session(cache="f32", exact=True).forward(tokens, all_logits=True)[:-1]
    rows = rows.astype(np.float64)
    log_p = rows - np.log(np.exp(rows).sum(axis=-1, keepdims=True))
    expected = log_p[np.arange(len(tokens) - 1), tokens[1:]].sum()
    assert found == pytest.approx(expected, abs=1e-3)
    short = adapter.KvengineLM(str(tiny_path), cache="f32", exact=True, max_length=10)
    (parts,) = short.loglikelihood_rolling(
        instances("loglikelihood_rolling", [(text,)]), disable_tqdm=True
    )
    assert parts < 0
    assert parts != pytest.approx(found, abs=1e-3)  # less context for most tokens


def test_answers(lm: Any, tiny: kv.Model) -> None:
    options = {"until": ["\n\n"], "max_gen_toks": 6, "do_sample": False}
    prompts = ["One two", "A window of rows", "One two"]
    asked = instances("generate_until", [(prompt, options) for prompt in prompts])
    found = lm.generate_until(asked, disable_tqdm=True)
    for prompt, text in zip(prompts, found, strict=True):
        session = tiny.session(cache="int4:group=8,tail=0", exact=True)
        pieces = session.generate(prompt, max_tokens=6, stop="\n\n")
        assert text == "".join(piece.text for piece in pieces)


def test_the_harness_runs_a_local_task(
    adapter: ModuleType, tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "evenness.yaml").write_text(TASK.format(rows=rows))
    found = simple_evaluate(
        model="kvengine",
        model_args=f"pretrained={tiny_path},cache=f32,exact=True,threads=2",
        tasks=["evenness"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )
    runner = Runner(kv.Model.load(tiny_path, threads=2), "f32", exact=True)
    right = []
    for row in ROWS:
        context = f"Question: {row['question']}\nAnswer:"
        pairs = [runner.encode_pair(context, f" {choice}") for choice in row["choices"]]
        scores = [runner.loglikelihoods(*pair[:1], [pair[1]])[0].logprob for pair in pairs]
        right.append(int(np.argmax(scores)) == row["label"])
    assert found["results"]["evenness"]["acc,none"] == pytest.approx(np.mean(right))
