"""Reports: what is taken out of results, and that pages and pictures are whole."""

from __future__ import annotations

import base64
import dataclasses
import itertools
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kvengine as kv
from kvengine.eval import report
from kvengine.eval.report import data, text
from kvengine.eval.report.names import short_name, slug
from kvengine.eval.report.plots import spread
from kvengine.eval.task import Result

BLANK = Result(
    model={"fingerprint": "00ab", "name": "Tiny <b> & | model", "architecture": "llama"},
    cache="f16",
    exact=False,
    task="perplexity",
    name="perplexity",
    parameters={},
    version=1,
    data_hash="0",
    seed=0,
    engine="1.2.3",
    primary="ppl",
    higher_is_better=False,
    metrics={},
    items=[],
    seconds=1.0,
    cache_stats=None,
)
SIZES = {"f16": 1000, "int4": 300, "best4": 250, "snapkv:keep=0.25+best4": 80}


def result(cache: str, value: float, **changes: Any) -> Result:
    stats = {
        "bytes": SIZES[cache] << 10,
        "f16_bytes": 1000 << 10,
        "bits_per_value": 16 * SIZES[cache] / 1000,
        "tokens_seen": 100,
    }
    whole = dataclasses.replace(BLANK, cache=kv.canonical_cache(cache), cache_stats=stats)
    whole = dataclasses.replace(whole, **changes)
    return dataclasses.replace(whole, metrics={whole.primary: value} | whole.metrics)


def needle(cache: str, value: float) -> Result:
    items = [
        {"length": length, "depth": depth, "exact": float(depth < value), "logprob": -depth}
        for length in (512, 1024)
        for depth in (0.0, 0.5, 1.0)
        for _ in range(2)
    ]
    return result(
        cache,
        value,
        task="needle:repeats=2",
        name="needle",
        primary="exact",
        higher_is_better=True,
        items=items,
        metrics={"exact@512": value, "exact@1024": value},
    )


def divergence(cache: str, scale: float) -> Result:
    draws = np.random.default_rng(1).lognormal(0, 1, (2, 100)) * scale
    items = [{"window": i, "kld": row.tolist()} for i, row in enumerate(draws)]
    return result(cache, float(draws.mean()), task="kld", name="kld", primary="kld", items=items)


def speed(cache: str, tps: float) -> Result:
    items = [{"past": past, "tps": tps / (1 + past)} for past in (0, 1, 3) for _ in range(3)]
    return result(cache, tps, task="speed", name="speed", primary="tps", items=items)


@pytest.fixture(scope="module")
def results() -> list[Result]:
    values = zip(SIZES, (10.0, 12.0, 11.0, 20.0), strict=True)
    made = [result(cache, value) for cache, value in values]
    made += [needle(cache, 0.8 - i / 4) for i, cache in enumerate(SIZES)]
    made += [divergence(cache, 0.1 * i) for i, cache in enumerate(SIZES)]
    made += [speed(cache, 100.0 + i) for i, cache in enumerate(SIZES)]
    refused = "cache: expected | heads of\n64, found <script>alert(1)</script>"
    made.append(
        dataclasses.replace(BLANK, task="lambada", primary="accuracy", error=refused, cache="q8_0")
    )
    return made


