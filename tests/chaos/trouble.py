"""Jobs for a fleet whose workers and APIs are killed again and again, or told to leave, and what became of them.

Two APIs and three workers with the stand-in model, signed: no two runs of it draw the same picture. A real Redis and a
real PostgreSQL, each of which is killed and started again once.
"""

import math
import random
import re
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg

from tests.support.fleet import Fleet
from tests.support.postgresql import PostgresServer, postgresql
from tests.support.redis import redis
from tests.support.server import PATIENCE, Server

MODEL = "fake:?step_ms=50&signed=1"
APIS, WORKERS = 2, 3
TIMEOUT = 5.0
NAME = re.compile(r"this is worker ([0-9a-f]+)")
LOOK_SECONDS = 0.1
CLOSE_SECONDS = 0.5  # between kills, at least
GRACE_SECONDS = 10


@dataclass
class Outcome:
    """What was seen. `during`: how many were killed while jobs of a worker killed before were nobody's yet.
    `recoveries`: seconds from a worker's death, or its being told to leave, until each of its jobs was another's, or
    over. `unlucky`: why jobs did not complete. `statuses`: with which those ended that were told to leave.
    """

    jobs: int
    kills: Counter[str] = field(default_factory=Counter)
    during: int = 0
    retries: int = 0
    states: Counter[str] = field(default_factory=Counter)
    unlucky: list[str] = field(default_factory=list)
    recorded: int = 0
    changed: list[str] = field(default_factory=list)
    recoveries: list[float] = field(default_factory=list)
    left: dict[str, Any] = field(default_factory=dict)
    statuses: Counter[int] = field(default_factory=Counter)
    seconds: float = 0.0

    def __str__(self) -> str:
        """A table."""
        median, slowest = (statistics.median(self.recoveries), max(self.recoveries)) if self.recoveries else (0.0, 0.0)
        rows = {
            "jobs accepted": self.jobs,
            "jobs in the table": self.recorded,
            "ended": ", ".join(f"{count} {state}" for state, count in sorted(self.states.items())),
            "changed after their end": len(self.changed),
            "killed or told to leave": ", ".join(f"{count} {what}" for what, count in sorted(self.kills.items())),
            "of these during a recovery": self.during,
            "tries of clients beside the first": self.retries,
            "jobs of those workers": len(self.recoveries),
            "seconds until they ran again, median and most": f"{median:.1f}, {slowest:.1f}",
            "left in streams, entries, flights": ", ".join(map(str, self.left.values())),
            "seconds": f"{self.seconds:.0f}",
        }
        return "\n".join([*(f"{name:<48}{value}" for name, value in rows.items()), *self.unlucky])


