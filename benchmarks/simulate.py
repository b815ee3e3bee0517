"""What an ideal engine would reach: the service's own scheduling on a virtual clock, with measured batch times.

Both modes decide by the service's pure functions and pay for encoding, steps and decoding what the bare pipeline takes,
and for nothing else. `window` runs a batch to its end; `continuous` admits, decodes what is finished and makes one
step, over and over. Pictures are of one size, so sizes never take turns.

Load 1 is the rate of `window` when all requests wait from the start: its batches are as full as they can be.
"""

import argparse
import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks import curve
from benchmarks.bare import bare_process
from benchmarks.curve import MAX_BATCH, ROWS_PER_GUIDED, SIZE, Times
from benchmarks.traffic import MIXES, Request, all_at_once, block
from observability.labels import Priority
from service.engine.contract import Picture
from service.engine.policy import ORDERS, Candidate, Order, assign_slots
from service.engine.task import Waiting
from service.engine.window import Run, choose

WINDOW_SECONDS = 0.5
FULL_BATCHES = 4  # of every kind of request, to find the rate of an engine that never lacks any


@dataclass(frozen=True, slots=True)
class Figures:
    """Latencies in seconds from arrival to picture, and pictures a second from the first arrival to the last end."""

    mean: float
    median: float
    p95: float
    p99: float
    throughput: float

    @classmethod
    def of(cls, blocks_of_requests: Sequence[Sequence[Request]], latencies: Sequence[Sequence[float]]) -> "Figures":
        """The figures of blocks that each began on an idle engine."""
        pooled = np.concatenate([np.asarray(each) for each in latencies])
        busy = sum(
            max(request.at + seconds for request, seconds in zip(requests, block, strict=True)) - requests[0].at
            for requests, block in zip(blocks_of_requests, latencies, strict=True)
        )
        median, p95, p99 = np.percentile(pooled, (50, 95, 99))
        return cls(float(pooled.mean()), float(median), float(p95), float(p99), len(pooled) / busy)


Engine = Callable[[Sequence[Request]], list[float]]


def window(requests: Sequence[Request], times: Times) -> list[float]:
    """The latency of each of `requests` (by arrival) in an ideal `window` engine."""
    pictures = _pictures(requests)
    arriving = deque(Waiting(each, Priority.NORMAL, at, at) for each, at in pictures.items())
    waiting: list[Waiting] = []
    ended: dict[Picture, float] = {}
    now = 0.0
    while arriving or waiting:
        while arriving and arriving[0].arrived_at <= now:
            waiting.append(arriving.popleft())
        choice = choose(waiting, now, WINDOW_SECONDS, MAX_BATCH)
        if isinstance(choice, Run):
            now += times.batch(len(choice.pictures), choice.pictures[0].params.num_inference_steps)
            ended |= dict.fromkeys(choice.pictures, now)
            waiting = [each for each in waiting if each.picture not in ended]
        else:
            next_arrival = [arriving[0].arrived_at] if arriving else []
            now = min(next_arrival if choice.until is None else [choice.until, *next_arrival])
    return [ended[each] - at for each, at in pictures.items()]


@dataclass(slots=True)
class _Row:
    """A picture in the `continuous` engine, begun once it got its first slot."""

    picture: Picture
    arrived_at: float
    steps_left: int
    begun: bool = False
    holds_slot: bool = False


def continuous(requests: Sequence[Request], times: Times, slots: int, order: Order) -> list[float]:
    """The latency of each of `requests` (by arrival) in an ideal `continuous` engine of so many slots."""
    pictures = _pictures(requests)
    arriving = deque(_Row(each, at, each.params.num_inference_steps) for each, at in pictures.items())
    rows: list[_Row] = []
    done: list[_Row] = []
    ended: dict[Picture, float] = {}
    step_cost = times.step(slots) / slots
    now = 0.0
    while arriving or rows or done:
        if not rows and not done:
            now = max(now, arriving[0].arrived_at)
        while arriving and arriving[0].arrived_at <= now:
            rows.append(arriving.popleft())
        newcomers = _assign(rows, slots, now, order, step_cost)
        now += times.encode(newcomers) if newcomers else 0.0
        now += times.decode(len(done)) if done else 0.0
        ended |= {each.picture: now for each in done}
        holders = [each for each in rows if each.holds_slot]
        now += times.step(len(holders)) if holders else 0.0
        for each in holders:
            each.steps_left -= 1
        done = [each for each in holders if not each.steps_left]
        rows = [each for each in rows if each.steps_left]
    return [ended[each] - at for each, at in pictures.items()]


def _assign(rows: Iterable[_Row], slots: int, now: float, order: Order, step_cost: float) -> int:
    """Give out the slots; return how many pictures begin."""
    by_picture = {each.picture: each for each in rows}
    candidates = [
        Candidate(each.picture, Priority.NORMAL, each.arrived_at, each.steps_left * step_cost, each.holds_slot)
        for each in by_picture.values()
    ]
    holders = {each.picture for each in assign_slots(candidates, lambda size: slots, now, order)}
    newcomers = 0
    for picture, row in by_picture.items():
        row.holds_slot = picture in holders
        newcomers += row.holds_slot and not row.begun
        row.begun |= row.holds_slot
    return newcomers


