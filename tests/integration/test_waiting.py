"""Clients that wait for their picture, ask for its bytes, or go away."""

import io
import socket

import pytest
from PIL import Image

from tests.integration.conftest import LONG
from tests.support.server import Server, until


def test_a_wait_that_is_long_enough_answers_with_the_finished_job(fake: Server) -> None:
    """200, completed."""
    assert fake.generate(params={"wait": 60}, expect=200, num_inference_steps=1)["status"] == "completed"


def test_a_wait_that_ends_first_answers_202_and_the_job_goes_on(fake: Server) -> None:
    """The answer shows the job as it is then."""
    job = fake.generate(params={"wait": 0.1}, expect=202, **LONG)
    assert job["status"] in {"pending", "processing"}
    assert fake.job(job["job_id"])["status"] in {"pending", "processing"}
    fake.client.delete(f"/jobs/{job['job_id']}")


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
    """A failed job is a 500, an expired one a 504, a cancelled one a 409, each as a problem document."""
    headers = {"accept": "image/png"}
    failed = fake.client.post("/generate", json={"prompt": "poison"}, headers=headers)
    assert failed.status_code == 500
    expired = fake.client.post(
        "/generate", json={"prompt": "x", "num_inference_steps": 100, "timeout_s": 1}, headers=headers
    )
    assert expired.status_code == 504
    for response in (failed, expired):
        assert response.headers["content-type"] == "application/problem+json"
        assert fake.job(response.headers["x-job-id"])["status"] in {"failed", "expired"}


def request_and_leave(server: Server, prompt: str, query: str) -> str:
    """Send a long request that waits, close the connection once the job is there, and return the job's id."""
    body = f'{{"prompt": "{prompt}", "num_images": 8, "num_inference_steps": 100}}'
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            f"POST /generate?wait=600{query} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
        )

        def there() -> str | None:
            newest = server.client.get("/jobs", params={"limit": 1}).json()["jobs"]
            return newest[0]["job_id"] if newest and newest[0]["parameters"]["prompt"] == prompt else None

        return str(until(there))


def test_a_client_that_goes_away_cancels_its_job(fake: Server) -> None:
    """The outcome says that it was the client's disconnection."""
    job = fake.await_status(request_and_leave(fake, "leaving", ""), "cancelled")
    assert job["error"]["reason"] == "disconnected"
    assert fake.metric("safelight_requests_total", outcome="cancelled", reason="disconnected", source="user") >= 1


def test_a_client_that_goes_away_may_let_its_job_go_on(fake: Server) -> None:
    """`on_disconnect=continue` keeps it running."""
    job_id = request_and_leave(fake, "leaving gladly", "&on_disconnect=continue")
    job = fake.await_status(job_id, "processing")
    step = job["step"]
    until(lambda: fake.job(job_id)["step"] > step)
    assert fake.client.delete(f"/jobs/{job_id}").status_code == 200


def test_a_client_that_goes_away_does_not_cancel_for_another(fake: Server) -> None:
    """Two identical requests share a computation: one leaving does not end the other's."""
    other = fake.generate(prompt="shared", seed=1, **LONG)
    host, port = fake.url.removeprefix("http://").split(":")
    body = '{"prompt": "shared", "seed": 1, "num_images": 8, "num_inference_steps": 100}'
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            f"POST /generate?wait=600 HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        until(lambda: len(fake.client.get("/jobs", params={"status": ["pending", "processing"]}).json()["jobs"]) == 2)
    until(lambda: fake.client.get("/jobs", params={"limit": 1}).json()["jobs"][0]["status"] == "cancelled")
    assert fake.job(other["job_id"])["status"] in {"pending", "processing"}
    fake.client.delete(f"/jobs/{other['job_id']}")
