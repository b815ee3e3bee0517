"""What a scrape gets: in order, complete, and bounded whatever anybody sends."""

import random
import re
import shutil
import string
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from itertools import product
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from observability import catalogue
from observability.declared import PREFIX
from service.app import MAX_BODY_BYTES
from tests.integration.conftest import LONG
from tests.support.server import Server, serving, until

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "LOCK")
REQUESTS = 10_000
MOST_SERIES = 3_000
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose queue is soon full."""
    with serving(tmp_path_factory.mktemp("scrape"), model="fake:?fail=poison", queue_limit=5) as server:
        yield server


def series(server: Server) -> set[str]:
    """Every series of a scrape, with its labels."""
    lines = server.client.get("/metrics").text.splitlines()
    return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}


def of_others() -> set[str]:
    """The metrics of the probe and of the alert inbox, which are programs of their own."""
    parts = catalogue.declared()
    return {each.name.removeprefix(PREFIX) for part in ("The probe", "The alert inbox") for each in parts[part]}


def test_promtool_finds_no_fault(small: Server) -> None:
    """Prometheus' own check of names, types and help."""
    promtool = shutil.which("promtool")
    assert promtool, "promtool is missing; `make test` installs it"
    small.generate(params={"wait": 60}, expect=200, num_inference_steps=1)
    text = small.client.get("/metrics").text
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False, timeout=60
    )
    own = [line for line in checked.stderr.splitlines() if line.startswith(PREFIX)]
    assert (own, checked.returncode) == ([], 0), checked.stderr


def test_every_declared_metric_is_there(small: Server) -> None:
    """From the first scrape on; those of GPUs are checked with a GPU's library, other programs' by themselves."""
    of_gpus = {name for name, *_ in catalogue.of_gpus() if name.startswith(f"{PREFIX}gpu_")}
    families = text_string_to_metric_families(small.client.get("/metrics").text)
    found = {family.name + "_total" * (family.type == "counter") for family in families}
    assert {PREFIX + name for name in catalogue.names() - of_others()} - of_gpus <= found


QUIET = {  # nothing has gone wrong with what these tell of, or there is no such thing here: a fake model, no fleet
    "cache_bytes",
    "dependency_up",
    "desired_workers",
    "draining",
    "engine_restarts_total",
    "events_dropped_total",
    "nvml_available",
    "nvml_failed_calls",
    "span_export_errors_total",
    "spans_dropped_total",
    "spans_exported_total",
    "step_peak_memory_bytes",
    "step_predicted_memory_bytes",
    "workers",
    "workers_limit",
}


def moved(server: Server) -> set[str]:
    """Metrics with a series that is not zero."""
    lines = [line for line in server.client.get("/metrics").text.splitlines() if line.startswith(PREFIX)]
    values = {name: value for name, _, value in (line.rpartition(" ") for line in lines) if float(value)}
    return {re.sub(r"(_bucket|_count|_sum)?(\{.*)?$", "", name).removeprefix(PREFIX) for name in values}


def test_traffic_moves_every_metric(data_dir: Path) -> None:
    """Each is emitted by the service itself: two sizes, priorities, a failure, memory, a cancel, a repeat, a retry."""
    model = "fake:?step_ms=2&fail=poison&oom_above=2"
    settings = {"slots": "64x64=4,64x128=4", "gpu_dollars_per_hour": 2, "model": model}
    with serving(data_dir, **settings) as server:
        asked = {"num_inference_steps": 30, "seed": 1}
        with server.held():
            low = [server.generate(prompt=f"low {n}", priority="low", **LONG)["job_id"] for n in range(4)]
            server.generate(prompt="tall", height=128, **asked)
            found = until(lambda: moved(server) & {"requests_running"} and moved(server))
            server.generate(prompt="poison", **asked)
        server.generate(params={"wait": 60}, expect=200, prompt="high", priority="high", **asked)
        server.generate(params={"wait": 60}, expect=200, prompt="high", **asked)  # from the cache
        for job_id in low:
            server.client.delete(f"/jobs/{job_id}")
        retry = {"X-Stainless-Retry-Count": "1"}
        server.client.post("/generate", json={"prompt": "again", **asked}, headers=retry)
        until(lambda: {"event_loop_lag_seconds", "pictures_resumed_total"} <= moved(server))
        found |= moved(server)
    of_gpus = {name for name in catalogue.names() if name.startswith("gpu_") and name != "gpu_dollars_per_hour"}
    lucky = {"free_slot_seconds_total"}
    assert catalogue.names() - found - of_others() - of_gpus - lucky == QUIET


