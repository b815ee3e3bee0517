"""The engine against the bare pipeline, and `continuous` against `window` batching, side by side in one run.

Part `saturated`: pictures a second of diffusers' pipeline called directly and of the service under closed-loop clients,
20 steps, guidance 7.5; they take turns of a few seconds, and whoever is not measured is frozen. Parts `mixed` and
`uniform`: open-loop Poisson traffic, in blocks that go in turns to a `window` and a `continuous` service, while the
other is idle. A latency is the HTTP client's, from the time the request was due to the picture in hand.

All is done once a launch, with new processes, since one process is faster than the next by its luck with memory. The
machine's speed drifts too, so the batch times of the bare pipeline are measured before and after every block; a load is
a share of what an ideal `window` engine makes, by the times just before, of that traffic when all of it waits. Where
the speed changed by more than 30 % around a pair of blocks, the load was not what it should have been, and the pair is
done again. Beside each latency stands what an ideal engine reaches with the same requests (`benchmarks.simulate`) and
the batch times around the block.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks import simulate
from benchmarks.bare import bare_process
from benchmarks.curve import Sample, Times
from benchmarks.harness import ClosedLoop, Service, open_loop, service
from benchmarks.report import MODES, Block, Rate, Results, tell
from benchmarks.traffic import MIXES, all_at_once
from observability.labels import Batching

PARTS = ("saturated", *MIXES)
RAW_BATCHES = (1, 2, 4, 8)
START_ROUNDS = 4
ROUND_PICTURES = 8  # of each case in a round of the saturated part
BLOCK_ROUNDS = 2  # samples of each batch size between blocks
STEADY = 1.3  # the most by which the machine's speed may change around a pair of blocks
MAX_TRIES = 5  # the last one counts, whatever the machine did
WARM_PICTURES = 8
SETTLE_SECONDS = 0.5
KEPT = ("model", "seed", "requests", "blocks")  # what a run that goes on must have in common with its start


class Run:
    """The measurements of one launch. What is in `results` already is not measured again."""

    def __init__(self, arguments: argparse.Namespace, results: Results, stack: ExitStack) -> None:
        self._arguments = arguments
        self._results = results
        self._bare = stack.enter_context(bare_process(arguments.model))
        self._services = start_services(arguments, arguments.slots or results.slots, stack)
        slots = self._services["continuous"].slots()
        if results.slots not in (0, slots):
            raise SystemExit(f"continuous has {slots} slots now; give --slots {results.slots}")
        results.slots = slots
        if not results.curve:
            results.curve = self._bare.curve(START_ROUNDS)

    def repetition(self, index: int) -> Iterator[str]:
        """Do everything once; yield what came out as it comes."""
        for part in self._arguments.parts:
            if part == "saturated":
                yield from self._saturated(index)
                continue
            for load in self._arguments.loads:
                if not any(self._results.measured(part, load, mode, index) for mode in MODES):
                    yield self._pair(part, load, index)

    def _pair(self, traffic: str, load: float, index: int) -> str:
        """One block in both services; done again, a few times, if the machine's own speed changes too much within."""
        measured, change = self._blocks(traffic, load, index)
        tries = 1
        while change > STEADY and tries < MAX_TRIES:
            self._results.unsteady += 1
            measured, change = self._blocks(traffic, load, index)
            tries += 1
        self._results.blocks += measured
        medians = ", ".join(f"{each.mode} {statistics.median(each.latencies):.2f} s" for each in measured)
        return f"{traffic}, load {load:g}, block {index + 1}: {measured[0].rate:.2f} requests/s, median {medians}"

    def _blocks(self, traffic: str, load: float, index: int) -> tuple[list[Block], float]:
        """One block in both services, in alternating order, and by how much the machine's speed changed meanwhile."""
        curves = [self._bare.curve(BLOCK_ROUNDS)]
        speeds = [self._window_rate(traffic, curves[0])]
        requests = self._results.requests(traffic, load, index, load * speeds[0])
        measured = []
        for mode in list(MODES) if index % 2 == 0 else list(reversed(MODES)):
            target = self._services[mode]
            open_loop(target, all_at_once(MIXES["uniform"], WARM_PICTURES, "warm"))  # it was idle for long
            time.sleep(SETTLE_SECONDS)
            latencies = open_loop(target, requests)
            curves.append(self._bare.curve(BLOCK_ROUNDS))
            speeds.append(self._window_rate(traffic, curves[-1]))
            samples = [sample for curve in curves[-2:] for sample in curve]
            measured.append(Block(traffic, load, index, mode, load * speeds[0], latencies, samples))
        return measured, max(speeds) / min(speeds)

    def _window_rate(self, traffic: str, samples: Sequence[Sample]) -> float:
        """Pictures a second of an ideal `window` engine in front of which all requests wait."""
        ideal = simulate.engines(Times(samples), self._results.slots)["window"]
        return simulate.saturated(ideal, traffic, self._results.settings["seed"])

    def _saturated(self, index: int) -> Iterator[str]:
        """Rounds of the bare pipeline at each batch size and the service in each mode, in turns."""
        results = self._results
        first = index * self._arguments.rounds
        done = {each.round for each in results.saturated}
        numbers = [number for number in range(first, first + self._arguments.rounds) if number not in done]
        if not numbers:
            return
        requests = all_at_once(MIXES["uniform"], 1000, f"saturated {index}")
        with ExitStack() as stack:
            loops = {
                mode: stack.enter_context(ClosedLoop(target, requests, self._arguments.clients))
                for mode, target in self._services.items()
            }
            for number in numbers:
                rates: dict[str, float] = {}
                for batch in sorted({*RAW_BATCHES, results.slots}):
                    rates[f"raw {batch}"] = self._raw(batch)
                self._bare.use_channels_last(False)
                rates[f"plain {results.slots}"] = self._raw(results.slots)
                self._bare.use_channels_last(True)
                for mode, loop in loops.items():
                    rates[mode] = ROUND_PICTURES / loop.seconds(ROUND_PICTURES)
                results.saturated += [Rate(number, case, rate) for case, rate in rates.items()]
                yield "saturated: " + ", ".join(f"{case} {rate:.2f}" for case, rate in rates.items())

    def _raw(self, batch: int) -> float:
        """Pictures a second of the bare pipeline."""
        return ROUND_PICTURES / self._bare.seconds(batch, ROUND_PICTURES, MIXES["uniform"].steps[0])