@pytest.fixture(scope="module")
def written(results: list[Result], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "made"
    page = report.write(folder, results)
    assert page == folder / "report.html"
    return folder


# --- What is shown ---------------------------------------------------------------------------


def test_short_names() -> None:
    for name in ("f16", "q8_0", "int4", "best4", "kivi2", "decoquant4", "int4:group=64,tail=0"):
        assert kv.canonical_cache(short_name(kv.canonical_cache(name))) == kv.canonical_cache(name)
    assert short_name(kv.canonical_cache("best4")) == "best4"
    assert short_name(kv.canonical_cache("snapkv:keep=0.25")) == "snapkv:keep=0.25"
    both = kv.canonical_cache("snapkv:keep=0.25 + best4")
    assert short_name(both) == "snapkv:keep=0.25 + best4"
    assert kv.canonical_cache(short_name(both)) == both


def test_slugs() -> None:
    assert slug("Tiny <b> & | model: a=0.5") == "tiny-b-model-a-0-5"
    assert slug("日本") == "unnamed"
    long = "needle:lengths=" + ",".join(str(i) for i in range(50))
    assert slug(long) != slug(long + ",60")


def test_groups(results: list[Result]) -> None:
    other = dataclasses.replace(results[0], model={"fingerprint": "00cd", "name": "Other"})
    newer = dataclasses.replace(results[0], metrics={"ppl": 9.0})
    groups = data.grouped([results[0], other, *results[1:], newer])
    assert [group.title for group in groups[:4]] == [
        "perplexity",
        "needle:repeats=2",
        "kld",
        "speed",
    ]
    assert groups[-1].model == "Other"
    assert [each.value for each in groups[0].results] == [9.0, 12.0, 11.0, 20.0]
    assert groups[0].baseline is newer


def test_points(results: list[Result]) -> None:
    found = {point.name: point.best for point in data.points(data.grouped(results)[0])}
    assert list(found) == ["snapkv:keep=0.25 + best4", "best4", "int4", "f16"]  # by size
    assert found == {"snapkv:keep=0.25 + best4": True, "best4": True, "int4": False, "f16": True}


def test_shortened_prompts_are_measured_by_whole_ones() -> None:
    stats = {"bytes": 520 << 10, "f16_bytes": 520 << 10, "bits_per_value": 16, "tokens_seen": 52}
    stats["mean_bits"] = 16.5
    name = "selfinfo:keep=0.5"
    short = dataclasses.replace(result("f16", 0.5), cache=f"{name}+f16", cache_stats=stats)
    for others, expected in (
        ([result("f16", 1.0), result("int4", 0.9)], ["8.58", "1.923"]),
        ([], ["–", "–"]),  # nobody knows how long they were
    ):
        (group,) = data.grouped([*others, short])
        table = text.section(group, []).table
        row = table.rows[-1]
        assert row[0] == name
        assert row[2:4] == expected
        (shown,) = [row for row in text.overview([group]).rows if row[0] == name]
        assert shown[1] == expected[0]


def test_bits_of_shortened_prompts_are_of_all_prompts() -> None:
    def stats(name: str, *lengths: int) -> Result:
        """f16 caches of prompts: 1 KiB a token."""
        made = {
            "bytes": max(lengths) << 10,
            "f16_bytes": max(lengths) << 10,
            "bits_per_value": 16,
            "tokens_seen": max(lengths),
            "mean_bits": 16.0,
            "all_f16_bytes": sum(lengths) << 10,
        }
        return dataclasses.replace(result("f16", 1.0), cache=name, cache_stats=made)

    # The longest prompt gave up half, the others nothing.
    whole, short = stats("f16", 100, 50, 50), stats("selfinfo:keep=0.5+f16", 50, 50, 50)
    assert data.bits_per_value([whole, short], short) == 16 * 150 / 200
    assert data.bits_per_value([whole, short], whole) == 16
    del whole.cache_stats["all_f16_bytes"]  # an older result
    assert data.bits_per_value([whole, short], short) == 16 * 50 / 100


def test_points_of_the_likelihood() -> None:
    sizes = {"f16": -0.5, "int4": -0.5, "best4": -1.0}
    (group,) = data.grouped(
        [result(cache, 0.0, metrics={"logprob": value}) for cache, value in sizes.items()]
    )
    found = {point.name: (point.value, point.best) for point in data.points(group, "logprob")}
    assert found == {"best4": (-1.0, True), "int4": (-0.5, True), "f16": (-0.5, False)}
    assert [point.family for point in data.points(group)] == ["quantized", "quantized", "exact"]
    assert data.points(group, "nothing") == []


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_pareto(pairs: list[tuple[int, int]]) -> None:
    front = data.pareto([size for size, _ in pairs], [quality for _, quality in pairs])
    best = [pair for pair, is_best in zip(pairs, front, strict=True) if is_best]
    for size, quality in pairs:  # everything is matched by something on the front
        assert any(s <= size and q >= quality for s, q in best)
    for s, q in best:  # which nothing beats
        assert not any(
            (size <= s and quality > q) or (size < s and quality >= q) for size, quality in pairs
        )


def test_heat_maps(results: list[Result]) -> None:
    group = data.grouped(results)[1]
    first = data.heat_maps(group, "exact")[0]
    assert (first.depths, first.lengths) == ([0.0, 0.5, 1.0], [512, 1024])
    assert first.values.tolist() == [[1, 1], [1, 1], [0, 0]]
    assert len(data.heat_maps(group, "logprob")) == 4
    assert data.heat_maps(group, "partial") == []
    assert data.heat_maps(data.grouped(results)[0], "exact") == []


def test_tails(results: list[Result]) -> None:
    group = data.grouped(results)[2]
    curves = data.tails(group)
    assert [curve.name for curve in curves] == ["int4", "best4", "snapkv:keep=0.25 + best4"]
    every = np.concatenate([item["kld"] for item in group.results[1].items])
    for x, share in zip(curves[0].x, curves[0].y, strict=True):
        assert share == pytest.approx((every >= x).mean())
    assert curves[0].x[-1] == every.max()
    assert len(data.tails(group, most_points=10)[0].x) <= 10


def test_speeds(results: list[Result]) -> None:
    curve = data.speeds(data.grouped(results)[3], "tps")[0]
    assert (curve.x.tolist(), curve.y.tolist()) == ([0, 1, 3], [100, 50, 25])


@given(st.lists(st.floats(0, 100), max_size=8))
def test_labels_do_not_touch(wanted: list[float]) -> None:
    heights = spread(wanted, 10, 0, 100)
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    assert all(heights[b] - heights[a] >= 10 - 1e-9 for a, b in itertools.pairwise(order))
    assert all(height <= 100 + 1e-9 for height in heights)


# --- What is written -------------------------------------------------------------------------


class Balanced(HTMLParser):
    """Fails where tags do not close in the order in which they opened."""

    VOID = ("meta", "link", "img", "br", "wbr")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_else(written: Path) -> None:
    page = (written / "report.html").read_text(encoding="utf-8")
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert "script" not in parser.seen
    assert "&lt;script&gt;alert(1)" in page
    anchors = set(re.findall(r'id="([^"]+)"', page))
    for reference in parser.references:
        assert reference.startswith("data:") or reference.removeprefix("#") in anchors
    images = [r for r in parser.references if r.startswith("data:image/svg+xml;base64,")]
    # 4 of bytes, 2 maps (exact, logprob), tails, speed
    assert len(images) == 8
    for image in images:
        svg = base64.b64decode(image.partition(",")[2])
        assert ElementTree.fromstring(svg).tag.endswith("svg")
    for kind in ("svg", "png"):
        assert len(list(written.glob(f"*.{kind}"))) == 8
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written.glob("*.png"))
    assert list(written.glob(".*")) == []


