"""What only Safelight is asked for: pictures of many sizes, the same requests again, a crowd, and clients that leave.

Each workload has a service of its own, and returns its figures by name.
"""

import asyncio
import contextlib
import http.client
import itertools
import json
import multiprocessing
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from benchmarks.bare import bare_process
from benchmarks.harness import PNG, Service, service
from benchmarks.peers.colours import CHECKED, right_colour
from benchmarks.peers.pair import Meter
from benchmarks.peers.results import Measured
from benchmarks.told import Told
from benchmarks.traffic import MIXES, Request, all_at_once, draw

Figures = dict[str, float]
Asked = Mapping[str, Any]  # the body of a request

SIZED_PICTURES, SIZED_CLIENTS = 96, 16
FAVOURITES, REPEATED, REPEATED_STEPS, REPEAT_CLIENTS, HIT_SECONDS = 100, 400, 20, 8, 10.0
ZIPF = 1.1
CROWD, HEALTH_SECONDS = 1000, 0.05
STORM, STORM_STEPS, PATIENCE = 64, 50, 3.0
MIB, GIB = 2.0**20, 2.0**30
HEADERS = {"Content-Type": "application/json", "Accept": "image/png"}


@dataclass
class Answers:
    """The seconds of each, and of a share of them what was asked for and the picture."""

    latencies: list[float] = field(default_factory=list)
    seen: list[tuple[Asked, bytes]] = field(default_factory=list)

    def ask(self, connection: http.client.HTTPConnection, asked: Asked, is_looked_at: bool) -> None:
        """Wait for one picture; anything else ends the workload."""
        began = time.perf_counter()
        connection.request("POST", "/generate", json.dumps(asked), HEADERS)
        answer = connection.getresponse()
        picture = answer.read()
        if not picture.startswith(PNG):
            raise SystemExit(f"the service answered {answer.status}: {picture[:500]!r}")
        self.latencies.append(time.perf_counter() - began)
        if is_looked_at:
            self.seen.append((asked, picture))

    def figures(self, meter: Meter, wrong: int) -> Figures:
        """Of all of them, of whom so many were `wrong`."""
        measured = Measured("", "", "", meter.seconds, self.latencies, {})
        told = {name: measured.figure(name) for name in ("throughput", "p50", "p90", "p95", "p99")}
        return {
            "requests": measured.requests,
            "mean": float(np.mean(self.latencies)),
            **{name: value for name, value in told.items() if value is not None},
            "cores": meter.cpu_seconds / meter.seconds,
            "memory_mib": meter.memory / MIB,
            "looked_at": len(self.seen),
            "wrong": wrong,
        }

    def wrong(self, model: str) -> int:
        """Pictures whose background is not the one that the prompt asks for, though the bare pipeline's own is."""
        doubtful = [asked for asked, picture in self.seen if not right_colour(picture, asked["prompt"])]
        if not doubtful:
            return 0
        with bare_process(model) as bare:
            return sum(right_colour(bare.png(_request(each), _size(each)), each["prompt"]) for each in doubtful)


def _request(asked: Asked) -> Request:
    return Request(0.0, asked["prompt"], asked["seed"], asked["num_inference_steps"], asked["guidance_scale"])


def _size(asked: Asked) -> dict[str, int]:
    return {name: asked[name] for name in ("width", "height") if name in asked}


def sizes(model: str) -> Figures:
    """Closed-loop clients who each ask for one of four sizes, all alike otherwise."""
    with service(model, {}) as target:
        known = target.get_json("/model")
        own, least, most = known["default_width"], known["min_size"], known["max_size"]
        each = itertools.cycle([(own, own), (least, least), (own, most), (least, own)])
        requests = all_at_once(MIXES["uniform"], SIZED_PICTURES, "sizes")
        bodies = [
            request.body() | {"width": width, "height": height}
            for request, (width, height) in zip(requests, each, strict=False)
        ]
        with Meter(target.pid) as meter:
            answers = _many(target, bodies, SIZED_CLIENTS)
    return answers.figures(meter, answers.wrong(model))


