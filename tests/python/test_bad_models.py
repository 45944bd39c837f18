"""Damaged GGUF files: refused with one sentence, in little memory, and never a crash."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gguf_corpus
import pytest

import kvengine as kv

# Loads each file and, where that succeeds, runs it a little; prints how it went. A child process:
# were one of the files to crash it, the name would be the last line.
CHILD = """
import json, sys
from pathlib import Path
import gguf_corpus
import kvengine as kv

data, path = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2])
peak = 0
for name, damaged in gguf_corpus.corruptions(data):
    path.write_bytes(damaged)
    before = kv.resident_bytes()
    print(json.dumps({"name": name}), flush=True)
    outcome = "ran"
    try:
        file = kv.GgufFile(path)
        [file[key] for key in file]
        model = kv.Model.load(path, threads=1)
        tokens = model.tokenizer.encode("the lamp", parse_special=True)
        session = model.session(n_ctx=64, cache="int8:group=8,tail=2")
        session.forward([t % model.vocab_size for t in [*tokens, 1, 2, 3]], all_logits=True)
        list(session.generate([1], max_tokens=4, temperature=0.5))
    except kv.Error as error:
        outcome = str(error)
    print(json.dumps({"outcome": outcome, "grown": kv.peak_resident_bytes() - before}), flush=True)
"""


@pytest.mark.parametrize("name", ["llama-untied", "gemma3-base", "bloom-base", "gpt2-base"])
def test_corpus(name: str, tmp_path: Path) -> None:
    tiny = Path(__file__).parent.parent / "fixtures" / "tiny" / f"{name}.gguf"
    result = subprocess.run(
        [sys.executable, "-c", CHILD, str(tiny), str(tmp_path / "damaged.gguf")],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        cwd=Path(__file__).parent,
    )
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.returncode == 0, (lines[-1:], result.stderr[-2000:])
    names = [line["name"] for line in lines if "name" in line]
    outcomes = [line for line in lines if "outcome" in line]
    assert len(names) == len(outcomes) >= gguf_corpus.MINIMUM
    refused = 0
    for name_, line in zip(names, outcomes, strict=True):
        assert line["grown"] < 200e6, (name_, line)
        assert "\n" not in line["outcome"], (name_, line)
        refused += line["outcome"] != "ran"
    # Many corruptions are harmless (a float, a text); but a reader that checks nothing fails here.
    assert refused > len(names) // 3


def test_command_line(cli, tiny_path: Path, tmp_path: Path) -> None:
    """A few of each kind through the whole program."""
    corpus = list(gguf_corpus.corruptions(tiny_path.read_bytes()))
    path = tmp_path / "damaged.gguf"
    for name, damaged in corpus[:: len(corpus) // 12]:
        path.write_bytes(damaged)
        try:
            kv.Model.load(path, threads=1)
        except kv.Error:
            expected = 2
        else:
            expected = None  # may still fail while it computes
        result = cli("generate", "-m", path, "-p", "the lamp", "-n", "2", "-t", "1")
        assert result.returncode in ((0, 2) if expected is None else (expected,)), (name, result)
        assert "Traceback" not in result.stderr, name
        if result.returncode == 2:
            assert result.stderr.count("\n") == 1, (name, result)
        result = cli("inspect", "-m", path)
        assert result.returncode in (0, 2), (name, result)
        assert "Traceback" not in result.stderr, name
