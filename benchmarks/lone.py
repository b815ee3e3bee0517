"""What the engine adds to a picture that it makes alone, and how soon a picture gets its first step.

Part `lone`: the engine's own loop, from the command to the PIL image, against a call of the bare pipeline with the
same parameters, in PyTorch's inference mode (raw) and as diffusers' users make it (plain); in changing order in one
process, with one copy of the weights, since luck with memory makes one copy faster than another; and that in several
launches. Part `admission`: seeded Poisson traffic below saturation; each picture's delay, from its command (or, if
later, from the end of the step after which a slot was free for it) to its first step, less the step that ran at that
time; less its own first step if none ran.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import permutations
from pathlib import Path
from queue import SimpleQueue
from statistics import mean, median
from typing import Any

import numpy as np

from benchmarks.bare import BarePipeline
from benchmarks.report import Check
from benchmarks.traffic import MIXES, Request, draw
from observability.events import BatchStepped, PictureAdmitted, StageFinished
from observability.labels import Priority, Reason, Stage
from service.engine.contract import (
    Cancel,
    Command,
    Finished,
    Happened,
    LoadFailed,
    Message,
    Ready,
    Stepped,
    Submit,
    TaskFailed,
)
from service.engine.faults import Faults
from service.engine.worker import Outgoing, load, serve
from service.settings import EngineSettings

LONE_BAR = 5.0  # milliseconds
ADMISSION_BAR = 0.005
RESAMPLES = 10_000
WAKE_SECONDS = 0.02
WARM = 2  # pictures before those that count
PARTS = ("lone", "admission")
STEP = "step"
ENGINE, RAW, PLAIN = "engine", "raw", "plain"


class Ears(Outgoing):
    """Hear each message when it is put, not when it leaves."""

    def put(self, message: Message) -> None:
        """And have it leave at once."""
        super().put(message)
        self.flush()


class InProcessEngine:
    """The loop of the engine process without the process: commands and messages are not sent through a pipe.

    `heard` are the messages with the monotonic time of each.
    """

    def __init__(self, model: str, data_dir: Path) -> None:
        self.heard: list[tuple[float, Message]] = []
        self._inbox: SimpleQueue[Command] = SimpleQueue()
        settings = EngineSettings(model=model, data_dir=data_dir, device="cpu", dtype="float32")
        outgoing = Ears(self._hear)
        began = time.monotonic()
        loaded = load(settings)
        self.pipe = loaded.pipe
        self._loop = serve(loaded, Faults(), settings, self._inbox, outgoing, began)
        outgoing.flush()
        ready = self.heard.pop()[1]
        assert isinstance(ready, Ready), ready
        self.ready = ready

    def _hear(self, messages: Sequence[Message]) -> None:
        for message in messages:
            if isinstance(message, TaskFailed | LoadFailed):
                raise SystemExit(message.detail)
            self.heard.append((time.monotonic(), message))
            if isinstance(message, Finished):  # a command soon, or an idle loop would wait for its next beat
                threading.Timer(WAKE_SECONDS, self._inbox.put, [Cancel(message.task_id, Reason.NONE)]).start()

    def submit(self, task_id: str, request: Request) -> None:
        """Ask for one picture; from any thread."""
        params = request.params(self.ready.info.default_size, self.ready.info.default_scheduler)
        submit = Submit(task_id, params, Priority.NORMAL, time.time(), arrived_at=time.monotonic())
        self._inbox.put(submit)

    def finish(self, count: int) -> None:
        """Turn until `count` more tasks are finished."""
        while count:
            seen = len(self.heard)
            self._loop.turn()
            count -= sum(isinstance(message, Finished) for _, message in self.heard[seen:])

    def image(self, request: Request) -> tuple[Any, float]:
        """The PIL image of one request that has the engine to itself, and the seconds from the command until then."""
        from PIL import Image

        began = time.monotonic()
        self.submit("lone", request)
        self.finish(1)
        at, finished = next((at, message) for at, message in self.heard if isinstance(message, Finished))
        self.heard.clear()
        told = time.monotonic()
        image = Image.fromarray(finished.pictures[0])
        return image, at - began + time.monotonic() - told


@dataclass(frozen=True, slots=True)
class Lone:
    """Seconds of all ways for the same pictures in one launch, and by how many 8-bit levels their pictures differ."""

    seconds: dict[str, list[float]]
    levels: int


def lone(model: str, data_dir: Path, pictures: int, steps: int, launch: int) -> Lone:
    """One launch: `pictures`, each made in all ways."""
    engine = InProcessEngine(model, data_dir)
    bare = BarePipeline(model, pipe=engine.pipe)

    ways: dict[str, Callable[[Request], tuple[Any, float]]] = {
        ENGINE: engine.image,
        RAW: bare.image,
        PLAIN: partial(bare.image, is_inference=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    levels = 0
    orders = list(permutations(ways))
    requests = draw(replace(MIXES["uniform"], steps=(steps,)), pictures + WARM, 1.0, f"lone {launch}")
    for number, request in enumerate(requests):
        images = []
        for name in orders[number % len(orders)]:
            image, taken = ways[name](request)
            images.append(np.asarray(image, dtype=np.int16))
            seconds[name].append(taken)
        levels = max(levels, int(np.ptp(images, axis=0).max()))
    return Lone({name: values[WARM:] for name, values in seconds.items()}, levels)


def report_lone(launches: Sequence[Lone]) -> list[Check]:
    """Print the part `lone`."""
    seconds = {name: [each for launch in launches for each in launch.seconds[name]] for name in launches[0].seconds}
    medians = ", ".join(f"{name} {median(values):.3f} s" for name, values in seconds.items())
    print(f"{len(seconds[ENGINE])} lone pictures in {len(launches)} launches, medians: {medians}")
    print(f"  the pictures differ by {max(each.levels for each in launches)} levels of 255")
    return [_added(launches, bare) for bare in (RAW, PLAIN)]


def _added(launches: Sequence[Lone], bare: str) -> Check:
    """What the engine adds to one kind of call."""
    by_launch = [np.subtract(each.seconds[ENGINE], each.seconds[bare]) * 1e3 for each in launches]
    differences = np.concatenate(by_launch)
    resampled = np.random.default_rng(0).choice(differences, (RESAMPLES, len(differences)))
    low, high = np.percentile(np.median(resampled, axis=1), (2.5, 97.5))
    middle = float(np.median(differences))
    print(f"  over {bare}: median difference {middle:+.1f} ms, 95 % interval {low:+.1f} to {high:+.1f} ms")
    print("    launch by launch: " + ", ".join(f"{np.median(each):+.1f}" for each in by_launch))
    return Check(f"milliseconds that the engine adds to a lone picture, over {bare}", middle, LONE_BAR, most=True)


@dataclass(frozen=True, slots=True)
class Activity:
    """What the engine did between two monotonic times; a step is one of `members`."""

    name: str
    began: float
    ended: float
    members: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Admission:
    """How long one picture waited for its first step, the step that this may take, and what the engine says it was.

    `during` is what the engine did when the picture came or, if later, when a slot became free for it.
    """

    delay: float
    step: float
    told: float
    during: str
    found_free: bool

    @property
    def excess(self) -> float:
        """Seconds beyond the step; below zero when it was admitted sooner."""
        return self.delay - self.step


def admission(engine: InProcessEngine, count: int, load: float) -> list[Admission]:
    """Serve `count` mixed requests; `load` is a share of what the engine's own profile says that it can do."""
    info, profile = engine.ready.info, engine.ready.profile
    size = info.default_size
    mix = MIXES["mixed"]
    drawn = [each.params(size, info.default_scheduler) for each in draw(mix, count, 1.0, "admission")]
    work = [
        each.num_inference_steps * profile.picture_step_seconds(size, info.rows(each)) + profile.beside_steps(size)
        for each in drawn
    ]
    requests = draw(mix, count, load / mean(work), "admission")
    commanded: dict[str, float] = {}

    def clients() -> None:
        origin = time.monotonic()
        for number, request in enumerate(requests):
            time.sleep(max(0.0, origin + request.at - time.monotonic()))
            commanded[str(number)] = time.monotonic()
            engine.submit(str(number), request)

    thread = threading.Thread(target=clients)
    thread.start()
    engine.finish(count)
    thread.join()
    return _admissions(engine.heard, commanded, profile.cap(size))


