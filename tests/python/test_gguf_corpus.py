"""The corpus of damaged files is large, repeatable and really damaged."""

from pathlib import Path

import gguf_corpus
import pytest

GOLDEN = Path(__file__).parent.parent / "fixtures" / "gguf" / "golden.gguf"


@pytest.fixture(scope="module")
def data() -> bytes:
    return GOLDEN.read_bytes()


def test_corpus_is_large_and_names_are_unique(data: bytes) -> None:
    names = [name for name, _ in gguf_corpus.corruptions(data)]
    assert len(names) >= gguf_corpus.MINIMUM
    assert len(set(names)) == len(names)


def test_every_item_differs_from_the_original(data: bytes) -> None:
    same = [name for name, damaged in gguf_corpus.corruptions(data) if damaged == data]
    assert [name for name in same if not name.startswith("noise")] == []


def test_corpus_is_repeatable(data: bytes) -> None:
    assert gguf_corpus.plan(data) == gguf_corpus.plan(data)


def test_every_kind_of_field_is_damaged(data: bytes) -> None:
    text = "\n".join(c.name for c in gguf_corpus.plan(data))
    for part in (
        "magic =",
        "version =",
        "tensor count =",
        "key count =",
        "key 0.length =",
        "golden.strings.count =",
        "golden.strings[1].length =",
        "golden.f32 =",
        "golden.boolean =",
        "matrix.dims =",
        "matrix.size[1] =",
        "quantized.type =",
        "quantized.offset =",
        "transposed",
        "nested 2 times",
        "cut to 50 %",
    ):
        assert part in text, part
