"""Tasks by likelihood: their prompts, their scores, and what is shared between questions."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvengine as kv
from kvengine.eval.runner import Likelihood, Runner, common_prefix
from kvengine.eval.task import parse, registry, run_task
from kvengine.eval.tasks.choice import Question, choice_metrics, choose

ROWS: dict[str, dict[str, Any]] = {
    "hellaswag": {
        "activity": "Baking",
        "ctx": "[header] How to bake [title] Mix it. [step] A man",
        "endings": ["[substeps] eats.  It is good.", "runs", "sits", "flies"],
        "label": 1,
    },
    "piqa": {"goal": "Open a jar", "choices": ["twist it", "eat it whole"], "label": 0},
    "arc_easy": {"question": "What is wet?", "choices": ["water", "sand", "salt"], "label": 0},
    "arc_challenge": {"question": "Why?", "choices": ["because", "of that"], "label": 1},
    "winogrande": {
        "sentence": "Ann met Bea and _ was glad to see her.",
        "choices": ["Ann", "Bea"],
        "label": 1,
    },
    "openbookqa": {"question": "A tree is", "choices": ["tall", "a dog"], "label": 0},
    "commonsenseqa": {
        "question": " Where? ",
        "choices": ["here", "there", "on", "off", "up"],
        "label": 4,
    },
    "boolq": {"passage": "Ice is cold.", "question": "is ice cold", "answer": True},
    "copa": {
        "premise": "It rained. ",
        "choices": ["The road is wet.", "Dogs fly."],
        "question": "effect",
        "label": 0,
    },
}
PROMPTS: dict[str, list[tuple[str, str]]] = {
    "hellaswag": [
        ("Baking: How to bake. Mix it. A man", " " + ending)
        for ending in (" eats. It is good.", "runs", "sits", "flies")
    ],
    "piqa": [
        ("Question: Open a jar\nAnswer:", " twist it"),
        ("Question: Open a jar\nAnswer:", " eat it whole"),
    ],
    "arc_easy": [
        ("Question: What is wet?\nAnswer:", f" {answer}") for answer in ("water", "sand", "salt")
    ],
    "arc_challenge": [
        ("Question: Why?\nAnswer:", f" {answer}") for answer in ("because", "of that")
    ],
    "winogrande": [
        ("Ann met Bea and Ann", " was glad to see her."),
        ("Ann met Bea and Bea", " was glad to see her."),
    ],
    "openbookqa": [("A tree is", " tall"), ("A tree is", " a dog")],
    "commonsenseqa": [
        ("Question: Where?\nA. here\nB. there\nC. on\nD. off\nE. up\nAnswer:", f" {letter}")
        for letter in "ABCDE"
    ],
    "boolq": [
        ("Ice is cold.\nQuestion: is ice cold?\nAnswer:", " no"),
        ("Ice is cold.\nQuestion: is ice cold?\nAnswer:", " yes"),
    ],
    "copa": [("It rained therefore", "  the road is wet."), ("It rained therefore", "  dogs fly.")],
}


def write_rows(corpus: Path, name: str, rows: list[dict[str, Any]]) -> None:
    path = corpus / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def alone(model: kv.Model, context: list[int], answer: list[int]) -> float:
    """The log-probability of an answer by one pass over everything."""
    session = model.session(n_ctx=len(context) + len(answer), cache="f32", exact=True)
    rows = session.forward(context + answer, all_logits=True)[len(context) - 1 : -1]
    rows = rows.astype(np.float64)
    log_p = rows - np.log(np.exp(rows).sum(axis=-1, keepdims=True))
    return math.fsum(row[token] for row, token in zip(log_p, answer, strict=True))


def test_all_choices_have_rows_here() -> None:
    shots = {"mmlu", "subj", "movie_reviews"}
    from kvengine.eval.tasks.choice import Choice

    known = {name for name, task in registry().items() if issubclass(task, Choice)}
    assert known == set(ROWS) == set(PROMPTS)
    assert shots <= set(registry())


@pytest.mark.parametrize("name", ROWS)
def test_prompts_are_those_of_lm_eval(tiny: kv.Model, corpus: Path, name: str) -> None:
    task = parse(name)
    write_rows(corpus, task.files[0], [ROWS[name]])
    runner = Runner(tiny, "f32", exact=True)
    found = run_task(task, runner)
    (item,) = found.items
    # The written prompts, split and scored anew.
    for score, (context, answer) in zip(item["scores"], PROMPTS[name], strict=True):
        whole = tiny.tokenizer.encode(context + answer)
        prefix = tiny.tokenizer.encode(context)
        assert score == pytest.approx(alone(tiny, prefix, whole[len(prefix) :]), abs=1e-4)
    label = int(ROWS[name].get("label", ROWS[name].get("answer")))
    assert item["label"] == label
    assert item["acc"] == (int(np.argmax(item["scores"])) == label)
    assert found.value is not None


def test_scores_of_questions() -> None:
    def found(*logprobs: float) -> Likelihood:
        return Likelihood(sum(logprobs), False, [0] * len(logprobs), list(logprobs))

    question = Question(["?"], ["abcd", "ab", "abcdefgh"], 2)
    likelihoods = [found(-4.0), found(-3.0, -0.5), found(-2.0, -1.0, -0.5, -1.0)]
    item = choose(question, likelihoods)
    assert item["scores"] == [-4.0, -3.5, -4.5]
    assert item["acc"] == 0  # the second is likeliest
    assert item["acc_norm"] == 1  # -1, -1.75 and -0.5625 per character
    assert item["acc_token"] == 1  # -4, -1.75 and -1.125 per token
    total = math.exp(-4) + math.exp(-3.5) + math.exp(-4.5)
    assert item["probability"] == pytest.approx(math.exp(-4.5) / total)
    metrics = choice_metrics([item, item | {"acc": 1}, item, item], ("acc", "probability"))
    assert metrics["acc"] == 0.25
    assert metrics["acc_stderr"] == pytest.approx(math.sqrt(0.25 * 0.75 / 3))


def test_lambada(tiny: kv.Model, corpus: Path) -> None:
    rows = [
        {"context": f"One {word} two {word} three", "continuation": f"{word} four"}
        for word in ("token", "cache", "page") * 7
    ]
    write_rows(corpus, "qa/lambada_openai_test.jsonl", rows)
    found = run_task(parse("lambada:limit=13"), Runner(tiny, "f32", exact=True))
    assert len(found.items) == 13
    for row, item in zip(rows, found.items, strict=False):
        prefix = tiny.tokenizer.encode(row["context"])
        whole = tiny.tokenizer.encode(f"{row['context']} {row['continuation']}")
        expected = alone(tiny, prefix, whole[len(prefix) :])
        assert item["logprob"] == pytest.approx(expected, abs=1e-4)
        logits = tiny.session(cache="f32", exact=True).forward(whole, all_logits=True)
        right = logits[:-1].argmax(axis=-1) == whole[1:]
        assert item["accuracy"] == right[len(prefix) - 1 :].all()
        assert item["last_token"] == right[-1]
    mean = np.mean([item["logprob"] for item in found.items])
    assert found.metrics["ppl"] == pytest.approx(math.exp(-mean))


def mmlu_rows(count: int, subjects: tuple[str, ...]) -> list[dict[str, Any]]:
    return [
        {"choices": ["a", "b", f"c{i}", "d"], "label": i % 4, "question": f" Q{i}? ", "subject": s}
        for s in subjects
        for i in range(count)
    ]


def test_mmlu(tiny: kv.Model, corpus: Path) -> None:
    write_rows(corpus, "qa/mmlu_dev.jsonl", mmlu_rows(5, ("hard_sums", "words")))
    write_rows(corpus, "qa/mmlu_validation.jsonl", mmlu_rows(12, ("hard_sums", "words")))
    task = parse("mmlu:shots=2")
    runner = Runner(tiny, "f32", exact=True)
    sheets = task.units(runner)
    assert [len(sheet.questions) for sheet in sheets] == [10, 2, 10, 2]
    assert sheets[0].shared == (
        "The following are multiple choice questions (with answers) about hard sums.\n\n"
        "Q0?\nA. a\nB. b\nC. c0\nD. d\nAnswer: A\n\n"
        "Q1?\nA. a\nB. b\nC. c1\nD. d\nAnswer: B\n\n"
    )
    found = run_task(task, runner)
    assert len(found.items) == 24
    context = tiny.tokenizer.encode(sheets[1].shared + "Q11?\nA. a\nB. b\nC. c11\nD. d\nAnswer:")
    item = found.items[11]
    assert item["label"] == 3
    for score, letter in zip(item["scores"], "ABCD", strict=True):
        answer = tiny.tokenizer.encode(f" {letter}", add_special=False)
        assert score == pytest.approx(alone(tiny, context, answer), abs=1e-4)
    spread = parse("mmlu:shots=2,limit=6").units(runner)
    asked = [question.contexts[0][:3] for sheet in spread for question in sheet.questions]
    assert asked == ["Q0?", "Q4?", "Q8?"] * 2
    nothing = parse("mmlu:shots=0").units(runner)[0].shared
    assert nothing.endswith("about hard sums.\n\n")


def test_demonstrations_are_read_once_and_compressed(tiny: kv.Model, corpus: Path) -> None:
    rows = [
        {"label": ("neg", "pos")[i % 2], "text": f"Film {i} was {('bad', 'fine')[i % 2]}. "}
        for i in range(30)
    ]
    write_rows(corpus, "classify/movie_reviews.jsonl", rows)
    reads: list[int] = []

    class Watched(Runner):
        def prefill(self, tokens, room):
            reads.append(len(tokens))
            return super().prefill(tokens, room)

    task = parse("movie_reviews:shots=6,limit=20", seed=42)
    runner = Watched(tiny, "f32", exact=True)
    found = run_task(task, runner)
    assert len(reads) == 1  # for both units
    (first, second) = task.units(runner)
    assert first.shared == second.shared
    shown = first.shared.split("\n\n")[:-1]
    assert len(shown) == 6
    assert shown[0] in [
        f"Review: {row['text'].strip()}\nSentiment: {('negative', 'positive')[row['label'] == 'pos']}"
        for row in rows
    ]
    asked = [question.contexts[0] for question in first.questions + second.questions]
    assert len(asked) == 20
    assert not {text.partition("\nSent")[0] for text in asked} & {
        text.partition("\nSent")[0] for text in shown
    }
    context = tiny.tokenizer.encode(second.shared + asked[13])
    for score, answer in zip(found.items[13]["scores"], ("negative", "positive"), strict=True):
        tokens = tiny.tokenizer.encode(f" {answer}", add_special=False)
        assert score == pytest.approx(alone(tiny, context, tokens), abs=1e-4)
    # What is asked about stays: only the demonstrations were dropped.
    dropped = run_task(task, Runner(tiny, "snapkv:keep=0.25,window=8", exact=True)).cache_stats
    longest = max(len(tiny.tokenizer.encode(f"\n\n{text}")) for text in asked)
    assert dropped["tokens_kept"] <= 0.25 * reads[0] + longest + 1
    other = parse("movie_reviews:shots=6", seed=1).units(runner)[0].shared
    assert other != first.shared


def test_classes(tiny: kv.Model, corpus: Path) -> None:
    rows = [{"label": "subjective", "text": "Nice."}, {"label": "objective", "text": "A man."}]
    write_rows(corpus, "classify/subj.jsonl", rows)
    runner = Runner(tiny, "f32", exact=True)
    found = run_task(parse("subj:shots=0"), runner)
    assert [item["label"] for item in found.items] == [1, 0]
    context = tiny.tokenizer.encode("Input: Nice.\nType:")
    for score, answer in zip(found.items[0]["scores"], ("objective", "subjective"), strict=True):
        tokens = tiny.tokenizer.encode(f" {answer}", add_special=False)
        assert score == pytest.approx(alone(tiny, context, tokens), abs=1e-4)
    with pytest.raises(kv.ConfigError, match="less than the 2 texts"):
        run_task(parse("subj:shots=2"), runner)


def test_common_prefixes() -> None:
    assert common_prefix([[1, 2, 3], [1, 2], [1, 2, 4]]) == 2
    assert common_prefix([[1], [2]]) == 0
    assert common_prefix([[], [1]]) == 0
    assert common_prefix([[5, 6]]) == 2