def test_long_names_may_be_broken_and_numbers_may_not(tmp_path: Path) -> None:
    task = {"task": "kld:limit=4,context=2048", "primary": "kld_mean"}
    both = [result("f16", 1.0, **task), result("snapkv:keep=0.25+best4", 12_345.0, **task)]
    page = report.write(tmp_path, both).read_text(encoding="utf-8")
    assert "<th>kld:<wbr>limit=4,<wbr>context=2048 (kld_mean\u00a0↓)</th>" in page
    assert "<th>kld_<wbr>mean\u00a0↓</th>" in page
    assert "<td>snapkv:<wbr>keep=0.25 + best4</td>" in page
    assert "<td>12,345</td>" in page


def test_markdown(written: Path) -> None:
    lines = (written / "report.md").read_text(encoding="utf-8").split("\n")
    assert "| **best4** | 0.244 | 4 | 4 | 11 | +1 |" in lines
    assert "| int4 | 0.293 | 4.8 | 3.333 | 12 | +2 |" in lines
    assert any(
        line.startswith("- q8_0: no result: cache: expected | heads of 64") for line in lines
    )
    for link in re.findall(r"\]\(([^)]+)\)", "\n".join(lines)):
        assert (written / link).is_file()
    tables = [line for line in lines if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)
    assert "| exact@512 | 0.8 | 0.55 | 0.3 | 0.05 |" in tables


def test_the_same_results_give_the_same_report(
    written: Path, results: list[Result], tmp_path: Path
) -> None:
    page = report.write(tmp_path, results)
    assert page.read_bytes() == (written / "report.html").read_bytes()


def test_a_browser_opens_it_without_complaint(written: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("there is no Chromium")
    picture = tmp_path / "page.png"
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    page = (written / "report.html").as_uri()
    process = subprocess.run(
        [browser, *options, f"--user-data-dir={tmp_path}", f"--screenshot={picture}", page],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert picture.stat().st_size > 10_000, process.stderr
    assert "CONSOLE" not in process.stderr


def test_models_of_one_name_have_pictures_of_their_own(tmp_path: Path) -> None:
    model = BLANK.model | {"name": "a $x_{$ b"}
    results = [
        dataclasses.replace(result(cache, value + i), model=model | {"fingerprint": f"0{i}"})
        for i in (1, 2)
        for cache, value in (("f16", 10.0), ("int4", 11.0))
    ]
    page = report.write(tmp_path, results).read_text(encoding="utf-8")
    images = re.findall(r"data:image/svg[^\"]+", page)
    assert len(images) == len(set(images)) == 2
    assert len(re.findall("<h2>", page)) == 2
    anchors = re.findall(r'id="([^"]+)"', page)
    assert len(anchors) == len(set(anchors))


def test_there_are_tables_without_matplotlib(
    results: list[Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = report.write(tmp_path, results).read_text(encoding="utf-8")
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert "img" not in parser.seen
    assert "Without pictures, for want of matplotlib" in page
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert report.WITHOUT_PICTURES in text
    assert "| **best4** | 0.244 | 4 | 4 | 11 | +1 |" in text.split("\n")
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "report.md"}


def test_refusals(results: list[Result], tmp_path: Path) -> None:
    with pytest.raises(kv.ConfigError, match="expected at least one result, found none"):
        report.write(tmp_path, [])
    (tmp_path / "file").write_text("")
    with pytest.raises(kv.IoError, match="could not be written"):
        report.write(tmp_path / "file", results)
