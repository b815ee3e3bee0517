"""One request of every outcome: what its metrics, trace, log line and exemplar tell, and that they agree."""

import json
import re
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.integration.test_waiting import request_and_leave
from tests.support.collector import Collector, attributes, collecting
from tests.support.server import Server, serving, until

OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}
ERROR = 2  # of a span's status
SERVER = 2  # kind of a span
Series = tuple[str, tuple[tuple[str, str], ...]]
SECRET = "unspeakable"  # in every prompt
PROMPT = SECRET.encode()
STAGES = {"text_encode", "denoise", "vae_decode", "image_encode", "store"}
# Those of requests; what a stage or a step took is not a request's alone.
OF_REQUESTS = re.compile(
    r"safelight_(requests_|request_|queue_depth|queue_wait|image|estimate_|client_retries|cache_lookups).*(?<!_sum)"
)


@dataclass
class Scene:
    """A service with one slot and room for two in the queue, and the collector of its traces."""

    server: Server
    collector: Collector

    def values(self) -> dict[Series, float]:
        """The metrics of requests; of histograms, how many observations."""
        found: dict[Series, float] = {}
        for family in text_string_to_metric_families(self.scrape()):
            for sample in family.samples:
                if OF_REQUESTS.fullmatch(sample.name) and not sample.name.endswith("_bucket"):
                    found[sample.name.removeprefix("safelight_"), tuple(sorted(sample.labels.items()))] = sample.value
        return found

    def changes(self, before: dict[Series, float]) -> dict[Series, float]:
        """What is not as it was, and by how much."""
        return {name: value - before[name] for name, value in self.values().items() if value != before[name]}

    def scrape(self) -> str:
        """As OpenMetrics."""
        return self.server.client.get("/metrics", headers=OPENMETRICS).text

    def exemplars(self, name: str) -> set[tuple[str, str]]:
        """Trace and span ids of the exemplars of a metric."""
        families = text_string_to_metric_families(self.scrape())
        samples = [each for family in families for each in family.samples if each.name.startswith(name)]
        return {
            (each.exemplar.labels["trace_id"], each.exemplar.labels["span_id"])
            for each in samples
            if each.exemplar is not None
        }

    def line(self, trace_id: str) -> dict[str, Any] | None:
        """The line of the log about the end of the request of a trace."""
        for text in self.server.log.read_text().splitlines():
            line: dict[str, Any] = json.loads(text) if text.startswith("{") else {}
            if (line.get("logger"), line.get("trace_id")) == ("safelight.requests", trace_id):
                return line
        return None

    def request(self, trace_id: str) -> Any:
        """The span of the request of a trace, once the HTTP request's is there too; they are exported together."""
        spans = self.collector.of_trace(trace_id)
        if SERVER not in {span.kind for span in spans}:
            return None
        return next((span for span in spans if span.name == "request"), None)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """See `Scene`."""
    with (
        collecting() as collector,
        serving(
            tmp_path_factory.mktemp("telemetry"),
            model="fake:?step_ms=5&fail=poison",
            slots="64x64=1",
            queue_limit=2,
            otlp_endpoint=collector.url,
            trace_ratio=1.0,
        ) as server,
    ):
        yield Scene(server, collector)


def traceparent() -> tuple[str, str]:
    """A client's trace id, and the header that tells it."""
    trace_id = secrets.token_hex(16)
    return trace_id, f"00-{trace_id}-{secrets.token_hex(8)}-01"


def completed(scene: Scene, headers: dict[str, str]) -> None:
    """One that gets its picture."""
    body = {"prompt": f"{SECRET} done", "num_inference_steps": 3, "cache": False}
    response = scene.server.client.post("/generate?wait=60", json=body, headers=headers)
    assert response.json()["status"] == "completed"
    assert response.headers["traceparent"].split("-")[1] == headers["traceparent"].split("-")[1]


def hit(scene: Scene, headers: dict[str, str]) -> None:
    """One whose answer is there already."""
    body = {"prompt": f"{SECRET} again", "num_inference_steps": 3, "seed": 7}
    response = scene.server.client.post("/generate?wait=60", json=body, headers=headers)
    assert response.json()["cached"] is True


def failed(scene: Scene, headers: dict[str, str]) -> None:
    """One that breaks the model."""
    body = {"prompt": f"{SECRET} poison", "num_inference_steps": 3, "cache": False}
    assert scene.server.client.post("/generate?wait=60", json=body, headers=headers).json()["status"] == "failed"


