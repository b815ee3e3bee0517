"""The results of `benchmarks.engine`: kept as they come, and told with the bar beside each figure."""

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import curve, simulate
from benchmarks.curve import Times
from benchmarks.simulate import Figures
from benchmarks.traffic import Request, blocks

SERVED_ORDER = "continuous, shortest_first"  # the service's default
MODES = {"window": "window", "continuous": SERVED_ORDER}  # and which ideal engine each is held against
GAIN_BARS = {"mixed": {"median": 2.5, "p95": 1.4}, "uniform": {"median": 1.0, "p95": 1.0}}
IDEAL_BAR = 0.85
SATURATED_BAR = 0.97


@dataclass(frozen=True, slots=True)
class Block:
    """Latencies in seconds of block number `index` of the traffic, by request, in a service of `mode`."""

    traffic: str
    load: float
    index: int
    mode: str
    latencies: list[float]


@dataclass(frozen=True, slots=True)
class Rate:
    """Pictures a second of one case in one round of the saturated part."""

    round: int
    case: str
    pictures_per_second: float


@dataclass
class Results:
    """All that was measured. `rates` are the rates of load 1 by traffic, in requests a second."""

    settings: dict[str, Any]
    slots: int = 0
    rates: dict[str, float] = field(default_factory=dict)
    curves: curve.Samples = field(default_factory=dict)
    saturated: list[Rate] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> "Results":
        """The results that `write` left."""
        stored = json.loads(path.read_text())
        return cls(
            settings=stored["settings"],
            slots=stored["slots"],
            rates=stored["rates"],
            curves=curve.from_json(stored["curves"]),
            saturated=[Rate(**each) for each in stored["saturated"]],
            blocks=[Block(**each) for each in stored["blocks"]],
        )

    def write(self, path: Path) -> None:
        """Keep everything, and the checks so far."""
        checks = [{**asdict(each), "is_met": each.is_met} for each in self.checks()]
        stored = {
            "settings": self.settings,
            "checks": checks,
            "slots": self.slots,
            "rates": self.rates,
            "curves": curve.to_json(self.curves),
            "saturated": [asdict(each) for each in self.saturated],
            "blocks": [asdict(each) for each in self.blocks],
        }
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(stored, indent=1) + "\n")
        partial.replace(path)

    def measured(self, traffic: str, load: float, mode: str) -> list[Block]:
        """The blocks of one case, by index."""
        found = [each for each in self.blocks if (each.traffic, each.load, each.mode) == (traffic, load, mode)]
        return sorted(found, key=lambda each: each.index)

    def comparisons(self) -> "Iterator[Comparison]":
        """Each traffic at each load of which both modes have the same blocks."""
        for traffic, load in dict.fromkeys((each.traffic, each.load) for each in self.blocks):
            ours, theirs = (self.measured(traffic, load, mode) for mode in reversed(MODES))
            indices = {each.index for each in ours} & {each.index for each in theirs}
            if indices:
                yield Comparison(self, traffic, load, sorted(indices))

    def checks(self) -> "list[Check]":
        """Every figure that has a bar."""
        saturated = Check(f"saturated continuous / raw {self.slots}", self.over_raw(), SATURATED_BAR)
        found = [saturated] if self.saturated else []
        return found + [check for comparison in self.comparisons() for check in comparison.checks()]

    def over_raw(self) -> float:
        """Saturated `continuous` over the bare pipeline at the batch size of its slots; median of the rounds."""
        return statistics.median(self.ratios("continuous", f"raw {self.slots}") or [0.0])

    def ratios(self, case: str, base: str) -> list[float]:
        """The rates of `case` over those of `base`, each taken within a round."""
        rates = {(each.round, each.case): each.pictures_per_second for each in self.saturated}
        rounds = sorted({each.round for each in self.saturated})
        return [rates[n, case] / rates[n, base] for n in rounds if (n, case) in rates and (n, base) in rates]


@dataclass(frozen=True, slots=True)
class Check:
    """A figure and the least, or the `most`, that it should be."""

    name: str
    value: float
    bar: float
    most: bool = False

    @property
    def is_met(self) -> bool:
        """Whether it is as good as it should be."""
        return self.value <= self.bar if self.most else self.value >= self.bar

    def __str__(self) -> str:
        """One line."""
        verdict, sign = "ok  " if self.is_met else "MISS", "<=" if self.most else ">="
        return f"{verdict} {self.value:7.3f}  (bar {sign} {self.bar:g})  {self.name}"


