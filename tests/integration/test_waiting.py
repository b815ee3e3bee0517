"""Clients that wait for their picture, ask for its bytes, or go away."""

import io
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from PIL import Image

from tests.integration.conftest import held
from tests.support.server import PATIENCE, Server, until

IN_BOTH_SETTINGS = True


def test_a_wait_that_is_long_enough_answers_with_the_finished_job(fake: Server) -> None:
    """200, completed."""
    assert fake.generate(params={"wait": 60}, expect=200, num_inference_steps=1)["status"] == "completed"


def test_a_wait_that_ends_first_answers_202_and_the_job_goes_on(fake: Server) -> None:
    """The answer shows the job as it is then."""
    with held(fake):
        job = fake.generate(params={"wait": 0.1}, expect=202, num_inference_steps=2)
        assert job["status"] in {"pending", "processing"}
    assert fake.await_status(job["job_id"], "completed", "cancelled")["status"] == "completed"


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_accepting_an_image_gives_its_bytes(fake: Server, output_format: str) -> None:
    """A plain response of the accepted format, with the job's id, seed and timings in its headers."""
    response = fake.client.post(
        "/generate",
        json={"prompt": "x", "seed": 11, "num_inference_steps": 1},
        headers={"accept": f"image/{output_format}"},
    )
    assert response.status_code == 200
    assert response.headers["content-type"] == f"image/{output_format}"
    assert Image.open(io.BytesIO(response.content)).format == output_format.upper()
    assert response.headers["x-seed"] == "11"
    assert fake.job(response.headers["x-job-id"])["status"] == "completed"
    assert "denoise;dur=" in response.headers["server-timing"]


def test_an_image_that_cannot_be_made_is_a_problem(fake: Server) -> None:
    """A failed job is a 500, an expired one a 504, each as a problem document."""
    headers = {"accept": "image/png"}
    failed = fake.client.post("/generate", json={"prompt": "poison"}, headers=headers)
    assert failed.status_code == 500
    with held(fake):
        expired = fake.client.post("/generate", json={"prompt": "x", "timeout_s": 1}, headers=headers)
    assert expired.status_code == 504
    for response in (failed, expired):
        assert response.headers["content-type"] == "application/problem+json"
        assert fake.job(response.headers["x-job-id"])["status"] in {"failed", "expired"}


def test_a_cancelled_image_is_a_conflict(fake: Server) -> None:
    """Who waits for the picture of a job that somebody cancels gets a 409 problem document."""
    body = {"prompt": "to be called off", "num_inference_steps": 1}
    with held(fake), ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(fake.client.post, "/generate", json=body, headers={"accept": "image/png"})
        job_id = until(lambda: newest(fake, "to be called off"))
        assert fake.client.delete(f"/jobs/{job_id}").status_code == 200
        response = waiting.result()
    assert response.status_code == 409
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-job-id"] == job_id


def newest(server: Server, prompt: str) -> str | None:
    """The id of the newest job if it has this prompt."""
    jobs = server.client.get("/jobs", params={"limit": 1}).json()["jobs"]
    return jobs[0]["job_id"] if jobs and jobs[0]["parameters"]["prompt"] == prompt else None


def answers(server: Server) -> float:
    """How many requests to generate have been dealt with so far, whatever came of them."""
    lines = server.client.get("/metrics").text.splitlines()
    counted = [line for line in lines if line.startswith("http_requests_total{") and '"/generate"' in line]
    return sum(float(line.rpartition(" ")[2]) for line in counted)


