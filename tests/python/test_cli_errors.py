"""The command line: bad usage and bad input end with status 2 and one line."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import pytest
from test_cli import PROMPT, TEXT

GENERATE = ("generate", "-p", PROMPT)
BAD = [
    ("frobnicate",),
    ("generate",),
    ("generate", "-p"),
    ("generate", "-p", ""),
    ("generate", "-p", "a", "-f", "b"),
    (*GENERATE, "--frobnicate"),
    (*GENERATE, "extra"),
    (*GENERATE, "-n", "many"),
    (*GENERATE, "-n", "-2"),
    (*GENERATE, "-n", "99999999999999999999"),
    (*GENERATE, "-c", "2"),
    (*GENERATE, "-c", "-1"),
    (*GENERATE, "-c", "2000000000"),
    (*GENERATE, "-t", "-1"),
    (*GENERATE, "-t", "1000000"),
    (*GENERATE, "--device", "gpu"),
    (*GENERATE, "-ngl", "-2"),
    (*GENERATE, "-ngl", "99", "--device", "cpu"),
    (*GENERATE, "-s", "-2"),
    (*GENERATE, "-s", "18446744073709551616"),
    (*GENERATE, "--temp", "nan"),
    (*GENERATE, "--temp", "hot"),
    (*GENERATE, "--temp", "inf"),
    (*GENERATE, "--top-p", "nan"),
    (*GENERATE, "--top-p", "1.5"),
    (*GENERATE, "--min-p", "-1"),
    (*GENERATE, "--typical", "nan"),
    (*GENERATE, "--repeat-penalty", "0"),
    (*GENERATE, "--repeat-penalty", "1e400"),
    (*GENERATE, "--stop", ""),
    (*GENERATE, "--cache", ""),
    (*GENERATE, "--cache", "frob"),
    (*GENERATE, "--cache", "int4:group=7"),
    (*GENERATE, "--cache", "int4:tail=-1"),
    (*GENERATE, "--cache", "int4:group=8,group=8"),
    (*GENERATE, "--cache", "int4:" + "," * 10000),
    (*GENERATE, "-ctk", "frob"),
    (*GENERATE, "--cache", "f16", "-ctk", "f16"),
    ("generate", "-f", "/nonexistent/prompt.txt"),
    ("generate", "-f", "/"),
    (*GENERATE, "-m", "/nonexistent/model.gguf"),
    (*GENERATE, "-m", "/"),
    (*GENERATE, "-m", ""),
    (*GENERATE, "-m", "/dev/null"),
    ("tokenize",),
    ("detokenize",),
    ("detokenize", "--tokens", "1,x"),
    ("detokenize", "--tokens", "100000"),
    ("detokenize", "--tokens", "-1"),
    ("logits", "--tokens", ""),
    ("logits", "--tokens", "100000"),
    ("logits", "--tokens", "1", "--all"),
    ("logits", "--tokens", "1", "-o", "/nonexistent/folder/x.npy"),
    ("logits", "-p", PROMPT, "-c", "3"),
    ("template",),
    ("template", "--messages", "/nonexistent/m.json"),
    ("perplexity", "-p", "short"),
    ("perplexity", "-p", TEXT, "-c", "2"),
    ("perplexity", "-p", TEXT, "-c", "64", "--feed", "0"),
    ("perplexity", "-p", TEXT, "-c", "64", "--chunks", "0"),
    ("perplexity", "-p", TEXT, "-c", "64", "--stride", "64"),
    ("perplexity", "-p", TEXT, "-c", "64", "--reference", "frob"),
    ("bench", "-p", "0", "-n", "0"),
    ("bench", "-p", "16,"),
    ("bench", "-r", "0"),
    ("bench", "-d", "64", "-c", "32"),
    ("bench", "--peer", "frob"),
    ("bench", "--cache", "frob"),
    ("chat", "--json"),
    ("pull", "frob"),
    ("pull", "hf:frob"),
    ("pull", "hf:a/b/../../c.gguf"),
]


@pytest.mark.parametrize("arguments", BAD, ids=lambda arguments: " ".join(arguments)[:60])
def test_bad_usage_and_bad_input(cli, m, arguments: tuple[str, ...]) -> None:
    if "-m" not in arguments and arguments[0] not in ("pull", "caches", "frobnicate"):
        arguments = (*arguments, *m[: 2 if "-t" in arguments else 4])
    result = cli(*arguments)
    assert result.returncode == 2, result
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("kvengine")


def test_bad_files(cli, m, tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"", b"\xff\xfe", b"\x80abc"):
        path.write_bytes(content)
        for verb in ("generate", "logits", "perplexity"):
            result = cli(verb, *m, "-f", path)
            assert (result.returncode, result.stderr.count("\n")) == (2, 1), result
    packed = tmp_path / "file.gz"
    for content in (b"", b"no gzip", gzip.compress(b"text")[:-6]):
        packed.write_bytes(content)
        result = cli("generate", *m, "-f", packed)
        assert (result.returncode, result.stderr.count("\n")) == (2, 1), result
    for content in ("", "{", "5", '"text"', "[5]", "[]", '[{"content": "x"}]', "[" * 100000):
        path.write_text(content)
        result = cli("template", *m, "--messages", path)
        assert (result.returncode, result.stderr.count("\n")) == (2, 1), result


def test_a_missing_peer_says_how_to_install_it(cli, m, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)  # makes importing it fail
    result = cli("bench", *m, "--peer", "llama-cpp-python")
    assert result.returncode == 2
    assert "pip install" in result.stderr


def test_an_output_that_cannot_be_written(cli, m, tmp_path: Path) -> None:
    target = tmp_path / "folder.npy"
    target.mkdir()
    result = cli("logits", *m, "-p", PROMPT, "-o", target)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == [target]