def start_results(arguments: argparse.Namespace) -> Results:
    """Empty results, or with `--resume` those of an earlier run with the same traffic."""
    settings = {name: getattr(arguments, name) for name in KEPT}
    if arguments.json is None or not arguments.json.exists():
        return Results(settings)
    if not arguments.resume:
        raise SystemExit(f"{arguments.json} is there: give --resume to go on with it, or take it away")
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
    parser.add_argument("--rounds", type=int, default=3, help="rounds of it in each launch, of 8 pictures in each case")
    parser.add_argument("--json", type=Path, help="file to keep the results in, as they come")
    parser.add_argument("--resume", action="store_true", help="go on where the run ended that wrote the file of --json")
    parser.add_argument("--report", action="store_true", help="only print what is in the file of --json")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"--parts: {', '.join(sorted(unknown))} is none of {','.join(PARTS)}")
    if (arguments.report or arguments.resume) and arguments.json is None:
        parser.error("--report and --resume need --json")
    return arguments


def main() -> None:
    """Measure, or read what was measured, and report."""
    arguments = parse()
    if arguments.report:
        tell(Results.read(arguments.json))
        return
    results = start_results(arguments)
    began = time.monotonic()
    for index in range(arguments.blocks):
        with ExitStack() as stack:
            for told in Run(arguments, results, stack).repetition(index):
                print(told, file=sys.stderr, flush=True)
                if arguments.json is not None:
                    results.write(arguments.json)
        left = (time.monotonic() - began) / (index + 1) * (arguments.blocks - index - 1)
        print(f"{index + 1} of {arguments.blocks} done, about {left / 60:.0f} min left", file=sys.stderr, flush=True)
    tell(results)


if __name__ == "__main__":
    main()
