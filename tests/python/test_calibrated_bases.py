"""`kvengine calibrate --bases`, and the caches that keep only what groups of heads have in common."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import kvengine as kv
from kvengine.compress import calibrate_bases
from kvengine.compress.grams import turned_back

TEXT = "".join(f"The lamp {i} is {i * i % 89} steps from house {i * 7 % 61}. " for i in range(90))


@pytest.fixture(scope="module")
def bases(tiny: kv.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the tiny model, whose two kv heads of 8 channels are joined."""
    path = tmp_path_factory.mktemp("bases") / "bases.gguf"
    report = calibrate_bases(tiny, TEXT, path, n_ctx=256, windows=3)
    assert (report.path, report.group, report.tokens, report.warning) == (path, 2, 768, None)
    assert all(0.5 < share <= 1 for share in report.key_energy + report.value_energy)
    return path


def logits(model: kv.Model, cache: str) -> np.ndarray:
    """Of a prompt in two parts, the second of which reads what the first has left."""
    session = model.session(n_ctx=200, cache=cache, exact=True)
    tokens = model.tokenizer.encode(TEXT)[:180]
    session.forward(tokens[:150])
    rows = [session.forward(tokens[150:170], all_logits=True)]
    rows += [session.forward([token], all_logits=True) for token in tokens[170:]]
    return np.concatenate(rows)


def test_components(tiny: kv.Model, bases: Path) -> None:
    file = kv.GgufFile(bases)
    assert file["kvengine.bases.model"] == tiny.fingerprint
    tokens = tiny.tokenizer.encode(TEXT, add_special=False)[: 3 * 256]
    for layer in range(tiny.n_layers):
        joined = {"keys": [], "values": []}
        for i in range(3):
            ids = tokens[i * 256 : (i + 1) * 256]
            if tiny.tokenizer.add_bos:
                ids[0] = tiny.tokenizer.bos
            session = tiny.session(n_ctx=256, cache="f32")
            session.forward(ids)
            keys = [session.cache.keys(layer, head) for head in range(2)]
            joined["keys"].append(
                np.hstack([turned_back(rows, 0, tiny.layers[layer]) for rows in keys])
            )
            joined["values"].append(np.hstack([session.cache.values(layer, h) for h in range(2)]))
        for side, parts in joined.items():
            rows = file.tensor(f"blk.{layer}.{side}.0").decode()
            energy = file.tensor(f"blk.{layer}.{side}.0.energy").decode()
            np.testing.assert_allclose(rows @ rows.T, np.eye(16), atol=1e-5)
            # The components' coefficients do not depend on each other; float32 rows.
            coefficients = np.concatenate(parts) @ rows.T
            gram = coefficients.T @ coefficients / len(coefficients)
            np.testing.assert_allclose(gram, np.diag(energy), atol=1e-4 * energy[0])
            singular = np.linalg.svd(np.concatenate(parts), compute_uv=False)
            np.testing.assert_allclose(energy, singular**2 / len(coefficients), rtol=1e-3)


