"""LongBench's files and scores, QMSum, and the questions of RULER, with the tiny model."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import kvengine as kv
from kvengine.eval import answering, data, longbench, ruler
from kvengine.eval.answering import answer, common_prefix, cut_middle, read
from kvengine.eval.runner import Runner
from kvengine.eval.task import parse, run_task

BOOK = "It was the best of boats, it was the worst of lamps, said Anna, and closed the book. " * 40
PARAGRAPHS = [
    {
        "context": f"The {colour} house of Lyon has {i + 2} doors and stands by the river.",
        "qas": [{"question": f"How many doors has the {colour} house?", "answers": [f"{i + 2}"]}],
    }
    for i, colour in enumerate(["red", "blue", "green", "white", "black"])
]
MEETING = {
    "id": "m1",
    "transcript": "A: The lamp is too bright. B: It is not. " * 10,
    "specific_queries": [
        {"query": "What of the lamp?", "answer": "It is too bright."},
        {"query": "What does B say?", "answer": "That it is not."},
        {"query": "Who speaks?", "answer": "A and B."},
    ],
}


@pytest.fixture(autouse=True)
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "data"
    for name in ("books", "words", "qa", "long"):
        (folder / name).mkdir(parents=True)
    (folder / "books" / "one.txt").write_text(BOOK)
    (folder / "words" / "adjectives.txt").write_text("quick\nslow\nbright\nquizzical\n")
    nouns = [a + b for a in ("lam", "boa", "coo", "ham") for b in ("ter", "ping", "lot", "rim")]
    (folder / "words" / "nouns.txt").write_text("\n".join(nouns))
    (folder / "words" / "verbs.txt").write_text("walk\njump\nsing\nhop\nCD\n")
    lines = "".join(json.dumps(row) + "\n" for row in PARAGRAPHS)
    (folder / "qa" / "xquad_en_part1.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (folder / "long" / "qmsum_test.jsonl").write_text(json.dumps(MEETING) + "\n")
    monkeypatch.setenv("KVENGINE_DATA", str(folder))
    data._read.cache_clear()
    ruler._book_words.cache_clear()
    yield folder
    ruler._book_words.cache_clear()


@pytest.fixture
def runner(tiny: kv.Model) -> Runner:
    return Runner(tiny)


# --- RULER ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ruler.KINDS)
def test_samples_are_as_long_as_they_may_be(kind: str) -> None:
    def drawn(room: int) -> ruler.Sample:
        return ruler.sample(kind, random.Random(1), lambda prompt: len(prompt) <= room)

    small, large = drawn(1500), drawn(2500)
    assert len(small.prompt) <= 1500
    assert len(large.prompt) <= 2500
    assert (small.before, small.after) == (large.before, large.after)
    assert small.answers == large.answers
    if kind not in ("qa", "common_words"):  # there is no end of filler
        assert len(small.prompt) > 1350
        assert len(large.prompt) > 2350
    for wanted in large.answers:
        assert wanted in large.context
        assert wanted not in large.before + large.after
    assert ruler.sample(kind, random.Random(2), lambda p: len(p) <= 2500).prompt != large.prompt
    with pytest.raises(kv.ConfigError, match=f"with room for {kind}"):
        drawn(50)


def test_needles_lie_at_their_depths() -> None:
    make = ruler.KINDS["single"](random.Random(3))
    one = make(400)
    words = one.context.split()
    found = words.index("secret") - 1  # the sentence begins with "The"
    assert found == int(400 * one.depth)
    assert len(words) == 400 + 7  # The secret number of a-b is 1234567.
    many = ruler.KINDS["multivalue"](random.Random(3))(50)
    assert len(re.findall(r"The secret number of \S+ is \d{7}\.", many.context)) == 4
    assert len(many.answers) == 4


def test_variables_are_set_before_they_are_used() -> None:
    each = ruler.KINDS["variables"](random.Random(4))(100)
    seen = []
    for name, value in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)\.", each.context):
        assert value.isdigit() if not seen else value == seen[-1]
        seen.append(name)
    assert tuple(seen) == each.answers


def test_the_most_frequent_words_are_asked_for() -> None:
    common = ruler.KINDS["common_words"](random.Random(5))(8)
    counts = Counter(re.findall(r"\d+\. (\w+)", common.context))
    assert {word for word, count in counts.items() if count == 10} == set(common.answers)
    assert sorted(counts.values()) == [1] * 8 + [10] * 10
    for units in (0, 10, 300):
        frequent = ruler.KINDS["frequent_words"](random.Random(5))(units)
        ranked = Counter(frequent.context.split()).most_common(4)
        assert [word for word, _ in ranked[:3]] == list(frequent.answers)
        assert len({count for _, count in ranked}) == len(ranked)


def test_ruler(runner: Runner) -> None:
    task = parse("ruler:lengths=700,900,samples=2,new_tokens=6,kinds=single,qa")
    result = run_task(task, runner)
    assert len(result.items) == 8
    for item in result.items:
        assert item["tokens"] <= item["length"] - 6
        assert 0 <= item["score"] <= 1
        assert item["logprob"] < 0
        assert ("depth" in item) == (item["kind"] == "single")
    values = [item["logprob"] for item in result.items if item["kind"] == "qa"]
    assert result.metrics["logprob@qa"] == pytest.approx(sum(values) / 4)
    assert result.metrics.keys() >= {"score", "score@700", "logprob@900", "score@single"}
    again = run_task(task, runner)
    assert again.items == result.items
    other = run_task(task, Runner(runner.model, "int4:group=8,tail=0"))
    assert [item["wanted"] for item in other.items] == [item["wanted"] for item in result.items]
    assert [i["logprob"] for i in other.items] != [i["logprob"] for i in result.items]


@pytest.mark.parametrize(
    "spec", ["ruler:kinds=nothing", "ruler:lengths=64", "ruler:samples=0", "qmsum_test:context=0"]
)
def test_bad_parameters(spec: str) -> None:
    with pytest.raises(kv.ConfigError, match="expected"):
        parse(spec)


# --- Reading prompts -----------------------------------------------------------------------------


def test_a_shared_beginning_changes_no_logits(runner: Runner) -> None:
    encode = runner.model.tokenizer.encode
    prompts = [encode(BOOK[:150] + end) for end in (" Who?", " What now?", "")]
    assert common_prefix(prompts) == len(prompts[2])
    together = read(runner, prompts, 8, shared=True)
    for session, prompt, alone in zip(together, prompts, read(runner, prompts, 8), strict=True):
        assert session.tokens == prompt
        # The passes have other lengths, which changes the order of float32 sums.
        difference = abs(session.last_logits - alone.last_logits).max()
        assert difference < 0.05 * abs(alone.last_logits).max()


def test_cutting_the_middle(tiny: kv.Model) -> None:
    text = BOOK[:300]
    assert cut_middle(tiny.tokenizer, text, 10_000) == text
    short = cut_middle(tiny.tokenizer, text, 40)
    tokens = tiny.tokenizer.encode(text)
    assert short == tiny.tokenizer.decode(tokens[:20]) + tiny.tokenizer.decode(tokens[-20:])


# --- LongBench -----------------------------------------------------------------------------------


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A copy of the dataset as it is laid out there, with prompts and samples of our own."""
    folder = tmp_path / "LongBench"
    (folder / "config").mkdir(parents=True)
    (folder / "data").mkdir()
    prompts = {
        "hotpotqa": "Read: {context}\nAsk: {input}\nSay:",
        "trec": "{context}\n{input}",
        "lcc": "Code: {context}Next:\n",
        "unheard_of": "{input}",
    }
    (folder / "config" / "dataset2prompt.json").write_text(json.dumps(prompts))
    rows: dict[str, list[dict[str, Any]]] = {
        "hotpotqa": [
            {"input": f"{{context}} {i}?", "context": BOOK[:90], "answers": ["a lamp", "boat"]}
            for i in range(3)
        ],
        "trec": [
            {"input": "q", "context": "c", "answers": ["Person"], "all_classes": ["Person", "X"]}
        ],
        "lcc": [{"input": "", "context": "x = 1\n", "answers": ["y = 2"]}],
    }
    for name, samples in rows.items():
        text = "".join(json.dumps(row) + "\n" for row in samples)
        (folder / "data" / f"{name}.jsonl").write_text(text)
    return folder


