"""A fleet as users see it: any API answers for any job, workers come and go, and Redis may be away."""

import io
import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from PIL import Image
from websockets.sync.client import connect

from tests.support.fleet import Fleet, fleet
from tests.support.server import PATIENCE, Server, until

LONG = {"num_images": 2, "num_inference_steps": 100, "cache": False}
SLOW = "fake:?step_ms=200"
Pair = tuple[Server, Server]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A fleet."""
    with fleet(tmp_path_factory.mktemp("fleet")) as made:
        yield made


@pytest.fixture(scope="module")
def apis(made: Fleet) -> Pair:
    """Two processes of the API, and a worker."""
    first, second = made.api(), made.api()
    made.worker().await_ready()
    return first.await_ready(), second.await_ready()


def test_any_api_answers_for_any_job(apis: Pair) -> None:
    """State, pictures, list; and a client that waits gets the picture itself."""
    first, second = apis
    job = first.generate(num_images=2, num_inference_steps=4)
    done = second.await_status(job["job_id"], "completed")
    assert done["progress"] == 1.0
    assert {"queue_wait", "image_encode", "store"} <= done["timings"].keys()
    assert second.client.get(done["image_urls"][1]).content.startswith(b"\x89PNG")
    assert done["job_id"] in [each["job_id"] for each in first.client.get("/jobs").json()["jobs"]]
    answer = second.client.post("/generate", json={"prompt": "a pizza"}, headers={"Accept": "image/png"})
    assert Image.open(io.BytesIO(answer.content)).size == (64, 64)
    assert first.client.get("/model").json()["max_batch"] == 2


def test_progress_is_told_on_every_api(apis: Pair) -> None:
    """Over server-sent events and WebSocket, up to the end, also by the one that did not accept it."""
    first, second = apis
    job = first.generate(num_inference_steps=60, cache=False)

    def events(server: Server) -> list[dict[str, object]]:
        with server.client.stream("GET", f"/jobs/{job['job_id']}/events") as stream:
            lines = [line.removeprefix("data: ") for line in stream.iter_lines() if line.startswith("data: ")]
        return [json.loads(line) for line in lines]

    def messages(server: Server) -> list[dict[str, object]]:
        with connect(f"{server.url.replace('http', 'ws')}/ws/jobs/{job['job_id']}") as socket:
            return [json.loads(each) for each in socket]

    with ThreadPoolExecutor(3) as pool:
        streams = [pool.submit(events, first), pool.submit(events, second), pool.submit(messages, second)]
        for each in streams:
            told = each.result()
            assert told[-1]["status"] == "completed"
            assert len({message["step"] for message in told}) >= 3
            assert len(told) <= 5 * 20  # five a second, and no test machine is that slow


def test_identical_requests_share_a_computation(apis: Pair) -> None:
    """Also through different APIs; a third one that comes later is answered from the cache."""
    first, second = apis
    body = {"prompt": "shared", "seed": 5, "num_inference_steps": 4}
    with first.held():
        blocked = [first.generate(prompt=f"before {n}", num_inference_steps=1, cache=False) for n in range(2)]
        jobs = [first.generate(**body), second.generate(**body)]
        later = second.generate(prompt="later", num_inference_steps=4, cache=False)
    ends = [first.await_status(each["job_id"], "completed") for each in (*jobs, *blocked, later)]
    pictures = [first.client.get(each["image_url"]).content for each in ends[:2]]
    assert pictures[0] == pictures[1]
    assert [each["cached"] for each in ends[:2]] == [False, False]
    assert second.generate(expect=200, params={"wait": 60}, **body)["cached"] is True


@pytest.mark.parametrize("has_started", [True, False])
def test_a_job_is_cancelled_through_another_api(made: Fleet, apis: Pair, has_started: bool) -> None:
    """A waiting one never starts, a running one leaves its batch; a second cancel is a conflict."""
    first, second = apis
    with first.held():
        before = [] if has_started else [first.start(**LONG)]
        job = first.start(**LONG) if has_started else first.generate(**LONG)
        assert second.client.delete(f"/jobs/{job['job_id']}").json()["status"] == "cancelled"
        assert first.client.delete(f"/jobs/{job['job_id']}").status_code == 409
        for each in before:
            first.client.delete(f"/jobs/{each['job_id']}")
    first.generate(expect=200, params={"wait": 60}, prompt="after", num_inference_steps=1, cache=False)
    until(lambda: made.redis.cli("hlen", "{safelight}:entries") == "0")


def test_a_job_that_waits_too_long_expires(apis: Pair) -> None:
    """Though no worker has it."""
    first, second = apis
    with first.held():
        running = first.start(**LONG)
        job = second.generate(timeout_s=4, num_inference_steps=1, cache=False)  # the other one would take two
        assert first.await_status(job["job_id"], "expired")["error"]
    first.client.delete(f"/jobs/{running['job_id']}")


def test_a_client_that_leaves_cancels_its_job(apis: Pair) -> None:
    """Unless somebody waits at another API."""
    first, second = apis
    with first.held():
        with pytest.raises(httpx.TimeoutException):
            first.client.post("/generate?wait=60", json={"prompt": "left", **LONG}, timeout=0.5)
        (job,) = first.client.get("/jobs", params={"limit": 1}).json()["jobs"]
        second.await_status(job["job_id"], "cancelled")


@contextmanager
def busy(folder: Path, **settings: object) -> Iterator[tuple[Server, list[str], Server, Server]]:
    """An API, two long jobs, the worker that makes them, and another that idles."""
    with fleet(folder, SLOW) as made:
        api = made.api()
        worker = made.worker(**settings).await_ready()
        api.await_ready()
        jobs = [api.start(num_inference_steps=60, cache=False)["job_id"] for _ in range(2)]
        yield api, jobs, worker, made.worker().await_ready()


def test_a_dead_workers_jobs_run_again_in_time(tmp_path: Path) -> None:
    """All of them, by default settings, on a worker that was there."""
    with busy(tmp_path) as (api, jobs, doomed, other):
        doomed.kill()
        began = time.monotonic()
        until(lambda: other.metric("safelight_queue_wait_seconds_count", priority="normal") == 2)
        assert time.monotonic() - began < 60  # 15 on a machine that is not busy
        for job in jobs:
            api.await_status(job, "completed")


@pytest.mark.parametrize("is_told", ["by a signal", "by notice"])
def test_a_worker_that_has_to_leave_hands_its_jobs_over(tmp_path: Path, is_told: str) -> None:
    """At once, and they do not count against it; it ends with status 0."""
    notice = tmp_path / "notice"
    with busy(tmp_path, spot_notice=notice) as (api, jobs, leaving, other):
        if is_told == "by notice":
            notice.touch()
            assert leaving.process.wait(PATIENCE) == 0
        else:
            assert leaving.stop() == 0
        until(lambda: other.metric("safelight_steps_total") > 0)
        for job in jobs:
            api.await_status(job, "completed")
        assert other.metric("safelight_requests_total", outcome="completed", reason="none", source="user") == 2


def test_a_job_that_kills_its_workers_ends(tmp_path_factory: pytest.TempPathFactory) -> None:
    """After five of them it is a dead letter."""
    with pytest.MonkeyPatch.context() as patch, fleet(tmp_path_factory.mktemp("deadly")) as made:
        patch.setenv("CLAIM_SECONDS", "0.2 1 0.2")
        api = made.api()
        first = made.worker()
        api.await_ready()
        first.stop()
        job = api.generate(num_inference_steps=4, cache=False)
        for _ in range(5):
            assert made.worker("stepped").process.wait(120) == -signal.SIGKILL
        worker = made.worker().await_ready()
        failed = api.await_status(job["job_id"], "failed")
        assert "5 workers" in failed["error"]["detail"]
        assert worker.metric("safelight_requests_total", outcome="failed", reason="dead_letter", source="user") == 1


def test_a_fleet_without_its_queue_says_so_and_recovers(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Requests get a 503 in time, readiness tells why; what was accepted completes when Redis is back."""
    with fleet(tmp_path_factory.mktemp("away")) as made:
        api = made.api()
        worker = made.worker().await_ready()
        api.await_ready()
        job = api.start(num_images=8, num_inference_steps=100, cache=False)
        made.redis.kill()
        until(lambda: api.client.get("/health/ready").status_code == 503)
        began = time.monotonic()
        refused = api.client.post("/generate", json={"prompt": "a pizza"})
        assert refused.status_code == 503
        assert "Retry-After" in refused.headers
        assert time.monotonic() - began < 30  # 2 on a machine that is not busy
        assert api.client.get("/health/live").status_code == 200
        assert api.job(job["job_id"])["status"] == "processing"
        made.redis.start()
        api.await_status(job["job_id"], "completed")
        api.await_ready()
        api.generate(expect=200, params={"wait": 60}, num_inference_steps=1, cache=False)
        assert worker.process.poll() is None
