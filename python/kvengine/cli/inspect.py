"""`kvengine inspect`: what a GGUF file holds."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from typing import Any

from kvengine import GgufFile
from kvengine.cli.arguments import add_common
from kvengine.cli.inputs import model_path
from kvengine.cli.output import human_bytes, print_json, print_table

DESCRIPTION = "Show the metadata and tensors of a GGUF file, which may hold a vocabulary only."

_LONGEST = 100  # characters of a value in the table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tensors", action="store_true", help="list every tensor")
    add_common(parser, computes=False)


def run(args: argparse.Namespace) -> None:
    file = GgufFile(model_path(args))
    tensors = file.tensors
    document = {
        "architecture": file.get("general.architecture"),
        "parameters": sum(tensor.elements for tensor in tensors),
        "file_bytes": file.file_bytes,
        "tensors": [
            {"name": tensor.name, "type": tensor.type, "shape": tensor.shape} for tensor in tensors
        ],
        "metadata": dict(file),
        "kv_bytes_per_token_f16": kv_bytes_per_token_f16(file),
    }
    if args.json:
        print_json(document)
    else:
        _print(file, document, list_tensors=args.tensors)


def kv_bytes_per_token_f16(file: GgufFile) -> int | None:
    """Bytes that keys and values of one token take in f16, over all layers; None if unknown."""
    prefix = file.get("general.architecture")

    def number(key: str) -> int:
        value = file.get(f"{prefix}.{key}")
        return value if type(value) is int else 0

    layers, heads = number("block_count"), number("attention.head_count")
    per_head = number("embedding_length") // heads if heads else 0
    key_dim = number("attention.key_length") or per_head
    value_dim = number("attention.value_length") or per_head
    of_layers = file.get(f"{prefix}.attention.head_count_kv")
    if isinstance(of_layers, list):  # one number for each layer
        valid = len(of_layers) == layers and all(type(each) is int for each in of_layers)
        kv_heads = sum(of_layers) if valid else 0
    else:
        kv_heads = layers * (number("attention.head_count_kv") or heads)
    return 2 * kv_heads * (key_dim + value_dim) or None


def _print(file: GgufFile, document: dict[str, Any], list_tensors: bool) -> None:
    print(f"{file.path} (GGUF {file.version}, {human_bytes(file.file_bytes)})\n")
    rows = [[key, file.type_name(key), _short(file[key])] for key in file.keys()]  # noqa: SIM118
    print_table(["key", "type", "value"], rows)
    types: Counter[str] = Counter()
    size: Counter[str] = Counter()
    for tensor in file.tensors:
        types[tensor.type] += 1
        size[tensor.type] += tensor.bytes
    print(f"\n{len(file.tensors)} tensors, {document['parameters']:,} parameters")
    for name, count in types.most_common():
        print(f"  {name}: {count} tensors, {human_bytes(size[name])}")
    per_token = document["kv_bytes_per_token_f16"]
    print(f"cache in f16: {per_token or 'unknown'} bytes per token")
    if list_tensors:
        print()
        print_table(
            ["tensor", "type", "shape", "bytes"],
            [
                [tensor.name, tensor.type, " x ".join(map(str, tensor.shape)), tensor.bytes]
                for tensor in file.tensors
            ],
        )


def _short(value: Any) -> str:
    if isinstance(value, list):
        text = f"[{', '.join(repr(each) for each in value[:6])}{', ...' if len(value) > 6 else ''}]"
    elif isinstance(value, float):
        text = f"{value:.7g}" if math.isfinite(value) else str(value)
    else:
        text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
