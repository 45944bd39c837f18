"""The bindings as such: errors, stubs, GGUF files, weight formats, tokenizers."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import gguf
import numpy as np
import pytest

import kvengine as kv
from kvengine import _core

BASES = {
    "FormatError": ValueError,
    "UnsupportedError": NotImplementedError,
    "ConfigError": ValueError,
    "CapacityError": MemoryError,
    "DeviceError": RuntimeError,
    "IoError": OSError,
    "CancelledError": RuntimeError,
}


@pytest.mark.parametrize(("name", "base"), BASES.items())
def test_errors_are_what_python_programmers_catch(name: str, base: type) -> None:
    error = getattr(kv, name)
    assert issubclass(error, kv.Error)
    assert issubclass(error, base)
    assert error.__doc__


def test_errors_carry_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(kv.IoError) as raised:
        kv.Model.load(tmp_path / "absent\n.gguf")
    assert "absent" in str(raised.value)
    assert "\n" not in str(raised.value)
    path = tmp_path / "text.gguf"
    path.write_text("This is not a model.")
    with pytest.raises(kv.FormatError, match="GGUF"):
        kv.Model.load(path)


@pytest.mark.parametrize("options", [{"threads": -1}, {"isa": "pentium"}])
def test_bad_load_options(tiny_path: Path, options: dict) -> None:
    with pytest.raises(kv.ConfigError):
        kv.Model.load(tiny_path, **options)


def test_version() -> None:
    cmake = (Path(__file__).parent.parent.parent / "CMakeLists.txt").read_text()
    assert f"project(kvengine VERSION {kv.__version__} " in cmake


def test_memory_is_known() -> None:
    assert 0 < kv.resident_bytes() <= kv.peak_resident_bytes() * 1.01


# --- stubs -----------------------------------------------------------------------------------


def stub() -> ast.Module:
    return ast.parse((Path(kv.__file__).parent / "_core.pyi").read_text())


def named(nodes: list[ast.stmt]) -> dict[str, ast.stmt]:
    result = {}
    for node in nodes:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            result[node.name] = node
        elif isinstance(node, ast.AnnAssign):
            result[node.target.id] = node
    return result


def test_stub_names_what_the_module_has() -> None:
    real = {name for name in vars(_core) if not name.startswith("_")} | {"__version__"}
    assert named(stub().body).keys() == real


def members_of(value: type) -> set[str]:
    ours = {"__init__", "__getitem__", "__contains__", "__len__", "__iter__", "__next__"}
    ours |= {"__enter__", "__exit__"}
    own = {name for name in vars(value) if not name.startswith("_") or name in ours}
    # What cannot be made from Python has an __init__ too, without a signature.
    makes = value.__init__.__doc__.startswith("__init__(")
    return own if makes else own - {"__init__"}


@pytest.mark.parametrize("name", [n for n, v in vars(_core).items() if inspect.isclass(v)])
def test_stub_of_a_class(name: str) -> None:
    value = getattr(_core, name)
    node = named(stub().body)[name]
    assert isinstance(node, ast.ClassDef)
    assert value.__doc__
    if issubclass(value, Exception):
        bases = [base.id for base in node.bases]
        assert bases == [base.__name__ for base in value.__bases__]
        return
    members = named(node.body)
    assert members.keys() == members_of(value)
    for member, definition in members.items():
        assert isinstance(definition, ast.FunctionDef)
        decorators = {d.id for d in definition.decorator_list if isinstance(d, ast.Name)}
        assert isinstance(vars(value)[member], property) == ("property" in decorators), member
        if "overload" in decorators or "property" in decorators or member.startswith("__"):
            continue
        check_arguments(definition, getattr(value, member))


def check_arguments(definition: ast.FunctionDef, function: object) -> None:
    """pybind11 writes the signature into the docstring; every name of the stub has to be there."""
    signature = (function.__doc__ or "").split("\n")[0]
    arguments = [*definition.args.args, *definition.args.kwonlyargs]
    for argument in arguments:
        assert f"{argument.arg}:" in signature, signature
    assert signature.count(": ") == len(arguments), signature


def test_stub_of_functions() -> None:
    for name, definition in named(stub().body).items():
        if isinstance(definition, ast.FunctionDef):
            check_arguments(definition, getattr(_core, name))


def test_everything_public_is_documented() -> None:
    for name in kv.__all__:
        value = getattr(kv, name)
        if inspect.isclass(value) or inspect.isroutine(value):
            assert inspect.getdoc(value), name


# --- GGUF files ------------------------------------------------------------------------------


def test_metadata_and_tensors_agree_with_another_reader(tiny_path: Path) -> None:
    ours, theirs = kv.GgufFile(tiny_path), gguf.GGUFReader(tiny_path)
    fields = {k: v for k, v in theirs.fields.items() if not k.startswith("GGUF.")}
    assert list(ours) == ours.keys() == list(fields)
    assert len(ours) == len(fields)
    for key, field in fields.items():
        expected = field.contents()
        assert ours[key] == (pytest.approx(expected) if isinstance(expected, float) else expected)
    assert [tensor.name for tensor in ours.tensors] == [tensor.name for tensor in theirs.tensors]
    for mine, other in zip(ours.tensors, theirs.tensors, strict=True):
        assert mine.type == other.tensor_type.name
        assert mine.shape == other.shape.tolist()
        assert mine.elements == other.n_elements
        assert mine.data.tobytes() == other.data.tobytes()
        assert not mine.data.flags.writeable
        expected = gguf.quants.dequantize(other.data, other.tensor_type)
        np.testing.assert_array_equal(mine.decode(), expected)


def test_mapping_protocol(tiny_path: Path) -> None:
    file = kv.GgufFile(tiny_path)
    assert file["general.architecture"] == file.get("general.architecture") == "llama"
    assert "general.architecture" in file
    assert "nothing" not in file
    assert file.get("nothing") is None
    assert file.get("nothing", 5) == 5
    with pytest.raises(KeyError):
        file["nothing"]
    with pytest.raises(kv.FormatError):
        file.tensor("nothing")
    assert file.type_name("general.architecture") == "string"


def test_tensor_data_outlives_the_file(tiny_path: Path) -> None:
    data = kv.GgufFile(tiny_path).tensors[0].data
    assert data.copy().sum() == data.sum()


def test_every_metadata_type(tmp_path: Path) -> None:
    values = {
        "u8": 255,
        "i8": -128,
        "u16": 65535,
        "i16": -32768,
        "u32": 2**32 - 1,
        "i32": -(2**31),
        "u64": 2**64 - 1,
        "i64": -(2**63),
        "f32": 0.5,
        "f64": 0.1,
        "bool": True,
        "string": "naïve \0 text",
    }
    writer = kv.GgufWriter()
    for name, value in values.items():
        writer.set(f"test.{name}", value, name)
    writer.set("test.raw", b"\xff\xfe", "string")
    writer.set("test.\udcff", "\udcfe", "string")  # bytes that are not UTF-8, as they are read
    writer.set("test.gone", 1, "u8")
    writer.erase("test.gone")
    writer.write(tmp_path / "all.gguf")
    file = kv.GgufFile(tmp_path / "all.gguf")
    for name, value in values.items():
        assert file[f"test.{name}"] == value
    assert file["test.raw"] == "\udcff\udcfe"
    assert file["test.\udcff"] == "\udcfe"
    assert "test.\udcff" in file.keys()  # noqa: SIM118
    assert "test.gone" not in file
    with pytest.raises(kv.ConfigError):
        writer.set("test.bad", 1, "u128")


def test_metadata_arrays_of_every_type(tmp_path: Path) -> None:
    path = tmp_path / "arrays.gguf"
    kinds = {
        "u8": ([0, 255], gguf.GGUFValueType.UINT8),
        "i64": ([-(2**63), 2**63 - 1], gguf.GGUFValueType.INT64),
        "u64": ([0, 2**64 - 1], gguf.GGUFValueType.UINT64),
        "f32": ([0.5, -1.5], gguf.GGUFValueType.FLOAT32),
        "f64": ([0.1, 1e300], gguf.GGUFValueType.FLOAT64),
        "bool": ([True, False], gguf.GGUFValueType.BOOL),
        "string": (["a", "ü"], gguf.GGUFValueType.STRING),
    }
    writer = gguf.GGUFWriter(path, "llama")
    for name, (values, kind) in kinds.items():
        writer.add_key_value(f"test.{name}", values, gguf.GGUFValueType.ARRAY, sub_type=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    file = kv.GgufFile(path)
    for name, (values, _) in kinds.items():
        assert file[f"test.{name}"] == values


def test_a_copy_is_identical(tiny_path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    kv.GgufWriter.copy_of(kv.GgufFile(tiny_path)).write(copy)
    assert copy.read_bytes() == tiny_path.read_bytes()


# --- weight formats --------------------------------------------------------------------------

QUANTIZED = [f.name for f in kv.weight_formats() if f.block_values > 1]


@pytest.mark.parametrize("name", QUANTIZED)
def test_decoding_agrees_with_another_implementation(name: str) -> None:
    format_ = next(each for each in kv.weight_formats() if each.name == name)
    kind = gguf.GGMLQuantizationType[name]
    block_values, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    assert (format_.block_values, format_.block_bytes) == (block_values, block_bytes)
    if name == "Q8_K":
        pytest.skip("gguf does not decode Q8_K; the C++ tests do")
    blocks = np.random.default_rng(1).integers(0, 256, (50, block_bytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(blocks, kind).reshape(-1)
    actual = kv.decode_weights(name, blocks)
    assert actual.dtype == np.float32
    # Bit for bit, where a scale of random bits is no NaN.
    finite = ~np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(actual), ~finite)
    np.testing.assert_array_equal(actual[finite].view(np.uint32), expected[finite].view(np.uint32))


@pytest.mark.parametrize("name", [f.name for f in kv.weight_formats() if f.can_encode])
def test_encoding_and_decoding(name: str) -> None:
    values = np.random.default_rng(2).standard_normal(512).astype(np.float32)
    data = kv.encode_weights(name, values)
    decoded = kv.decode_weights(name, data)
    # The coarsest, Q4_0, has 16 steps over the range of a block (|x| < 4): half a step is 0.27.
    assert np.abs(decoded - values).max() < 0.3
    assert kv.encode_weights(name, values.reshape(2, 256)) == data


def test_bad_weights() -> None:
    with pytest.raises(kv.ConfigError):
        kv.decode_weights("Q9_9", b"")
    with pytest.raises(kv.ConfigError):
        kv.decode_weights("Q4_0", b"\0" * 17)
    with pytest.raises(kv.ConfigError):
        kv.decode_weights("Q4_0", np.zeros((2, 36), dtype=np.uint8)[:, ::2])
    with pytest.raises(kv.ConfigError):
        kv.encode_weights("Q4_0", np.zeros(31, dtype=np.float32))
    with pytest.raises(kv.UnsupportedError):
        kv.encode_weights("IQ2_XXS", np.zeros(256, dtype=np.float32))
    assert kv.decode_weights("Q4_0", b"").size == 0


# --- tokenizers ------------------------------------------------------------------------------


def test_tokenizer_of_a_vocabulary_file(vocabulary_path: Path, tiny: kv.Model) -> None:
    with pytest.raises(kv.Error):
        kv.Model.load(vocabulary_path)
    tokenizer = kv.Tokenizer.from_file(vocabulary_path)
    for text in ("", "The cache", "naïve 東京 🙂\n", "a\0b"):
        assert tokenizer.encode(text) == tiny.tokenizer.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_text_and_bytes(tiny: kv.Model) -> None:
    tokenizer = tiny.tokenizer
    assert tokenizer.encode("Zürich") == tokenizer.encode("Zürich".encode())
    # Bytes that are not UTF-8 are read as U+FFFD.
    assert tokenizer.encode(b"a\xff\xfeb") == tokenizer.encode("a\ufffd\ufffdb")
    half = tokenizer.encode("東")[:1]
    assert tokenizer.decode_bytes(half) == "東".encode()[:1]
    assert tokenizer.decode(half) == "\ufffd"
    with pytest.raises(UnicodeEncodeError):
        tokenizer.encode("\ud800")
    with pytest.raises(TypeError):
        tokenizer.encode(5)


def test_token_facts(tiny: kv.Model) -> None:
    tokenizer = tiny.tokenizer
    assert len(tokenizer) == tokenizer.vocab_size
    assert tokenizer.special_tokens["eos"] == tokenizer.eos
    assert tokenizer.find(tokenizer.token_text(40)) == 40
    assert tokenizer.find("no such entry") is None
    assert tokenizer.model == tiny.file["tokenizer.ggml.model"]
    for bad in (-1, 10**6):
        with pytest.raises(kv.ConfigError):
            tokenizer.piece(bad)
        with pytest.raises(kv.ConfigError):
            tokenizer.token_text(bad)
        with pytest.raises(kv.ConfigError):
            tokenizer.decode([bad])
        assert not tokenizer.is_end_of_generation(bad)