def cancelled(scene: Scene, headers: dict[str, str]) -> None:
    """One that is called off while it runs."""
    with scene.server.held():
        body = {"prompt": f"{SECRET} called off", "cache": False}
        job_id = scene.server.client.post("/generate", json=body, headers=headers).json()["job_id"]
        scene.server.await_status(job_id, "processing")
        scene.server.client.delete(f"/jobs/{job_id}")


def disconnected(scene: Scene, headers: dict[str, str]) -> None:
    """One whose client goes away while it waits."""
    with scene.server.held():
        request_and_leave(scene.server, {"prompt": f"{SECRET} leaving", "cache": False}, **headers)


def expired(scene: Scene, headers: dict[str, str]) -> None:
    """One that takes too long."""
    with scene.server.held():
        body = {"prompt": f"{SECRET} late", "timeout_s": 1, "cache": False}
        response = scene.server.client.post("/generate?wait=60", json=body, headers=headers)
        assert response.json()["status"] == "expired"


def rejected(scene: Scene, headers: dict[str, str]) -> None:
    """One too many. The others leave again; they are no part of this trace."""
    body = {"prompt": f"{SECRET} one of many", "cache": False}
    with scene.server.held():
        job_ids = [scene.server.start(**body)["job_id"], *(scene.server.generate(**body)["job_id"] for _ in range(2))]
        before = scene.values()
        assert scene.server.client.post("/generate", json=body, headers=headers).status_code == 429
        assert scene.changes(before) == {ended("rejected", "queue_full"): 1}
        for job_id in reversed(job_ids):
            scene.server.client.delete(f"/jobs/{job_id}")