def repeat(model: str) -> Figures:
    """Clients whose prompts are as popular as Zipf says: first the work that the cache saves, then how fast it answers.

    For the second the API has one core, and the clients another. Its engine has nothing to do then. Each favourite's
    picture is looked at, and a share of the hits is held against them byte by byte.
    """
    source = random.Random(0)
    favourites = [
        replace(each, steps=REPEATED_STEPS).body() | {"cache": True}
        for each in draw(MIXES["uniform"], FAVOURITES, 1.0, "favourites")
    ]
    weights = [1 / rank**ZIPF for rank in range(1, FAVOURITES + 1)]
    distinct = sum(1 - (1 - weight / sum(weights)) ** REPEATED for weight in weights)  # expected
    with service(model, {}) as target:
        before = Told(target)
        _many(target, source.choices(favourites, weights, k=REPEATED), REPEAT_CLIENTS)
        made = (Told(target).total("safelight_steps_total") - before.total("safelight_steps_total")) / REPEATED_STEPS
        first = _many(target, favourites, REPEAT_CLIENTS, looked_at=1)
        pictures = {each["prompt"]: picture for each, picture in first.seen}
        before = Told(target)
        cores = os.sched_getaffinity(0)
        if len(cores) < 2:
            raise RuntimeError("one core for the service and one for its clients are needed")
        ours, theirs, *_ = sorted(cores)
        for thread in Path(f"/proc/{target.pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {ours})
        os.sched_setaffinity(0, {theirs})
        try:
            asked = iter(lambda: source.choices(favourites, weights)[0], None)
            with Meter(target.pid) as meter:
                until = time.perf_counter() + HIT_SECONDS
                hits = _many(target, asked, REPEAT_CLIENTS, lambda: time.perf_counter() > until)
        finally:
            os.sched_setaffinity(0, cores)
        if Told(target).total("safelight_steps_total") != before.total("safelight_steps_total"):
            raise RuntimeError("pictures were made anew that the cache should have had")
    saved, predicted = 1 - made / REPEATED, 1 - distinct / REPEATED
    wrong = first.wrong(model) + sum(picture != pictures[each["prompt"]] for each, picture in hits.seen)
    return hits.figures(meter, wrong) | {"saved": saved, "zipf": predicted, "saved_over_zipf": saved / predicted}


def _many(
    target: Service,
    bodies: Iterable[Asked],
    clients: int,
    is_over: Callable[[], bool] = lambda: False,
    looked_at: int = CHECKED,
) -> Answers:
    """Ask for all from so many clients, each over a connection that is kept; of `looked_at` answers one is kept."""
    left, lock = iter(enumerate(bodies)), threading.Lock()
    found = Answers()

    def client(_number: int) -> None:
        with contextlib.closing(target.connect()) as connection:
            while not is_over():
                with lock:
                    number, body = next(left, (0, None))
                if body is None:
                    break
                found.ask(connection, body, is_looked_at=number % looked_at == 0)

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, range(clients)))
    return found