def _admissions(heard: Sequence[tuple[float, Message]], commanded: dict[str, float], slots: int) -> list[Admission]:
    """The engine tells of the pictures that join just before the step they join, in its order."""
    activities: list[Activity] = []
    told: list[float] = []
    found = []
    for at, message in heard:
        event = message.event if isinstance(message, Happened | Stepped) else None
        if isinstance(event, StageFinished) and event.stage is not Stage.DENOISE:
            activities.append(Activity(event.stage.value, at - event.seconds, at))
        elif isinstance(event, PictureAdmitted):
            told.append(event.seconds)
        elif isinstance(event, BatchStepped):
            activities.append(Activity(STEP, at - event.seconds, at, event.members))
            joined = [task_id for task_id, step in event.members if step == 0]
            for task_id, seconds in zip(joined, told, strict=True):
                found.append(_admission(commanded[task_id], activities, slots, seconds))
            told.clear()
    return found


def _admission(commanded: float, activities: Sequence[Activity], slots: int, told: float) -> Admission:
    """For a picture whose first step is the last of `activities`."""
    first, *before = [each for each in reversed(activities) if each.name == STEP]
    free_at = commanded
    if before and len(before[0].members) == slots:  # until then there was no place for it
        free_at = max(commanded, before[0].ended)
    during = next((each for each in reversed(activities) if each.began <= free_at <= each.ended), None)
    step = during if during is not None and during.name == STEP else first
    name = "nothing" if during is None else during.name
    return Admission(first.began - free_at, step.ended - step.began, told, name, free_at == commanded)


