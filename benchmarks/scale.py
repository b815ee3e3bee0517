"""How much a fleet carries beside the making of pictures: one API, one Redis, one PostgreSQL, workers with a stand-in.

The stand-in takes its time and no processor, so what is measured is the way there and back: accept, record, queue,
take, record, answer. First as much as goes (closed loop), then a steady share of that (open loop, from the moment a
request was due), both beside followers over WebSocket; then a thousand clients that wait at once. At last, how evenly
two workers with the embedded model share what there is.
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp
import httpx
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.report import Check
from observability.gameday.fleet import SERVERS, WORKERS, FleetStack

STEPS, STEP_MS = 4, 20
ENGINE_SECONDS = STEPS * STEP_MS / 1000
SLOTS = 64
MODEL = f"fake:?step_ms={STEP_MS}"
SHARE = 0.7
FOLLOWERS = 50
CROWD = 1000
IN_FLIGHT = 96  # of the closed loop
PATIENCE = aiohttp.ClientTimeout(total=180)
EMBEDDED = "models/tiny"
EVEN_JOBS, EVEN_CLIENTS, EVEN_STEPS = 64, 16, 8
BARS = {"rate": 150.0, "p99": 0.25, "share": 0.4}


class Fleet(FleetStack):
    """The processes that matter here."""

    def __init__(self, folder: Path, model: str, slots: int) -> None:
        self._model, self._slots = model, str(slots)
        super().__init__(folder, settings={"queue_limit": "10000"})

    def start(self) -> None:
        """Start them."""
        self.configure()
        self.programs = {name: self.programs[name] for name in (*WORKERS, "api", *SERVERS)}
        for names in (SERVERS, (*WORKERS, "api")):
            for name in names:
                self.programs[name].start()
            for name in names:
                self.await_ready(name)

    def _shared(self) -> dict[str, str]:
        images = {"SAFELIGHT_STORAGE_URL": str(self.folder / "images")}
        return super()._shared() | images | {"SAFELIGHT_MODEL": self._model}

    def _worker_settings(self, name: str) -> dict[str, str]:
        return dict(super()._worker_settings(name)) | {"SAFELIGHT_MAX_BATCH": self._slots}

    def completed(self, worker: str) -> float:
        """Jobs that it has completed."""
        text = httpx.get(self.url(worker, "/metrics")).text
        samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
        name, outcome = "safelight_requests_total", "completed"
        return sum(each.value for each in samples if each.name == name and each.labels["outcome"] == outcome)


@dataclass(frozen=True, slots=True)
class Figures:
    """Requests answered a second, errors, and seconds beside the engine's own."""

    requests: int
    errors: int
    rate: float
    median: float
    p95: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float], errors: int, took: float) -> "Figures":
        """The figures of answers, by their seconds since they were due."""
        beside = np.asarray(seconds) - ENGINE_SECONDS
        median, p95, p99 = np.percentile(beside if len(seconds) else [np.nan], (50, 95, 99))
        return cls(len(seconds) + errors, errors, len(seconds) / took, float(median), float(p95), float(p99))

    def __str__(self) -> str:
        """One line."""
        times = f"median {self.median * 1000:.0f}, p95 {self.p95 * 1000:.0f}, p99 {self.p99 * 1000:.0f} ms"
        counts = f"{self.requests} requests, {self.errors} errors, {self.rate:.1f}/s"
        return f"{counts}; beside the engine's own time: {times}"


