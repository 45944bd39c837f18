"""Damaged versions of a GGUF file, for tests that a bad file never crashes anything.

`corruptions(data)` damages every kind of field: counts, lengths, types, shapes, offsets, alignment,
every scalar value (hyper-parameters, token ids), texts, and the length of the file. Some are
harmless; a reader either opens them or refuses them with one sentence. The list is the same on
every call, and never shorter than `MINIMUM`.

The parser here is independent of the engine's, and expects a valid little-endian file.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass

MINIMUM = 400

STRING, ARRAY, BOOLEAN = 8, 9, 7
FLOATS = (6, 12)
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


@dataclass(frozen=True)
class Field:
    """Where a field of the file is, and what it is: the kind decides how it is damaged."""

    name: str
    kind: str  # count, length, type, float, integer, boolean, text, dims, size, offset
    offset: int
    size: int


@dataclass(frozen=True)
class Corruption:
    """Bytes to overwrite, then a length to cut the file to."""

    name: str
    patches: tuple[tuple[int, bytes], ...] = ()
    length: int | None = None

    def apply(self, data: bytes) -> bytes:
        """Return a damaged copy of `data`."""
        damaged = bytearray(data if self.length is None else data[: self.length])
        for offset, patch in self.patches:
            damaged[offset : offset + len(patch)] = patch
        return bytes(damaged)


class _Parser:
    """Walks through a valid file and lists its fields; long arrays give their first and last."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 4
        self.fields: list[Field] = []
        self.tensors: list[list[Field]] = []

    def number(self, name: str, kind: str, size: int) -> int:
        value = int.from_bytes(self.data[self.at : self.at + size], "little")
        self.fields.append(Field(name, kind, self.at, size))
        self.at += size
        return value

    def string(self, name: str) -> str:
        length = self.number(f"{name}.length", "length", 8)
        self.fields.append(Field(name, "text", self.at, length))
        self.at += length
        return self.data[self.at - length : self.at].decode("utf-8", "replace")

    def scalar(self, name: str, kind: int) -> None:
        label = "float" if kind in FLOATS else "boolean" if kind == BOOLEAN else "integer"
        self.number(name, label, SIZES[kind])

    def array(self, name: str) -> None:
        element = self.number(f"{name}.element", "type", 4)
        count = self.number(f"{name}.count", "count", 8)
        for i in range(count):
            n_fields = len(self.fields)
            if element == STRING:
                self.string(f"{name}[{i}]")
            else:
                self.scalar(f"{name}[{i}]", element)
            if 2 <= i < count - 1:
                del self.fields[n_fields:]

    def parse(self) -> None:
        self.fields.append(Field("magic", "text", 0, 4))
        self.number("version", "integer", 4)
        n_tensors = self.number("tensor count", "count", 8)
        n_keys = self.number("key count", "count", 8)
        for i in range(n_keys):
            key = self.string(f"key {i}")
            kind = self.number(f"{key}.type", "type", 4)
            if kind == ARRAY:
                self.array(key)
            elif kind == STRING:
                self.string(key)
            else:
                self.scalar(key, kind)
        for i in range(n_tensors):
            first = len(self.fields)
            name = self.string(f"tensor {i}")
            n_dims = self.number(f"{name}.dims", "dims", 4)
            for d in range(n_dims):
                self.number(f"{name}.size[{d}]", "size", 8)
            self.number(f"{name}.type", "type", 4)
            self.number(f"{name}.offset", "offset", 8)
            self.tensors.append(self.fields[first:])
            del self.fields[first:]


