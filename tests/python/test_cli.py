"""The command line: what verbs print."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from test_cache import KEYS as CACHE_KEYS

import kvengine as kv

PROMPT = "The cache keeps the token."
TEXT = "Anna reads the book. The lamp waits, and the boat keeps the cache. " * 30


def test_help(cli) -> None:
    usage = cli("--help")
    assert usage.returncode == 0
    assert cli().returncode == 2
    for line in usage.stdout.split("\n"):
        if line.startswith("  "):
            verb = line.split()[0]
            result = cli(verb, "--help")
            assert result.returncode == 0
            assert f"kvengine {verb}" in result.stdout


def test_version(cli) -> None:
    assert cli("--version").stdout == f"kvengine {kv.__version__}\n"


def test_as_a_program(m, cli) -> None:
    """The other tests call main(); this one starts the program, with bytes for arguments."""
    command = [sys.executable, "-m", "kvengine"]
    arguments = ["tokenize", *m, "-p", "Zürich", "--json"]
    result = subprocess.run([*command, *arguments], capture_output=True, check=True)
    assert result.stdout.decode() == cli(*arguments).stdout
    assert result.stderr == b""
    arguments = [b"generate", *(each.encode() for each in m), b"-p", b"\xff"]
    result = subprocess.run([*command, *arguments], capture_output=True, check=False)
    assert (result.returncode, result.stdout) == (2, b"")
    assert result.stderr.count(b"\n") == 1


# --- JSON ------------------------------------------------------------------------------------


def test_inspect(cli_json, m, tiny_path: Path) -> None:
    document = cli_json("inspect", *m)
    assert list(document) == [
        "architecture",
        "parameters",
        "file_bytes",
        "tensors",
        "metadata",
        "kv_bytes_per_token_f16",
    ]
    assert document["architecture"] == "llama"
    file = kv.GgufFile(tiny_path)
    assert document["parameters"] == sum(tensor.elements for tensor in file.tensors)
    assert document["tensors"][0].keys() == {"name", "type", "shape"}
    assert document["metadata"]["general.architecture"] == "llama"
    model = kv.Model.load(tiny_path)
    session = model.session()
    session.forward([1])
    assert document["kv_bytes_per_token_f16"] == session.cache.stats().f16_bytes


def test_vocabulary_only_files(cli, cli_json, vocabulary_path: Path, tmp_path: Path) -> None:
    m = ("-m", vocabulary_path)
    document = cli_json("inspect", *m)
    assert document["tensors"] == []
    assert document["parameters"] == 0
    assert document["kv_bytes_per_token_f16"] is None
    tokens = cli_json("tokenize", *m, "-p", PROMPT)["tokens"]
    text = cli_json("detokenize", *m, "--tokens", ",".join(map(str, tokens)))["text"]
    assert text == PROMPT
    messages = tmp_path / "messages.json"
    messages.write_text(json.dumps([{"role": "user", "content": "hi"}]))
    rendered = cli_json("template", *m, "--messages", messages, "--add-generation-prompt")["text"]
    assert rendered.endswith("[user] hi\n[assistant] ")
    assert cli("inspect", *m).returncode == 0
    assert cli("generate", *m, "-p", PROMPT).returncode == 2


def test_tokenize(cli_json, m, tiny_chat: kv.Model, tmp_path: Path) -> None:
    tokenizer = tiny_chat.tokenizer
    document = cli_json("tokenize", *m, "-p", "Zürich\n 東京 🙂")
    assert list(document) == ["tokens", "pieces"]
    assert document["tokens"] == tokenizer.encode("Zürich\n 東京 🙂")
    assert len(document["pieces"]) == len(document["tokens"])
    assert cli_json("tokenize", *m, "-p", "")["tokens"] == tokenizer.encode("")
    assert cli_json("tokenize", *m, "-p", "-n 5")["tokens"] == tokenizer.encode("-n 5")
    path = tmp_path / "bytes.txt"
    path.write_bytes(b"a\xff\n")
    assert cli_json("tokenize", *m, "-f", path)["tokens"] == tokenizer.encode(b"a\xff\n")
    special = tokenizer.token_text(tokenizer.eos)
    plain = cli_json("tokenize", *m, "-p", special)["tokens"]
    assert tokenizer.eos not in plain
    parsed = cli_json("tokenize", *m, "-p", special, "--parse-special")["tokens"]
    assert tokenizer.eos in parsed
    assert cli_json("detokenize", *m, "--tokens", tokenizer.eos)["text"] == ""
    assert cli_json("detokenize", *m, "--tokens", tokenizer.eos, "--special")["text"] == special


def test_template_variables(cli_json, m, tmp_path: Path) -> None:
    path = tmp_path / "messages.json"
    path.write_text(
        json.dumps(
            {
                "messages": [{"role": "user", "content": "hi"}],
                "add_generation_prompt": True,
                "bos_token": "<B>",
            }
        )
    )
    assert cli_json("template", *m, "--messages", path)["text"] == "<B>[user] hi\n[assistant] "
    text = cli_json("template", *m, "--messages", path, "--no-add-generation-prompt")["text"]
    assert text == "<B>[user] hi\n"


def test_generate(cli_json, m, tiny_chat: kv.Model) -> None:
    document = cli_json(
        "generate", *m, "-p", PROMPT, "-n", "8", "--temp", "0", "--cache", "int4:group=8,tail=4"
    )
    assert list(document) == [
        "text",
        "tokens",
        "finish_reason",
        "prompt_tokens",
        "prompt_tps",
        "decode_tps",
        "drafted",
        "accepted",
        "cache",
        "peak_rss_bytes",
    ]
    session = tiny_chat.session(cache="int4:group=8,tail=4")
    pieces = list(session.generate(PROMPT, max_tokens=8))
    assert document["text"] == "".join(piece.text for piece in pieces)
    assert document["tokens"] == [piece.token for piece in pieces if piece.token is not None]
    assert document["finish_reason"] in ("stop", "length")
    assert document["prompt_tokens"] == len(tiny_chat.tokenizer.encode(PROMPT))
    assert list(document["cache"]) == CACHE_KEYS
    assert document["cache"] == session.cache.stats().as_dict()
    assert document["prompt_tps"] > 0
    assert document["peak_rss_bytes"] > 10**6


def test_generate_streams_text_and_says_what_the_cache_cost(cli, m, cli_json) -> None:
    arguments = ("generate", *m, "-p", PROMPT, "-n", "8", "--temp", "0")
    result = cli(*arguments)
    assert result.returncode == 0
    assert result.stdout == cli_json(*arguments)["text"] + "\n"
    assert "cache f16" in result.stderr
    assert "f16 would be" in result.stderr


def test_generate_says_what_a_selector_dropped(cli, m) -> None:
    def summary(spec: str) -> str:
        lines = cli("generate", *m, "-p", PROMPT, "-n", "2", "--cache", spec).stderr.split("\n")
        return next(line for line in lines if line.startswith("cache "))

    assert "tokens kept" not in summary("f16") and "no token" not in summary("f16")
    assert summary("knorm:keep=4").endswith(", 5 tokens kept")
    assert "no token dropped" in summary("snapkv:keep=0.5")


def test_generate_options(cli_json, m, tiny_chat: kv.Model) -> None:
    base = ("generate", *m, "-n", "12", "--ignore-eos", "-p", PROMPT)
    seeded = ("--temp", "1.5", "--top-k", "0", "-s", "7")
    assert cli_json(*base, *seeded)["tokens"] == cli_json(*base, *seeded)["tokens"]
    whole = cli_json(*base, "--temp", "0")["text"]
    stop = whole[3:6]
    stopped = cli_json(*base, "--temp", "0", "--stop", "@@@", "--stop", stop)
    assert stopped["text"] == whole[: whole.index(stop)]
    assert stopped["finish_reason"] == "stop"
    chat = cli_json(*base, "--temp", "0", "--chat", "-sys", "be brief")
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": PROMPT}]
    assert chat["prompt_tokens"] == len(tiny_chat.encode_chat(messages))
    spec = cli_json(*base, "-ctk", "int8:group=8", "-ctv", "f16")["cache"]["spec"]
    assert spec == kv.canonical_cache("k=int8:group=8 + v=f16")


def test_generate_from_files(cli_json, m, tmp_path: Path) -> None:
    plain, packed = tmp_path / "prompt.txt", tmp_path / "prompt.txt.gz"
    plain.write_text(PROMPT + "\n")
    packed.write_bytes(gzip.compress(PROMPT.encode()))
    expected = cli_json("generate", *m, "-p", PROMPT, "-n", "4", "--temp", "0")
    for path in (plain, packed):
        document = cli_json("generate", *m, "-f", path, "-n", "4", "--temp", "0")
        assert document["tokens"] == expected["tokens"]


def test_logits(cli, cli_json, m, tiny_chat: kv.Model, tmp_path: Path) -> None:
    tokens = [(13 * i) % 250 for i in range(600)]
    listed = ",".join(map(str, tokens))
    path = tmp_path / "logits.npy"
    document = cli_json("logits", *m, "-c", "700", "--tokens", listed, "--all", "-o", path)
    assert document == {"shape": [600, tiny_chat.vocab_size], "file": str(path)}
    written = np.load(path)
    assert written.dtype == np.float32
    # The same passes: sums over other blocks of rows would be rounded in another way.
    expected = tiny_chat.session(700, n_batch=256).forward(tokens, all_logits=True)
    np.testing.assert_array_equal(written, expected)
    last = cli_json("logits", *m, "-c", "700", "--tokens", listed, "-o", path)
    assert last["shape"] == [1, tiny_chat.vocab_size]
    # One row and several go through other kernels, which add up in another order.
    np.testing.assert_allclose(np.load(path), expected[-1:], rtol=0, atol=2e-5)
    assert [entry.name for entry in tmp_path.iterdir()] == ["logits.npy"]
    exact = cli_json("logits", *m, "--exact", "-p", PROMPT)
    assert exact == {"shape": [1, tiny_chat.vocab_size], "file": None}
    assert "probability" in cli("logits", *m, "-p", PROMPT).stdout


def test_perplexity(cli, cli_json, m, tmp_path: Path) -> None:
    path = tmp_path / "text.txt.gz"
    path.write_bytes(gzip.compress(TEXT.encode()))
    arguments = ("perplexity", *m, "-f", path, "-c", "64", "--chunks", "3")
    document = cli_json(*arguments)
    assert list(document) == [
        "ppl",
        "ppl_error",
        "ppl_reference",
        "kld_mean",
        "kld_median",
        "kld_p99",
        "kld_p999",
        "same_top",
        "windows",
        "scored_tokens",
        "exact",
        "cache",
    ]
    assert document["windows"] == 3
    assert document["scored_tokens"] == 3 * 31
    assert document["kld_mean"] is None
    assert document["exact"] is False
    assert list(document["cache"]) == CACHE_KEYS
    compared = cli_json(
        *arguments, "--exact", "--reference", "--feed", "8", "--cache", "int4:group=8,tail=0"
    )
    assert compared["exact"] is True
    assert compared["kld_mean"] > 0
    assert compared["ppl_reference"] > 0
    named = cli_json(*arguments, "--reference", "f16")
    assert named["kld_mean"] == 0
    assert named["ppl"] == named["ppl_reference"]
    result = cli(*arguments, "--stride", "16")
    assert result.returncode == 0
    assert result.stderr.count("window ") == 3


def test_caches(cli, cli_json) -> None:
    rows = cli_json("caches")
    keys = ["name", "kind", "spec", "parameters", "paper", "bits_per_value"]
    assert all(list(row) == keys for row in rows)
    assert [row["name"] for row in rows] == [each.name for each in kv.caches()]
    assert "int4" in cli("caches").stdout