class Visitor:
    """Sends requests of every kind: `known` are a job that has ended and one that runs."""

    def __init__(self, server: Server, source: random.Random, known: list[str]) -> None:
        self._client = server.client
        self._source = source
        self._known = known

    def word(self) -> str:
        """Letters, digits and signs."""
        return "".join(
            self._source.choices(string.ascii_letters + string.digits + "-_.~%", k=self._source.randint(1, 30))
        )

    def paths(self) -> list[str]:
        """Every route, with ids that there are and that there are not, and paths that lead nowhere."""
        ids = [*self._known, f"x{self._source.randrange(10**9)}", f"!{self.word()}"]  # unknown, impossible
        return [
            "/generate",
            "/jobs",
            *(f"/jobs/{each}{rest}" for each in ids for rest in ("", "/events", "/images/0", "/images/x")),
            "/health/live",
            "/health/ready",
            "/metrics",
            "/model",
            "/slo",
            "/",
            "/docs",
            "/openapi.json",
            f"/{self.word()}/{self.word()}",
            f"/jobs/{self.word()}/{self.word()}/{self.word()}",
        ]

    def bodies(self, method: str) -> list[tuple[bytes, dict[str, str]]]:
        """What may come with a request."""
        if method != "POST":
            return [(b"", {})]
        return [
            (b"", {}),
            (b"", JSON),
            (b'{"prompt": "an apple", "num_inference_steps": 1}', JSON),
            (
                b'{"prompt": "an apple", "num_inference_steps": 1}',
                {**JSON, "Idempotency-Key": self._source.choice("abc")},
            ),
            (b'{"prompt": "a pear", "timeout_s": 0}', JSON),
            (b'{"prompt": "' + self.word().encode() + b'"', JSON),
            (b'{"prompt": "x"}', {"Content-Type": "text/plain"}),
            (b"x" * (MAX_BODY_BYTES + 1), JSON),
        ]

    def send(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> None:
        """One request; an answer without end is left after its beginning, one that is refused may be cut short."""
        headers = headers | {f"X-{self._source.randrange(10**9)}": "x", "traceparent": self.word()}
        headers |= {"User-Agent": self.word()}
        with (
            suppress(httpx.TransportError),
            self._client.stream(method, path, content=body, headers=headers) as response,
        ):
            if "event-stream" not in response.headers.get("content-type", ""):
                response.read()


def test_no_request_adds_a_series(small: Server) -> None:
    """After one round of every route, method and kind of body; and there are not too many."""
    done = small.generate(params={"wait": 60}, expect=200, num_inference_steps=1)["job_id"]
    source = random.Random(7)
    with small.held():
        running = small.start(**LONG)["job_id"]
        visitor = Visitor(small, source, [done, running])
        for _ in range(6):  # empty, filling and full queue
            for method, path in product(METHODS, visitor.paths()):
                for body, headers in visitor.bodies(method):
                    if (method, path) != ("DELETE", f"/jobs/{running}"):
                        visitor.send(method, path, body, headers)
        before = series(small)
        for _ in range(REQUESTS):
            method, path = source.choice(METHODS), source.choice(visitor.paths())
            if source.random() < 0.3:
                method, path = "POST", "/generate"
            if (method, path) != ("DELETE", f"/jobs/{running}"):
                visitor.send(method, path, *source.choice(visitor.bodies(method)))
        assert series(small) - before == set()
    assert len(before) <= MOST_SERIES


def test_a_made_up_method_is_refused(small: Server) -> None:
    """And is no label."""
    response = small.client.request("PROPFIND", "/jobs")
    assert response.status_code == 501
    assert response.headers["content-type"] == "application/problem+json"
    assert not any("PROPFIND" in each for each in series(small))
