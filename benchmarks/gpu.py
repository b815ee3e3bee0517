"""`sequential`, `window` and `continuous` batching on a GPU, beside the bare pipeline, in one run.

The model has random weights and the size of Stable Diffusion 1.5 (512 x 512) or XL (1024 x 1024), in float16; 20 steps,
guidance 7.5. A service for each mode; while one is measured the others are idle. Closed-loop users each ask for their
next picture as soon as they have one, until the time is over; a latency is the HTTP client's. Utilisation and power are
means over samples that NVML is asked for ten times a second; memory is what the service itself tells of its processes.
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pynvml
import torch

from benchmarks import large
from benchmarks.bare import BareProcess, bare_process
from benchmarks.curve import Sample, Times
from benchmarks.harness import Service, ask, service
from benchmarks.report import Check
from benchmarks.told import Told
from benchmarks.traffic import MIXES, all_at_once
from observability.labels import Batching
from service.engine.torch_setup import describe_machine

SAMPLE_SECONDS = 0.1
WARM_SECONDS = 4.0  # a GPU loads the kernels of a batch size when it first meets it
BARE_BATCHES = (1, 2, 4, 8)
BARE_PICTURES = 16
CURVE_ROUNDS = 2
THROUGHPUT_BAR = 3.6
LATENCY_BAR = 0.25
BAR_USERS = 8
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Load:
    """How busy the GPU was, means: the share of time with a kernel, and watts."""

    utilization: float
    watts: float


@dataclass(frozen=True, slots=True)
class Case:
    """One mode under so many users for `seconds`; latencies in seconds, memory in bytes.

    `stages`: mean seconds of each stage and of a step, as the service tells them.
    """

    mode: str
    users: int
    seconds: float
    latencies: list[float]
    load: Load
    memory: float
    stages: dict[str, float]

    @property
    def rate(self) -> float:
        """Pictures a second."""
        return len(self.latencies) / self.seconds

    @property
    def p99(self) -> float:
        """Of the latencies; of few it lies between their longest two."""
        return float(np.percentile(self.latencies, 99))


@dataclass
class Results:
    """All that was measured. `bare`: pictures a second of the bare pipeline by batch size."""

    machine: str
    model: str
    slots: int = 0
    curve: list[Sample] = field(default_factory=list)
    bare: dict[int, float] = field(default_factory=dict)
    cases: list[Case] = field(default_factory=list)

    def case(self, mode: str, users: int) -> Case:
        """The measurement of that mode."""
        return next(each for each in self.cases if (each.mode, each.users) == (mode, users))

    def checks(self) -> list[Check]:
        """Every figure that has a bar."""
        ours, theirs = (self.case(mode, BAR_USERS) for mode in (Batching.CONTINUOUS, Batching.SEQUENTIAL))
        name = f"{BAR_USERS} users: continuous / sequential"
        return [
            Check(f"{name}, pictures a second", ours.rate / theirs.rate, THROUGHPUT_BAR),
            Check(f"{name}, p99", ours.p99 / theirs.p99, LATENCY_BAR, most=True),
        ]


class Watch:
    """Samples the first GPU in a thread while it is used as a context."""

    def __init__(self) -> None:
        self._gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
        self._utilization: list[float] = []
        self._watts: list[float] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self._utilization.append(pynvml.nvmlDeviceGetUtilizationRates(self._gpu).gpu / 100)
            self._watts.append(pynvml.nvmlDeviceGetPowerUsage(self._gpu) / 1e3)

    @property
    def load(self) -> Load:
        """What was seen."""
        return Load(statistics.mean(self._utilization), statistics.mean(self._watts))


def measure(mode: str, target: Service, users: int, seconds: float) -> Case:
    """`users` who ask for `seconds`, and the time until the last of them has a picture."""
    before = Told(target)
    requests = iter(all_at_once(MIXES["uniform"], 10_000, f"{mode} {users}"))
    began = time.perf_counter()

    def user(_number: int) -> list[float]:
        latencies = []
        while (asked := time.perf_counter()) - began < seconds:
            connection = target.connect()
            with contextlib.closing(connection):
                ask(connection, next(requests))
            latencies.append(time.perf_counter() - asked)
        return latencies

    with Watch() as watch, ThreadPoolExecutor(users) as pool:
        latencies = [each for done in pool.map(user, range(users)) for each in done]
        took = time.perf_counter() - began
    after = Told(target)
    return Case(mode, users, took, latencies, watch.load, after.own_memory, after.stages_since(before))


def run(arguments: argparse.Namespace, results: Results) -> Iterator[str]:
    """Measure everything; yield what came out as it comes."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()), arguments.model)
        yield from timed(f"{arguments.model} is written", lambda: large.save(arguments.model, folder, "cuda"))
        if not arguments.no_bare:
            with bare_process(str(folder), "cuda") as bare:
                yield from _bare(bare, results)
        settings = {"device": "cuda", "dtype": "auto", "queue_limit": 1000}
        services = {  # one after the other: each profiles itself
            mode: stack.enter_context(service(str(folder), {**settings, "batching": mode})) for mode in arguments.modes
        }
        if Batching.CONTINUOUS in services:
            results.slots = services[Batching.CONTINUOUS].slots()
            yield f"continuous: {results.slots} slots; {services[Batching.CONTINUOUS].get('/model').decode()}"
        for target in services.values():
            measure("warm", target, BAR_USERS, WARM_SECONDS)
        for users in arguments.users:
            for mode, target in services.items():
                case = measure(mode, target, users, arguments.seconds)
                results.cases.append(case)
                yield row(case)


