"""What makes alerts fire. A cause is there while its block runs, and gone after it."""

import contextlib
import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import yaml

from observability.gameday.ground import Cause, Ground
from observability.gameday.traffic import SIZE, Body, send

READY_SECONDS = 120.0
WORD = "gameday"  # in the prompts that meet a fault
LONG = {"num_inference_steps": 100, "cache": False, **SIZE}
SIDES = range(64, 161, 8)  # of pictures, in pixels
NOWHERE = "http://127.0.0.1:9"  # nobody listens there


def together(*causes: Cause) -> Cause:
    """All of them, one after the other."""

    @contextmanager
    def cause(ground: Ground) -> Iterator[None]:
        with ExitStack() as stack:
            for each in causes:
                stack.enter_context(each(ground))
            yield

    return cause


def faults(text: str) -> Cause:
    """Faults of the engine, as `safelight serve --faults` names them."""

    @contextmanager
    def cause(ground: Ground) -> Iterator[None]:
        url = ground.stack.url("metrics", "/debug/faults")
        if send(url, text, "PUT") is None:
            raise RuntimeError(f"the API does not take the faults {text!r}")
        try:
            yield
        finally:
            send(url, "", "PUT")
            ground.stack.await_ready("api", READY_SECONDS)  # it may be loading a model anew

    return cause


def simulated(job: str, **values: float) -> Cause:
    """Values that a simulated exporter tells."""

    @contextmanager
    def cause(ground: Ground) -> Iterator[None]:
        url = ground.stack.url(job, "/faults")
        send(url, values, "PUT")
        try:
            yield
        finally:
            send(url, method="DELETE")

    return cause


def traffic(rate: float, body: Callable[[int], Body] | None = None) -> Cause:
    """Other users than usual, or none."""

    def cause(ground: Ground) -> AbstractContextManager[None]:
        return ground.traffic.instead(rate, body) if body else ground.traffic.instead(rate)

    return cause


def asked(count: int = 1, **body: Any) -> Cause:
    """So many jobs at once; what is left of them is called off in the end."""

    @contextmanager
    def cause(ground: Ground) -> Iterator[None]:
        jobs = [ground.traffic.ask(**{"prompt": f"{WORD} {number}", **body}) for number in range(count)]
        try:
            yield
        finally:
            for job in filter(None, jobs):
                send(ground.stack.url("api", f"/jobs/{job}"), method="DELETE")

    return cause


def repeated(action: Callable[[Ground, int], None], every: float) -> Cause:
    """`action` again and again, with the number of the time, with pauses of `every` seconds."""

    @contextmanager
    def cause(ground: Ground) -> Iterator[None]:
        stop = threading.Event()

        def go_on() -> None:
            for number in itertools.count():
                action(ground, number)
                if stop.wait(every):
                    return

        with ThreadPoolExecutor(1) as pool:
            going_on = pool.submit(go_on)
            try:
                yield
            finally:
                stop.set()
            going_on.result()  # raises what the action did

    return cause


def pausing(seconds: float) -> Callable[[Ground, int], None]:
    """The API's process stands still for a moment, as on a machine that has no processor for it."""

    def action(ground: Ground, _number: int) -> None:
        process = ground.stack.programs["api"].process
        if process is not None:
            os.kill(process.pid, signal.SIGSTOP)
            time.sleep(seconds)
            os.kill(process.pid, signal.SIGCONT)

    return action


def called_off(ground: Ground, number: int) -> None:
    """A batch of long jobs is called off once it is under way."""
    with asked(8, **LONG, seed=number)(ground):
        time.sleep(1.0)


def out_of_memory(ground: Ground, _number: int) -> None:
    """A batch does not fit into what memory the engine is left with, of a size of which it does not yet know that."""
    width, height = random.choice(SIDES), random.choice(SIDES)
    four = asked(1, num_images=4, num_inference_steps=4, cache=False, width=width, height=height)
    with together(faults("oom_above=2"), four)(ground):
        time.sleep(0.5)