class Trouble:
    """The fleet, its users, and who kills it."""

    def __init__(self, made: Fleet, database: PostgresServer, outcome: Outcome, seed: int) -> None:
        self._made = made
        self._database = database
        self._outcome = outcome
        self._random = random.Random(seed)
        self._apis: list[Server] = []
        self._workers: list[Server] = []
        self._lock = threading.Lock()
        self._watching: list[threading.Thread] = []

    def start(self) -> None:
        """All processes, ready."""
        self._apis = [self._api() for _ in range(APIS)]
        self._workers = [self._worker() for _ in range(WORKERS)]
        for each in (*self._workers, *self._apis):
            each.await_ready()

    def _api(self) -> Server:
        return self._made.api(database_url=self._database.url, queue_limit=10_000)

    def _worker(self) -> Server:
        return self._made.worker(database_url=self._database.url, drain_seconds=GRACE_SECONDS)

    # Users

    def ask(self, number: int) -> str:
        """Ask until the job is accepted; its id."""
        body = {"prompt": f"number {number}", "num_inference_steps": 40 + number % 60, "timeout_s": 3600}
        headers = {"Idempotency-Key": f"number-{number}"}
        answer = self._until(lambda url: httpx.post(f"{url}/generate", json=body, headers=headers, timeout=TIMEOUT))
        return str(answer.json()["job_id"])

    def await_end(self, job_id: str) -> tuple[str, bytes]:
        """Its state, and its picture if it has one."""
        give_up = time.monotonic() + PATIENCE
        while time.monotonic() < give_up:
            job = self._until(lambda url: httpx.get(f"{url}/jobs/{job_id}", timeout=TIMEOUT)).json()
            if job["status"] not in {"pending", "processing"}:
                return job["status"], self.picture(job_id) if job["status"] == "completed" else b""
            time.sleep(0.5)
        return "never", b""

    def picture(self, job_id: str) -> bytes:
        """As one of the APIs has it."""
        return self._until(lambda url: httpx.get(f"{url}/jobs/{job_id}/images/0", timeout=TIMEOUT)).content

    def _until(self, call: Callable[[str], httpx.Response]) -> httpx.Response:
        """Try one API after the other until one of them answers well. Raises `TimeoutError`."""
        give_up = time.monotonic() + PATIENCE
        while time.monotonic() < give_up:
            with self._lock:
                url = self._random.choice(self._apis).url
            try:
                answer = call(url)
                if answer.is_success:
                    return answer
            except httpx.TransportError:
                pass
            self._outcome.retries += 1
            time.sleep(0.2)
        raise TimeoutError(f"no API answered well within {PATIENCE:g} s")

    # Trouble

    def kill(self) -> None:
        """`kill -9` of one process, in whose place another starts."""
        with self._lock:
            is_worker = self._random.random() < WORKERS / (APIS + WORKERS)
            members, make = (self._workers, self._worker) if is_worker else (self._apis, self._api)
            place = self._random.randrange(len(members))
            dead = members[place]
        self._outcome.kills["worker" if is_worker else "API"] += 1
        held = self._held_by(dead) if is_worker else []
        dead.kill()
        self._watch(held)
        born = make()
        with self._lock:
            members[place] = born

    def send_away(self) -> None:
        """SIGTERM for a worker, in whose place another starts."""
        place = self._random.randrange(WORKERS)
        leaving = self._workers[place]
        self._outcome.kills["worker sent away"] += 1
        held = self._held_by(leaving)
        leaving.terminate()
        self._watch(held)
        self._workers[place] = self._worker()
        self._outcome.statuses[leaving.process.wait(PATIENCE)] += 1

    def _held_by(self, worker: Server) -> list[tuple[str, str]]:
        name = NAME.search(worker.log.read_text())
        return self._flights("WHERE worker = %s", name[1]) if name else []

    def _flights(self, where: str, *arguments: Any) -> list[tuple[str, str]]:
        url = self._database.url.replace("postgresql+psycopg", "postgresql")
        with psycopg.connect(url) as connection:
            return connection.execute(f"SELECT id, worker FROM flights {where}", arguments).fetchall()

    def _watch(self, held: list[tuple[str, str]]) -> None:
        """See when what a worker held is another's, in a thread."""
        self._outcome.during += any(each.is_alive() for each in self._watching)
        self._watching.append(threading.Thread(target=self._see, args=(dict(held), time.monotonic()), daemon=True))
        self._watching[-1].start()

    def _see(self, left: dict[str, str], since: float) -> None:
        while left:
            if time.monotonic() - since > PATIENCE:
                self._outcome.recoveries += [math.inf] * len(left)
                return
            time.sleep(LOOK_SECONDS)
            try:
                now = dict(self._flights("WHERE id = ANY(%s)", list(left)))
            except psycopg.OperationalError:
                continue  # it is its turn to be down
            for flight in [each for each, worker in left.items() if now.get(each) != worker]:
                self._outcome.recoveries.append(time.monotonic() - since)
                del left[flight]

    def restart_redis(self) -> None:
        """Kill it, and start it again."""
        self._outcome.kills["Redis"] += 1
        self._made.redis.kill()
        time.sleep(1.0)
        self._made.redis.start()

    def restart_database(self) -> None:
        """Kill it, and start it again."""
        self._outcome.kills["PostgreSQL"] += 1
        self._database.stop()
        time.sleep(1.0)
        self._database.start()

    # Afterwards

    def look(self) -> None:
        """What is left in queue and table."""
        for thread in self._watching:
            thread.join()
        cli = self._made.redis.cli
        give_up = time.monotonic() + 60
        while cli("hlen", "{safelight}:entries") != "0" and time.monotonic() < give_up:
            time.sleep(0.5)
        priorities = ("high", "normal", "low")
        self._outcome.left = {
            "streams": sum(int(cli("xlen", f"{{safelight}}:queue:{each}")) for each in priorities),
            "entries": int(cli("hlen", "{safelight}:entries")),
            "flights": len(self._flights("")),
        }
        url = self._database.url.replace("postgresql+psycopg", "postgresql")
        with psycopg.connect(url) as connection:
            rows = connection.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall()
            others = connection.execute("SELECT id, reason, detail FROM jobs WHERE state <> 'completed'").fetchall()
        self._outcome.states = Counter(dict(rows))
        self._outcome.unlucky = [f"{name}: {reason}, {detail}" for name, reason, detail in others]
        self._outcome.recorded = sum(self._outcome.states.values())