def _pictures(requests: Sequence[Request]) -> dict[Picture, float]:
    """The engine's pictures and when they arrive, by arrival; their ids sort likewise."""
    return {Picture(f"{n:06d}", 0, each.params(SIZE, "")): each.at for n, each in enumerate(requests)}


def engines(times: Times, slots: int) -> dict[str, Engine]:
    """The ideal engines by name."""

    def in_order(order: Order) -> Engine:
        return lambda requests: continuous(requests, times, slots, order)

    named = {f"continuous, {name}": in_order(order) for name, order in ORDERS.items()}
    return {"window": lambda requests: window(requests, times), **named}


def saturated(engine: Engine, traffic: str, seed: int) -> float:
    """Pictures a second of an engine in front of which all requests of the mix `traffic` wait."""
    requests = all_at_once(MIXES[traffic], FULL_BATCHES * MAX_BATCH, f"{seed} {traffic}")
    return len(requests) / max(engine(requests))


def run(engine: Engine, blocks_of_requests: Sequence[Sequence[Request]]) -> Figures:
    """The figures of an engine that is idle before each block."""
    return Figures.of(blocks_of_requests, [engine(each) for each in blocks_of_requests])


def simulate(times: Times, slots: int, arguments: argparse.Namespace) -> dict[str, dict[str, dict[str, object]]]:
    """Print a table for every traffic and load; return the figures by traffic, load and engine."""
    results: dict[str, dict[str, dict[str, object]]] = {}
    for traffic in arguments.traffic:
        ideal = engines(times, slots)
        capacities = {name: saturated(engine, traffic, arguments.seed) for name, engine in ideal.items()}
        rates = ", ".join(f"{name} {rate:.2f}" for name, rate in capacities.items())
        print(f"\n{traffic}: when all wait, {rates} pictures/s")
        results[traffic] = {"saturated": dict(capacities)}
        for load in arguments.loads:
            rate = load * capacities["window"]
            requests = [
                block(traffic, load, index, rate, arguments.requests, arguments.seed)
                for index in range(arguments.blocks)
            ]
            figures = {name: run(engine, requests) for name, engine in ideal.items()}
            print(f"\n  load {load:g}: {rate:.2f} requests/s\n{_table(figures)}")
            results[traffic][str(load)] = {name: asdict(each) for name, each in figures.items()}
    return results


def _table(figures: Mapping[str, Figures]) -> str:
    base = figures["window"]
    lines = [f"  {'seconds':<28}{'mean':>8}{'median':>8}{'p95':>8}{'p99':>8}{'pictures/s':>12}   median, p95 lower by"]
    for name, each in figures.items():
        numbers = "".join(f"{value:8.2f}" for value in (each.mean, each.median, each.p95, each.p99))
        gains = f"{base.median / each.median:8.2f}x {base.p95 / each.p95:8.2f}x"
        lines.append(f"  {name:<28}{numbers}{each.throughput:12.2f}   {gains}")
    return "\n".join(lines)


def add_traffic_options(parser: argparse.ArgumentParser) -> None:
    """What traffic to make."""
    parser.add_argument("--model", default="models/tiny", help="diffusers folder")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.6, 0.8], help="shares of window's saturated rate")
    parser.add_argument("--blocks", type=int, default=10, help="blocks of requests at each load, each in new processes")
    parser.add_argument("--requests", type=int, default=60, help="requests in a block")
    parser.add_argument("--seed", type=int, default=0, help="seed of the traffic")
    parser.add_argument("--slots", type=int, help="slots of continuous; by default the knee of its curve")


def main() -> None:
    """Parse the command line, measure or read the curve, and simulate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add_traffic_options(parser)
    parser.add_argument("--traffic", nargs="+", choices=list(MIXES), default=list(MIXES), help="what is asked for")
    parser.add_argument("--curve", type=Path, help="file of an earlier curve, or of benchmarks.engine's results")
    parser.add_argument("--rounds", type=int, default=5, help="samples of each batch size when the curve is measured")
    parser.add_argument("--save-curve", type=Path, help="file to keep the measured curve in")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    arguments = parser.parse_args()
    if arguments.curve is not None:
        samples = curve.read(arguments.curve)
    else:
        with bare_process(arguments.model) as bare:
            samples = bare.curve(arguments.rounds)
    if arguments.save_curve is not None:
        kept = {"curve": [asdict(each) for each in samples]}
        arguments.save_curve.write_text(json.dumps(kept, indent=1) + "\n")
    times = Times(samples)
    slots = arguments.slots or times.profile.cap(SIZE)
    print(f"{times.table()}\n\ncontinuous has {slots} slots of {ROWS_PER_GUIDED} rows")
    results = simulate(times, slots, arguments)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"slots": slots, "traffic": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
