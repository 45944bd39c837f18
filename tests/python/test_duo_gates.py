"""`kvengine calibrate --gates`: which heads become streaming heads of `duo`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import evaluation_text, optional_module, real_model

import kvengine as kv
from kvengine.cli import main
from kvengine.compress import calibrate_gates
from kvengine.compress.gates import area, areas_of_text
from kvengine.compress.grams import turned_back

TEXT = "".join(f"The lamp {i} is {i * i % 89} steps from house {i * 7 % 61}. " for i in range(90))


def plain_area(query: np.ndarray, key: np.ndarray, layer: dict[str, Any], length: int) -> float:
    """The definition, one number after the other."""
    n = len(layer["key_frequencies"])

    def turned(x: np.ndarray, position: int) -> list[float]:
        out = [float(value) for value in x]
        for pair, frequency in enumerate(layer["key_frequencies"]):
            a, b = (2 * pair, 2 * pair + 1) if layer["key_pairs_interleaved"] else (pair, pair + n)
            c, s = math.cos(position * frequency), math.sin(position * frequency)
            out[a], out[b] = c * x[a] - s * x[b], s * x[a] + c * x[b]
        return out

    last = turned(query, length - 1)
    weights = []
    for position in range(length):
        products = zip(last, turned(key, position), strict=True)
        weights.append(math.exp(math.fsum(a * b for a, b in products) / math.sqrt(len(key))))
    so_far = areas = 0.0
    for weight in weights:
        so_far += weight / math.fsum(weights)
        areas += so_far / length
    return areas


def test_areas_of_a_tiny_model(tiny: kv.Model) -> None:
    """Beside queries and keys that a scorer of its own collects, of two kv heads in each layer."""
    ids = tiny.tokenizer.encode(TEXT)[:150]
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def scorer(keys: Any, _: Any, queries: Any, __: Any) -> np.ndarray:
        seen.append((keys, queries))
        return np.zeros(len(keys), np.float32)

    session = tiny.session(cache="custom:keep=1,window=150", exact=True, scorer=scorer)
    session.forward(ids)
    found = [head for layer in areas_of_text(tiny, ids) for head in layer]
    assert len(found) == len(seen) == 2 * tiny.n_layers
    for index, (keys, queries) in enumerate(seen):
        assert len(keys) == len(queries) == 150
        layer = tiny.layers[index // 2]
        key = turned_back(keys, 0, layer).mean(axis=0)
        expected = [
            plain_area(turned_back(queries[:, g], 0, layer).mean(axis=0), key, layer, 500)
            for g in range(queries.shape[1])
        ]
        # Both in float64.
        assert found[index] == pytest.approx(np.mean(expected), rel=1e-9)


def test_areas_say_where_attention_goes(tiny: kv.Model) -> None:
    layer = tiny.layers[0]
    key = np.zeros(layer["head_dim"])
    assert area(key, key, layer) == pytest.approx((500 + 1) / 2 / 500)  # all get the same
    key[0] = 8.0
    assert area(key, key, layer) < area(-key, key, layer)  # the newest are the nearest


def test_the_file_is_what_duo_reads(tiny: kv.Model, tmp_path: Path) -> None:
    path = tmp_path / "gates.txt"
    gates = calibrate_gates(tiny, TEXT, 128, 4)
    assert (gates.texts, gates.tokens) == (4, 128)
    assert all(0 < head < 1 for layer in gates.areas for head in layer)
    gates.write(path)
    session = tiny.session(cache=f"duo:gates={path},sinks=2,recent=8,streaming=0.5", exact=True)
    session.forward(tiny.tokenizer.encode(TEXT)[:100])
    rows = {
        (layer, head): len(session.cache.positions(layer, head))
        for layer in range(tiny.n_layers)
        for head in range(2)
    }
    ranked = sorted(rows, key=lambda place: gates.areas[place[0]][place[1]])
    streaming = ranked[: len(ranked) // 2]
    assert {place: n for place, n in rows.items() if n == 10} == dict.fromkeys(streaming, 10)


def test_command(tiny: kv.Model, tiny_path: Path, tmp_path: Path, capsys: Any) -> None:
    text, path = tmp_path / "text.txt", tmp_path / "gates.txt"
    text.write_text(TEXT)
    options = ["-c", "100", "--chunks", "3", "-f", str(text)]
    main(["calibrate", "-m", str(tiny_path), "--gates", "-o", str(path), *options])
    assert "3 texts of 100 tokens" in capsys.readouterr().out
    expected = calibrate_gates(tiny, TEXT, 100, 3).areas
    np.testing.assert_allclose(np.loadtxt(path, ndmin=2), expected, atol=1e-9)


def test_bad_input(tiny: kv.Model, tmp_path: Path) -> None:
    with pytest.raises(kv.ConfigError, match="at least 1024 tokens, found 1"):
        calibrate_gates(tiny, "a")
    with pytest.raises(kv.ConfigError, match="1 to 1024 tokens, found 2000"):
        calibrate_gates(tiny, TEXT, 2000)
    with pytest.raises(kv.IoError, match="could not be written"):
        calibrate_gates(tiny, TEXT, 64, 1).write(tmp_path / "absent" / "gates.txt")
    with pytest.raises(kv.ConfigError, match="kvengine calibrate --gates"):
        tiny.session(cache="duo")


@pytest.mark.model
@pytest.mark.slow
def test_areas_beside_kvpress(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyPI `kvpress` in float32 with two texts in the place of those that it downloads."""
    source = optional_module("kvpress.presses.duo_attention_press")
    torch = optional_module("torch")
    transformers = optional_module("transformers")
    optional_module("gguf")
    path = real_model("smollm2-135m")
    ours = kv.Model.load(path)
    text = evaluation_text("ppl/wikitext2_raw_test.txt.gz")
    ids = np.asarray(ours.tokenizer.encode(text[:20_000], add_special=False)[:600], np.int64)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()

    class Texts(dict):
        """A tokenizer and a data set at once."""

        def sample(self, *_: Any, **__: Any) -> dict[str, np.ndarray]:
            return {"chapter": np.arange(2)}

        def to_pandas(self) -> Texts:
            return self

        def from_pretrained(self, *_: Any) -> Any:
            return lambda index, **_: transformers.BatchEncoding(
                {"input_ids": torch.tensor(ids[None, index * 300 : (index + 1) * 300])}
            )

    monkeypatch.setattr(source, "load_dataset", lambda *_, **__: Texts())
    monkeypatch.setattr(source, "AutoTokenizer", Texts())
    expected = source.duo_attention_on_the_fly(model, num_samples=2)
    found = np.mean([areas_of_text(ours, list(ids[i : i + 300])) for i in (0, 300)], axis=0)
    # float32 sums over 500 positions there.
    np.testing.assert_allclose(found, expected, atol=2e-3)
