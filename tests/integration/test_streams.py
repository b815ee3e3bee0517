"""Progress that is pushed: server-sent events and WebSocket."""

import json
from contextlib import suppress
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.integration.conftest import held
from tests.support.server import PATIENCE, Server

IN_BOTH_SETTINGS = True


def events(server: Server, job_id: str) -> list[dict[str, Any]]:
    """Every event of a job's stream, up to its end; a held engine is let go once the first has come."""
    seen: list[dict[str, Any]] = []
    with server.client.stream("GET", f"/jobs/{job_id}/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        for line in response.iter_lines():
            if line.startswith("data: "):
                seen.append(json.loads(line[6:]))
                server.hold.unlink(missing_ok=True)
    return seen


def messages(server: Server, job_id: str) -> tuple[list[dict[str, Any]], int]:
    """Every message of a job's socket, and the code with which it was closed; a held engine is let go as above."""
    seen: list[dict[str, Any]] = []
    address = server.url.replace("http", "ws") + f"/ws/jobs/{job_id}"
    with connect(address, open_timeout=PATIENCE) as socket, suppress(ConnectionClosed):
        for message in socket:
            seen.append(json.loads(message))
            server.hold.unlink(missing_ok=True)
    return seen, socket.protocol.close_code or 0


def check_story(seen: list[dict[str, Any]], every_step: bool) -> None:
    """Progress never falls, every step is told, or what five messages a second can tell, and the end comes once and
    last.
    """
    assert [each["progress"] for each in seen] == sorted(each["progress"] for each in seen)
    assert [each["status"] for each in seen].count("completed") == 1
    assert seen[-1]["status"] == "completed"
    assert seen[-1]["image_url"]
    steps = {each["step"] for each in seen}
    assert steps == set(range(31)) if every_step else len(steps) > 2, "progress is pushed step by step"


def test_events_tell_the_whole_story(fake: Server) -> None:
    """From the current state over every step to the end, which closes the stream."""
    with held(fake):
        check_story(events(fake, fake.generate(num_inference_steps=30)["job_id"]), fake.tells_every_step)


def test_a_socket_tells_the_whole_story(fake: Server) -> None:
    """The same over WebSocket, closed normally at the end."""
    with held(fake):
        seen, code = messages(fake, fake.generate(num_inference_steps=30)["job_id"])
    check_story(seen, fake.tells_every_step)
    assert code == 1000


def test_joining_after_the_end_gives_the_end(fake: Server) -> None:
    """The current state comes first, whenever one joins."""
    job_id = fake.generate(params={"wait": 60}, expect=200, num_inference_steps=1)["job_id"]
    assert [each["status"] for each in events(fake, job_id)] == ["completed"]
    seen, code = messages(fake, job_id)
    assert [each["status"] for each in seen] == ["completed"]
    assert code == 1000


def test_a_cancel_reaches_those_who_follow(fake: Server) -> None:
    """The terminal message is the cancellation."""
    with held(fake):
        job_id = fake.generate(prompt="followed")["job_id"]
        with fake.client.stream("GET", f"/jobs/{job_id}/events") as response:
            lines = response.iter_lines()
            assert next(lines).startswith("event: ")
            httpx.delete(f"{fake.url}/jobs/{job_id}", timeout=PATIENCE).raise_for_status()
            last = [line for line in lines if line.startswith("event: ")][-1]
    assert last == "event: cancelled"


@pytest.mark.parametrize("job_id", ["unknown", "x" * 300, "%F0%9F%8D%8E"])
def test_an_unknown_job_closes_the_socket_with_4404(fake: Server, job_id: str) -> None:
    """A close code of its own, since a socket has no status."""
    assert messages(fake, job_id) == ([], 4404)


def test_following_does_not_cancel(fake: Server) -> None:
    """A follower that goes away leaves the job alone."""
    with held(fake):
        job_id = fake.generate(prompt="watched", num_inference_steps=2)["job_id"]
        with connect(fake.url.replace("http", "ws") + f"/ws/jobs/{job_id}", open_timeout=PATIENCE) as socket:
            socket.recv(PATIENCE)
        with fake.client.stream("GET", f"/jobs/{job_id}/events") as response:
            next(response.iter_lines())
    assert fake.await_status(job_id, "completed", "cancelled")["status"] == "completed"