def test_transforms(tiny: kv.Model, bases: Path) -> None:
    """From the definition: keys of every page, turned one by one by complex numbers."""
    file = kv.GgufFile(bases)
    tokens = tiny.tokenizer.encode(TEXT, add_special=False)[: 3 * 256]
    scatter = np.zeros((tiny.n_layers, 2, 8, 8))
    squares = np.zeros((tiny.n_layers, 2, 8))
    for i in range(3):
        ids = tokens[i * 256 : (i + 1) * 256]
        if tiny.tokenizer.add_bos:
            ids[0] = tiny.tokenizer.bos
        session = tiny.session(n_ctx=256, cache="k=klt:fit=320+k=f16+v=f16")
        session.forward(ids)
        for layer, head in np.ndindex(tiny.n_layers, 2):
            shape = tiny.layers[layer]
            frequencies = np.array(shape["key_frequencies"])
            keys = session.cache.keys(layer, head).astype(np.float64)
            for start in range(4, 256 - 63, 64):
                page = keys[start : start + 64]
                n = 2 * len(frequencies)
                first = slice(0, n, 2) if shape["key_pairs_interleaved"] else slice(0, n // 2)
                second = slice(1, n, 2) if shape["key_pairs_interleaved"] else slice(n // 2, n)
                turned = page[:, first] + 1j * page[:, second]
                turned *= np.exp(-1j * frequencies * start)
                back = page.copy()
                back[:, first], back[:, second] = turned.real, turned.imag
                scatter[layer, head] += 64 * np.cov(back.T, bias=True) / 768
            found = np.array(session.cache.query_squares(layer, head)) / 3
            found[first] = found[second] = (found[first] + found[second]) / 2
            squares[layer, head] += found
    for layer, head in np.ndindex(tiny.n_layers, 2):
        name = f"blk.{layer}.klt.{head}"
        rows, energy, metric = (
            file.tensor(name + end).decode() for end in ("", ".energy", ".metric")
        )
        np.testing.assert_allclose(rows @ rows.T, np.eye(8), atol=1e-5)
        wanted = squares[layer, head] + 1e-3 * squares[layer, head].mean()
        np.testing.assert_allclose(metric.ravel(), wanted, rtol=1e-5)
        weighted = scatter[layer, head] * np.sqrt(np.outer(wanted, wanted))
        np.testing.assert_allclose(
            rows @ weighted @ rows.T, np.diag(energy.ravel()), atol=1e-4 * energy.max()
        )


def test_keys_in_the_files_transform(tiny: kv.Model, bases: Path) -> None:
    exact = logits(tiny, "f32")
    codec = "int8:per=channel,group=64,tail=0,sinks=4"
    near = np.abs(logits(tiny, f"k=klt:basis={bases}+k={codec}+v=f32") - exact).max()
    assert 0 < near < 0.05 * exact.std()
    # What a cache fits to its own first tokens is about as good.
    fitted = np.abs(logits(tiny, f"k=klt:fit=64+k={codec}+v=f32") - exact).max()
    assert near < 3 * fitted
    session = tiny.session(n_ctx=200, cache=f"klt4:basis={bases}")
    with pytest.raises(kv.ConfigError, match="wait for their fit, found none"):
        session.cache.query_squares(0, 0)


@pytest.mark.parametrize("interleaved", [False, True])
def test_turning_back(interleaved: bool) -> None:
    frequencies = [1.0, 0.25, 0.1]
    layer = {"key_frequencies": frequencies, "key_pairs_interleaved": interleaved}
    rows = np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)
    rotated = rows.astype(np.float64)
    for r in range(5):
        for i, frequency in enumerate(frequencies):
            x, y = (2 * i, 2 * i + 1) if interleaved else (i, i + 3)
            turned = (rows[r, x] + 1j * rows[r, y]) * np.exp(1j * frequency * (7 + r))
            rotated[r, x], rotated[r, y] = turned.real, turned.imag
    np.testing.assert_allclose(turned_back(rotated, 7, layer), rows, atol=1e-12)
    plain = {"key_frequencies": [], "key_pairs_interleaved": False}
    np.testing.assert_array_equal(turned_back(rows, 7, plain), rows)


def test_all_components_change_nothing(tiny: kv.Model, bases: Path) -> None:
    exact = logits(tiny, "f32")
    full = logits(tiny, f"lowrank:basis={bases},rank=16+f32")
    assert np.abs(full - exact).max() < 1e-4
    half = logits(tiny, f"lowrank:basis={bases},rank=8+f32")
    assert np.abs(half - exact).max() > 1e-2 * exact.std()
    # The leading components keep more than others would.
    fewer = logits(tiny, f"lowrank:basis={bases},rank=4+f32")
    assert np.square(half - exact).mean() < np.square(fewer - exact).mean()


def test_the_cache_is_smaller(tiny: kv.Model, bases: Path) -> None:
    codes = {}
    for cache in ("f16", f"lowrank:basis={bases},rank=8", f"lowrank:basis={bases},rank=4"):
        session = tiny.session(n_ctx=256, cache=cache)
        session.forward(list(range(3, 195)))
        codes[cache] = session.cache.stats().codes
    f16, half, quarter = codes.values()
    assert (half * 2, quarter * 4) == (f16, f16)  # three whole pages


def test_commands(cli, cli_json, m, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    path = tmp_path / "bases.gguf"
    arguments = ("calibrate", *m, "--bases", "-f", text, "-o", path, "-c", "128", "--chunks", "2")
    found = cli_json(*arguments)
    assert (found["group"], found["tokens"], found["path"]) == (2, 256, str(path))
    assert len(found["key_energy"]) == len(found["value_energy"]) == 2
    assert cli_json(*arguments, "--group", "1")["group"] == 1
    result = cli(*arguments, "--group", "1")
    assert f"--cache palu:basis={path}" in result.stdout
    out = cli_json("generate", *m, "-p", "The lamp", "-n", "4", "--cache", f"palu:basis={path}")
    assert out["cache"]["spec"] == f"lowrank:basis={path},share=50+f16"
    result = cli("calibrate", *m, "--bases", "-p", "short", "-o", path)
    assert result.returncode == 2
    assert "2048 tokens" in result.stderr
    result = cli("generate", *m, "-p", "x", "--cache", f"palu:basis={text}")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1


def test_another_models_bases_are_refused(tiny_path: Path, bases: Path, tmp_path: Path) -> None:
    writer = kv.GgufWriter.copy_of(kv.GgufFile(tiny_path))
    writer.set("general.name", "another", "string")
    writer.write(tmp_path / "other.gguf")
    other = kv.Model.load(tmp_path / "other.gguf", threads=1)
    with pytest.raises(kv.ConfigError, match="those of another"):
        other.session(n_ctx=64, cache=f"palu:basis={bases}")


def test_sessions_are_restored_with_their_bases(
    tiny: kv.Model, bases: Path, tmp_path: Path
) -> None:
    path = tmp_path / "own.gguf"
    path.write_bytes(bases.read_bytes())
    session = tiny.session(n_ctx=64, cache=f"palu:basis={path}")
    session.forward([5, 6, 7])
    session.save(tmp_path / "session")
    restored = tiny.restore(tmp_path / "session")
    np.testing.assert_array_equal(restored.forward([8]), session.forward([8]))
    calibrate_bases(tiny, TEXT[::-1], path, n_ctx=256, windows=1)
    with pytest.raises(kv.FormatError, match="checksum of the calibrated bases"):
        tiny.restore(tmp_path / "session")
    path.unlink()
    with pytest.raises(kv.IoError):
        tiny.restore(tmp_path / "session")


def test_bad_options(tiny: kv.Model, tmp_path: Path) -> None:
    with pytest.raises(kv.ConfigError, match="group"):
        calibrate_bases(tiny, TEXT, tmp_path / "x", group=0)
    with pytest.raises(kv.ConfigError, match="at least 2048 tokens"):
        calibrate_bases(tiny, "short", tmp_path / "x")
    with pytest.raises(kv.IoError):
        calibrate_bases(tiny, TEXT, tmp_path / "no" / "x", n_ctx=64, windows=1)
    assert not list(tmp_path.iterdir())
    few = calibrate_bases(tiny, TEXT, tmp_path / "x", n_ctx=8, windows=1)
    assert few.warning is not None
    assert "8 tokens were read" in few.warning
