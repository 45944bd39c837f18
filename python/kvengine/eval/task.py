"""What a task of the evaluation is: parameters, units of work, records of items, and a summary.

A task is a frozen dataclass whose fields are its parameters, registered by its name:

    @register
    @dataclass(frozen=True)
    class Lambada(Task):
        name: ClassVar[str] = "lambada"
        primary: ClassVar[str] = "accuracy"
        files: ClassVar[tuple[str, ...]] = ("qa/lambada_openai_test.jsonl",)
        batch: int = 8  # a parameter: `lambada:batch=4,limit=300`

        def units(self, runner): ...  # what there is to do, as a list of anything
        def run(self, runner, unit): ...  # does one of them; returns records of its items
        def summarize(self, items): ...  # named metrics of all records

Units are what is saved while a task runs, what is resumed after a kill, and what is handed to other
machines; so their number and order depend on nothing but the task and the model's tokenizer, and
none depends on another. A record is a dict that JSON can spell. :func:`run_task` runs a task.

Parameters are whole numbers, numbers, words, yes/no, or tuples of whole numbers or words. A word may
be a spec with parameters of its own (`kld:reference=int4:group=64,tail=32,context=512`): what the task
has no parameter for is the spec's, and what both could mean is refused unless the spec stands in
parentheses (`kld:reference=(random:keep=0.5,seed=3),context=512`). Every task has `limit` (most items; None: all) and `seed`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import platform
import re
import time
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from kvengine import _core
from kvengine._core import ConfigError
from kvengine.cache_names import translate
from kvengine.eval.data import hash_files
from kvengine.eval.parameters import read_values, spelled

if typing.TYPE_CHECKING:
    from kvengine.eval.runner import Runner

Record = dict[str, Any]
"""What is kept of one item; JSON can spell it."""


@dataclass(frozen=True)
class Task(ABC):
    """One task with its parameters; see the module.

    name: what it is called on the command line.
    primary: the metric (a key of what `summarize` returns) that stands for the task.
    higher_is_better: whether more of `primary` is better.
    version: raised when the same parameters begin to mean something else, so that results that
        were stored before are not taken for new ones.
    files: the data it reads, relative to the data folder; ".gz" is found by itself.
    depends_on_machine: whether results are of the machine and its threads, as speeds are.
    shortens: whether its prompts have a context that prompt compression may shorten.
    """

    name: ClassVar[str]
    primary: ClassVar[str]
    higher_is_better: ClassVar[bool] = True
    version: ClassVar[int] = 1
    files: ClassVar[tuple[str, ...]] = ()
    depends_on_machine: ClassVar[bool] = False
    shortens: ClassVar[bool] = False

    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks parameters; raises ConfigError. Tasks that override it call this one too."""
        self.check("limit", self.limit is None or self.limit >= 1, "at least 1")
        self.check("seed", self.seed >= 0, "at least 0")

    def check(self, parameter: str, holds: bool, expected: str) -> None:
        """Raises ConfigError unless `holds`."""
        if not holds:
            found = spelled(getattr(self, parameter))
            raise ConfigError(f"{self.name}: {parameter}: expected {expected}, found {found}")

    @abstractmethod
    def units(self, runner: Runner) -> Sequence[Any]:
        """What there is to do. Cheap: no forward pass."""

    @abstractmethod
    def run(self, runner: Runner, unit: Any) -> list[Record]:
        """Do one unit; the records of its items."""

    @abstractmethod
    def summarize(self, items: Sequence[Record]) -> dict[str, float]:
        """Metrics of the records of all units, in order. Has the key `primary`."""

    @functools.cached_property
    def data_hash(self) -> str:
        """Hash of the bytes of `files`. Raises ConfigError where one is missing."""
        return hash_files(self.data_files())

    def data_files(self) -> tuple[str, ...]:
        """The files that these parameters read."""
        return self.files

    @property
    def parameters(self) -> dict[str, Any]:
        """All parameters but the seed, as JSON spells them."""
        return {
            field.name: list(value) if isinstance(value, tuple) else value
            for field in dataclasses.fields(self)
            if field.name != "seed"
            for value in [getattr(self, field.name)]
        }

    @property
    def spec(self) -> str:
        """The name with the parameters that are not as usual: `needle:lengths=512,1024,depths=5`.

        Parsing it by :func:`parse` gives the same task (the seed is told apart).
        """
        changed = [
            f"{field.name}={spelled(getattr(self, field.name))}"
            for field in dataclasses.fields(self)
            if field.name != "seed" and getattr(self, field.name) != field.default
        ]
        return f"{self.name}:{','.join(changed)}" if changed else self.name


