"""What the Python tests share: models, the command line, and a loud word about what was skipped."""

from __future__ import annotations

import gzip
import importlib
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

import kvengine as kv
from kvengine import pull
from kvengine.cli import main

FIXTURES = Path(__file__).parent.parent / "fixtures"
TINY = FIXTURES / "tiny"

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}] {{ message.content }}\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)

_missing: dict[str, str] = {}


def real_model(name: str) -> Path:
    """A real model, fetched when absent; skips the test if it cannot be had."""
    if name not in _missing:
        try:
            return pull.obtain(name)
        except pull.PullError as error:
            _missing[name] = str(error)
    pytest.skip(f"the real model {name} could not be fetched: {_missing[name]}")


def evaluation_file(relative: str) -> Path:
    """A file of the evaluation data ($KVENGINE_DATA); skips the test, loudly, without it."""
    folder = Path(os.environ.get("KVENGINE_DATA", FIXTURES.parents[2] / "shared" / "data"))
    path = folder / relative
    if not path.is_file():
        _missing[relative] = f"there is no {path}; set KVENGINE_DATA"
        pytest.skip(_missing[relative])
    return path


def evaluation_text(relative: str) -> str:
    """A text of the evaluation data; skips the test, loudly, without it."""
    return gzip.decompress(evaluation_file(relative).read_bytes()).decode()


def optional_module(name: str) -> ModuleType:
    """A package that only some tests compare with; skips the test, loudly, without it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        _missing[name] = str(error)
    pytest.skip(f"the Python package {name} is absent: {_missing[name]}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for name, reason in _missing.items():
        terminalreporter.write_line(
            f"WARNING: THE TESTS OF {name} DID NOT RUN: {reason}",
            red=True,
            bold=True,
        )


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Lets Ctrl-C through, here and in the processes a test starts.

    A shell that runs the tests in the background makes them ignore it, which processes inherit.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def tiny_path() -> Path:
    """A seeded two-layer llama with a small byte-level vocabulary."""
    return TINY / "llama-untied.gguf"


@pytest.fixture(scope="session")
def tiny(tiny_path: Path) -> kv.Model:
    return kv.Model.load(tiny_path, threads=2)


@pytest.fixture(scope="session")
def tiny_chat_path(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a chat template."""
    writer = kv.GgufWriter.copy_of(kv.GgufFile(tiny_path))
    writer.set("tokenizer.chat_template", CHAT_TEMPLATE, "string")
    path = tmp_path_factory.mktemp("chat") / "tiny-chat.gguf"
    writer.write(path)
    return path


@pytest.fixture(scope="session")
def tiny_chat(tiny_chat_path: Path) -> kv.Model:
    return kv.Model.load(tiny_chat_path, threads=2)


@pytest.fixture(scope="session")
def vocabulary_path(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a vocabulary and a chat template, but no tensors."""
    source = kv.GgufFile(tiny_path)
    writer = kv.GgufWriter()
    writer.set("general.architecture", "llama", "string")
    writer.set("tokenizer.chat_template", CHAT_TEMPLATE, "string")
    for key in source:
        if key.startswith("tokenizer.") and key not in ("tokenizer.chat_template",):
            writer.copy(key, source)
    path = tmp_path_factory.mktemp("vocabulary") / "vocabulary.gguf"
    writer.write(path)
    return path


@dataclass
class Result:
    """What a command left: as subprocess.CompletedProcess has it."""

    args: list[str]
    returncode: int
    stdout: str
    stderr: str


Cli = Callable[..., Result]


@pytest.fixture(scope="session")
def cli() -> Cli:
    """Run `kvengine ARGUMENTS` in this process, which saves the time of starting another."""

    def run(*arguments: object, stdin: str = "") -> Result:
        argv = [str(argument) for argument in arguments]
        streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2)]
        before = sys.stdin, sys.stdout, sys.stderr
        sys.stdin, sys.stdout, sys.stderr = io.StringIO(stdin), *streams
        try:
            status = main(argv)
        except SystemExit as leaving:  # argparse, after --help
            status = leaving.code
        finally:
            sys.stdin, sys.stdout, sys.stderr = before
        out, err = (stream.buffer.getvalue().decode() for stream in streams)
        return Result(argv, status, out, err)

    return run


@pytest.fixture(scope="session")
def cli_json(cli: Cli) -> Callable[..., object]:
    """Run `kvengine ARGUMENTS --json`, which has to succeed, and return the one document."""

    def run(*arguments: object) -> object:
        result = cli(*arguments, "--json")
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("\n") == 1
        return json.loads(result.stdout, parse_constant=lambda name: pytest.fail(name))

    return run


@pytest.fixture
def m(tiny_chat_path: Path) -> tuple[str, str, str, str]:
    """Arguments that name the tiny model with a chat template."""
    return ("-m", str(tiny_chat_path), "-t", "2")


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder ($KVENGINE_DATA) with little texts, in the form of the real one."""
    folder = tmp_path / "data"
    words = "The cache keeps what it has seen and forgets what it has not been asked for. "
    for name in ("ppl/wikitext2_raw_test.txt", "books/a.txt", "books/b.txt.gz"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = f"{path.name[0]} book: {words * 60}".encode()
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    monkeypatch.setenv("KVENGINE_DATA", str(folder))
    return folder