@contextmanager
def troubled(folder: Path, outcome: Outcome, seed: int) -> Iterator[Trouble]:
    """A fleet that is ready, until the block ends."""
    with ExitStack() as stack:
        database = stack.enter_context(postgresql())
        made = Fleet(folder / "data", stack.enter_context(redis(folder / "redis")), MODEL)
        stack.callback(made.end)
        trouble = Trouble(made, database, outcome, seed)
        trouble.start()
        yield trouble


def go_through(
    folder: Path, jobs: int, kills: int, every: float, tell: Callable[[str], None], seed: int = 0
) -> Outcome:
    """Ask for `jobs` while there are `kills`, one `every` so many seconds, each fifth close behind the one before."""

    def cause(trouble: Trouble, told: Callable[[str], None]) -> None:
        began = time.monotonic()
        for number in range(1, kills + 1):
            is_close_behind = number % 5 == 0
            due = began + ((number - 1) * every + CLOSE_SECONDS if is_close_behind else number * every)
            time.sleep(max(CLOSE_SECONDS, due - time.monotonic()))
            trouble.kill()
            if number == kills // 3:
                trouble.restart_redis()
            elif number == 2 * kills // 3:
                trouble.restart_database()
            told(f"{number} of {kills} killed")

    return _meanwhile(folder, jobs, kills * every, cause, tell, seed)


def send_away(folder: Path, jobs: int, times: int, every: float, tell: Callable[[str], None], seed: int = 0) -> Outcome:
    """Ask for `jobs` while workers are told to leave, so many times and one `every` so many seconds."""

    def cause(trouble: Trouble, told: Callable[[str], None]) -> None:
        for number in range(1, times + 1):
            time.sleep(every)
            trouble.send_away()
            told(f"{number} of {times} sent away")

    return _meanwhile(folder, jobs, times * every, cause, tell, seed)


def _meanwhile(
    folder: Path,
    jobs: int,
    seconds: float,
    cause: Callable[[Trouble, Callable[[str], None]], None],
    tell: Callable[[str], None],
    seed: int,
) -> Outcome:
    """Ask for `jobs` over so many seconds while `cause` does its work; see what became of them."""
    outcome = Outcome(jobs)
    with troubled(folder, outcome, seed) as trouble, ThreadPoolExecutor(32) as users:
        began = time.monotonic()

        def user(number: int) -> tuple[str, str, bytes]:
            time.sleep(max(0.0, began + number * seconds / jobs - time.monotonic()))
            job_id = trouble.ask(number)
            return (job_id, *trouble.await_end(job_id))

        asked = [users.submit(user, number) for number in range(jobs)]

        def told(what: str) -> None:
            done = sum(each.done() for each in asked)
            tell(f"{time.monotonic() - began:.0f} s: {what}, {done} of {jobs} jobs ended")

        cause(trouble, told)
        ends = [each.result() for each in asked]
        trouble.look()
        outcome.changed = [job for job, state, data in ends if state == "completed" and trouble.picture(job) != data]
        outcome.seconds = time.monotonic() - began
    return outcome