@dataclass(frozen=True)
class Unit:
    """A unit that was done: records of its items, seconds, and statistics of its largest cache."""

    index: int
    items: list[Record]
    seconds: float
    cache: dict[str, Any] | None


@dataclass(frozen=True)
class Result:
    """What a task found for one model and cache, as JSON spells it.

    model: `fingerprint` (hexadecimal), `name`, `architecture` of the model.
    cache: canonical spec of the setting (:mod:`kvengine.eval.setting`); cache_stats:
        `CacheStats.as_dict()` of the largest cache that was filled (`bytes`, `bits_per_value`,
        `path`, ...), None if none was; and `mean_bits`, the bits per value of the largest cache of
        each unit, averaged over their tokens: caches that leave short prompts as they are take more
        bits than their largest tells; and `all_f16_bytes`, the sum of their `f16_bytes`.
    task: `Task.spec`; name, parameters, version, data_hash, seed: of the task.
    conditions: what else decides the result: hashes of files that the spec of the cache names, or
        one among the parameters, and for tasks that depend on it the machine and its threads.
    primary, higher_is_better: which of `metrics` stands for the task, and its sense.
    metrics: named numbers. items: the records. seconds: time that the units took.
    error: None, or the sentence that says why there is no result; metrics are empty then.
    """

    model: dict[str, Any]
    cache: str
    exact: bool
    task: str
    name: str
    parameters: dict[str, Any]
    version: int
    data_hash: str
    seed: int
    engine: str
    primary: str
    higher_is_better: bool
    metrics: dict[str, float]
    items: list[Record]
    seconds: float
    cache_stats: dict[str, Any] | None
    error: str | None = None
    conditions: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def value(self) -> float | None:
        """The primary metric; None where the task failed."""
        return self.metrics.get(self.primary)

    @property
    def key(self) -> str:
        """Hash of all that decides what the result is."""
        return result_key(self)

    def as_dict(self, with_items: bool = True) -> dict[str, Any]:
        """As a document; `value` is the primary metric."""
        document = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if not with_items:
            del document["items"]
        return document | {"value": self.value}


_KEY_FIELDS = (
    *("cache", "exact", "name", "parameters", "version", "data_hash", "seed", "engine"),
    "conditions",
)