def ended(outcome: str, reason: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The series of an end."""
    return "requests_total", (("outcome", outcome), ("reason", reason), ("source", "user"))


def observed(name: str, **labels: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The series that counts the observations of a histogram."""
    return f"{name}_count", tuple(sorted(labels.items()))


WAITED = observed("queue_wait_seconds", priority="normal")
TIMED = observed("request_duration_seconds", source="user", work_class="s_few")
MADE = {("images_total", ()): 1, ("image_pixels_total", ()): 4096, observed("estimate_error_ratio"): 1}
LOOKED_UP = ("cache_lookups_total", (("cache", "response"), ("result", "hit")))
COST = ("image_batch_seconds_total", ())


@dataclass
class Case:
    """What one request is to change, and the stages that its trace has besides the wait in the queue and steps."""

    drive: Callable[[Scene, dict[str, str]], None]
    end: tuple[str, str]
    changes: dict[Any, float]
    stages: set[str]
    starts: bool | None  # None: it may or may not


CASES = [
    Case(completed, ("completed", "none"), {TIMED: 1, **MADE}, STAGES, starts=True),
    Case(hit, ("completed", "none"), {TIMED: 1, LOOKED_UP: 1}, set(), starts=False),
    Case(failed, ("failed", "model_error"), {}, set(), starts=True),
    Case(cancelled, ("cancelled", "client_cancelled"), {}, set(), starts=True),
    Case(disconnected, ("cancelled", "disconnected"), {}, set(), starts=None),
    Case(expired, ("expired", "deadline"), {}, set(), starts=True),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.drive.__name__)
def test_every_outcome_is_told_alike_by_metrics_trace_and_log(scene: Scene, case: Case) -> None:
    """The same ids everywhere; no other metric of requests changes, and no more than by one."""
    scene.server.generate(params={"wait": 60}, expect=200, prompt=f"{SECRET} again", num_inference_steps=3, seed=7)
    before = scene.values()
    trace_id, header = traceparent()
    case.drive(scene, {"traceparent": header})
    line = until(lambda: scene.line(trace_id))
    assert line is not None
    changes = until(lambda: scene.changes(before))
    has_started = changes.pop(WAITED, 0) == 1
    assert case.starts in (None, has_started)
    assert (changes.pop(COST, 0) > 0) is (case.drive is completed)
    assert changes == {ended(*case.end): 1, **case.changes}
    assert set(line["timings"]) == case.stages | ({"queue_wait"} if has_started else set())
    assert (line["outcome"], line["reason"]) == case.end
    assert line["span_id"] in {span for trace, span in scene.exemplars("safelight_requests_total") if trace == trace_id}

    request = until(lambda: scene.request(trace_id))
    assert request.span_id.hex() == line["span_id"]
    told = attributes(request)
    assert told["safelight.request.id"] == line["request"]
    assert (told["safelight.outcome"], told["safelight.reason"]) == case.end
    assert (request.status.code == ERROR) is (case.end[0] in {"failed", "expired"})
    spans = scene.collector.of_trace(trace_id)
    (http,) = [span for span in spans if span.kind == SERVER and span.span_id == request.parent_span_id]
    assert http.parent_span_id.hex() == header.split("-")[2]
    children = [span for span in spans if span.parent_span_id == request.span_id]
    expected = {*case.stages, *(["queue_wait"] if has_started else []), *(["cache"] if case.drive is hit else [])}
    steps = {"denoise"} - case.stages  # seen of one that did not complete, too, if it made any
    assert {span.name for span in children} - steps == expected
    assert len(children) == len({span.name for span in children})
    assert all(request.start_time_unix_nano <= span.start_time_unix_nano for span in children)
    if case.drive is completed:
        assert (trace_id, line["span_id"]) in scene.exemplars("safelight_request_duration_seconds")
        _check_links(scene, trace_id, request, children)
    assert scene.collector.services == {"safelight"}
    assert not any(PROMPT in span.SerializeToString() for span in scene.collector.spans)
    assert PROMPT not in scene.server.log.read_bytes()


def _check_links(scene: Scene, trace_id: str, request: Any, children: list[Any]) -> None:
    """The batch and the request know each other."""
    (batch,) = until(lambda: scene.collector.batches(trace_id))
    assert request.span_id in {link.span_id for link in batch.links}
    (denoise,) = [span for span in children if span.name == "denoise"]
    assert [link.span_id for link in denoise.links] == [batch.span_id]
    steps = [attributes(event) for event in batch.events if event.name == "step"]
    assert len(steps) >= 3
    assert all(step["safelight.batch.size"] == 1 for step in steps)


def test_a_refusal_is_told_alike_by_metrics_trace_and_log(scene: Scene) -> None:
    """It has no request of its own: the ids are those of the HTTP request."""
    trace_id, header = traceparent()
    rejected(scene, {"traceparent": header})
    line = until(lambda: scene.line(trace_id))
    assert line is not None
    assert (line["outcome"], line["reason"]) == ("rejected", "queue_full")
    (http,) = until(lambda: scene.collector.of_trace(trace_id))
    assert http.span_id.hex() == line["span_id"]
    assert attributes(http)["http.response.status_code"] == 429
    assert (trace_id, line["span_id"]) in scene.exemplars("safelight_requests_total")


def test_a_job_goes_on_in_its_trace_after_a_restart(data_dir: Path) -> None:
    """What the first process knew is exported when it stops; the second goes on below the same HTTP request."""
    trace_id, header = traceparent()
    with collecting() as collector:
        settings = {
            "model": "fake:?step_ms=5",
            "otlp_endpoint": collector.url,
            "trace_ratio": 1.0,
            "drain_seconds": 0.1,
        }
        with serving(data_dir, **settings) as server, server.held():
            body = {"prompt": "patience", "num_inference_steps": 3}
            job_id = server.client.post("/generate", json=body, headers={"traceparent": header}).json()["job_id"]
            assert server.stop() == 0
        (first,) = until(lambda: [span for span in collector.of_trace(trace_id) if span.name == "request"])
        assert [event.name for event in first.events] == ["service_stopped"]
        with serving(data_dir, **settings) as server:
            server.await_status(job_id, "completed")
            both = until(lambda: [each for each in collector.of_trace(trace_id) if each.name == "request"][1:])
            spans = collector.of_trace(trace_id)
    (second,) = (each for each in both if each.span_id != first.span_id)
    for each in spans:
        if each.parent_span_id == second.span_id:
            assert second.start_time_unix_nano <= each.start_time_unix_nano
            assert each.end_time_unix_nano <= second.end_time_unix_nano
    assert both[0].parent_span_id == first.parent_span_id
    assert attributes(both[0])["safelight.request.id"] == job_id


def test_an_unreachable_collector_is_nobodys_trouble_but_its_own(data_dir: Path) -> None:
    """Requests are served, the loss is counted, and the service stops as fast as ever."""
    with serving(data_dir, model="fake:", otlp_endpoint="http://127.0.0.1:9", trace_ratio=1.0) as server:
        for n in range(5):
            server.generate(params={"wait": 60}, expect=200, prompt=f"picture {n}", num_inference_steps=1)
        until(lambda: server.metric("safelight_spans_dropped_total", reason="export_failed") > 0)
        assert server.metric("safelight_span_export_errors_total") > 0
        assert server.metric("safelight_requests_total", outcome="completed", reason="none", source="user") == 5
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 30
