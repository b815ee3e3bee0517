"""Clients of every kind, for the soak: they wait, go away, cancel, ask for too much, or for what must fail."""

import http.client
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from benchmarks.harness import Service
from benchmarks.traffic import COLOURS, THINGS

POISON = "poison"
FAMILIAR = 5  # requests that come again and again, and may be answered from the cache
REFUSED = {429, 503}
BY_STATUS = {200: "completed", 500: "failed", 409: "cancelled", 504: "expired"}  # of an answer that is a picture
TERMINAL = frozenset(BY_STATUS.values())


class Manner(StrEnum):
    """What a client does after asking."""

    GOES_ON = "goes_on"  # takes the id and never asks again
    WAITS = "waits"
    WANTS_BYTES = "wants_bytes"  # waits for the picture itself
    LEAVES = "leaves"  # waits, and hangs up
    CANCELS = "cancels"


MANNERS = {
    Manner.GOES_ON: 0.4,
    Manner.WAITS: 0.2,
    Manner.WANTS_BYTES: 0.2,
    Manner.LEAVES: 0.1,
    Manner.CANCELS: 0.1,
}


@dataclass(frozen=True, slots=True)
class Visit:
    """One client: what it asks for, what it does then, and after how many seconds it hangs up or cancels."""

    body: dict[str, str | int | float | bool]
    manner: Manner
    patience: float


@dataclass
class Ledger:
    """What the clients were told. `seen` are the ids of accepted jobs, with a terminal status once one was seen."""

    seen: dict[str, str | None] = field(default_factory=dict)
    answers: Counter[int] = field(default_factory=Counter)
    hung_up: int = 0
    surprises: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, status: int, job_id: str | None, terminal: str | None) -> None:
        """An answer to a request for pictures."""
        with self._lock:
            self.answers[status] += 1
            if job_id is not None:
                self.seen[job_id] = terminal
            elif status not in REFUSED:
                self.surprises.append(f"an answer {status} without a job")

    def left(self) -> None:
        """A client hung up before it was answered."""
        with self._lock:
            self.hung_up += 1

    def surprise(self, what: str) -> None:
        """Something that should not happen."""
        with self._lock:
            self.surprises.append(what)


def visits(model: Mapping[str, Any], seed: int) -> Iterator[Visit]:
    """Clients without end, for the model as `GET /model` describes it."""
    source = random.Random(seed)
    own, least, most = model["default_width"], model["min_size"], model["max_size"]
    sizes = [*[(own, own)] * 6, (least, least), (most, most), (own, most), (least, own)]
    familiar = [_body(source, model, sizes) | {"cache": True, "num_images": 1} for _ in range(FAMILIAR)]
    while True:
        body = source.choice(familiar) if source.random() < 0.1 else _body(source, model, sizes)
        manner = source.choices(list(MANNERS), list(MANNERS.values()))[0]
        if manner is Manner.WANTS_BYTES:
            body = body | {"num_images": 1}
        yield Visit(body, manner, source.uniform(0.05, 10.0))


def _body(
    source: random.Random, model: Mapping[str, Any], sizes: list[tuple[int, int]]
) -> dict[str, str | int | float | bool]:
    width, height = source.choice(sizes)
    prompt = f"a {source.choice(THINGS)} on a {source.choice(COLOURS)} background"
    return {
        "prompt": f"{prompt}, {POISON}" if source.random() < 0.03 else prompt,
        "negative_prompt": "blurred" if source.random() < 0.2 else "",
        "num_inference_steps": source.choice((4, 8, 20, 50)),
        "guidance_scale": source.choice((1.0, 4.0, 7.5)),
        "width": width,
        "height": height,
        "seed": source.randrange(1 << 31),
        "num_images": source.choice((1, 1, 1, 1, 2, 3)),
        "scheduler": source.choice(model["schedulers"]),
        "priority": source.choice(("high", "normal", "normal", "normal", "low")),
        "timeout_s": source.uniform(1.0, 40.0) if source.random() < 0.1 else 3600.0,
        "cache": False,
    }


def come(target: Service, visit: Visit, ledger: Ledger) -> None:
    """Be that client, up to its end."""
    connection = target.connect()
    try:
        _ask(connection, visit, ledger)
    except (OSError, http.client.HTTPException) as error:
        if visit.manner is Manner.LEAVES and isinstance(error, TimeoutError):
            ledger.left()
        else:
            ledger.surprise(f"{type(error).__name__} for a client that {visit.manner.value}")
    finally:
        connection.close()


def _ask(connection: http.client.HTTPConnection, visit: Visit, ledger: Ledger) -> None:
    wants_bytes = visit.manner is Manner.WANTS_BYTES
    headers = {"Content-Type": "application/json", "Accept": "image/png" if wants_bytes else "application/json"}
    waits = visit.manner in {Manner.WAITS, Manner.LEAVES}
    connection.request("POST", "/generate?wait=600" if waits else "/generate", json.dumps(visit.body), headers)
    if visit.manner is Manner.LEAVES and connection.sock is not None:
        connection.sock.settimeout(visit.patience)
    response = connection.getresponse()
    answer = response.read()
    if response.status in REFUSED:
        terminal = None
    elif wants_bytes:
        terminal = BY_STATUS.get(response.status)
    else:
        status = json.loads(answer).get("status")
        terminal = status if status in TERMINAL else None
    job_id = response.headers.get("X-Job-Id")
    ledger.note(response.status, job_id, terminal)
    if visit.manner is Manner.CANCELS and job_id is not None:
        connection.close()  # the service does so in a while with one that is idle
        time.sleep(visit.patience)
        connection.request("DELETE", f"/jobs/{job_id}")
        cancelled = connection.getresponse()
        cancelled.read()
        if cancelled.status not in {200, 409}:
            ledger.surprise(f"DELETE was answered {cancelled.status}")