class Comparison:
    """One traffic at one load: both modes on the same requests, measured and ideal."""

    def __init__(self, results: Results, traffic: str, load: float, indices: Sequence[int]) -> None:
        self.traffic, self.load = traffic, load
        self.requests = [requests_of(results, traffic, load)[index] for index in indices]
        self.latencies = {
            mode: [each.latencies for each in results.measured(traffic, load, mode) if each.index in indices]
            for mode in MODES
        }
        times = Times(results.curves[f"{traffic} {load}"])
        ideal = simulate.engines(times, results.slots)
        self.measured = {mode: Figures.of(self.requests, self.latencies[mode]) for mode in MODES}
        self.ideal = {mode: simulate.run(ideal[name], self.requests) for mode, name in MODES.items()}

    def checks(self) -> Iterator[Check]:
        """How much lower the latencies of `continuous` are, against the bar and against the ideal."""
        for statistic, bar in GAIN_BARS[self.traffic].items():
            measured, ideal = gain(self.measured, statistic), gain(self.ideal, statistic)
            where = f"{self.traffic}, load {self.load:g}"
            yield Check(f"{where}: {statistic} of window / continuous", measured, bar)
            yield Check(f"{where}: that gain / the ideal one of {ideal:.2f}", measured / ideal, IDEAL_BAR)

    def text(self) -> str:
        """A table, and the gain in every block."""
        count = sum(map(len, self.requests))
        lines = [
            f"{self.traffic}, load {self.load:g}: {count} requests to each, in {len(self.requests)} blocks",
            f"  {'seconds':<24}{'mean':>8}{'median':>8}{'p95':>8}{'p99':>8}{'pictures/s':>12}",
        ]
        for mode in MODES:
            for kind, each in (("measured", self.measured[mode]), ("ideal", self.ideal[mode])):
                numbers = "".join(f"{value:8.2f}" for value in (each.mean, each.median, each.p95, each.p99))
                lines.append(f"  {mode + ', ' + kind:<24}{numbers}{each.throughput:12.2f}")
        pairs = zip(self.latencies["window"], self.latencies["continuous"], strict=True)
        gains = ", ".join(f"{statistics.median(theirs) / statistics.median(ours):.2f}" for theirs, ours in pairs)
        lines.append(f"  median of window / continuous, block by block: {gains}")
        return "\n".join(lines)


def gain(figures: dict[str, Figures], statistic: str) -> float:
    """How many times lower a latency of `continuous` is."""
    theirs, ours = (getattr(figures[mode], statistic) for mode in ("window", "continuous"))
    return float(theirs / ours)


def requests_of(results: Results, traffic: str, load: float) -> list[list[Request]]:
    """The blocks of requests of one traffic at one load; the same at every call."""
    settings = results.settings
    rate = load * results.rates[traffic]
    return blocks(traffic, load, rate, settings["blocks"], settings["requests"], settings["seed"])


def tell(results: Results) -> None:
    """Print everything."""
    print(f"\n{Times([each for taken in results.curves.values() for each in taken]).table()}")
    if results.saturated:
        print(f"\n{_saturated(results)}")
    for comparison in results.comparisons():
        print(f"\n{comparison.text()}")
    print("\nideal: simulated with the same requests and with the bare pipeline's times as measured between the blocks")
    rates = ", ".join(f"{traffic} {rate:.2f}" for traffic, rate in results.rates.items())
    print(f"load 1: simulated window when all requests wait, with the times at the start; {rates} pictures/s")
    print(f"continuous had {results.slots} slots\n")
    for check in results.checks():
        print(check)


def _saturated(results: Results) -> str:
    rates: dict[str, list[float]] = {}
    for each in results.saturated:
        rates.setdefault(each.case, []).append(each.pictures_per_second)
    lines = ["saturated     pictures/s  over raw 1   each round"]
    for case, values in rates.items():
        over = statistics.median(results.ratios(case, "raw 1") or [0.0])
        each_round = ", ".join(f"{value:.2f}" for value in values)
        lines.append(f"{case:<12}{statistics.median(values):12.2f}{over:11.2f}x   {each_round}")
    for case, base in (("continuous", f"raw {results.slots}"), ("window", "raw 8"), ("sequential", "raw 1")):
        ratios = ", ".join(f"{value:.3f}" for value in results.ratios(case, base))
        lines.append(f"{case} / {base}: {ratios}")
    return "\n".join(lines)
