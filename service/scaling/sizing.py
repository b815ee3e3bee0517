"""`safelight plan --measured`: how many machines a steady rate takes, and what a thousand pictures cost.

A benchmark measured the machine; what the simulation says of that benchmark's own run stands beside what was measured.
"""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from service.errors import StartupError
from service.scaling.policy import Policy
from service.scaling.simulation import HOUR, Launch, Machine, Scenario, simulate

UNIFORM_STEPS, MIXED_STEPS = 20, (4, 8, 20, 50)
REQUESTS = 20_000  # that are simulated
MOST_TIMES = 8  # as many machines as the rate alone takes; a wish that needs more cannot be met by more


@dataclass(frozen=True, slots=True)
class Benchmark:
    """What `benchmarks.suite` measured: a machine, pictures a second of uniform traffic when saturated, and the
    latencies of mixed traffic at the highest rate in an open loop.
    """

    machine: Machine
    saturated: list[float]
    mixed_rate: float | None
    mixed_latencies: list[float]

    @property
    def as_served(self) -> Machine:
        """The machine, as much slower than the bare pipeline as it was, saturated, with a service around it."""
        if not self.saturated:
            return self.machine
        slower = self.machine.rate(UNIFORM_STEPS) / statistics.harmonic_mean(self.saturated)
        points = tuple((pictures, slower * seconds) for pictures, seconds in self.machine.points)
        return replace(self.machine, points=points, extra_seconds=slower * self.machine.extra_seconds)


def read(file: Path) -> Benchmark:
    """Raises `StartupError` for anything that is not a benchmark's results."""
    try:
        found: dict[str, Any] = json.loads(file.read_text())
        by_batch: dict[int, list[Mapping[str, float]]] = defaultdict(list)
        for sample in found["curve"]:
            by_batch[sample["pictures"]].append(sample)
        medians = {
            stage: {n: statistics.median(each[stage] for each in by_batch[n]) for n in sorted(by_batch)}
            for stage in ("encode", "step", "decode")
        }
        slots = min(int(found["slots"]), max(medians["step"]))  # the curve does not go on for ever
        extra = (medians["encode"][slots] + medians["decode"][slots]) / slots
        machine = Machine(tuple(medians["step"].items()), extra, slots, found["machine"])
        ours = [each for each in found["measured"] if each["target"] == "safelight"]
        uniform = [each for each in ours if each["part"] == "uniform"]
        busy = [each.get("busy") or (len(each["latencies"]), each["seconds"]) for each in uniform]
        saturated = [answers / seconds for answers, seconds in busy]
        rate = max((each["rate"] for each in ours if each.get("rate")), default=None)
        mixed = [one for each in ours if rate and each.get("rate") == rate for one in each["latencies"]]
        return Benchmark(machine, saturated, rate, mixed)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StartupError(f"--measured: {file} is not what benchmarks.suite writes: {error!r}") from error


def steady(machine: Machine, rate: float, workers: int, steps: Sequence[int]) -> list[float]:
    """Seconds that requests take that come at random at this rate, to so many machines; of those that are not done in
    time, infinitely many.
    """
    scenario = Scenario(
        machine,
        Launch(rate, rate),
        Policy(workers, workers),
        steps=tuple(steps),
        timeout=math.inf,
        queue_limit=10**9,
        has_cache=False,
        spot_share=0.0,
        seconds=REQUESTS / rate,
    )
    outcome = simulate(scenario)
    unfinished = outcome.asked - len(outcome.latencies)
    at_work = workers * machine.slots  # are always left when the clock stops
    return outcome.latencies + [math.inf] * max(0, unfinished - at_work)


def enough(machine: Machine, rate: float, p99: float, steps: int) -> tuple[int, list[float]] | None:
    """The fewest machines with which so many requests' p99 is met, and the latencies then; None if none are enough."""
    if steps * machine.step_seconds(1) + machine.extra_seconds > p99:
        return None
    least = max(1, math.ceil(rate / machine.rate(steps)))
    for workers in range(least, MOST_TIMES * least + 1):
        latencies = steady(machine, rate, workers, [steps])
        if np.percentile(latencies, 99, method="higher") <= p99:
            return workers, latencies
    return None


def checks(found: Benchmark) -> list[tuple[str, float, float]]:
    """What was measured, and what the simulation says of the same: name, predicted, measured."""
    told = []
    if found.saturated:
        measured = statistics.harmonic_mean(found.saturated)
        told.append(
            ("uniform, saturated, by the bare pipeline: pictures/s", found.machine.rate(UNIFORM_STEPS), measured)
        )
    if found.mixed_rate is not None:
        predicted = steady(found.as_served, found.mixed_rate, 1, MIXED_STEPS)
        for share in (50, 95, 99):
            ours, theirs = (float(np.percentile(each, share)) for each in (predicted, found.mixed_latencies))
            told.append((f"mixed at {found.mixed_rate:.2f}/s: p{share}, s", ours, theirs))
    return told


def size(*, file: Path, rate: float, p99: float, price: float, steps: int) -> int:
    """Tell; return the exit status, 1 if no number of machines is enough."""
    found = read(file)
    machine = found.as_served
    click.echo(
        f"One machine ({machine.name}) makes {machine.rate(steps):.2f} pictures/s of {steps} steps at most, "
        f"{machine.slots} at a time; one alone takes {steps * machine.step_seconds(1) + machine.extra_seconds:.2f} s."
    )
    answer = enough(machine, rate, p99, steps)
    status = 0
    if answer is None:
        click.echo(
            f"99 % of {rate:g} requests/s are not answered within {p99:g} s by {MOST_TIMES} times as many as the rate "
            "alone takes: a picture takes too long."
        )
        status = 1
    else:
        workers, latencies = answer
        p50, worst = np.percentile(latencies, (50, 99))
        hourly = workers * price
        click.echo(
            f"{rate:g} requests/s within {p99:g} s (p99) take {workers} of them (simulated: p50 {p50:.2f} s, p99 "
            f"{worst:.2f} s).\nAt {price:g} dollars an hour each: {hourly:.2f} dollars an hour, "
            f"{1000 * hourly / (rate * HOUR):.3f} for 1,000 pictures."
        )
    for name, predicted, measured in checks(found):
        error = predicted / measured - 1
        click.echo(f"Predicted against measured, {name}: {predicted:.3f} against {measured:.3f}, {error:+.1%}.")
    return status
