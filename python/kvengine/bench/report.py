"""Results as JSON and as a table."""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path
from typing import Any

from kvengine.bench.limits import Limit
from kvengine.bench.measure import Measured, Ratio
from kvengine.cli.output import human_bytes, print_table


@dataclasses.dataclass(frozen=True)
class Result:
    """A measurement with what it is compared to."""

    measured: Measured
    ratios: list[Ratio]
    """To the first cache, then to the peer's."""
    limits: list[Limit]
    """In the order of the repetitions; empty where there is none."""

    @property
    def kind(self) -> str:
        """What sets the limit, in most repetitions."""
        return statistics.mode(limit.kind for limit in self.limits)

    @property
    def shares(self) -> list[float]:
        """Of what the machine could do at that moment."""
        return [tps / limit.tps for tps, limit in zip(self.measured.tps, self.limits, strict=True)]

    def limit(self) -> dict[str, Any] | None:
        """The medians, and what they are of."""
        if not self.limits:
            return None
        return {
            "kind": self.kind,
            "tps": statistics.median(limit.tps for limit in self.limits),
            "share": statistics.median(self.shares),
            "shares": self.shares,
        }


def document(result: Result, model: Path) -> dict[str, Any]:
    """One item of the JSON list."""
    measured = result.measured
    return {
        "test": measured.test.name,
        "cache": measured.engine.cache,
        "engine": measured.engine.name,
        "tps": measured.tps,
        "tps_median": measured.median,
        "cache_bytes": measured.cache_bytes,
        "threads": measured.engine.threads,
        "model": model.name,
        "seconds": measured.seconds,
        "bits_per_value": measured.cache_bits,
        "ratios": [
            {**dataclasses.asdict(ratio), "median": ratio.median} for ratio in result.ratios
        ],
        "limit": result.limit(),
        "machines": [dataclasses.asdict(machine) for machine in measured.machines],
    }


def print_results(results: list[Result], title: str, names: dict[str, str]) -> None:
    """As a table; names: of caches, by their canonical specs, which may be long."""
    print(f"{title}\n")
    # A coded cache is compared with everything that the first is, and with the first before that.
    in_order = sorted(results, key=lambda each: len(each.ratios), reverse=True)
    compared = list(
        dict.fromkeys((ratio.engine, ratio.cache) for each in in_order for ratio in each.ratios)
    )
    header = ["test", "engine", "cache", "tokens/s", "spread"]
    header += [f"[{chr(ord('a') + i)}]" for i in range(len(compared))]
    header += ["of the limit", "cache size", "bits"]
    print_table(header, [_row(result, compared, names) for result in results])
    if compared:
        print()
    for heading, (engine, cache) in zip(header[5:], compared, strict=False):
        print(f"{heading} times as fast as {engine} with {names.get(cache, cache)}")
    machines = [machine for result in results for machine in result.measured.machines]
    rates = [
        _range([machine.read_bytes for machine in machines]) + " GB/s",
        _range([machine.int8_ops for machine in machines]) + " Gop/s int8",
        _range([machine.f32_ops for machine in machines]) + " Gop/s f32",
    ]
    if any(machine.bf16_ops for machine in machines):
        rates.append(_range([machine.bf16_ops for machine in machines]) + " Gop/s bf16")
    print(f"\nlimits measured beside the tests: {', '.join(rates)}")
    for result in results:
        if result.measured.test.kind == "load":
            seconds = statistics.median(result.measured.seconds)
            name = result.measured.engine.name
            print(f"{result.measured.test.name}: first token after {seconds:.3f} s ({name})")


def _range(rates: list[float]) -> str:
    """In thousand millions."""
    low, high = (f"{rate / 1e9:.{1 if rate < 100e9 else 0}f}" for rate in (min(rates), max(rates)))
    return low if low == high else f"{low} to {high}"


def _row(result: Result, compared: list[tuple[str, str]], names: dict[str, str]) -> list[str]:
    """One line of the table; `compared` are the engines and caches of the columns of ratios."""
    measured, limit = result.measured, result.limit()
    tps = measured.tps
    row = [
        measured.test.name,
        measured.engine.name,
        names.get(measured.engine.cache, measured.engine.cache),
        f"{measured.median:.1f}",
        f"{min(tps):.1f} to {max(tps):.1f}",
    ]
    ratios = {(ratio.engine, ratio.cache): f"{ratio.median:.2f}x" for ratio in result.ratios}
    row += [ratios.get(other, "") for other in compared]
    row.append(f"{limit['share']:.0%} of {limit['tps']:.0f}, {limit['kind']}" if limit else "")
    row += [human_bytes(measured.cache_bytes), f"{measured.cache_bits:.2f}"]
    return row
