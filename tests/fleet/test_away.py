"""A fleet while one of the servers that it needs is away: refused in time, and as before when that is back."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fleet import Fleet
from tests.support.postgresql import PostgresServer, postgresql
from tests.support.redis import redis
from tests.support.s3 import S3Server, reachable
from tests.support.server import Server, until

QUICK = {"num_inference_steps": 2, "cache": False}


@pytest.fixture
def database() -> Iterator[PostgresServer]:
    """One that the test may stop."""
    with postgresql() as server:
        yield server


def check_refused(api: Server, missing: str) -> None:
    """Readiness and answers say what is away, soon enough."""
    until(lambda: api.client.get("/health/ready").json().get("missing") == [missing])
    began = time.monotonic()
    refused = api.client.post("/generate", json={"prompt": "a pizza"})
    assert refused.status_code == 503
    assert missing in refused.json()["detail"]
    assert "Retry-After" in refused.headers
    assert time.monotonic() - began < 30  # 2 on a machine that is not busy
    assert api.client.get("/health/live").status_code == 200
    assert api.metric("safelight_dependency_up", dependency=missing) == 0


def test_the_database_may_be_away(tmp_path: Path, database: PostgresServer) -> None:
    """A job that ran meanwhile ends when it is back."""
    with redis(tmp_path / "redis") as queue:
        made = Fleet(tmp_path / "data", queue)
        try:
            api = made.api(database_url=database.url)
            made.worker(database_url=database.url).await_ready()
            api.await_ready()
            job = api.start(num_inference_steps=50, cache=False)
            database.stop()
            check_refused(api, "database")
            database.start()
            api.await_ready()
            api.await_status(job["job_id"], "completed")
            api.generate(expect=200, params={"wait": 60}, **QUICK)
        finally:
            made.end()


def test_the_store_may_be_away(tmp_path: Path) -> None:
    """Workers take nothing meanwhile; what was accepted completes when it is back."""
    storage = S3Server()
    bucket = storage.bucket()
    with redis(tmp_path / "redis") as queue, reachable(storage):
        made = Fleet(tmp_path / "data", queue)
        try:
            api = made.api(storage_url=bucket)
            worker = made.worker(storage_url=bucket).await_ready()
            api.await_ready()
            with api.held():
                job = api.start(num_inference_steps=2, cache=False)
                storage.stop()
                check_refused(api, "storage")
                until(lambda: worker.client.get("/health/ready").json().get("missing") == ["storage"])
            storage = S3Server(storage.port)
            storage.bucket(bucket)
            api.await_ready()
            done = api.await_status(job["job_id"], "completed")
            assert api.client.get(done["image_url"]).content.startswith(b"\x89PNG")
        finally:
            made.end()
            storage.stop()


def test_a_picture_can_be_fetched_from_the_store_itself(tmp_path: Path) -> None:
    """By an address that holds for minutes, for whoever asks for it; a folder has none."""
    storage = S3Server()
    with redis(tmp_path / "redis") as queue, reachable(storage):
        made = Fleet(tmp_path / "data", queue)
        try:
            bucket = storage.bucket()
            api = made.api(storage_url=bucket)
            made.worker(storage_url=bucket).await_ready()
            api.await_ready()
            done = api.generate(expect=200, params={"wait": 60}, **QUICK)
            answer = api.client.get(done["image_url"], params={"presigned": True})
            assert answer.status_code == 307
            assert "Signature" in answer.headers["location"]
            direct = api.client.get(answer.headers["location"])
            assert direct.content == api.client.get(done["image_url"]).content
        finally:
            made.end()
            storage.stop()