def test_longbench(runner: Runner, dataset: Path) -> None:
    task = parse(f"longbench:folder={dataset},limit=2")
    result = run_task(task, runner)
    assert [item["task"] for item in result.items] == ["hotpotqa"] * 2 + ["trec", "lcc"]
    scores = {
        name: [item["score"] for item in result.items if item["task"] == name]
        for name in ("hotpotqa", "trec", "lcc")
    }
    for name, own in scores.items():
        expected = round(100 * sum(own) / len(own), 2)
        assert result.metrics[f"score@{name}"] == expected
    assert result.metrics["score"] == pytest.approx(
        sum(result.metrics[f"score@{name}"] for name in scores) / 3
    )
    before = task.data_hash
    with (dataset / "data" / "lcc.jsonl").open("a") as file:
        file.write('{"input": "", "context": "", "answers": ["z"]}\n')
    assert parse(f"longbench:folder={dataset},limit=2").data_hash != before
    assert parse(f"longbench:folder={dataset},tasks=trec").units(runner)[0][0] == "trec"


def test_an_answer_that_has_to_begin(runner: Runner) -> None:
    tokenizer = runner.model.tokenizer
    prompts = [runner.encode(BOOK[:n]) for n in (60, 80)]
    line_break = tokenizer.encode("\n", add_special=False)[-1]

    def ordinary(session: kv.Session) -> list[int]:
        order = np.argsort(-session.last_logits.ravel(), kind="stable").tolist()
        assert line_break in order
        assert tokenizer.eos in order
        return [token for token in order if token not in (line_break, tokenizer.eos)]

    sessions = read(runner, prompts, 8)
    first = [ordinary(session)[0] for session in sessions]
    texts = answer(runner, sessions, 8, begins=True)
    for text, token, prompt in zip(texts, first, prompts, strict=True):
        (session,) = read(runner, [prompt], 8)
        rest = runner.answer([session], [[token]], 7)[0]
        assert text == tokenizer.decode([token, *rest.tokens])
    assert answer(runner, read(runner, prompts, 1), 1, begins=True) == [
        tokenizer.decode([token]) for token in first
    ]
    # Even where line breaks and ends are likelier than all else.
    logits = np.zeros(len(tokenizer), np.float32)
    logits[[line_break, tokenizer.eos, 77]] = 9, 8, 7
    session = SimpleNamespace(model=runner.model, last_logits=logits)
    assert answering._first_token(session) == 77
    assert [name for name, kind in longbench.KINDS.items() if kind.begins] == ["samsum"]


