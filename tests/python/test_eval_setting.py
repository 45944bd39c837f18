"""Prompt compression as an entry beside caches: its spelling, what is shortened, and what is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Cli

import kvengine as kv
from kvengine.eval import sets
from kvengine.eval.report.names import family, short_name
from kvengine.eval.runner import Runner
from kvengine.eval.setting import canonical_setting, parse_setting
from kvengine.eval.store import Store
from kvengine.eval.sweep import jobs_of, sweep
from kvengine.eval.task import parse, parse_list, run_task
from kvengine.eval.tasks import needle

HALF = "selfinfo:keep=0.5"
NEEDLE = "needle:lengths=60,depths=2,digits=3,new_tokens=4"


@pytest.mark.parametrize(
    ("spec", "canonical", "short"),
    [
        ("f16", "f16", "f16"),
        (HALF, f"{HALF}+f16", HALF),
        (" selfinfo:keep=.5 + f16", f"{HALF}+f16", HALF),
        ("selfinfo + best4", f"{HALF}+{kv.canonical_cache('best4')}", f"{HALF} + best4"),
        (
            "selfinfo:unit=word,keep=0.25+snapkv:keep=0.5+best4",
            f"selfinfo:keep=0.25,unit=word+{kv.canonical_cache('snapkv:keep=0.5+best4')}",
            "selfinfo:keep=0.25,unit=word + snapkv:keep=0.5 + best4",
        ),
        ("llmlingua2:keep=0.25", "llmlingua2:keep=0.25+f16", "llmlingua2:keep=0.25"),
    ],
)
def test_spelling(spec: str, canonical: str, short: str) -> None:
    assert canonical_setting(spec) == canonical
    assert canonical_setting(canonical) == canonical
    assert short_name(canonical) == short
    assert parse_setting(canonical) == parse_setting(spec)


@pytest.mark.parametrize(
    "spec", ["selfinfo:keep=2.5", "selfinfo:keep=0.5+", "selfinfo+selfinfo", "f16+selfinfo"]
)
def test_bad_settings(spec: str, cli: Cli, tiny: kv.Model, corpus: Path) -> None:
    with pytest.raises(kv.ConfigError):
        parse_setting(spec)
    found = cli("eval", NEEDLE, "-m", tiny.path, "--cache", spec)
    assert (found.returncode, found.stdout, found.stderr.count("\n")) == (2, "", 1)


def test_lists() -> None:
    listed = sets.cache_specs("f16,selfinfo:keep=0.5,unit=word,int4:group=32,tail=64,selfinfo")
    assert listed == ["f16", "selfinfo:keep=0.5,unit=word", "int4:group=32,tail=64", "selfinfo"]
    with pytest.raises(kv.ConfigError, match=r"block: expected .*, found '1'"):
        sets.cache_specs("f16,infllm:init=16,block=1,local=256,int4")
    with pytest.raises(kv.ConfigError, match=r"block: expected .*, found '32'"):
        sets.cache_specs(
            "f16,infllm:local=192,block=32,span=128,int4"
        )  # a span of 512 is the usual
    families = [family(canonical_setting(spec)) for spec in sets.cache_specs("families")]
    assert set(families) == {"exact", "quantized", "dropped", "shortened"}
    assert families.count("shortened") == 2


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("f32", "exact"),
        ("q8_0", "quantized"),
        ("best2", "quantized"),
        ("k=f16+v=int4", "quantized"),
        ("hadamard+int4", "quantized"),
        ("streaming:keep=0.25", "dropped"),
        ("quest:budget=64", "dropped"),
        ("snapkv:keep=0.5+best4", "dropped and quantized"),
        (HALF, "shortened"),
        (f"{HALF}+h2o:keep=0.5", "shortened and dropped"),
        (f"{HALF}+best4", "shortened and quantized"),
    ],
)
def test_families(spec: str, expected: str) -> None:
    assert family(canonical_setting(spec)) == expected


def test_only_the_context_is_shortened(tiny: kv.Model, corpus: Path) -> None:
    runner, whole = Runner(tiny, HALF, exact=True), Runner(tiny, "f16", exact=True)
    before, after = "Remember the boat. ", "\nWho reads the book? "
    context = needle.haystack(60, 0.5, "123")
    short = runner.prompt(before, context, after)
    text = tiny.tokenizer.decode(short)
    assert text.startswith(before)
    assert text.endswith(after)
    frame = len(whole.prompt(before, "", after))
    n = len(whole.prompt(before, context, after))
    assert n == len(tiny.tokenizer.encode(before + context + after))
    assert len(short) - frame == pytest.approx((n - frame) / 2, abs=4)
    # The same tokens as prompt compression leaves where all but the context is protected.
    wanted = kv.compress_prompt(
        tiny, before + context + after, f"{HALF},exact=yes", context=context
    )
    assert short == wanted.tokens
    assert wanted.kept is not None
    assert set(wanted.kept) >= {0, n - 1}
    assert runner.prompt(before, " ", after) == whole.prompt(before, " ", after)


def test_control_tokens_in_a_context_are_text(tiny: kv.Model) -> None:
    """As they are where nothing is shortened."""
    eos = tiny.tokenizer.piece(tiny.tokenizer.eos).decode()
    context = f"Anna reads the book.{eos} The lamp waits, and the boat goes on. " * 4
    text = f"Remember. {context}\nWho reads?"
    plain = Runner(tiny).prompt("Remember. ", context, "\nWho reads?")
    assert tiny.tokenizer.eos not in plain
    whole = Runner(tiny, "selfinfo:keep=1").prompt("Remember. ", context, "\nWho reads?")
    assert whole == plain
    short = Runner(tiny, HALF).prompt("Remember. ", context, "\nWho reads?")
    assert tiny.tokenizer.eos not in short
    # A prompt that is generated from is read as Session.generate reads it.
    session = tiny.session()
    list(session.generate(text, max_tokens=1))
    read = kv.compress_prompt(tiny, text, "selfinfo:keep=1").tokens
    assert tiny.tokenizer.eos in read
    assert session.tokens[: len(read)] == read


def test_contexts_of_messages(tiny_chat: kv.Model) -> None:
    context = "Anna reads the book in the boat, and the lamp waits. " * 5
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello, hello, hello."},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": f"Read:\n\n{context}\n\nWho reads?\n\nNow."},
    ]
    short = kv.compress_prompt(tiny_chat, messages, "selfinfo:keep=0.3", context=context).text
    assert "Hello, hello, hello." in short  # which the question's rule would shorten
    assert "Read:\n\n" in short
    assert "\n\nWho reads?\n\nNow." in short
    assert context not in short
    with pytest.raises(kv.ConfigError, match="context: expected a part of the prompt, found 'x'"):
        kv.compress_prompt(tiny_chat, "abc", context="x")
    with pytest.raises(kv.ConfigError, match="or the context to be named, found both"):
        kv.compress_prompt(tiny_chat, "abc", question="a", context="b")
    with pytest.raises(kv.ConfigError, match="context: expected text or messages beside it"):
        kv.compress_prompt(tiny_chat, [5, 6], context="b")
    runner = Runner(tiny_chat, "selfinfo:keep=0.3")
    chat = runner.prompt("Read: ", context, "\nWho reads?", chat=True)
    assert chat[:3] == tiny_chat.encode_chat([{"role": "user", "content": "Read"}])[:3]
    assert len(chat) < len(Runner(tiny_chat).prompt("Read: ", context, "\nWho reads?", chat=True))


def test_the_cache_holds_what_is_left(tiny: kv.Model, corpus: Path) -> None:
    plain = run_task(parse(NEEDLE), Runner(tiny, "f16", exact=True))
    short = run_task(parse(NEEDLE), Runner(tiny, HALF, exact=True))
    assert [item["key"] for item in short.items] == [item["key"] for item in plain.items]
    assert plain.key != short.key
    assert short.cache == f"{HALF}+f16"
    for one, other in zip(plain.items, short.items, strict=True):
        assert other["tokens"] < 0.85 * one["tokens"]
    assert short.cache_stats is not None
    assert plain.cache_stats is not None
    # A tail holds 64 tokens at least, so that sizes this small are no measure; tokens are.
    most = max(item["tokens"] for item in short.items)
    assert most <= short.cache_stats["tokens_seen"] < plain.cache_stats["tokens_seen"]
    assert short.cache_stats["f16_bytes"] < plain.cache_stats["f16_bytes"]
    later = run_task(parse(f"{NEEDLE},question=later"), Runner(tiny, HALF, exact=True))
    for one, other in zip(short.items, later.items, strict=True):
        # The same tokens in two passes: what is kept does not depend on the question.
        assert one["tokens"] == other["tokens"]
        assert one["logprob"] == pytest.approx(other["logprob"], abs=1e-2)


def test_tasks_without_prompts_are_left_out(tiny: kv.Model, corpus: Path, tmp_path: Path) -> None:
    tasks = parse_list(f"perplexity:context=64,limit=1,{NEEDLE}")
    jobs = jobs_of(tiny, ["f16", HALF], tasks)
    assert [(job.task.name, job.runner.cache) for job in jobs] == [
        ("perplexity", "f16"),
        ("needle", "f16"),
        ("needle", f"{HALF}+f16"),
    ]
    assert [result.error for result in sweep(jobs, Store(tmp_path / "out"))] == [None] * 3
    with pytest.raises(kv.ConfigError, match=r"a task with prompts to shorten \(.*needle.*\)"):
        jobs_of(tiny, ["f16", HALF], tasks[:1])
    with pytest.raises(kv.ConfigError, match="perplexity: expected a cache alone, found selfinfo"):
        run_task(tasks[0], Runner(tiny, HALF))


def test_compare(cli: Cli, tiny: kv.Model, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    codes = "int4:group=8,tail=0"
    caches = f"f16,{HALF},{codes},{HALF}+{codes}"
    arguments = ("compare", "-m", tiny.path, "--out", out, "--caches", caches)
    found = cli(*arguments, "--tasks", f"{NEEDLE},kld:context=64,limit=1", "--json")
    assert found.returncode == 0, found.stderr
    assert f"kld has no prompt to shorten: it is not measured with {HALF}\n" in found.stderr
    results = json.loads(found.stdout)
    assert len(results) == 4 + 2
    assert [each["cache"] for each in results if each["name"] == "needle"][1] == f"{HALF}+f16"
    table = cli(*arguments, "--tasks", NEEDLE).stdout.splitlines()
    bits = {line.split()[0]: float(line.split()[1]) for line in table[2:]}
    # Beside the whole prompt; by its own tokens it would take more than f16 does, as both have a tail.
    assert bits[HALF] < 0.9 * bits["f16"]
    again = cli(*arguments, "--tasks", NEEDLE, "--json")
    assert json.loads(again.stdout) == [each for each in results if each["name"] == "needle"]
    assert again.stderr.count("known already") == 4
