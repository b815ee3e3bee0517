"""The engine against the bare pipeline, and `continuous` against `window` batching, side by side in one run.

Part `saturated`: pictures a second of diffusers' pipeline called directly and of the service under closed-loop clients,
20 steps, guidance 7.5; they take turns of a few seconds, and whoever is not measured is frozen. Parts `mixed` and
`uniform`: open-loop Poisson traffic, in blocks that go in turns to a `window` and a `continuous` service, while the
other is idle. A latency is the HTTP client's, from the time the request was due to the picture in hand.

The machine's speed drifts, so the batch times of the bare pipeline are measured before and after every block. A load is
a share of what `window` makes of that traffic when all of it waits: measured, and scaled by the batch times just before
the block. Beside each latency stands what an ideal engine reaches with the same requests (`benchmarks.simulate`) and
the batch times around the block.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks import simulate
from benchmarks.bare import CURVE_STEPS, BareProcess, bare_process
from benchmarks.curve import MAX_BATCH, Sample, Times
from benchmarks.harness import ClosedLoop, Service, open_loop, service
from benchmarks.report import MODES, Block, Rate, Results, tell
from benchmarks.traffic import MIXES, all_at_once
from observability.events import Batching

PARTS = ("saturated", *MIXES)
RAW_BATCHES = (1, 2, 4, 8)
START_ROUNDS = 4
ROUND_PICTURES = 8  # of each case in a round of the saturated part
SHARE_PICTURES = 64  # to measure what `window` makes when all wait: full batches of every kind of request
SETTLE_SECONDS = 0.5
KEPT = ("model", "seed", "requests", "blocks")  # what a run that goes on must have in common with its start

Step = tuple[float, Callable[[], str]]  # about how many seconds it takes; how to do it, which returns what came out


class Progress:
    """Tells on stderr what is done, and how long the rest will take. `planned` is in seconds."""

    def __init__(self, planned: float) -> None:
        self._planned = planned
        self._done = 0.0
        self._began = time.perf_counter()

    def did(self, planned: float, what: str) -> None:
        """Something is done that was planned to take so many seconds."""
        self._done += planned
        elapsed = time.perf_counter() - self._began
        left = elapsed / self._done * max(0.0, self._planned - self._done)
        print(f"{what}; about {left / 60:.0f} min left", file=sys.stderr, flush=True)


class Run:
    """The measurement. What is in `results` already is not measured again."""

    def __init__(
        self, arguments: argparse.Namespace, results: Results, bare: BareProcess, services: Mapping[str, Service]
    ) -> None:
        self._arguments = arguments
        self._results = results
        self._bare = bare
        self._services = services

    def prepare(self) -> None:
        """Find the slots and a first curve."""
        slots = self._services["continuous"].slots()
        if self._results.slots not in (0, slots):
            raise SystemExit(f"continuous has {slots} slots now; give --slots {self._results.slots}")
        self._results.slots = slots
        if not self._results.curve:
            self._results.curve = self._bare.curve(START_ROUNDS)
        self._keep()

    def measure(self) -> None:
        """Run all parts."""
        work = [each for part in self._arguments.parts for each in self._plan(part)]
        progress = Progress(sum(seconds for seconds, _ in work))
        for seconds, step in work:
            progress.did(seconds, step())
            self._keep()

    def _keep(self) -> None:
        if self._arguments.json is not None:
            self._results.write(self._arguments.json)

    def _plan(self, part: str) -> list[Step]:
        """What is left to do for a part: the seconds it should take, and how to do it."""
        if part != "saturated":
            return [each for load in self._arguments.loads for each in self._pairs(part, load)]
        if self._results.saturated:
            return []
        rate = self._window_rate("uniform", self._results.curve)
        pictures = self._arguments.rounds * ROUND_PICTURES * (len(RAW_BATCHES) + 4) + 4 * self._arguments.clients
        return [(pictures / rate, self._saturated)]

    def _pairs(self, traffic: str, load: float) -> list[Step]:
        times = Times(self._results.curve)
        ideal = simulate.engines(times, self._results.slots)
        rate = load * self._window_rate(traffic, self._results.curve)
        curves = (2 + len(MODES)) * sum(times.batch(n, CURVE_STEPS) for n in range(1, MAX_BATCH + 1))
        done = {(each.traffic, each.load, each.index) for each in self._results.blocks}
        steps: list[Step] = []
        for index in range(self._results.settings["blocks"]):
            if (traffic, load, index) not in done:
                requests = self._results.requests(traffic, load, index, rate)
                seconds = sum(requests[-1].at + ideal[name](requests)[-1] for name in MODES.values())
                steps.append((curves + seconds, partial(self._pair, traffic, load, index)))
        return steps

    def _pair(self, traffic: str, load: float, index: int) -> str:
        """One block in both services, in alternating order, with curves before, between and after."""
        results = self._results
        before = self._bare.curve(2)
        rate = load * self._share(traffic) * self._window_rate(traffic, before)
        requests = results.requests(traffic, load, index, rate)
        measured = []
        for mode in list(MODES) if index % 2 == 0 else list(reversed(MODES)):
            time.sleep(SETTLE_SECONDS)
            latencies = open_loop(self._services[mode], requests)
            after = self._bare.curve(1)
            measured.append(Block(traffic, load, index, mode, rate, latencies, before + after))
            before = after
        results.blocks += measured
        medians = ", ".join(f"{each.mode} {statistics.median(each.latencies):.2f} s" for each in measured)
        return f"{traffic}, load {load:g}, block {index + 1}: {rate:.2f} requests/s, median {medians}"

    def _share(self, traffic: str) -> float:
        """What `window` makes when all requests wait, as a share of the ideal."""
        shares = self._results.shares
        if traffic not in shares:
            mix = MIXES[traffic]
            requests = all_at_once(mix, SHARE_PICTURES // len(mix.kinds()), f"share {traffic}")
            before = self._bare.curve(2)
            seconds = max(open_loop(self._services["window"], requests))
            ideal = max(simulate.engines(Times(before + self._bare.curve(2)), 1)["window"](requests))
            shares[traffic] = ideal / seconds
        return shares[traffic]

    def _window_rate(self, traffic: str, samples: Sequence[Sample]) -> float:
        """Pictures a second of an ideal `window` engine in front of which all requests wait."""
        ideal = simulate.engines(Times(samples), self._results.slots)["window"]
        return simulate.saturated(ideal, traffic, self._results.settings["seed"])

    def _saturated(self) -> str:
        """Rounds of the bare pipeline at each batch size and the service in each mode, in turns."""
        arguments, results = self._arguments, self._results
        requests = all_at_once(MIXES["uniform"], 1000, "saturated")
        with ExitStack() as stack:
            loops = {
                mode: stack.enter_context(ClosedLoop(target, requests, arguments.clients))
                for mode, target in self._services.items()
            }
            for number in range(arguments.rounds):
                rates: dict[str, float] = {}
                for batch in sorted({*RAW_BATCHES, results.slots}):
                    seconds = self._bare.seconds(batch, ROUND_PICTURES, requests[0].steps)
                    rates[f"raw {batch}"] = ROUND_PICTURES / seconds
                for mode, loop in loops.items():
                    rates[mode] = ROUND_PICTURES / loop.seconds(ROUND_PICTURES)
                results.saturated += [Rate(number, case, rate) for case, rate in rates.items()]
                told = ", ".join(f"{case} {rate:.2f}" for case, rate in rates.items())
                print(f"saturated, round {number + 1}: {told}", file=sys.stderr, flush=True)
        return f"saturated: {arguments.rounds} rounds"


def start_results(arguments: argparse.Namespace) -> Results:
    """Empty results, or with `--resume` those of an earlier run with the same traffic."""
    settings = {name: getattr(arguments, name) for name in KEPT}
    if not (arguments.resume and arguments.json is not None and arguments.json.exists()):
        return Results(settings)
    results = Results.read(arguments.json)
    if results.settings != settings:
        raise SystemExit(f"{arguments.json} was made with {results.settings}, not {settings}")
    return results


def start_services(arguments: argparse.Namespace, slots: int, stack: ExitStack) -> dict[str, Service]:
    """One service for each mode that the parts need; `slots` of `continuous`, or 0 for what its profile says."""
    modes = list(Batching) if "saturated" in arguments.parts else [Batching(mode) for mode in MODES]
    services: dict[str, Service] = {}
    for mode in sorted(modes, reverse=True):  # any other before `continuous`, to ask it for the model's own size
        settings: dict[str, object] = {"batching": mode, "queue_limit": 100_000}
        if mode is Batching.CONTINUOUS and slots:
            model = services[Batching.WINDOW].get_json("/model")
            settings["slots"] = f"{model['default_width']}x{model['default_height']}={slots}"
        services[mode] = stack.enter_context(service(arguments.model, settings))
    return services


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    simulate.add_traffic_options(parser)
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(PARTS), help=f"of {','.join(PARTS)}")
    parser.add_argument("--clients", type=int, default=16, help="clients of the saturated part")
    parser.add_argument("--rounds", type=int, default=12, help="rounds of it, of 8 pictures in each case")
    parser.add_argument("--json", type=Path, help="file to keep the results in, as they come")
    parser.add_argument("--resume", action="store_true", help="go on where the run ended that wrote the file of --json")
    parser.add_argument("--report", action="store_true", help="only print what is in the file of --json")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"--parts: {', '.join(sorted(unknown))} is none of {','.join(PARTS)}")
    if arguments.report and arguments.json is None:
        parser.error("--report needs --json")
    return arguments


def main() -> None:
    """Measure, or read what was measured, and report."""
    arguments = parse()
    if arguments.report:
        tell(Results.read(arguments.json))
        return
    results = start_results(arguments)
    with ExitStack() as stack:
        bare = stack.enter_context(bare_process(arguments.model))
        services = start_services(arguments, arguments.slots or results.slots, stack)
        run = Run(arguments, results, bare, services)
        run.prepare()
        run.measure()
    tell(results)


if __name__ == "__main__":
    main()