def _bare(bare: BareProcess, results: Results) -> Iterator[str]:
    results.curve = bare.curve(CURVE_ROUNDS)
    yield Times(results.curve).table()
    for batch in BARE_BATCHES:
        bare.seconds(batch, batch, 2)
        results.bare[batch] = BARE_PICTURES / bare.seconds(batch, BARE_PICTURES, MIXES["uniform"].steps[0])
    yield "bare pipeline: " + ", ".join(f"batch {batch} {rate:.2f}/s" for batch, rate in results.bare.items())


def timed(what: str, work: Callable[[], object]) -> Iterator[str]:
    """Do it, and tell how long it took."""
    began = time.perf_counter()
    work()
    yield f"{what} ({time.perf_counter() - began:.0f} s)"


HEADER = "users  mode         pictures/s  median s   p99 s     n  GPU busy  watts     MiB"


def row(case: Case) -> str:
    """One line of the table."""
    median = statistics.median(case.latencies)
    figures = f"{case.rate:11.2f}{median:10.3f}{case.p99:8.3f}{len(case.latencies):6d}"
    load = f"{case.load.utilization:10.0%}{case.load.watts:7.0f}{case.memory / MIB:8.0f}"
    stages = ", ".join(f"{stage} {seconds * 1e3:.1f}" for stage, seconds in case.stages.items())
    return f"{case.users:5d}  {case.mode:<12}{figures}{load}   ms: {stages}"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", choices=sorted(large.MAKERS), default="sd15", help="size of the pipeline")
    parser.add_argument("--users", type=lambda text: [int(each) for each in text.split(",")], default=[8, 16])
    parser.add_argument(
        "--modes", type=lambda text: [Batching(each) for each in text.split(",")], default=list(Batching)
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="length of each measurement")
    parser.add_argument("--no-bare", action="store_true", help="leave the bare pipeline out")
    parser.add_argument("--json", type=Path, help="file for the results")
    return parser.parse_args()


def main() -> None:
    """Measure and report."""
    arguments = parse()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise SystemExit(f"no GPU can be used here: {error}") from error
    machine = f"{describe_machine(torch.device('cuda'))}, driver {pynvml.nvmlSystemGetDriverVersion()}"
    results = Results(machine, arguments.model)
    print(results.machine, file=sys.stderr)
    for told in run(arguments, results):
        print(told, file=sys.stderr, flush=True)
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(asdict(results), indent=1) + "\n")
    print("\n" + HEADER)
    for case in results.cases:
        print(row(case))
    if BAR_USERS in arguments.users and {Batching.CONTINUOUS, Batching.SEQUENTIAL} <= set(arguments.modes):
        for check in results.checks():
            print(check)


if __name__ == "__main__":
    main()
