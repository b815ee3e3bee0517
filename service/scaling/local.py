"""Workers as processes of this machine: started, started again when they die or hang, and drained."""

import asyncio
import ctypes
import http.client
import logging
import os
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum

from service.errors import StartupError
from service.settings import PREFIX, Settings

log = logging.getLogger("safelight.workers")

BACK_OFF_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)
WELL_SECONDS = 60.0  # one that lived for so long is started again at once
LOOK_SECONDS = 5.0
LEAVE_SECONDS = 15.0  # beyond the time for a drain
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # they are on this machine
PARENT = f"{PREFIX}PARENT"
PR_SET_PDEATHSIG = 1
NOT_THEIRS = {"host", "port", "metrics_port", "workers", "workers_local", "workers_schedule", "devices"}


def environment(settings: Settings, **more: str) -> dict[str, str]:
    """The process' own, with what was set on its command line, and `more`."""
    given = {name: getattr(settings, name) for name in settings.model_fields_set - NOT_THEIRS}
    theirs = {f"{PREFIX}{name.upper()}": _text(value) for name, value in given.items() if value is not None}
    without = {f"{PREFIX}{name.upper()}" for name in NOT_THEIRS}
    mine = {name: text for name, text in os.environ.items() if name not in without}
    return {**mine, **theirs, **more, PARENT: str(os.getpid())}


def tie_to_parent() -> None:
    """Be told to leave when the process is gone that keeps this one, if one does: none may stay and be doubled."""
    parent = os.environ.get(PARENT)
    if parent is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        sys.exit(1)


def _text(value: object) -> str:
    return str(value.value) if isinstance(value, Enum) else str(value)


def free_port() -> int:
    """One that nobody listens on just now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@dataclass(eq=False)
class Place:
    """Where a worker is kept running: its environment, and the port of its health."""

    name: str
    environment: Mapping[str, str]
    index: int
    process: asyncio.subprocess.Process | None = None
    leaves: asyncio.Event = field(default_factory=asyncio.Event)
    task: "asyncio.Task[None] | None" = None


class LocalWorkers:
    """Keeps as many workers as it is told to, each in a place of its own.

    Their metrics are on the ports from `first_port` on; without it, on any.
    """

    def __init__(self, settings: Settings, first_port: int | None = None) -> None:
        self._settings = settings
        self._first_port = first_port
        self._places: list[Place] = []
        self._leaving: set[asyncio.Task[None]] = set()
        self._number = 0

    @property
    def count(self) -> int:
        """Places."""
        return len(self._places)

    def add(self, **variables: str) -> None:
        """One more worker, with these variables in its environment."""
        self._number += 1
        place = Place(f"worker {self._number}", environment(self._settings, **variables), len(self._places))
        place.task = asyncio.create_task(self._keep(place))
        self._places.append(place)

    def set(self, count: int) -> None:
        """So many from now on; the newest leave first, and hand over what they have."""
        while len(self._places) < count:
            self.add()
        while len(self._places) > count:
            self._let_go(self._places.pop())

    async def stop(self) -> None:
        """None from now on; returns when all have ended."""
        self.set(0)
        await asyncio.gather(*self._leaving)

    def _let_go(self, place: Place) -> None:
        assert place.task is not None, "added"
        place.leaves.set()
        self._leaving.add(place.task)
        place.task.add_done_callback(self._leaving.discard)

    async def _keep(self, place: Place) -> None:
        failures = 0
        while not place.leaves.is_set():
            began = time.monotonic()
            await self._run(place)
            if place.leaves.is_set():
                return
            failures = 0 if time.monotonic() - began > WELL_SECONDS else failures + 1
            pause = BACK_OFF_SECONDS[min(failures, len(BACK_OFF_SECONDS)) - 1] if failures else 0.0
            log.error("%s has ended; another is started in %g s", place.name, pause)
            with suppress(TimeoutError):
                await asyncio.wait_for(place.leaves.wait(), pause)

    async def _run(self, place: Place) -> None:
        """One process, until it has ended by itself, hangs, or is to leave."""
        port = free_port() if self._first_port is None else self._first_port + place.index
        command = (sys.executable, "-m", "service", "worker", "--host", "127.0.0.1", "--metrics-port", str(port))
        try:  # in a session of its own: Ctrl-C is for its keeper, who lets it drain
            process = await asyncio.create_subprocess_exec(*command, env=place.environment, start_new_session=True)
        except OSError:
            log.exception("%s cannot be started", place.name)
            return
        place.process = process
        log.info("%s is process %d; its metrics are on port %d", place.name, process.pid, port)
        ended, leaves = asyncio.create_task(process.wait()), asyncio.create_task(place.leaves.wait())
        try:
            while not ended.done() and not leaves.done():
                await asyncio.wait({ended, leaves}, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if not ended.done() and await asyncio.to_thread(_hangs, port):
                    log.error("%s hangs and is killed", place.name)
                    process.kill()
                    await ended
            if not ended.done():
                await self._end(process, ended)
        finally:
            leaves.cancel()
            if process.returncode is None:
                process.kill()

    async def _end(self, process: asyncio.subprocess.Process, ended: "asyncio.Task[int]") -> None:
        process.terminate()
        _, late = await asyncio.wait({ended}, timeout=self._settings.drain_seconds + LEAVE_SECONDS)
        if late:
            process.kill()
            await ended


def _hangs(port: int) -> bool:
    """Whether the worker itself says that its engine was not heard of for too long."""
    try:
        OPENER.open(f"http://127.0.0.1:{port}/health/live", timeout=LOOK_SECONDS).close()
    except urllib.error.HTTPError as error:
        return error.code == 503
    except (OSError, http.client.HTTPException):
        return False  # it is not there yet, or is busy
    return False


async def keep(settings: Settings, devices: Sequence[str]) -> None:
    """A worker for each of these GPUs of this machine, until SIGTERM or SIGINT. Raises `StartupError`."""
    if settings.queue_url is None:
        raise StartupError("SAFELIGHT_QUEUE_URL: a worker needs a queue, such as redis://localhost:6379")
    workers = LocalWorkers(settings, settings.metrics_port or None)
    leave = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, leave.set)
    for device in devices:
        workers.add(CUDA_VISIBLE_DEVICES=device, CUDA_DEVICE_ORDER="PCI_BUS_ID")
    await leave.wait()
    await workers.stop()
