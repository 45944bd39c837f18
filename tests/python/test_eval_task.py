"""Tasks of the evaluation: how they are named, done, resumed and told apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

import kvengine as kv
from kvengine.eval import task as tasks
from kvengine.eval.runner import Runner
from kvengine.eval.task import Record, Task, Unit, conclude, outline, parse, parse_list, run_task


@dataclass(frozen=True)
class Counting(Task):
    """One item a unit: how likely a token is after others."""

    name: ClassVar[str] = "counting"
    primary: ClassVar[str] = "mean"

    lengths: tuple[int, ...] = (3, 5, 7)
    words: tuple[str, ...] = ("a",)
    scale: float = 1.0
    loud: bool = False
    mode: str = "plain"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("lengths", min(self.lengths) >= 1, "at least 1")

    def units(self, runner: Runner) -> Sequence[Any]:
        return self.lengths[: self.limit]

    def run(self, runner: Runner, unit: int) -> list[Record]:
        found = runner.loglikelihoods(list(range(4, 4 + unit)), [[9]])[0]
        return [{"length": unit, "logprob": found.logprob}]

    def summarize(self, items: Sequence[Record]) -> dict[str, float]:
        return {"mean": sum(item["logprob"] for item in items) / len(items)}


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    tasks.registry()
    tasks.register(Counting)
    yield
    del tasks._REGISTRY["counting"]


def test_parameters_are_read_by_their_types() -> None:
    task = parse("counting:lengths=4,9,words=x,y,scale=0.5,loud=yes,mode=fast,limit=2")
    assert task == Counting(
        lengths=(4, 9), words=("x", "y"), scale=0.5, loud=True, mode="fast", limit=2
    )
    assert parse("counting", limit=3, seed=5) == Counting(limit=3, seed=5)
    assert parse("counting:limit=1", limit=3) == Counting(limit=1)
    assert parse("counting:limit=none", limit=3) == Counting()
    assert parse(" counting ") == Counting()


def test_a_parameter_may_be_a_spec_with_parameters() -> None:
    text = "counting:mode=selfinfo:keep=0.5,unit=word,limit=2,words=a,b"
    task = parse(text)
    assert task == Counting(mode="selfinfo:keep=0.5,unit=word", limit=2, words=("a", "b"))
    assert parse(task.spec) == task
    press = "SnapKVPress(compression_ratio=0.5, limit=3)"
    assert parse(f"counting:mode={press},scale=2") == Counting(mode=press, scale=2.0)
    assert parse_list(f"{text},counting:mode={press},counting") == [
        task,
        Counting(mode=press),
        Counting(),
    ]
    with pytest.raises(kv.ConfigError, match=r"expected a parameter among .*, found 'unit'"):
        parse("counting:mode=plain,unit=word")


def test_what_a_task_and_a_spec_could_mean_is_refused() -> None:
    """Of `kld`, whose reference is a cache; `seed` is known to both, `prefill` by its value."""
    random = "random:keep=0.5,seed=3"
    for text in (f"kld:reference={random}", f"kld:reference={random},context=512"):
        with pytest.raises(
            kv.ConfigError, match=r"kld: seed: .* write reference=\(random"
        ) as raised:
            parse(text)
        assert "\n" not in str(raised.value)
    task = parse(f"kld:reference=({random}),context=512,seed=7")
    assert (task.reference, task.context, task.seed) == (random, 512, 7)
    assert parse(task.spec, seed=7) == task
    assert parse_list(f"kld:reference=({random}),kld:seed=3") == [
        parse("kld", reference=random),
        parse("kld", seed=3),
    ]
    task = parse("kld:seed=3,reference=random:keep=0.5")
    assert (task.reference, task.seed) == ("random:keep=0.5", 3)
    task = parse("kld:reference=int4:group=64,prefill=exact")
    assert (task.reference, task.prefill) == ("int4:group=64,prefill=exact", 0)
    task = parse("kld:reference=int4:group=64,prefill=100")
    assert (task.reference, task.prefill) == ("int4:group=64", 100)


@pytest.mark.parametrize(
    "text", ["counting", "counting:lengths=4,9,loud=yes", "counting:scale=0.25,words=b,limit=2"]
)
def test_a_spec_means_its_task(text: str) -> None:
    task = parse(text)
    assert parse(task.spec) == task
    assert parse(task.spec).spec == task.spec


def test_lists() -> None:
    expected = [Counting(lengths=(4, 9)), Counting(), Counting(limit=2)]
    assert parse_list("counting:lengths=4,9,counting,counting:limit=2") == expected


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "task: expected one of .*counting"),
        ("nothing", "found 'nothing'"),
        ("counting,nothing", "found 'nothing'"),
        ("counting:", None),
        ("counting:wrong=1", "lengths.*found 'wrong'"),
        ("counting:7", "parameter=value, found '7'"),
        ("counting:limit=0", "limit: expected at least 1, found 0"),
        ("counting:limit=1,limit=2", "twice"),
        ("counting:limit=1,2", "limit: expected one value, found 1,2"),
        ("counting:limit=x", "limit: expected a whole number, found 'x'"),
        ("counting:limit=99999999999", "whole number"),
        ("counting:lengths=", "lengths: expected a whole number, found ''"),
        ("counting:scale=nan", "scale: expected a number"),
        ("counting:loud=maybe", "loud: expected yes or no"),
        ("counting:mode=", "mode: expected a word"),
        ("counting:seed=-1", "seed: expected at least 0"),
        ("counting:lengths=0", "lengths: expected at least 1, found 0"),
    ],
)
def test_bad_specs_get_one_sentence(text: str, match: str | None) -> None:
    if match is None:
        assert parse_list(text) == [Counting()]
        return
    with pytest.raises(kv.ConfigError, match=match) as raised:
        parse_list(text)
    assert "\n" not in str(raised.value)


def test_units_are_resumed(tiny: kv.Model) -> None:
    task, runner = Counting(), Runner(tiny, "f32", exact=True)
    units: list[Unit] = []
    told: list[tuple[float, int]] = []
    whole = run_task(task, runner, None, units.append, lambda *each: told.append(each))
    assert [unit.index for unit in units] == [0, 1, 2]
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert whole.metrics["mean"] == whole.value
    assert whole.items == [item for unit in units for item in unit.items]
    assert whole.cache_stats is not None
    assert whole.cache_stats["tokens_seen"] == 7
    again: list[Unit] = []
    resumed = run_task(task, runner, {1: units[1], 7: units[0]}, again.append)
    assert [unit.index for unit in again] == [0, 2]
    assert resumed.metrics == whole.metrics
    assert conclude(task, outline(task, runner), units) == whole


def test_bits_are_those_of_all_prompts(tiny: kv.Model) -> None:
    cache = "int4:group=8,tail=4"  # the newest tokens of 3, 5 and 7 are not coded
    found = run_task(Counting(), Runner(tiny, cache)).cache_stats
    assert found is not None
    sizes = []
    for length in (3, 5, 7):
        session = tiny.session(cache=cache)
        session.forward(list(range(4, 4 + length)))
        sizes.append(session.cache.stats())
    total = sum(each.bits_per_value * each.tokens_seen for each in sizes)
    assert found["mean_bits"] == pytest.approx(total / 15)
    assert found["mean_bits"] != pytest.approx(found["bits_per_value"])
    assert found["all_f16_bytes"] == sum(each.f16_bytes for each in sizes)


def test_a_task_without_items_is_refused(tiny: kv.Model) -> None:
    with pytest.raises(kv.ConfigError, match="found no item"):
        run_task(Counting(lengths=(5,)), Runner(tiny), {0: Unit(0, [], 0.0, None)})


def test_files_of_a_spec_and_the_machine_are_conditions(tiny: kv.Model, tmp_path: Path) -> None:
    runner = Runner(tiny)
    gates = tmp_path / "gates.txt"
    runner.cache = f"duo:gates={gates}+f16"
    keys = []
    for text in ("0.1", "0.2"):
        gates.write_text(text)
        keys.append(outline(Counting(), runner).key)
    gates.unlink()
    keys.append(outline(Counting(), runner).key)
    assert len(set(keys)) == 3
    basis = tmp_path / "basis.gguf"
    for spec in (
        f"klt4:basis={basis}",
        f"klt4:basis={basis} + f16",
        f"DuoAttentionPress(head_compression_ratio=0.5, gates={basis})",
    ):
        basis.write_text("0.1")
        found = outline(Counting(mode=spec), Runner(tiny))
        assert list(found.conditions) == [str(basis)]
        basis.write_text("0.2")
        assert outline(Counting(mode=spec), Runner(tiny)).key != found.key
    speed = outline(parse("speed:depths=8,tokens=2"), Runner(tiny))
    assert speed.conditions["threads"] == tiny.threads
    assert outline(Counting(), Runner(tiny)).conditions == {}


def test_keys_tell_results_apart(tiny: kv.Model) -> None:
    results = [
        outline(task, Runner(tiny, cache, exact))
        for task in (Counting(), Counting(lengths=(1,)), Counting(seed=1), Counting(limit=2))
        for cache in ("f16", "int4:group=8,tail=0")
        for exact in (False, True)
    ]
    results += [
        dataclasses.replace(results[0], **{field: "other"})
        for field in ("data_hash", "engine", "version", "name")
    ]
    assert len({result.key for result in results}) == len(results)
    assert outline(Counting(lengths=(3, 5, 7)), Runner(tiny)).key == results[0].key
    done = dataclasses.replace(results[0], metrics={"mean": 1.0}, seconds=2.0)
    assert done.key == results[0].key