def _values(field: Field, right: int, file_bytes: int) -> list[bytes]:
    """Damaged contents of one field that is not a text."""
    if field.kind == "float":
        code = "<f" if field.size == 4 else "<d"
        return [struct.pack(code, v) for v in (0.0, -1.0, 1e30, float("inf"), float("nan"))]
    top = 1 << (8 * field.size - 1)
    by_kind = {
        "count": [0, right - 1, right + 1, (1 << 61) + 1, 2 * top - 1],
        "length": [0, right + 1, file_bytes, top, 2 * top - 8],
        "type": [0, ARRAY, 13, 1 << 16, 2 * top - 1],
        "integer": [0, 1, right + 1, top - 1, top, 2 * top - 1],
        "boolean": [1 - (right & 1), 2, 255],
        "dims": [0, 1, 4, 5, 2 * top - 1],
        "size": [0, 1, right + 1, 2 * right, 1 << 32, top, 2 * top - 1],
        "offset": [1, right + 32, (file_bytes + 31) // 32 * 32, top, 2 * top - 32],
    }
    values = {v % (2 * top) for v in by_kind[field.kind]} - {right}
    return [v.to_bytes(field.size, "little") for v in sorted(values)]


def _damaged_field(field: Field, data: bytes) -> Iterator[Corruption]:
    if field.size == 0:
        return
    if field.kind == "text":
        for filler in (b"\x00", b"\xff", b"x"):
            patch = filler * field.size
            yield Corruption(f"{field.name} = {filler!r}", ((field.offset, patch),))
        return
    right = int.from_bytes(data[field.offset : field.offset + field.size], "little")
    for patch in _values(field, right, len(data)):
        yield Corruption(f"{field.name} = 0x{patch[::-1].hex()}", ((field.offset, patch),))


def _tensor_damage(tensors: list[list[Field]], data: bytes) -> Iterator[Corruption]:
    """Every field of the first, a middle and the last tensor; mismatches among the others."""
    for index in sorted({0, len(tensors) // 2, len(tensors) - 1} if tensors else set()):
        for field in tensors[index]:
            yield from _damaged_field(field, data)
    for fields in tensors[:64]:
        sizes = [f for f in fields if f.kind == "size"]
        if len(sizes) < 2:
            continue
        first, second = (data[f.offset : f.offset + 8] for f in sizes[:2])
        if first != second:
            patches = ((sizes[0].offset, second), (sizes[1].offset, first))
            yield Corruption(f"{fields[1].name} {fields[1].offset} transposed", patches)
    by_length: dict[int, Field] = {}
    for fields in tensors:
        name = fields[1]
        other = by_length.setdefault(name.size, name)
        if other is not name:
            patch = data[other.offset : other.offset + other.size]
            yield Corruption(f"{name.name} named like {other.name}", ((name.offset, patch),))
            return


def _nested_arrays(fields: list[Field], data: bytes) -> Iterator[Corruption]:
    """The contents of the longest array become arrays that contain arrays."""
    elements = [f for f in fields if f.name.endswith(".element")]
    for element in elements:
        start = element.offset
        room = len(data) - start
        for depth in (1, 2, 1000):
            patch = struct.pack("<IQ", ARRAY, 1) * depth
            if len(patch) <= room:
                yield Corruption(f"{element.name} nested {depth} times", ((start, patch),))


def _truncations(data: bytes, header_bytes: int) -> Iterator[Corruption]:
    for percent in range(100):
        yield Corruption(f"cut to {percent} %", length=len(data) * percent // 100)
    for percent in range(1, 100, 5):
        yield Corruption(f"header cut to {percent} %", length=header_bytes * percent // 100)
    for size in (1, 3, 4, 8, 23, header_bytes, header_bytes + 1, len(data) - 1):
        yield Corruption(f"cut to {size} bytes", length=min(size, len(data) - 1))


def _noise(data: bytes, header_bytes: int, count: int) -> Iterator[Corruption]:
    # Not random.sample and the like, whose results may change between versions of Python.
    generator = random.Random(1)
    for i in range(count):
        patches = []
        for _ in range(1 + int(generator.random() * 8)):
            offset = int(generator.random() * header_bytes)
            patches.append((offset, bytes([int(generator.random() * 256)])))
        yield Corruption(f"noise {i}", tuple(patches))


def plan(data: bytes) -> list[Corruption]:
    """All corruptions of a valid file, without applying them (they share `data`)."""
    parser = _Parser(data)
    parser.parse()
    result: list[Corruption] = []
    for field in parser.fields:
        result.extend(_damaged_field(field, data))
    result.extend(_tensor_damage(parser.tensors, data))
    result.extend(_nested_arrays(parser.fields, data))
    result.extend(_truncations(data, parser.at))
    result.extend(_noise(data, parser.at, max(100, MINIMUM - len(result))))
    return result


def corruptions(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield (name, bytes) for every corruption of a valid file."""
    for corruption in plan(data):
        yield corruption.name, corruption.apply(data)