def report_admission(admissions: Sequence[Admission]) -> Check:
    """Print the part `admission`."""
    print(f"\nadmission of {len(admissions)} pictures (milliseconds)        median     p95     p99    most")
    free = [each for each in admissions if each.found_free]
    groups = {f"came while a slot was free, during {name}": name for name in sorted({each.during for each in free})}
    for what, during in groups.items():
        _table(what, [each for each in free if each.during == during])
    _table("waited for a slot", [each for each in admissions if not each.found_free])
    p99 = float(np.percentile([each.excess for each in free], 99))
    return Check("seconds of admission delay beyond one step while a slot is free, p99", p99, ADMISSION_BAR, most=True)


def _table(what: str, group: Sequence[Admission]) -> None:
    """Percentiles of the delays of `group`, if there is anybody in it."""
    print(f"  {len(group)} {what}")
    values = {
        "delay": [each.delay for each in group],
        "step": [each.step for each in group],
        "delay less step": [each.excess for each in group],
        "delay as the engine tells it": [each.told for each in group],
    }
    for name, seconds in values.items():
        if group:
            numbers = np.percentile(seconds, (50, 95, 99, 100)) * 1e3
            print(f"    {name:<36}" + "".join(f"{number:8.1f}" for number in numbers))


def main() -> None:
    """Parse the command line, measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", default="models/tiny", help="diffusers folder")
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(PARTS), help=f"of {','.join(PARTS)}")
    parser.add_argument("--launches", type=int, default=8, help="launches of the part `lone`")
    parser.add_argument("--pictures", type=int, default=12, help="lone pictures of each launch")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps of a lone picture")
    parser.add_argument("--requests", type=int, default=300, help="pictures whose admission is measured")
    parser.add_argument("--load", type=float, default=0.6, help="load of that, of the most that the profile allows")
    parser.add_argument("--json", type=Path, help="file to write the measurements to")
    arguments = parser.parse_args()
    kept: dict[str, Any] = {}
    checks: list[Check] = []
    with tempfile.TemporaryDirectory() as folder:
        data_dir = Path(folder)  # the engine keeps its profile there
        if "lone" in arguments.parts:
            launches = []
            for number in range(arguments.launches):
                with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
                    done = pool.submit(lone, arguments.model, data_dir, arguments.pictures, arguments.steps, number)
                    launches.append(done.result())
                print(f"{number + 1} of {arguments.launches} launches done", file=sys.stderr, flush=True)
            kept["lone"] = [asdict(each) for each in launches]
            checks += report_lone(launches)
        if "admission" in arguments.parts:
            admissions = admission(InProcessEngine(arguments.model, data_dir), arguments.requests, arguments.load)
            kept["admission"] = [asdict(each) for each in admissions]
            checks.append(report_admission(admissions))
    print()
    for check in checks:
        print(check)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
