"""What verbs read: models, prompts and files."""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvengine import (
    CompressedPrompt,
    DeviceError,
    GgufFile,
    Model,
    Session,
    Tokenizer,
    compress_prompt,
)
from kvengine.cli.arguments import InputError, cache_spec
from kvengine.cli.output import Progress, human_bytes, say

_MOST_BYTES = 64 << 20  # of a text: far more than any model reads


def model_path(args: argparse.Namespace) -> Path:
    """The file -m names; a model that can be pulled is pulled when it is absent."""
    from kvengine import pull

    return named_model(getattr(args, "model", pull.DEFAULT_MODEL), "-m/--model")


def named_model(name: str, flag: str) -> Path:
    """A GGUF file, or a model to pull."""
    from kvengine import pull

    if name == "":
        raise InputError(f"{flag}: expected a GGUF file, found nothing")
    if (name in pull.MODELS or name.startswith("hf:")) and not Path(name).exists():
        return obtain(name)
    return Path(name)


def obtain(name: str, verify: bool = False) -> Path:
    """Fetch a model by name, with a bar and what has to be said about its licence."""
    from kvengine import pull

    announced = set()

    def report(text: str, done: int, total: int) -> None:
        line = text if total == 0 else f"fetching {name}"
        if line not in announced:
            announced.add(line)
            say(line)
        progress.update(done, total, text)

    with Progress(f"fetching {name}") as progress:
        return pull.obtain(name, report, verify)


def load_model(args: argparse.Namespace) -> Model:
    return load_file(args, model_path(args))


def load_file(args: argparse.Namespace, path: Path) -> Model:
    """A model on the device that --device or -ngl names; says so where that has become another."""
    device = args.device or "cpu"
    layers: int | None = args.gpu_layers
    if layers is not None and args.device is not None:
        if device.partition(":")[0] != ("cuda" if layers else "cpu"):
            raise InputError(f"-ngl {layers}: expected another --device than {device}, or none")
    elif layers:
        device = "cuda"
    with Progress(f"loading {path.name}"):
        try:
            model = Model.load(path, args.threads, repack=not args.no_repack, device=device)
        except DeviceError as error:
            raise InputError(str(error)) from None
    if layers and 0 < layers < model.n_layers:
        raise InputError(
            f"-ngl: expected 0, or all {model.n_layers} layers or more (-1), since a model is "
            f"computed by one device, found {layers}"
        )
    if model.device_note:
        say(model.device_note)
    return model


def draft_options(args: argparse.Namespace) -> dict[str, Any]:
    """What add_drafting() read, as arguments of Session.generate()."""
    most = getattr(args, "draft_max", None)
    name = getattr(args, "model_draft", None)
    if most == 0 or (most is None and name is None):
        return {}
    draft: Any = "lookup"
    if name is not None:
        path = named_model(name, "-md/--model-draft")
        draft = load_file(args, path)
    return {"draft": draft} | ({} if most is None else {"draft_max": most})


def compression_method(args: argparse.Namespace) -> Any:
    """What --compress-prompt names, or None; told before anything is loaded if it is a bad one."""
    from kvengine.prompt import parse_method

    spec = getattr(args, "compress_prompt", None)
    return None if spec is None else parse_method(spec)


def with_question(args: argparse.Namespace, text: str) -> str:
    """A prompt and, as its last paragraph, what --question asks."""
    question = asked(args)
    return text if question is None else f"{text}\n\n{question}"


def asked(args: argparse.Namespace) -> str | None:
    """What --question gave: UTF-8 text, or None."""
    question: str | None = getattr(args, "question", None)
    return None if question is None else decoded(os.fsencode(question), "--question")


def compressed(
    args: argparse.Namespace, model: Model, prompt: Any, method: Any
) -> CompressedPrompt:
    """A prompt that ends with what --question asks, shortened; tells by how much."""
    with Progress("shortening the prompt") as progress:
        short = compress_prompt(model, prompt, method, asked(args), progress.update)
    say(f"prompt {short.method}: {short.original_tokens} tokens, {len(short.tokens)} are left")
    return short


def load_session(args: argparse.Namespace) -> Session:
    """An empty session of the model -m names."""
    # A bad one is told before anything is fetched or loaded.
    cache = cache_spec(args, may_be_limited=True)
    model = load_model(args)
    limit = None if cache == "auto" else getattr(args, "kv_budget", None)
    cache = planned_cache(args, model, cache, args.ctx_size)
    return model.session(n_ctx=args.ctx_size, cache=cache, exact=args.exact, kv_budget=limit)


def planned_cache(args: argparse.Namespace, model: Model, cache: str, n_ctx: int) -> str:
    """The spec that "auto" becomes for a model, which is told; any other spec as it is."""
    if cache != "auto":
        return cache
    from kvengine.eval.calibration import Calibration

    file = getattr(args, "kv_calibration", None)
    damage = [] if file is None else Calibration.read(file, model).damage
    with Progress("planning the cache"):
        plan = model.plan_cache(args.kv_budget, n_ctx, damage=damage)
    say(f"cache auto: at most {human_bytes(plan.bytes)}\n{plan_summary(plan.layers)}")
    return plan.spec


def plan_summary(layers: Sequence[tuple[str, str]]) -> str:
    """'  layers 0-12: keys best3, values best4', a line for neighbours with the same."""
    lines = []
    for (keys, values), run in itertools.groupby(range(len(layers)), lambda i: layers[i]):
        numbers = list(run)
        named = f"layer {numbers[0]}"
        if len(numbers) > 1:
            named = f"layers {numbers[0]}-{numbers[-1]}"
        lines.append(f"  {named}: keys {keys}, values {values}")
    return "\n".join(lines)


def open_vocabulary(args: argparse.Namespace) -> tuple[GgufFile, Tokenizer]:
    """The file -m names, which needs no tensors, and its tokenizer."""
    file = GgufFile(model_path(args))
    return file, Tokenizer.from_gguf(file)


def prompt_bytes(args: argparse.Namespace) -> bytes:
    """What -p or -f gave, as it is."""
    if hasattr(args, "prompt"):
        return args.prompt.encode("utf-8", "surrogateescape")
    return read_file(Path(args.file))


def prompt_text(args: argparse.Namespace) -> str:
    """What -p or -f gave: some UTF-8 text."""
    text = decoded(prompt_bytes(args), "prompt" if hasattr(args, "prompt") else args.file)
    if not text:
        raise InputError("prompt: expected some text, found none")
    return text


def read_file(path: Path) -> bytes:
    """The bytes of a file; a .gz is unpacked."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise InputError(f"{path}: expected at most {_MOST_BYTES} bytes, found more")
        return data
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: expected a gzip file, found a damaged one ({error})") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: could not be read ({reason})") from None


def decoded(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name}: expected UTF-8 text, found byte 0x{data[error.start]:02x} at offset "
            f"{error.start}"
        ) from None


def read_json(path: Path) -> Any:
    try:
        return json.loads(decoded(read_file(path), str(path)))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected JSON ({error})") from None
