"""Code, arithmetic and long texts with the tiny model, and programs that are kept in their place."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import kvengine as kv
from kvengine.eval import data
from kvengine.eval.answering import answer, read
from kvengine.eval.execution import run_program
from kvengine.eval.metrics import distinct_n
from kvengine.eval.perplexity import score_rows
from kvengine.eval.runner import Runner
from kvengine.eval.task import parse, run_task
from kvengine.eval.tasks import code
from kvengine.eval.tasks.arithmetic import number
from kvengine.eval.tasks.code import function_body
from kvengine.eval.tasks.generation import _drawn

SOURCE = "import math\n\n" + "".join(f"value_{i} = math.sqrt({i}) + {i}  \n" for i in range(30))
PROBLEM = {
    "task_id": "T/1",
    "prompt": "def double(x):\n",
    "canonical_solution": "    return 2 * x\n",
    "entry_point": "double",
    "test": "def check(candidate):\n    assert candidate(3) == 6\n",
}
SUMS = [
    {
        "answer": str(2 * i),
        "context": f"Anna has {i} lamps and buys as many. How many has she?",
        "chain_of_thought": f"She has {i} + {i} = <<{i}+{i}={2 * i}>>{2 * i} lamps.",
    }
    for i in range(1, 12)
]


@pytest.fixture(autouse=True)
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {
        "code/python_files_networkx.jsonl": [{"path": f"{n}.py", "text": SOURCE} for n in "ab"],
        "code/humaneval.jsonl": [PROBLEM],
        "qa/gsm8k_test.jsonl": SUMS,
    }
    for name, each in rows.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in each))
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "one.txt").write_text("The lamp waits, and the boat goes on. " * 50)
    monkeypatch.setenv("KVENGINE_DATA", str(tmp_path))
    data._read.cache_clear()


@pytest.fixture
def runner(tiny: kv.Model) -> Runner:
    return Runner(tiny)


# --- Programs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "program",
    [
        "assert 1 + 1 == 2",
        "print('ä' * 100_000)",
        "import collections, functools, hashlib, heapq, math, random, re, typing\n"
        "assert hashlib.md5(b'').hexdigest().startswith('d41d')",
    ],
)
def test_programs_that_run_to_their_end(program: str) -> None:
    assert run_program(program).passed


@pytest.mark.parametrize(
    "program",
    [
        "assert False",
        "def",
        "import os; os._exit(0)",
        "raise SystemExit(0)",
        "x = 'a' * (1 << 31)",
        "import socket; socket.socket()",
        "import os; os.system('true')",
        "import os; os.fork()",
        "import subprocess; subprocess.run(['true'])",
        "import ctypes; ctypes.CDLL(None)",
        "open('file', 'w')",
        "open('/etc/hostname').read()",
        "import os; os.listdir('/')",
        "import os; os.mkdir('folder')",
        "import os; os.kill(os.getppid(), 0)",
        "import numpy",
    ],
)
def test_programs_that_fail_or_reach_out(program: str) -> None:
    outcome = run_program(program)
    assert (outcome.passed, outcome.reason) == (False, "failed")


def test_programs_that_do_not_end() -> None:
    # The clock's limit, then the processor's.
    assert run_program("import time; time.sleep(60)", seconds=1).reason == "timed out"
    assert run_program("while True: pass", seconds=1).reason == "timed out"


def test_programs_do_not_see_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "1")
    assert run_program("import os; assert 'SECRET' not in os.environ").passed


# --- Tasks ---------------------------------------------------------------------------------------


def test_code_completion(runner: Runner) -> None:
    task = parse("code_completion:context=64,new_tokens=8")
    result = run_task(task, runner)
    assert [item["path"] for item in result.items] == ["a.py", "b.py"]
    for item in result.items:
        assert item["tokens"] == 64
        assert item["wanted"] in SOURCE.split("\n")[16:]
        assert 0 <= item["edit"] <= 1
    assert result.metrics.keys() == {"edit", "exact", "logprob"}
    before, line = task._line({"path": "a.py", "text": SOURCE})
    assert f"{before}\n{line}\n" in SOURCE


def test_no_prose_is_asked_for() -> None:
    text = (
        'import os\n\n\ndef first(x):\n    """Say what it does.\n\n    At some length here.\n    """\n'
        '    names = ["a", "b"]\n    "a note in quotes"\n    long = """one\n    two three"""\n'
        '    return names + ["a string inside"]\n'
    )
    lines = text.split("\n")
    found = code._lines_of_strings(text)
    assert [lines[i].strip() for i in sorted(found) if lines[i]] == [
        '"""Say what it does.',
        "At some length here.",
        '"""',
        '"a note in quotes"',
        'long = """one',
        'two three"""',
    ]
    asked = {
        parse(f"code_completion:seed={i}")._line({"path": "", "text": text})[1] for i in range(50)
    }
    assert asked == {'    names = ["a", "b"]', '    return names + ["a string inside"]'}
    for broken in ('x = """', "\tx\n  y\n", "\0", "((((", "é = $\n"):
        assert isinstance(code._lines_of_strings(broken), set)


def test_humaneval_needs_leave_to_execute() -> None:
    with pytest.raises(kv.ConfigError, match="execute: expected yes, as it runs programs"):
        parse("humaneval")