def crowd(model: str) -> Figures:
    """A thousand clients at once, short pictures, half may wait; and somebody who asks for the API's health."""
    with service(model, {"queue_limit": CROWD // 2}) as target:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        doctor = context.Process(target=_ask_for_health, args=(target, theirs), daemon=True)
        doctor.start()
        ours.recv()  # it is there
        with Meter(target.pid) as meter:
            counts, answers = asyncio.run(_crowd(target))
        ours.send("enough")
        health = ours.recv()
        doctor.join()
    refused, completed = counts.pop(429, 0), counts.pop(200, 0)
    asked = Measured("", "", "", meter.seconds, [each for each in health if each is not None], {})
    p99 = asked.figure("p99")
    return answers.figures(meter, answers.wrong(model)) | {
        "requests": CROWD,
        "completed": completed,
        "refused": refused,
        "failures": sum(counts.values()) + health.count(None),
        "health_checks": len(health),
        **({} if p99 is None else {"health_p99": p99}),
        "memory_gib": meter.memory / GIB,
    }


async def _crowd(target: Service) -> tuple[Counter[int], Answers]:
    """How many were answered with which status, and those with a picture."""
    url = f"http://{target.host}:{target.port}"
    found = Answers()
    bodies = [replace(each, steps=4).body() for each in draw(MIXES["uniform"], CROWD, 1.0, "crowd")]
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:

        async def client(number: int, body: Asked) -> int:
            began = time.perf_counter()
            try:
                async with session.post(f"{url}/generate", json=body, headers=HEADERS) as answer:
                    picture = await answer.read()
            except (aiohttp.ClientError, TimeoutError):
                return 0
            if answer.status != 200:
                return answer.status
            if not picture.startswith(PNG):
                return -1
            found.latencies.append(time.perf_counter() - began)
            if number % CHECKED == 0:
                found.seen.append((body, picture))
            return 200

        return Counter(await asyncio.gather(*itertools.starmap(client, enumerate(bodies)))), found


def _ask_for_health(target: Service, connection: "Connection[object, object]") -> None:
    """At fixed times, counted from then; send the seconds, None for a failure."""
    asked = []
    with ThreadPoolExecutor(64) as pool:
        connection.send("ready")
        due = time.perf_counter()
        while not connection.poll():
            asked.append(pool.submit(_health, target, due))
            due += HEALTH_SECONDS
            time.sleep(max(0.0, due - time.perf_counter()))
    connection.send([each.result() for each in asked])


def _health(target: Service, due: float) -> float | None:
    try:
        target.get("/health/live")
    except (OSError, RuntimeError):
        return None
    return time.perf_counter() - due


def aborts(model: str) -> Figures:
    """Clients who ask for many steps, and of whom every second one hangs up early: steps that are not run in vain."""
    requests = [replace(each, steps=STORM_STEPS) for each in draw(MIXES["uniform"], STORM, 1.0, "storm")]
    source = random.Random(0)
    patience = [source.uniform(0.05, PATIENCE) if number % 2 else None for number in range(STORM)]
    answers = Answers()
    with service(model, {}) as target:

        def client(number: int) -> bool:
            request, seconds = requests[number], patience[number]
            with contextlib.closing(target.connect()) as connection:
                if seconds is None:
                    answers.ask(connection, request.body(), is_looked_at=number % CHECKED == 0)
                    return False
                return _leave(connection, request, seconds)

        with Meter(target.pid) as meter, ThreadPoolExecutor(STORM) as pool:
            left = sum(pool.map(client, range(STORM)))
        told = Told(target)
    cancelled = told.total("safelight_requests_total", outcome="cancelled", reason="disconnected")
    if cancelled != left:
        raise RuntimeError(f"{left} clients left, and the service tells of {cancelled:g}")
    run = told.total("safelight_steps_total")
    in_vain = run - (STORM - left) * STORM_STEPS
    not_run = 1 - in_vain / (left * STORM_STEPS)
    storm = {"requests": STORM, "left": left, "steps": run, "steps_in_vain": in_vain, "not_run": not_run}
    return answers.figures(meter, answers.wrong(model)) | storm


def _leave(connection: http.client.HTTPConnection, request: Request, seconds: float) -> bool:
    """Hang up after so long; whether there was no answer until then."""
    connection.request("POST", "/generate", json.dumps(request.body()), HEADERS)
    assert connection.sock is not None, "connected"
    connection.sock.settimeout(seconds)
    try:
        connection.getresponse().read()
    except TimeoutError:
        return True
    return False


WORKLOADS: Mapping[str, Callable[[str], Figures]] = {
    "sizes": sizes,
    "repeat": repeat,
    "crowd": crowd,
    "aborts": aborts,
}
