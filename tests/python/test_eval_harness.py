"""The harness lm-eval with this engine beside its own model `hf`, on local task files: one score."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import evaluation_file, optional_module, real_model

pytestmark = [pytest.mark.model, pytest.mark.slow]

N_ITEMS = 200
POINTS = 0.005

COMMON = """
task: local_{name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
"""
CHOICE = """
output_type: multiple_choice
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
QUESTION = r"""
doc_to_text: "Question: {{question}}\nAnswer:"
doc_to_choice: choices
doc_to_target: label
"""
# Prompts and metrics of lm-eval's own tasks, whose data sets are not fetched here.
TASKS = {
    "lambada": (
        "qa/lambada_openai_test.jsonl.gz",
        r"""
output_type: loglikelihood
doc_to_text: "{{context}}"
doc_to_target: "{{' ' + continuation}}"
metric_list: [{metric: acc}, {metric: perplexity}]
""",
    ),
    "hellaswag": (
        "qa/hellaswag_validation.jsonl.gz",
        CHOICE
        + r"""
doc_to_text: "{{activity}}: {{ctx}}"
doc_to_choice: endings
doc_to_target: label
""",
    ),
    "arc_easy": ("qa/arc_easy_validation.jsonl", CHOICE + QUESTION),
    "piqa": (
        "qa/piqa_validation.jsonl",
        CHOICE + QUESTION.replace("{{question}}", "{{goal}}"),
    ),
}


def first_rows(path: Path, count: int) -> list[str]:
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    return text.split("\n")[:count]


def scores(name: str, folder: Path, model: str, arguments: dict[str, Any]) -> dict[str, float]:
    """Of the task of a folder: the metrics but their standard errors."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    found = simple_evaluate(
        model=model,
        model_args=arguments,
        tasks=[f"local_{name}"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        batch_size=1,
        bootstrap_iters=0,
    )
    numbers = found["results"][f"local_{name}"]
    return {
        key.partition(",")[0]: value
        for key, value in numbers.items()
        if isinstance(value, float) and "stderr" not in key
    }


@pytest.mark.parametrize("name", TASKS)
def test_scores_are_those_of_hf(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    for module in ("torch", "gguf", "lm_eval", "kvengine.eval.lm_eval_adapter"):
        optional_module(module)
    file, task = TASKS[name]
    model = real_model("smollm2-135m")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(
            f"{json.dumps(json.loads(line))}\n"
            for line in first_rows(evaluation_file(file), N_ITEMS)
        )
    )
    (tmp_path / "task.yaml").write_text(COMMON.format(name=name, rows=rows) + task)
    ours = scores(
        name, tmp_path, "kvengine", {"pretrained": str(model), "cache": "f32", "exact": True}
    )
    theirs = scores(
        name,
        tmp_path,
        "hf",
        {
            "pretrained": str(model.parent),
            "gguf_file": model.name,
            "dtype": "float32",
            "device": "cpu",
        },
    )
    print(f"{name}: kvengine {ours}, hf {theirs}")
    assert ours.keys() == theirs.keys() >= {"acc"}
    for metric in ours.keys() - {"perplexity"}:
        assert abs(ours[metric] - theirs[metric]) <= POINTS + 1e-9, metric
    if "perplexity" in ours:
        assert ours["perplexity"] == pytest.approx(theirs["perplexity"], rel=0.02)