def result_key(result: Result) -> str:
    """See Result.key: two results with the same key are the same result."""
    parts = {name: getattr(result, name) for name in _KEY_FIELDS}
    text = json.dumps(parts | {"model": result.model["fingerprint"]}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def outline(task: Task, runner: Runner) -> Result:
    """The result of a task before anything is done: only what decides it."""
    model = runner.model
    return Result(
        model={
            "fingerprint": f"{model.fingerprint:016x}",
            "name": model.name,
            "architecture": model.architecture,
        },
        cache=runner.cache,
        exact=runner.exact,
        task=task.spec,
        name=task.name,
        parameters=task.parameters,
        version=task.version,
        data_hash=task.data_hash,
        seed=task.seed,
        engine=_core.__version__,
        primary=task.primary,
        higher_is_better=task.higher_is_better,
        metrics={},
        items=[],
        seconds=0.0,
        cache_stats=None,
        conditions=_conditions(task, runner),
    )


def _conditions(task: Task, runner: Runner) -> dict[str, Any]:
    """See Result.conditions. A file that cannot be read is left to whoever opens the cache."""
    found: dict[str, Any] = {}
    specs = [runner.cache]
    for value in task.parameters.values():
        if isinstance(value, str):
            with contextlib.suppress(ConfigError):
                specs.append(translate(value))
    for path in re.findall(r"\b(?:basis|gates)=([^,+]*[^,+\s])", ",".join(specs)):
        with contextlib.suppress(OSError):
            found[path] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    if task.depends_on_machine:
        found |= {"machine": platform.node(), "threads": runner.model.threads}
    return found


def run_task(
    task: Task,
    runner: Runner,
    done: Mapping[int, Unit] | None = None,
    on_unit: Callable[[Unit], None] | None = None,
    on_progress: Callable[[float, int], None] | None = None,
) -> Result:
    """Do the units of a task that are not done yet, and sum all up.

    Args:
        done: units of an earlier, interrupted run by their index.
        on_unit: called with each unit that has just been done, before the next begins.
        on_progress: called with the units done (parts of one count) and their number.

    Raises:
        Error: whatever kept a unit from being done; prompts are to be shortened, and there are none.
    """
    if runner.method and not task.shortens:
        raise ConfigError(f"{task.name}: expected a cache alone, found {runner.method} before it")
    units = task.units(runner)
    finished = {index: unit for index, unit in (done or {}).items() if index < len(units)}
    report = on_progress or (lambda done, total: None)
    for index, unit in enumerate(units):
        if index in finished:
            continue
        before = len(finished)
        report(before, len(units))
        finished[index] = run_unit(
            task, runner, index, unit, lambda part, n=before: report(n + part, len(units))
        )
        if on_unit:
            on_unit(finished[index])
    report(len(units), len(units))
    return conclude(task, outline(task, runner), [finished[index] for index in range(len(units))])


def run_unit(
    task: Task,
    runner: Runner,
    index: int,
    unit: Any,
    on_part: Callable[[float], None] | None = None,
) -> Unit:
    """Do one of a task's units; on_part is told how much of it is done, 0 to 1."""
    runner.begin(on_part)
    start = time.perf_counter()
    items = task.run(runner, unit)
    return Unit(index, items, time.perf_counter() - start, runner.largest_cache)


def conclude(task: Task, blank: Result, units: Sequence[Unit]) -> Result:
    """The result of a task whose units, in order, are all done."""
    items = [item for unit in units for item in unit.items]
    if not items:
        raise ConfigError(f"{task.spec}: expected something to measure, found no item")
    stats = [unit.cache for unit in units if unit.cache]
    return dataclasses.replace(
        blank,
        metrics=task.summarize(items),
        items=items,
        seconds=sum(unit.seconds for unit in units),
        cache_stats=_largest(stats),
    )


def _largest(stats: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The statistics of the largest cache, with the mean bits and the f16 bytes of all."""
    tokens = sum(each["tokens_seen"] for each in stats)
    if not tokens:
        return None
    mean = sum(each["bits_per_value"] * each["tokens_seen"] for each in stats) / tokens
    whole = {"mean_bits": mean, "all_f16_bytes": sum(each["f16_bytes"] for each in stats)}
    return max(stats, key=lambda each: each["tokens_seen"]) | whole


def chunks(rows: Sequence[Any], size: int) -> list[list[Any]]:
    """Rows in lists of `size`, the last maybe shorter: units of small items."""
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]


_REGISTRY: dict[str, type[Task]] = {}

TaskClass = typing.TypeVar("TaskClass", bound="type[Task]")


def register(task: TaskClass) -> TaskClass:
    """Class decorator: makes a task known by its name."""
    assert task.name not in _REGISTRY, task.name
    _REGISTRY[task.name] = task
    return task


def registry() -> dict[str, type[Task]]:
    """All tasks by name."""
    import kvengine.eval.tasks  # noqa: F401 (its modules register themselves)

    return dict(sorted(_REGISTRY.items()))


def parse(text: str, **overrides: Any) -> Task:
    """The task that `name` or `name:parameter=value,...` means; see :func:`parse_list`.

    Args:
        overrides: values of parameters (limit, seed) unless the text has them; None: as usual.

    Raises:
        ConfigError: an unknown task or parameter, or a bad value.
    """
    name, _, rest = text.strip().partition(":")
    known = registry()
    if name not in known:
        raise ConfigError(f"task: expected one of {', '.join(known)}, found '{name[:40]}'")
    task = known[name]
    values = {key: value for key, value in overrides.items() if value is not None}
    values.update(read_values(name, rest, typing.get_type_hints(task), dataclasses.fields(task)))
    return task(**values)


def parse_list(text: str, **overrides: Any) -> list[Task]:
    """The tasks of a list like `kld,needle:lengths=512,1024,depths=5,lambada`.

    After a task with parameters, a comma begins another one where the name of a task follows.
    """
    known = registry()
    specs: list[str] = []
    for part in text.split(","):
        name, colon, _ = part.strip().partition(":")
        begins = name in known or (colon and "=" not in name)
        if specs and ":" in specs[-1] and not begins:
            specs[-1] += f",{part}"
        else:
            specs.append(part)
    return [parse(spec, **overrides) for spec in specs]
