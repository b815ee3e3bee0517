"""The results of `benchmarks.engine`: kept as they come, and told with the bar beside each figure."""

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from benchmarks import simulate
from benchmarks.curve import Sample, Times
from benchmarks.simulate import Figures
from benchmarks.traffic import Request, block

SERVED_ORDER = "continuous, shortest_first"  # the service's default
FIRST_COME = "continuous, first_come"
MODES = {"window": "window", "continuous": SERVED_ORDER}  # and which ideal engine each is held against
GAIN_BARS = {"mixed": {"median": 2.5, "p95": 1.4}, "uniform": {"median": 1.0, "p95": 1.0}}
IDEAL_BAR = 0.85
SATURATED_BAR = 0.97


@dataclass(frozen=True, slots=True)
class Block:
    """Latencies in seconds, by request, of block number `index` of the traffic in a service of `mode`.

    The requests came at `rate` a second; `samples` of the bare pipeline were taken just before and after.
    """

    traffic: str
    load: float
    index: int
    mode: str
    rate: float
    latencies: list[float]
    samples: list[Sample]


@dataclass(frozen=True, slots=True)
class Rate:
    """Pictures a second of one case in one round of the saturated part."""

    round: int
    case: str
    pictures_per_second: float


@dataclass
class Results:
    """All that was measured; `unsteady` pairs of blocks were done again."""

    settings: dict[str, Any]
    slots: int = 0
    curve: list[Sample] = field(default_factory=list)
    unsteady: int = 0
    saturated: list[Rate] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> "Results":
        """The results that `write` left."""
        stored = json.loads(path.read_text())
        del stored["checks"]
        return TypeAdapter(cls).validate_python(stored)

    def write(self, path: Path) -> None:
        """Keep everything, and the checks so far."""
        checks = [{**asdict(each), "is_met": each.is_met} for each in self.checks()]
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps({"checks": checks, **asdict(self)}, indent=1) + "\n")
        partial.replace(path)

    def requests(self, traffic: str, load: float, index: int, rate: float) -> list[Request]:
        """The requests of one block, at `rate` a second; the same at every call."""
        return block(traffic, load, index, rate, self.settings["requests"], self.settings["seed"])

    def measured(self, traffic: str, load: float, mode: str, index: int | None = None) -> list[Block]:
        """The blocks of one case, by index; or only one of them."""
        found = [each for each in self.blocks if (each.traffic, each.load, each.mode) == (traffic, load, mode)]
        return sorted((each for each in found if index in (None, each.index)), key=lambda each: each.index)

    def comparisons(self) -> "Iterator[Comparison]":
        """Each traffic at each load of which both modes have the same blocks."""
        for traffic, load in dict.fromkeys((each.traffic, each.load) for each in self.blocks):
            ours, theirs = (self.measured(traffic, load, mode) for mode in reversed(MODES))
            indices = {each.index for each in ours} & {each.index for each in theirs}
            if indices:
                yield Comparison(self, traffic, load, sorted(indices))

    def checks(self) -> "list[Check]":
        """Every figure that has a bar."""
        found = []
        if self.saturated:
            found = [
                Check(f"saturated continuous / {base}", self.over("continuous", base), SATURATED_BAR)
                for base in (f"plain {self.slots}", f"raw {self.slots}")
            ]
        return found + [check for comparison in self.comparisons() for check in comparison.checks()]

    def over(self, case: str, base: str) -> float:
        """The saturated rate of `case` over that of `base`, over all rounds."""
        ours, theirs = (
            statistics.harmonic_mean([each.pictures_per_second for each in self.saturated if each.case == name])
            for name in (case, base)
        )
        return ours / theirs


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
        self.blocks = {
            mode: [each for each in results.measured(traffic, load, mode) if each.index in indices] for mode in MODES
        }
        self.measured, self.ideal = {}, {}
        for mode, blocks in self.blocks.items():
            requests = [results.requests(traffic, load, each.index, each.rate) for each in blocks]
            self.measured[mode] = Figures.of(requests, [each.latencies for each in blocks])
            self.ideal[mode] = self._ideal(results, mode, MODES[mode])
        self.first_come = self._ideal(results, "continuous", FIRST_COME)

    def _ideal(self, results: Results, mode: str, name: str) -> Figures:
        """What the engine `name` makes of the blocks of `mode`."""
        blocks = self.blocks[mode]
        requests = [results.requests(self.traffic, self.load, each.index, each.rate) for each in blocks]
        ideal = [simulate.engines(Times(each.samples), results.slots)[name] for each in blocks]
        return Figures.of(requests, [engine(each) for engine, each in zip(ideal, requests, strict=True)])

    def checks(self) -> Iterator[Check]:
        """How much lower the latencies of `continuous` are, against the bar and against the ideal."""
        for statistic, bar in GAIN_BARS[self.traffic].items():
            measured, ideal = gain(self.measured, statistic), gain(self.ideal, statistic)
            where = f"{self.traffic}, load {self.load:g}"
            yield Check(f"{where}: {statistic} of window / continuous", measured, bar)
            yield Check(f"{where}: that gain / the ideal one of {ideal:.2f}", measured / ideal, IDEAL_BAR)

    def text(self) -> str:
        """A table, and the gain in every block."""
        pairs = list(zip(*(self.blocks[mode] for mode in MODES), strict=True))
        count = sum(len(window.latencies) for window, _ in pairs)
        rates = ", ".join(f"{window.rate:.2f}" for window, _ in pairs)
        lines = [
            f"{self.traffic}, load {self.load:g}: {count} requests to each, in blocks of {rates} requests/s",
            f"  {'seconds':<24}{'mean':>8}{'median':>8}{'p95':>8}{'p99':>8}{'pictures/s':>12}",
        ]
        rows = {
            f"{mode}, {kind}": figures[mode]
            for mode in MODES
            for kind, figures in (("measured", self.measured), ("ideal", self.ideal))
        }
        for name, each in {**rows, "ideal, oldest first": self.first_come}.items():
            numbers = "".join(f"{value:8.2f}" for value in (each.mean, each.median, each.p95, each.p99))
            lines.append(f"  {name:<24}{numbers}{each.throughput:12.2f}")
        medians = [[statistics.median(each.latencies) for each in pair] for pair in pairs]
        gains = ", ".join(f"{window / continuous:.2f}" for window, continuous in medians)
        lines.append(f"  median of window / continuous, block by block: {gains}")
        return "\n".join(lines)


