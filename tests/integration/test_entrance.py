"""The way in: a request that comes again byte by byte is answered as before, and a crowd is let in a few at a time."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from service.api.entrance import IN_EACH_ROUND, MAX_KEY_BYTES
from tests.integration.conftest import held
from tests.support.server import Server, until

IN_BOTH_SETTINGS = True


def ask(server: Server, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
    """POST /generate for a picture, waiting for it."""
    headers = {"Accept": "image/png", **(headers or {})}
    return server.client.post("/generate", json={"num_inference_steps": 1, **body}, headers=headers, timeout=60)


def handled(server: Server, status: str) -> float:
    """Requests that the HTTP metrics tell of, by status."""
    return server.metric("http_requests_total", handler="/generate", method="POST", status=status)


def test_the_same_bytes_again_are_a_new_job_with_a_trace_of_its_own(fake: Server) -> None:
    """And are counted as any other request."""
    asked = {"prompt": "again and again", "seed": 3}
    before = handled(fake, "200")
    answers = [ask(fake, **asked) for _ in range(3)]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert len({answer.headers["X-Job-Id"] for answer in answers}) == 3
    assert len({answer.headers["traceparent"] for answer in answers}) == 3
    jobs = [fake.job(answer.headers["X-Job-Id"]) for answer in answers]
    assert [job["cached"] for job in jobs] == [False, True, True]
    assert handled(fake, "200") == before + 3


def test_how_it_is_to_be_answered_counts(fake: Server) -> None:
    """By header and by query."""
    asked = {"prompt": "in many ways", "seed": 3}
    for _ in range(2):
        assert ask(fake, **asked).headers["Content-Type"] == "image/png"
        assert ask(fake, {"Accept": "image/webp"}, **asked).headers["Content-Type"] == "image/webp"
        assert ask(fake, {"Accept": "*/*"}, **asked).status_code == 202
        body = {"num_inference_steps": 1, **asked}
        assert fake.client.post("/generate", json=body, params={"wait": 60}).status_code == 200


def test_what_is_drawn_anew_each_time_is_not_repeated(fake: Server) -> None:
    """Without a seed; with an idempotency key, that alone decides."""
    pictures = {ask(fake, prompt="no seed").headers["X-Seed"] for _ in range(3)}
    assert len(pictures) == 3
    asked = {"prompt": "with a key", "seed": 3}
    without = {ask(fake, **asked).headers["X-Job-Id"] for _ in range(2)}
    key = {"Idempotency-Key": "entrance-1"}
    keyed = {ask(fake, key, **asked).headers["X-Job-Id"] for _ in range(2)}
    assert (len(without), len(keyed)) == (2, 1)
    assert not without & keyed


def test_tries_are_counted_whatever_is_known(fake: Server) -> None:
    """A client that says it tries again is heard each time."""
    asked = {"prompt": "tried again", "seed": 3}
    ask(fake, **asked)
    before = fake.metric("safelight_client_retries_total")
    for _ in range(2):
        assert ask(fake, {"X-Stainless-Retry-Count": "1"}, **asked).status_code == 200
    assert fake.metric("safelight_client_retries_total") == before + 2


def test_what_is_wrong_is_wrong_each_time(fake: Server) -> None:
    """With the same words."""
    answers = [ask(fake, prompt="wrong", seed=3, width=7) for _ in range(3)]
    assert {answer.status_code for answer in answers} == {422}
    assert len({answer.text for answer in answers}) == 1


def test_long_requests_are_read_each_time(fake: Server) -> None:
    """A body too long to be remembered gives what a short one gives."""
    prompt = "\u00e9" * (MAX_KEY_BYTES // 4)  # six bytes each, as JSON
    answers = [ask(fake, prompt=prompt, seed=3) for _ in range(2)]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.headers["X-Job-Id"] for answer in answers}) == 2


def test_those_who_wait_for_pictures_keep_nobody_out(fake: Server) -> None:
    """Many times as many as are let in at once are accepted while no step is made, and others are answered."""
    crowd = 12 * IN_EACH_ROUND
    with ThreadPoolExecutor(crowd) as threads:
        with held(fake):
            asked = [threads.submit(ask, fake, prompt=f"number {number}") for number in range(crowd)]

            def all_are_in() -> bool:
                jobs = fake.client.get("/jobs", params={"limit": 100}).json()["jobs"]
                here = [job for job in jobs if job["parameters"]["prompt"].startswith("number ")]
                return len(here) == crowd

            until(all_are_in)
            assert fake.client.get("/health/live").status_code == 200
        assert {each.result().status_code for each in asked} == {200}
