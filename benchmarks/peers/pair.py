"""A peer and Safelight beside it, of whom only the one that is measured runs; and what it uses meanwhile."""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.bare import BareProcess
from benchmarks.harness import Service
from benchmarks.peers.catalogue import SAFELIGHT, Peer
from benchmarks.peers.load import Endpoint

MEMORY_SECONDS = 10.0  # a look walks through all pages of a process, which waits meanwhile
SETTLE_SECONDS = 0.1  # for what fell due while it was frozen


def endpoint(peer: Peer, target: Service) -> Endpoint:
    """Safelight as a peer."""
    return Endpoint(peer, target.host, target.port, target.pid)


def family(pid: int) -> list[psutil.Process]:
    """A process, all that it started, and whatever else is in its session, though its parent may have ended."""
    found = {}
    with contextlib.suppress(psutil.Error):
        first = psutil.Process(pid)
        found = {each.pid: each for each in (first, *first.children(recursive=True))}
    for other in psutil.pids():
        with contextlib.suppress(psutil.Error, OSError):
            if _session(other) == pid and other not in found:
                found[other] = psutil.Process(other)
    return list(found.values())


def _session(pid: int) -> int:
    """See proc(5): the fourth word after the name, which is in brackets and may have any."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[3])


def suspend(pid: int) -> None:
    """Stop a family where it is."""
    _each(pid, psutil.Process.suspend)


def resume(pid: int) -> None:
    """Let it go on."""
    _each(pid, psutil.Process.resume)


def _each(pid: int, do: Callable[[psutil.Process], None]) -> None:
    for each in family(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            do(each)


class Pair:
    """See the module's words. As long as it is entered, whoever is not in `only` is frozen."""

    def __init__(self, theirs: Endpoint, ours: Service, bare: BareProcess) -> None:
        self.name = theirs.peer.name
        self.ours = ours
        self.bare = bare
        self.endpoints = (theirs, endpoint(SAFELIGHT, ours))

    def __enter__(self) -> "Pair":
        for each in self.endpoints:
            suspend(each.pid)
        return self

    def __exit__(self, *_: object) -> None:
        for each in self.endpoints:
            resume(each.pid)

    @contextmanager
    def only(self, chosen: Endpoint) -> Iterator["Meter"]:
        """Let it alone run, and watch it."""
        resume(chosen.pid)
        try:
            time.sleep(SETTLE_SECONDS)
            with Meter(chosen.pid) as meter:
                yield meter
        finally:
            suspend(chosen.pid)


@dataclass(frozen=True, slots=True)
class Usage:
    """What processes have used so far: seconds of processor, and resident bytes at this moment."""

    cpu: float
    memory: int


def usage(pid: int) -> Usage:
    """Of a family. What its processes share, with each other or with anybody, counts once: that of whom shares most."""
    cpu, own, shared = 0.0, 0, [0]
    for process in family(pid):
        with contextlib.suppress(psutil.Error, OSError):
            times = process.cpu_times()
            cpu += times.user + times.system
            pages = _pages(process.pid)
            own += pages["Private_Clean"] + pages["Private_Dirty"]
            shared.append(pages["Shared_Clean"] + pages["Shared_Dirty"])
    return Usage(cpu, own + max(shared))


def _pages(pid: int) -> Counter[str]:
    """Resident bytes by their kind; none of a kernel's thread."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return Counter({name: int(size.split()[0]) * 1024 for name, size in (line.split(":") for line in lines)})


class Meter:
    """Seconds, seconds of processor and the most bytes of memory of a family while it is entered."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.seconds = self.cpu_seconds = 0.0
        self.memory = 0

    def __enter__(self) -> "Meter":
        self._used = usage(self._pid).cpu
        self._thread.start()
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._began
        self._ended.set()
        self._thread.join()
        last = usage(self._pid)
        self.cpu_seconds = last.cpu - self._used
        self.memory = max(self.memory, last.memory)

    def _watch(self) -> None:
        while not self._ended.wait(MEMORY_SECONDS):
            self.memory = max(self.memory, usage(self._pid).memory)