def stopped(name: str, how: signal.Signals = signal.SIGKILL) -> Cause:
    """A program of the stack is ended, and started again afterwards."""

    @contextmanager
    def cause(ground: Ground) -> Iterator[None]:
        program = ground.stack.programs[name]
        program.stop(how)
        try:
            yield
        finally:
            program.start()
            ground.stack.await_ready(name, READY_SECONDS)

    return cause


def started_with(name: str, *arguments: str) -> Cause:
    """A program runs with more arguments than usual."""

    @contextmanager
    def cause(ground: Ground) -> Iterator[None]:
        program = ground.stack.programs[name]
        usual = program.command

        def restart(command: list[str]) -> None:
            program.stop()
            program.command = command
            program.start()
            ground.stack.await_ready(name)

        restart([*usual, *arguments])
        try:
            yield
        finally:
            restart(usual)

    return cause


@contextmanager
def draining(ground: Ground) -> Iterator[None]:
    """The API is told to stop while a job runs that takes longer than it may; in the end it is killed."""
    program = ground.stack.programs["api"]
    with faults("slow=1")(ground):
        ground.traffic.ask(prompt=WORD, **LONG)
        time.sleep(1.0)
        if program.process is not None:
            program.process.terminate()
        try:
            yield
        finally:
            program.stop(signal.SIGKILL)
            program.start()
            ground.stack.await_ready("api", READY_SECONDS)


@contextmanager
def crashed_once(ground: Ground) -> Iterator[None]:
    """The engine was lost over a long and urgent job, which therefore runs alone now, while all others wait."""
    url = ground.stack.url("metrics", "/debug/faults")
    with asked(1, **LONG, priority="high")(ground), faults(f"crash={WORD}")(ground):
        time.sleep(1.0)
        send(url, "slow=0.4", "PUT")
        with asked(8, **LONG)(ground):
            yield


@contextmanager
def no_traces(ground: Ground) -> Iterator[None]:
    """The store of traces is away."""
    ground.traces.stop()
    try:
        yield
    finally:
        ground.traces.start()


def configured(job: str, path: str, change: Callable[[str], str], works: bool = True) -> Cause:
    """Prometheus or Alertmanager reads another file, or cannot read it."""

    @contextmanager
    def cause(ground: Ground) -> Iterator[None]:
        file = ground.stack.folder / job / path
        before = file.read_text() if file.exists() else None
        file.write_text(change(before or ""))
        try:
            is_taken = send(ground.stack.url(job, "/-/reload"), method="POST") is not None
            if is_taken is not works:
                raise RuntimeError(f"{job} {'takes' if is_taken else 'does not take'} what was written into {path}")
            yield
        finally:
            if before is None:
                file.unlink()
            else:
                file.write_text(before)
            send(ground.stack.url(job, "/-/reload"), method="POST")

    return cause


def rule(expr: str) -> Callable[[str], str]:
    """A rule file with one rule."""
    text = yaml.safe_dump({"groups": [{"name": WORD, "rules": [{"record": f"{WORD}:wrong:rule", "expr": expr}]}]})
    return lambda _before: text


def unreachable(receiver: str) -> Callable[[str], str]:
    """Alertmanager's configuration with a webhook that leads nowhere."""

    def change(text: str) -> str:
        config = yaml.safe_load(text)
        for each in config["receivers"]:
            if each["name"] == receiver:
                each["webhook_configs"] = [{"url": NOWHERE}]
        return yaml.safe_dump(config, sort_keys=False)

    return change


def with_faults(job: str, every: float, values: Callable[[int], Mapping[str, float]]) -> Cause:
    """Values of a simulated exporter that change."""

    def action(ground: Ground, number: int) -> None:
        send(ground.stack.url(job, "/faults"), dict(values(number)), "PUT")

    @contextmanager
    def cause(ground: Ground) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            stack.callback(send, ground.stack.url(job, "/faults"), method="DELETE")
            stack.enter_context(repeated(action, every)(ground))
            yield

    return cause


def after(seconds: float, cause: Cause) -> Cause:
    """What was so for some time, and is no more."""

    @contextmanager
    def begin(ground: Ground) -> Iterator[None]:
        with cause(ground):
            time.sleep(seconds)
        yield

    return begin
