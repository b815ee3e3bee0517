"""How much a fleet carries beside the making of pictures: one API, one Redis, one PostgreSQL, workers with a stand-in.

The stand-in takes its time and no processor, so what is measured is the way there and back: accept, record, queue,
take, record, answer. First as much as goes (closed loop), then a steady share of that (open loop, from the moment a
request was due), with followers over WebSocket; then a thousand clients that wait at once.
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp
import numpy as np

from observability.gameday.fleet import SERVERS, WORKERS, FleetStack

STEPS, STEP_MS = 4, 20
ENGINE_SECONDS = STEPS * STEP_MS / 1000
SLOTS = 64
MODEL = f"fake:?step_ms={STEP_MS}"
SHARE = 0.7
FOLLOWERS = 50
CROWD = 1000
IN_FLIGHT = 96  # of the closed loop
BARS = {"rate": 150.0, "p99": 0.25}


class Fleet(FleetStack):
    """The processes that matter here."""

    used = (*SERVERS, *WORKERS, "api")

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
        return super()._shared() | images | {"SAFELIGHT_MODEL": MODEL, "SAFELIGHT_MAX_BATCH": str(SLOTS)}

    def _worker_settings(self, name: str) -> dict[str, str]:
        return dict(super()._worker_settings(name)) | {"SAFELIGHT_MAX_BATCH": str(SLOTS)}


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

    async def ask(self, due: float) -> None:
        """One request, counted from when it was due."""
        self._number += 1
        body = {"prompt": f"number {self._number}", "num_inference_steps": STEPS, "cache": False}
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


async def opened(session: aiohttp.ClientSession, url: str, rate: float, seconds: float, seed: int) -> Figures:
    """A seeded Poisson process; followers beside it."""
    users, followers, stop = Users(session, url), Users(session, url), asyncio.Event()
    following = [asyncio.create_task(followers.follow(stop)) for _ in range(FOLLOWERS)]
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(rate * seconds))
    began = time.perf_counter()
    asked = []
    for at in np.cumsum(gaps):
        await asyncio.sleep(began + at - time.perf_counter())
        asked.append(asyncio.create_task(users.ask(began + at)))
    await asyncio.gather(*asked)
    took = time.perf_counter() - began
    stop.set()
    for task in following:
        task.cancel()
    await asyncio.gather(*following, return_exceptions=True)
    return Figures.of(users.seconds, users.errors, took)


async def crowd(session: aiohttp.ClientSession, url: str) -> Figures:
    """A thousand at once, each of whom waits."""
    users, began = Users(session, url), time.perf_counter()
    await asyncio.gather(*(users.ask(began) for _ in range(CROWD)))
    return Figures.of(users.seconds, users.errors, time.perf_counter() - began)


async def measure(url: str, seconds: float, seed: int) -> dict[str, Figures]:
    """All three."""
    connector, patience = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=180)
    found = {}
    async with aiohttp.ClientSession(connector=connector, timeout=patience) as session:
        await closed(session, url, 5.0)  # connections, caches
        found["as much as goes"] = most = await closed(session, url, seconds)
        print(f"as much as goes: {most}", flush=True)
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
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="safelight-scale-") as folder:
        fleet = Fleet(Path(folder), settings={"queue_limit": "10000"})
        try:
            fleet.start()
            found = asyncio.run(measure(fleet.url("api"), arguments.seconds, arguments.seed))
        finally:
            fleet.stop()
    most, steady, _ = found.values()
    print(f"{'ok' if most.rate * SHARE >= BARS['rate'] else 'MISSED'}: {most.rate * SHARE:.0f} jobs/s (at least 150)")
    print(f"{'ok' if steady.p99 <= BARS['p99'] else 'MISSED'}: p99 {steady.p99:.3f} s beside the engine (at most 0.25)")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({name: asdict(each) for name, each in found.items()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
