"""`safelight plan`: what a launch would take, by simulation: workers, waiting, refusals, money; with and without cache.

It prints a table, and draws the day.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from service.errors import StartupError
from service.scaling.policy import Policy, parse
from service.scaling.simulation import DAY, HOUR, Launch, Machine, Outcome, Scenario, simulate

# Assumed, not measured: Stable Diffusion 1.5 at 512 x 512 in half precision, guided, on an A10G.
A10G = Machine(
    points=((1, 0.055), (2, 0.085), (4, 0.15), (8, 0.28)), extra_seconds=0.06, slots=8, name="an A10G (assumed)"
)


def machine(file: Path | None) -> Machine:
    """The worker whose `GET /model` was saved in `file`; without one, an assumed A10G. Raises `StartupError`."""
    if file is None:
        return A10G
    try:
        model: dict[str, Any] = json.loads(file.read_text())
        size = (model["default_width"], model["default_height"])
        curve = next(each for each in model["profile"] if (each["width"], each["height"]) == size)
        points = tuple((each["pictures"], each["seconds"]) for each in curve["steps"])
        name = f"{model['name']} on {model['device']} (measured)"
        return Machine(points, model["extra_seconds"], curve["slots"], name)
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise StartupError(f"--model: {file} is not what GET /model answers: {error!r}") from error


def figures(scenario: Scenario, outcome: Outcome) -> dict[str, float]:
    """What is told of a day."""
    days = scenario.seconds / DAY
    answered = max(1, len(outcome.latencies))
    p50, p99 = np.percentile(outcome.latencies or [np.nan], (50, 99))
    dollars = (outcome.on_demand_seconds * scenario.on_demand_price + outcome.spot_seconds * scenario.spot_price) / HOUR
    return {
        "requests": outcome.asked,
        "answered without work": outcome.hits / max(1, outcome.asked),
        "refused": outcome.refused / max(1, outcome.asked),
        "expired": outcome.expired / max(1, outcome.asked),
        "p50 seconds": float(p50),
        "p99 seconds": float(p99),
        "workers at most": outcome.most,
        "workers on average": (outcome.on_demand_seconds + outcome.spot_seconds) / scenario.seconds,
        "spot workers lost": outcome.interrupted,
        "dollars a day": dollars / days,
        "dollars for 1,000 answers": 1000 * dollars / answered,
    }


SHARES = {"answered without work", "refused", "expired"}


def table(columns: Mapping[str, Mapping[str, float]]) -> str:
    """Figures side by side."""
    names = list(next(iter(columns.values())))
    lines = [f"{'':<28}" + "".join(f"{name:>16}" for name in columns)]
    for name in names:
        values = (_text(name, each[name]) for each in columns.values())
        lines.append(f"{name:<28}" + "".join(f"{value:>16}" for value in values))
    return "\n".join(lines)


def _text(name: str, value: float) -> str:
    if name in SHARES:
        return f"{value:.2%}"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.2f}"


def draw(outcomes: Mapping[str, Outcome], file: Path) -> None:
    """The day as a picture. Raises `StartupError` without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise StartupError("--plot: needs matplotlib: pip install 'safelight[plan]'") from error
    figure = Figure(figsize=(10, 3 * len(outcomes) + 2), layout="constrained")
    upper, *lower = figure.subplots(1 + len(outcomes), 1, sharex=True)
    first = next(iter(outcomes.values()))
    upper.plot([point[0] for point in first.points], [point[1] for point in first.points], color="black")
    upper.set(title="A simulated launch", ylabel="requests a second")
    for axes, (name, outcome) in zip(lower, outcomes.items(), strict=True):
        hours = [point[0] for point in outcome.points]
        axes.step(hours, [point[2] for point in outcome.points], label="workers that are there")
        axes.step(hours, [point[3] for point in outcome.points], label="desired", linestyle=":")
        axes.set(title=name, ylabel="workers", ylim=(0, None))
        waiting = axes.twinx()
        waiting.fill_between(hours, [point[4] for point in outcome.points], alpha=0.3, color="tab:red")
        waiting.set(ylabel="waiting (red)", ylim=(0, None))
        axes.legend(loc="upper right")
    lower[-1].set(xlabel="hours")
    figure.savefig(file, dpi=100)


def plan(
    *,
    workers: str,
    schedule: str | None,
    peak: float,
    base: float,
    model: Path | None,
    plot: Path | None,
    json_file: Path | None,
    steps: int,
    **options: Any,
) -> int:
    """Simulate, and tell; return the exit status. Raises `StartupError` for what cannot be."""
    policy = _policy(workers, schedule)
    scenario = Scenario(machine(model), Launch(base, peak), policy, steps=(steps,), **options)
    click.echo(
        f"Simulated, not measured: a launch from {base:g} to {peak:g} requests a second, {steps} steps each, "
        f"on {policy.least} to {policy.most} workers like {scenario.machine.name},\n"
        f"which make {scenario.rate:.2f} pictures a second at most; a new one takes "
        f"{scenario.provisioning[0] / 60:g} to {scenario.provisioning[1] / 60:g} minutes to come."
    )
    outcomes = {
        name: simulate(replace(scenario, has_cache=has_cache))
        for name, has_cache in (("without cache", False), ("with cache", True))
    }
    columns = {name: figures(scenario, each) for name, each in outcomes.items()}
    click.echo(table(columns))
    if json_file is not None:
        json_file.write_text(json.dumps({"scenario": asdict(scenario), "figures": columns}, indent=2) + "\n")
    if plot is not None:
        draw(outcomes, plot)
    return 0


def _policy(workers: str, schedule: str | None) -> Policy:
    try:
        return parse(workers, schedule)
    except ValueError as error:
        raise StartupError(f"--workers, --schedule: {error}") from error