def request_and_leave(server: Server, body: dict[str, Any], query: str = "", **headers: str) -> None:
    """Send a request that waits, close the connection once the service has read it all, and see it notice."""
    before = answers(server)
    content = json.dumps(body)
    host, port = server.url.removeprefix("http://").split(":")
    lines = [
        f"POST /generate?wait=600{query} HTTP/1.1",
        f"Host: {host}",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
        "Expect: 100-continue",  # uvicorn answers it at the moment when the application takes the body
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n" + content).encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
    until(lambda: answers(server) > before)


def test_a_client_that_goes_away_cancels_its_job(fake: Server) -> None:
    """The outcome says that it was the client's disconnection."""
    disconnected = {"outcome": "cancelled", "reason": "disconnected", "source": "user"}
    before = fake.metric("safelight_requests_total", **disconnected)
    with held(fake):
        request_and_leave(fake, {"prompt": "leaving"})
        job_id = newest(fake, "leaving")
        assert job_id is not None
        assert fake.await_status(job_id, "cancelled")["error"]["reason"] == "disconnected"
    assert fake.metric("safelight_requests_total", **disconnected) == before + 1


def test_a_client_that_goes_away_may_let_its_job_go_on(fake: Server) -> None:
    """`on_disconnect=continue` keeps it running."""
    with held(fake):
        request_and_leave(fake, {"prompt": "leaving gladly", "num_inference_steps": 2}, "&on_disconnect=continue")
        job_id = newest(fake, "leaving gladly")
        assert job_id is not None
    assert fake.await_status(job_id, "completed", "cancelled")["status"] == "completed"


def test_a_client_that_goes_away_does_not_cancel_for_another(fake: Server) -> None:
    """Two identical requests share a computation: one leaving does not end the other's."""
    body: dict[str, Any] = {"prompt": "shared", "seed": 1, "num_inference_steps": 2}
    with held(fake):
        other = fake.start(**body)
        request_and_leave(fake, body)
        left = newest(fake, "shared")
        assert left not in {None, other["job_id"]}
        assert fake.await_status(str(left), "cancelled")
        assert fake.job(other["job_id"])["status"] == "processing"
    assert fake.await_status(other["job_id"], "completed", "cancelled")["status"] == "completed"


def test_a_retry_after_a_lost_connection_makes_a_new_job(fake: Server) -> None:
    """The first try's job was cancelled for nobody waited for it; its idempotency key is free again."""
    body = {"prompt": "tried again", "num_inference_steps": 2}
    key = {"Idempotency-Key": "lost"}
    with held(fake):
        request_and_leave(fake, body, **key)
        first = newest(fake, "tried again")
        assert first is not None
        assert fake.await_status(first, "cancelled")["error"]["reason"] == "disconnected"
    again = fake.client.post("/generate", params={"wait": 60}, json=body, headers=key)
    assert again.status_code == 200, again.text
    assert again.json()["status"] == "completed"
    assert again.json()["job_id"] != first


def test_a_retry_that_leaves_does_not_cancel_a_job_that_was_to_go_on(fake: Server) -> None:
    """The job was asked for without waiting: a later request with its key that waits and leaves changes nothing."""
    body = {"prompt": "asked for without waiting", "num_inference_steps": 2}
    key = {"Idempotency-Key": "unhurried"}
    with held(fake):
        job = fake.client.post("/generate", json=body, headers=key).json()
        request_and_leave(fake, body, **key)
        assert newest(fake, "asked for without waiting") == job["job_id"]
        assert fake.job(job["job_id"])["status"] in {"pending", "processing"}
    assert fake.await_status(job["job_id"], "completed", "cancelled")["status"] == "completed"


def test_a_key_holds_for_one_image_type(fake: Server) -> None:
    """The same body with another type in `Accept` asks for something else: a conflict, not the wrong bytes."""
    body = {"prompt": "x", "num_inference_steps": 1}
    first = fake.client.post("/generate", json=body, headers={"accept": "image/png", "Idempotency-Key": "typed"})
    assert first.headers["content-type"] == "image/png"
    other = fake.client.post("/generate", json=body, headers={"accept": "image/webp", "Idempotency-Key": "typed"})
    assert other.status_code == 409
    assert other.json()["errors"][0]["field"] == "Idempotency-Key"