def test_humaneval(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    task = parse("humaneval:execute=yes,new_tokens=4")
    assert run_task(task, runner).metrics["passed"] == 0  # the tiny model writes nonsense
    right = "\n    return x + x\n\n\nprint(double(1) / 0)\n"
    monkeypatch.setattr("kvengine.eval.tasks.code.answer", lambda *rest: [right])
    result = run_task(task, runner)
    assert result.metrics["passed"] == 1
    assert result.items[0]["answer"] == "\n    return x + x\n\n"


def test_function_bodies() -> None:
    body = "    if x:\n        return 1\n    # no\n    return 2\n"
    assert function_body(body) == body
    assert function_body(body + "\ndef other():\n    pass") == body
    assert function_body(body + "\n# that was it") == body


def test_each_answer_ends_by_itself(runner: Runner) -> None:
    prompts = [runner.encode(text) for text in ("Anna has lamps.", "One, two.", "A boat!")]
    whole = answer(runner, read(runner, prompts, 24), 24)
    text = whole[1]
    mark = next(text[i : i + 2] for i in range(3, len(text)) if text.find(text[i : i + 2]) == i)
    cut = answer(runner, read(runner, prompts, 24), 24, stop=mark)
    assert cut == [text.split(mark)[0] for text in whole]
    assert 3 <= len(cut[1]) < len(text)


def test_gsm8k(runner: Runner) -> None:
    task = parse("gsm8k:shots=2,new_tokens=6,limit=6")
    assert [len(unit) for unit in task.units(runner)] == [4, 2]
    assert all(row not in SUMS[-2:] for unit in task.units(runner) for row in unit)
    result = run_task(task, runner)
    assert [item["wanted"] for item in result.items] == [row["answer"] for row in SUMS[:6]]
    assert 0 <= result.metrics["accuracy"] <= 1
    alone = parse("gsm8k:shots=0,new_tokens=2,limit=1")
    assert len(run_task(alone, runner).items) == 1
    with pytest.raises(
        kv.ConfigError, match=r"shots: expected demonstrations for selfinfo.*found 0"
    ):
        run_task(alone, Runner(runner.model, "selfinfo:keep=0.5"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("so 3 + 4 = 7.\n#### 7", 7),
        ("#### $1,234.50 or 3", 1234.5),
        ("first 3, then -4", -4),
        ("none", None),
        ("3, or #### none", None),
    ],
)
def test_numbers(text: str, expected: float | None) -> None:
    assert number(text) == expected


def test_long_generation(tiny: kv.Model) -> None:
    spec = "long_generation:tokens=40,prompt=20"
    same = run_task(parse(spec), Runner(tiny, "f16"))
    assert same.metrics["kld_mean"] == 0  # the reference itself
    for name in ("loop", "distinct_1", "distinct_4"):  # with the same draws
        assert same.metrics[name] == same.metrics[f"{name}@reference"]
    runner = Runner(tiny, "int4:group=8,tail=0")
    result = run_task(parse(spec), runner)
    [item] = result.items
    assert len(item["kld"]) == 40
    assert result.metrics["kld_mean"] == pytest.approx(np.mean(item["kld"]))
    assert result.metrics["kld_mean"] > 0
    assert result.metrics["kld@4"] == pytest.approx(np.mean(item["kld"][30:]))
    assert result.cache_stats["tokens_seen"] >= 59
    # The reference's text, and so what is said of it, is the same for all caches.
    assert item["distinct_2@reference"] == same.items[0]["distinct_2@reference"]

    task = parse(spec)
    prompt = tiny.tokenizer.encode("The lamp waits, and ")
    text, found = task._forced(runner, prompt)
    assert distinct_n(text, 1) > 0.2
    sessions = [tiny.session(cache=cache) for cache in ("f16", runner.cache)]
    for i, token in enumerate(text):
        rows = [each.forward(prompt if i == 0 else [text[i - 1]])[-1:] for each in sessions]
        compared = score_rows(rows[1], np.array([token]), rows[0]).compared
        assert found[i] == pytest.approx(compared.kld[0], abs=1e-9)


def test_draws_follow_the_probabilities() -> None:
    draw = np.random.default_rng(1)
    logits = np.log(np.array([[0.1, 0.2, 0.7]], np.float32)) * 0.5
    counts = np.bincount([_drawn(logits, 0.5, draw) for _ in range(4000)], minlength=3)
    # Four standard deviations: 4 * sqrt(0.25 / 4000)
    np.testing.assert_allclose(counts / 4000, [0.1, 0.2, 0.7], atol=0.032)


def test_speed(runner: Runner) -> None:
    result = run_task(parse("speed:depths=40,10,40,tokens=3"), runner)
    assert [item["past"] for item in result.items] == [10, 40]
    assert result.metrics.keys() == {"tps", "prefill_tps", "tps@10", "tps@40"}
    assert all(value > 0 for value in result.metrics.values())


@pytest.mark.parametrize(
    "spec",
    [
        "gsm8k:shots=51",
        "long_generation:temperature=0",
        "speed:depths=0",
        "code_completion:context=0",
    ],
)
def test_bad_parameters(spec: str) -> None:
    with pytest.raises(kv.ConfigError, match="expected"):
        parse(spec)