def test_longbench_prompts(runner: Runner, dataset: Path) -> None:
    folder = longbench.Folder(str(dataset))
    row = folder.rows("hotpotqa")[0]
    # What samples hold is never taken for a place to put something in.
    row["context"] = "{input}"
    parts = ("Read: ", "{input}", "\nAsk: {context} 0?\nSay:")
    assert folder.prompt("hotpotqa", row) == parts
    task = parse(f"longbench:folder={dataset},context=20")
    assert len(task._prompt(runner, "hotpotqa", row, 32)) == pytest.approx(20, abs=2)
    kept = len(task._prompt(runner, "trec", folder.rows("trec")[0], 32))
    assert kept == len("c\nq")


def test_longbench_scores() -> None:
    def score(task: str, prediction: str, *references: str, classes: tuple[str, ...] = ()) -> float:
        return longbench.score(longbench.KINDS[task], prediction, references, classes)

    assert score("qasper", "a boat", "the lamp", "Boat") == 1  # the best reference
    assert score("triviaqa", "\nboat\nlamp lamp lamp", "boat") == 1  # the first line
    assert score("qasper", "boat\nlamp", "boat") < 1
    assert score("passage_retrieval_en", "Paragraph 3 or 4", "Paragraph 3") == 0.5
    assert score("passage_count", "4", "4") == 1
    assert score("lcc", "# no\nx = 1\n", "x = 1") == 1
    assert score("trec", "Person\nPlace", "Person", classes=("Person", "Place")) == 1
    assert score("samsum", "the the the cat", "the cat") == pytest.approx(1)
    assert score("qasper", "x") == 0
    assert len([kind for kind in longbench.KINDS.values() if kind.category]) == 15


def test_longbench_means() -> None:
    found = longbench.means({"qasper": [1, 0, 0], "lcc": [0.5], "passage_count": [1]})
    assert found["score"] == pytest.approx((33.33 + 50) / 2)  # the count is no part of it
    assert found["score@single-doc QA"] == 33.33
    assert found["score@passage_count"] == 100


def test_bad_folders(dataset: Path, tmp_path: Path, runner: Runner) -> None:
    def refused(spec: str, message: str) -> None:
        with pytest.raises(kv.ConfigError, match=message):
            run_task(parse(spec), runner)

    refused("longbench:folder=nowhere", "the dataset.s files .*, found no folder nowhere")
    refused(f"longbench:folder={tmp_path / 'data'}", "expected dataset2prompt.json")
    refused(f"longbench:folder={dataset},tasks=qasper", "expected a prompt for qasper")
    refused(f"longbench:folder={dataset},tasks=other", "expected tasks among")
    (dataset / "data" / "trec.jsonl").write_text('{"input": 1}\n')
    refused(f"longbench:folder={dataset},tasks=trec", "trec.jsonl:1: expected the field 'context'")
    (dataset / "data" / "trec.jsonl").write_text('{"input": 1, "context": "a", "answers": 5}\n')
    refused(f"longbench:folder={dataset},tasks=trec", "trec.jsonl:1: answers: expected a list")
    table = dataset / "dataset2maxlen.json"
    before = table.read_text() if table.is_file() else "{}"
    table.write_text('{"trec": "many"}')
    refused(f"longbench:folder={dataset},tasks=trec", "trec: expected 1 token or more")
    table.write_text(before)
    (dataset / "data" / "trec.jsonl").write_text("{")
    refused(f"longbench:folder={dataset},tasks=trec", "trec.jsonl:1: expected JSON")
    (dataset / "data" / "trec.jsonl").unlink()
    refused(f"longbench:folder={dataset},tasks=trec", "expected the file trec.jsonl")


# --- QMSum ---------------------------------------------------------------------------------------


def test_qmsum(tiny_chat: kv.Model) -> None:
    runner = Runner(tiny_chat)
    result = run_task(parse("qmsum_test:context=100,questions=2,new_tokens=5"), runner)
    assert [item["meeting"] for item in result.items] == ["m1", "m1"]
    assert result.metrics.keys() == {"rouge_l", "logprob"}
    alone = run_task(parse("qmsum_test:context=100,questions=2,new_tokens=5,shared=no"), runner)
    assert alone.metrics["logprob"] == pytest.approx(result.metrics["logprob"], abs=0.05)
    assert result.items[0]["tokens"] > 100
