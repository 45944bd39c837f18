"""The verbs eval and compare, and the tasks on texts: perplexity, kld, needle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Cli

import kvengine as kv
from kvengine.eval import PerplexityOptions, perplexity
from kvengine.eval.data import read_text
from kvengine.eval.runner import Runner
from kvengine.eval.sets import CACHES, TASKS, cache_specs, task_specs
from kvengine.eval.task import parse, parse_list, run_task
from kvengine.eval.tasks import needle

CliJson = Callable[..., object]
TEXT = "context=64,feed=8,limit=2"
NEEDLE = "needle:lengths=20,40,depths=3,repeats=2,digits=3,new_tokens=4"


def test_text_tasks_are_the_perplexity_of_the_verb(tiny: kv.Model, corpus: Path) -> None:
    text = read_text("ppl/wikitext2_raw_test.txt")
    cache = "int4:group=8,tail=0"
    options = PerplexityOptions(
        n_ctx=64, feed=8, chunks=2, cache=cache, reference="f32", exact=True
    )
    expected = perplexity(tiny, text, options)
    runner = Runner(tiny, cache, exact=True)
    found = run_task(parse(f"kld:{TEXT}"), runner)
    for name in ("ppl", "ppl_reference", "kld_mean", "kld_median", "kld_p99", "kld_p999"):
        # Records keep seven digits.
        assert found.metrics[name] == pytest.approx(getattr(expected, name), rel=1e-5)
    assert found.metrics["same_top"] == expected.same_top
    assert found.cache_stats is not None
    assert found.cache_stats.pop("mean_bits") == pytest.approx(expected.cache.bits_per_value)
    assert found.cache_stats.pop("all_f16_bytes") == 2 * expected.cache.f16_bytes
    assert found.cache_stats == expected.cache.as_dict()
    parts = [value for name, value in found.metrics.items() if name.startswith("kld_mean@")]
    assert np.average(parts, weights=[8, 8, 8, 7]) == pytest.approx(expected.kld_mean, rel=1e-5)
    assert "kld_mean@32-39" in found.metrics
    assert "kld_mean@56-62" in found.metrics
    alone = run_task(parse(f"perplexity:{TEXT}"), runner)
    assert alone.value == found.metrics["ppl"]
    same = run_task(parse(f"kld:{TEXT},reference={cache.partition(':')[0]}:group=8"), runner)
    assert same.value != found.value


def test_haystacks(corpus: Path) -> None:
    words = needle.background(2000)
    assert words[:2] == ["a", "book:"]
    assert len(words) == 2000
    assert words.count("book:") == 3  # both books, and the first again
    text = needle.haystack(12, 0.5, "0123456")
    sentence = "The pass key is 0123456. Remember it. 0123456 is the pass key."
    assert text == " ".join([*words[:6], sentence, *words[6:12]])
    assert needle.haystack(12, 1.0, "7").endswith("7 is the pass key.")
    assert needle.haystack(12, 0.0, "7").startswith("The pass key is 7.")


def test_needle(tiny: kv.Model, corpus: Path) -> None:
    runner = Runner(tiny, "f16", exact=True)
    found = run_task(parse(NEEDLE), runner)
    assert [(item["length"], item["depth"]) for item in found.items[::2]] == [
        (length, depth) for length in (20, 40) for depth in (0, 0.5, 1)
    ]
    assert len({item["key"] for item in found.items}) > 8
    assert all(len(item["key"]) == 3 and item["key"].isdigit() for item in found.items)
    item = found.items[3]
    text = needle.haystack(20, 0.5, item["key"])
    whole = runner.encode(needle.PREFIX + text + needle.QUESTION)
    key = runner.encode(item["key"], special=False)
    logits = tiny.session(cache="f16", exact=True).forward(whole + key, all_logits=True)
    rows = logits[len(whole) - 1 : -1].astype(np.float64)
    log_p = rows - np.log(np.exp(rows).sum(axis=-1, keepdims=True))
    expected = np.mean([row[token] for row, token in zip(log_p, key, strict=True)])
    # f16 keys and values were read back for some of the positions.
    assert item["logprob"] == pytest.approx(expected, abs=1e-3)
    ranks = [(row > row[token]).sum() for row, token in zip(log_p, key, strict=True)]
    assert item["rank"] == pytest.approx(np.mean(ranks), abs=1)
    answer = tiny.session(cache="f16", exact=True).generate(whole, max_tokens=4)
    assert item["answer"] == "".join(piece.text for piece in answer)
    assert item["tokens"] == len(whole)
    assert found.metrics["logprob"] == pytest.approx(
        np.mean([item["logprob"] for item in found.items])
    )
    assert {"exact@20", "partial@40", "logprob@20"} <= set(found.metrics)
    assert run_task(parse(NEEDLE), runner).items == found.items
    assert run_task(parse(NEEDLE, seed=1), runner).items != found.items


def test_a_later_question_is_read_from_the_compressed_text(tiny: kv.Model, corpus: Path) -> None:
    seen = run_task(parse(NEEDLE), Runner(tiny, "f32", exact=True))
    later = run_task(parse(f"{NEEDLE},question=later"), Runner(tiny, "f32", exact=True))
    for one, other in zip(seen.items, later.items, strict=True):
        # A cache that loses nothing makes no difference but the order of sums.
        assert one["tokens"] == other["tokens"]
        assert one["logprob"] == pytest.approx(other["logprob"], abs=1e-4)
    dropper = Runner(tiny, "snapkv:keep=0.25,window=8", exact=True)
    seen, later = (
        run_task(parse(f"{NEEDLE},question={question}"), dropper) for question in ("seen", "later")
    )
    assert seen.value is not None
    assert seen.metrics["logprob"] != later.metrics["logprob"]
    assert later.cache_stats["tokens_kept"] > seen.cache_stats["tokens_kept"]


def test_answers_end_where_the_key_is_complete(tiny: kv.Model, corpus: Path) -> None:
    runner = Runner(tiny, "f16", exact=True)
    sessions = [runner.prefill(runner.encode("One two."), 40) for _ in range(3)]
    whole = runner.answer(sessions, [[]] * 3, 20, ignore_eos=True)
    assert {len(answer.tokens) for answer in whole} == {20}
    sessions = [runner.prefill(runner.encode("One two."), 40) for _ in range(3)]
    cut = runner.answer(
        sessions, [[]] * 3, 20, lambda index, text: len(text) >= 3 + index, ignore_eos=True
    )
    assert all(len(answer.text) >= 3 + i for i, answer in enumerate(cut))
    assert all(len(answer.tokens) < 20 for answer in cut)


def test_likelihoods_are_those_of_single_passes(tiny: kv.Model) -> None:
    runner = Runner(tiny, "f32", exact=True)
    prefix = [5, 9, 14, 3]
    continuations = [[7], [8, 9, 10], [11, 12], *([i, i + 1] for i in range(20, 45))]
    found = runner.loglikelihoods(prefix, continuations)
    for likelihood, tokens in zip(found, continuations, strict=True):
        logits = tiny.session(cache="f32", exact=True).forward(prefix + tokens, all_logits=True)
        rows = logits[3:-1].astype(np.float64)
        log_p = rows - np.log(np.exp(rows).sum(axis=-1, keepdims=True))
        expected = [row[token] for row, token in zip(log_p, tokens, strict=True)]
        # Batches add the same float32 numbers up in another order.
        np.testing.assert_allclose(likelihood.logprobs, expected, rtol=0, atol=1e-5)
        assert likelihood.logprob == pytest.approx(sum(expected), abs=1e-4)
        assert likelihood.greedy == (rows.argmax(axis=-1) == tokens).all()
        assert (likelihood.ranks[0] == 0) == (rows[0].argmax() == tokens[0])
    with pytest.raises(kv.ConfigError, match="found none"):
        runner.loglikelihoods(prefix, [[]])


def test_pairs_are_split_as_lm_eval_does(tiny: kv.Model) -> None:
    runner = Runner(tiny)
    encode = tiny.tokenizer.encode
    context, continuation = runner.encode_pair("Answer:  ", "yes")
    assert context == encode("Answer:")
    assert context + continuation == encode("Answer:  yes")
    context, continuation = runner.encode_pair("", "yes")
    assert context == [tiny.tokenizer.bos]
    assert continuation == encode("yes", add_special=False)


def test_eval_prints_one_document(cli_json: CliJson, m: tuple[str, ...], corpus: Path) -> None:
    specs = ("--cache", "f16", "--cache", "int4:group=8,tail=0")
    found = cli_json("eval", f"perplexity:{TEXT}", *m, *specs, "--exact")
    assert [each["cache"] for each in found] == [kv.canonical_cache(spec) for spec in specs[1::2]]
    for each in found:
        assert each["value"] == each["metrics"]["ppl"]
        assert each["error"] is None
        assert each["cache_stats"]["bits_per_value"] > 0
        assert len(each["items"]) == 2
        assert each["exact"] is True
    assert found[0]["value"] != found[1]["value"]


def test_eval_goes_on_in_its_folder(cli: Cli, m: tuple[str, ...], corpus: Path) -> None:
    arguments = ("eval", f"perplexity:{TEXT}", *m, "--out", corpus.parent / "out")
    first = cli(*arguments)
    assert first.returncode == 0, first.stderr
    assert "ppl: lower is better" in first.stdout
    assert "known already" not in first.stderr
    second = cli(*arguments)
    assert second.stderr.count("known already") == 1
    assert second.stdout == first.stdout
    more = cli(*arguments, "--cache", "f16", "--cache", "int8:group=8")
    assert more.stderr.count("known already") == 1
    lines = (corpus.parent / "out" / "results.jsonl").read_text().splitlines()
    assert sum("result" in json.loads(line) for line in lines) == 2
    report = corpus.parent / "out" / "report.md"
    cli(*arguments)  # its report has what the folder has
    assert "int8" in report.read_text()


def test_compare_goes_on_after_a_cache_that_fails(
    cli: Cli, m: tuple[str, ...], corpus: Path
) -> None:
    arguments = ("compare", *m, "--tasks", f"perplexity:{TEXT},{NEEDLE},limit=2")
    # Groups of 128 values do not fit heads of fewer.
    caches = ("--caches", "f16,int4:group=128,int8:group=8", "--out", corpus.parent / "out")
    found = cli(*arguments, *caches)
    assert found.returncode == 1
    assert "2 of 6 results failed" in found.stderr
    assert found.stdout.count("group") >= 2
    assert found.stdout.count("int8:group=8") == 2


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["eval", "nothing"], "task: expected one of"),
        (["eval", "kld:context=2"], "context: expected at least 3, found 2"),
        (["eval", "kld:feed=0"], "feed: expected at least 1"),
        (["eval", "kld", "--limit", "0"], "--limit"),
        (["eval", "kld", "--limit", "-1"], "--limit"),
        (["eval", "kld", "--cache", "nothing"], "nothing"),
        (["eval", "kld:text=absent.txt"], "absent.txt"),
        (["eval", "kld:text=../../etc/passwd"], "passwd"),
        (["eval", "kld:reference=nothing"], "nothing"),
        (["eval", "needle:depths=0"], "depths: expected 1 to 1000"),
        (["eval", "needle:question=never"], "seen or later"),
        (["eval", "kld", "--out", "{data}/books/a.txt/out"], "folder that can be written"),
        (["compare", "--out", "{data}/out", "--caches", "f16,wrong"], "wrong"),
        (["compare", "--out", "{data}/out", "--tasks", "wrong"], "wrong"),
        (["compare"], "--out"),
        (["eval"], "TASK"),
    ],
    ids=str,
)
def test_bad_input_gets_one_sentence(
    cli: Cli, m: tuple[str, ...], corpus: Path, arguments: list[str], match: str
) -> None:
    found = cli(*(word.format(data=corpus) for word in arguments), *m)
    assert found.returncode == 2
    assert found.stdout == ""
    assert found.stderr.count("\n") == 1
    assert match in found.stderr


def test_missing_data_gets_one_sentence(
    cli: Cli, m: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for value, match in (("", "unset"), (str(tmp_path / "absent"), "none at")):
        monkeypatch.setenv("KVENGINE_DATA", value)
        found = cli("eval", "needle", *m)
        assert found.returncode == 2
        assert found.stderr.count("\n") == 1
        assert "KVENGINE_DATA" in found.stderr
        assert match in found.stderr


def test_lists_of_caches() -> None:
    assert cache_specs("int4:group=32,tail=64,f16, kivi2,f16") == [
        "int4:group=32,tail=64",
        "f16",
        "kivi2",
    ]
    assert cache_specs("k=q8_0 + v=q4_0,default")[0] == "k=q8_0 + v=q4_0"
    for name, specs in CACHES.items():
        assert cache_specs(name) == list(specs)
    with pytest.raises(kv.ConfigError, match="wrong"):
        cache_specs("f16,wrong,f32")


def test_sets_of_tasks() -> None:
    for name, specs in TASKS.items():
        assert [task.spec for task in parse_list(task_specs(name))] == list(specs)
        assert {task.limit for task in parse_list(task_specs(name, 2), limit=2)} == {2}
    assert task_specs("needle,lambada:limit=9", 2) == "needle,lambada:limit=9"


def test_a_limit_replaces_those_of_a_set(
    cli_json: CliJson, m: tuple[str, ...], corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TASKS, "few", ("perplexity:limit=4,context=32",))
    out = ("--out", str(corpus.parent / "out"), "--caches", "f16")
    (found,) = cli_json("compare", *m, *out, "--tasks", "few", "--limit", "2")
    assert len(found["items"]) == 2