class Users:
    """Ask for pictures and wait for them."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url
        self._number = 0
        self.seconds: list[float] = []
        self.errors = 0

    async def ask(self, due: float, steps: int = STEPS) -> None:
        """One request, counted from when it was due."""
        self._number += 1
        body = {"prompt": f"number {self._number}", "num_inference_steps": steps, "cache": False}
        try:
            async with self._session.post(f"{self._url}/generate?wait=120", json=body) as answer:
                job = await answer.json()
                if answer.status == 200 and job["status"] == "completed":
                    self.seconds.append(time.perf_counter() - due)
                    return
        except (aiohttp.ClientError, TimeoutError):
            pass
        self.errors += 1

    async def follow(self, stop: asyncio.Event) -> None:
        """Follow one slow job after the other over WebSocket."""
        while not stop.is_set():
            body = {"prompt": "followed", "num_inference_steps": 100, "cache": False}
            try:
                async with self._session.post(f"{self._url}/generate", json=body) as answer:
                    job_id = (await answer.json())["job_id"]
                async with self._session.ws_connect(f"{self._url}/ws/jobs/{job_id}") as socket:
                    async for _ in socket:
                        pass
            except (aiohttp.ClientError, KeyError):
                await asyncio.sleep(0.1)


async def closed(session: aiohttp.ClientSession, url: str, seconds: float) -> Figures:
    """As much as goes."""
    users, began = Users(session, url), time.perf_counter()

    async def go_on() -> None:
        while time.perf_counter() - began < seconds:
            await users.ask(time.perf_counter())

    await asyncio.gather(*(go_on() for _ in range(IN_FLIGHT)))
    return Figures.of(users.seconds, users.errors, time.perf_counter() - began)


@asynccontextmanager
async def followed(session: aiohttp.ClientSession, url: str) -> AsyncIterator[None]:
    """Meanwhile there are followers."""
    followers, stop = Users(session, url), asyncio.Event()
    following = [asyncio.create_task(followers.follow(stop)) for _ in range(FOLLOWERS)]
    try:
        yield
    finally:
        stop.set()
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)


async def opened(session: aiohttp.ClientSession, url: str, rate: float, seconds: float, seed: int) -> Figures:
    """A seeded Poisson process."""
    users = Users(session, url)
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(rate * seconds))
    began = time.perf_counter()
    asked = []
    for at in np.cumsum(gaps):
        await asyncio.sleep(began + at - time.perf_counter())
        asked.append(asyncio.create_task(users.ask(began + at)))
    await asyncio.gather(*asked)
    return Figures.of(users.seconds, users.errors, time.perf_counter() - began)


async def crowd(session: aiohttp.ClientSession, url: str) -> Figures:
    """A thousand at once, each of whom waits."""
    users, began = Users(session, url), time.perf_counter()
    await asyncio.gather(*(users.ask(began) for _ in range(CROWD)))
    return Figures.of(users.seconds, users.errors, time.perf_counter() - began)


async def even(url: str) -> None:
    """Clients of whom each asks again as soon as it has an answer."""
    async with aiohttp.ClientSession(timeout=PATIENCE) as session:
        users = Users(session, url)

        async def client() -> None:
            for _ in range(EVEN_JOBS // EVEN_CLIENTS):
                await users.ask(time.perf_counter(), EVEN_STEPS)

        await asyncio.gather(*(client() for _ in range(EVEN_CLIENTS)))
        if users.errors:
            raise SystemExit(f"{users.errors} of {EVEN_JOBS} jobs failed")


async def measure(url: str, seconds: float, seed: int) -> dict[str, Figures]:
    """What the stand-in is for."""
    connector, found = aiohttp.TCPConnector(limit=0), {}
    async with aiohttp.ClientSession(connector=connector, timeout=PATIENCE) as session:
        await closed(session, url, 5.0)  # connections, caches
        async with followed(session, url):
            name = f"as much as goes, with {FOLLOWERS} followers"
            found[name] = most = await closed(session, url, seconds)
            print(f"{name}: {most}", flush=True)
            name = f"{SHARE:.0%} of that, with {FOLLOWERS} followers"
            found[name] = await opened(session, url, SHARE * most.rate, seconds, seed)
            print(f"{name}: {found[name]}", flush=True)
        name = f"{CROWD} at once"
        found[name] = await crowd(session, url)
        print(f"{name}: {found[name]}", flush=True)
    return found


def main() -> None:
    """Parse the command line, measure, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each of the first two parts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-even", action="store_true", help="leave the embedded model out")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    with running(MODEL, SLOTS) as fleet:
        found = asyncio.run(measure(fleet.url("api"), arguments.seconds, arguments.seed))
    shares = []
    if not arguments.no_even:
        with running(EMBEDDED, slots=8) as fleet:
            asyncio.run(even(fleet.url("api")))
            completed = [fleet.completed(worker) for worker in WORKERS]
        shares = [each / sum(completed) for each in completed]
        print(f"of {EVEN_JOBS} pictures of the embedded model, workers made {completed}")
    most, steady, crowded = found.values()
    for check in (
        Check("jobs/s at 70 % of what goes", most.rate * SHARE, BARS["rate"]),
        Check("seconds beside the engine at that rate, p99", steady.p99, BARS["p99"], most=True),
        Check(f"errors among {CROWD} at once", crowded.errors, 0, most=True),
        *(Check("share of one of two workers", share, BARS["share"]) for share in shares),
    ):
        print(check)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({name: asdict(each) for name, each in found.items()}, indent=1) + "\n")


@contextmanager
def running(model: str, slots: int) -> Iterator[Fleet]:
    """The fleet, ready, until the block ends."""
    with tempfile.TemporaryDirectory(prefix="safelight-scale-") as folder:
        fleet = Fleet(Path(folder), model, slots)
        try:
            fleet.start()
            yield fleet
        finally:
            fleet.stop()


if __name__ == "__main__":
    main()