def gain(figures: dict[str, Figures], statistic: str) -> float:
    """How many times lower a latency of `continuous` is."""
    theirs, ours = (getattr(figures[mode], statistic) for mode in ("window", "continuous"))
    return float(theirs / ours)


def tell(results: Results) -> None:
    """Print everything."""
    samples = results.curve + [sample for each in results.blocks for sample in each.samples]
    print(f"\n{Times(samples).table()}")
    if results.saturated:
        print(f"\n{_saturated(results)}")
    for comparison in results.comparisons():
        print(f"\n{comparison.text()}")
    print(
        "\nideal: simulated with the same requests and with the bare pipeline's times just before and after each block"
    )
    print("load 1: what an ideal window engine makes, by the times just before, when all requests wait")
    print(f"pairs of blocks done again, because the machine's speed changed: {results.unsteady}")
    print(f"continuous had {results.slots} slots\n")
    for check in results.checks():
        print(check)


def _saturated(results: Results) -> str:
    lines = [
        "raw: the bare pipeline with the engine's order of weights in memory; plain: as diffusers loads it",
        "saturated     pictures/s  over raw 1   each round",
    ]
    for case in dict.fromkeys(each.case for each in results.saturated):
        rates = [each.pictures_per_second for each in results.saturated if each.case == case]
        each_round = ", ".join(f"{rate:.2f}" for rate in rates)
        over = results.over(case, "raw 1")
        lines.append(f"{case:<12}{statistics.harmonic_mean(rates):12.2f}{over:11.2f}x   {each_round}")
    for case, base in (
        ("continuous", f"raw {results.slots}"),
        ("continuous", f"plain {results.slots}"),
        ("window", "raw 8"),
        ("sequential", "raw 1"),
    ):
        lines.append(f"{case} / {base}: {results.over(case, base):.3f}")
    return "\n".join(lines)
