"""The engine against the bare pipeline, and `continuous` against `window` batching, side by side in one run.

Part `saturated`: pictures a second of diffusers' pipeline called directly and of the service under closed-loop clients,
20 steps, guidance 7.5. Parts `mixed` and `uniform`: open-loop Poisson traffic, in blocks that go in turns to a `window`
and a `continuous` service, so that a drift of the machine hurts both; one is idle while the other works. A latency is
the HTTP client's, from the time the request was due to the picture in hand. Beside it stands what an ideal engine
reaches with the same requests (`benchmarks.simulate`) and the batch times measured between the blocks.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks import simulate
from benchmarks.bare import CURVE_STEPS, BareProcess, bare_process
from benchmarks.curve import MAX_BATCH, Times
from benchmarks.harness import Service, closed_loop, open_loop, service
from benchmarks.report import MODES, Block, Rate, Results, requests_of, tell
from benchmarks.traffic import MIXES, draw
from observability.events import Batching

PARTS = ("saturated", *MIXES)
RAW_BATCHES = (1, 2, 4, 8)
START_ROUNDS = 4
BLOCK_ROUNDS = 2  # samples of each batch size before each pair of blocks
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

    def __init__(self, arguments: argparse.Namespace, results: Results, bare: BareProcess) -> None:
        self._arguments = arguments
        self._results = results
        self._bare = bare

    def prepare(self, services: Mapping[str, Service]) -> None:
        """Find the slots, the curve and the rates that the loads are shares of."""
        results = self._results
        slots = services["continuous"].slots()
        if results.slots not in (0, slots):
            raise SystemExit(f"continuous had {results.slots} slots and has {slots} now; give --slots {results.slots}")
        results.slots = slots
        if "start" not in results.curves:
            results.curves["start"] = self._bare.curve(START_ROUNDS)
        times = Times(results.curves["start"])
        window = simulate.engines(times, slots)["window"]
        for traffic in MIXES:
            results.rates.setdefault(traffic, simulate.saturated(window, traffic, results.settings["seed"]))
        self._keep()

    def measure(self, services: Mapping[str, Service]) -> None:
        """Run all parts."""
        work = [(seconds, step) for part in self._arguments.parts for seconds, step in self._plan(part, services)]
        progress = Progress(sum(seconds for seconds, _ in work))
        for seconds, step in work:
            progress.did(seconds, step())
            self._keep()

    def _keep(self) -> None:
        if self._arguments.json is not None:
            self._results.write(self._arguments.json)

    def _plan(self, part: str, services: Mapping[str, Service]) -> list[Step]:
        """What is left to do for a part: the seconds it should take, and how to do it."""
        if part == "saturated":
            done = {each.round for each in self._results.saturated}
            seconds = self._arguments.pictures / self._results.rates["uniform"] * (len(RAW_BATCHES) + 4)
            rounds = [number for number in range(self._arguments.rounds) if number not in done]
            return [(seconds, partial(self._saturated, number, services)) for number in rounds]
        return [step for load in self._arguments.loads for step in self._pairs(part, load, services)]

    def _pairs(self, traffic: str, load: float, services: Mapping[str, Service]) -> list[Step]:
        times = Times(self._results.curves["start"])
        ideal = simulate.engines(times, self._results.slots)
        curve_seconds = BLOCK_ROUNDS * sum(times.batch(n, CURVE_STEPS) for n in range(1, MAX_BATCH + 1))
        done = {(each.traffic, each.load, each.index) for each in self._results.blocks}
        steps: list[Step] = []
        for index, requests in enumerate(requests_of(self._results, traffic, load)):
            if (traffic, load, index) not in done:
                seconds = sum(requests[-1].at + ideal[name](requests)[-1] for name in MODES.values())
                steps.append((curve_seconds + seconds, partial(self._pair, traffic, load, index, services)))
        return steps

    def _pair(self, traffic: str, load: float, index: int, services: Mapping[str, Service]) -> str:
        """One block in both services, in alternating order; the curve first, and also after the last block."""
        results = self._results
        samples = results.curves.setdefault(f"{traffic} {load}", [])
        samples += self._bare.curve(BLOCK_ROUNDS)
        requests = requests_of(results, traffic, load)[index]
        medians = {}
        for mode in list(MODES) if index % 2 == 0 else list(reversed(MODES)):
            time.sleep(SETTLE_SECONDS)
            latencies = open_loop(services[mode], requests)
            results.blocks.append(Block(traffic, load, index, mode, latencies))
            medians[mode] = statistics.median(latencies)
        if index == results.settings["blocks"] - 1:
            samples += self._bare.curve(BLOCK_ROUNDS)
        told = ", ".join(f"{mode} {medians[mode]:.2f} s" for mode in MODES)
        return f"{traffic}, load {load:g}, block {index + 1}: median {told}"

    def _saturated(self, number: int, services: Mapping[str, Service]) -> str:
        """One round: the bare pipeline at each batch size, then the service in each mode."""
        arguments = self._arguments
        requests = draw(MIXES["uniform"], arguments.pictures + arguments.clients, 1.0, f"saturated {number}")
        rates = {}
        for batch in sorted({*RAW_BATCHES, self._results.slots}):
            seconds = self._bare.seconds(batch, arguments.pictures, requests[0].steps)
            rates[f"raw {batch}"] = arguments.pictures / seconds
        for mode, target in services.items():
            time.sleep(SETTLE_SECONDS)
            rates[mode] = arguments.pictures / closed_loop(target, requests, arguments.clients, arguments.pictures)
        self._results.saturated += [Rate(number, case, rate) for case, rate in rates.items()]
        return f"saturated, round {number + 1}: " + ", ".join(f"{case} {rate:.2f}" for case, rate in rates.items())


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
    parser.add_argument("--pictures", type=int, default=32, help="pictures of each case of it; a multiple of 8")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of it")
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
        run = Run(arguments, results, bare)
        services = start_services(arguments, arguments.slots or results.slots, stack)
        run.prepare(services)
        run.measure(services)
    tell(results)


if __name__ == "__main__":
    main()
