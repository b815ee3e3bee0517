"""The jobs table behaves the same on every database."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Connection, select, text
from sqlalchemy.exc import IntegrityError

from observability.labels import Priority, Reason, Stage
from service.core import ImageFormat, JobState
from service.errors import Conflict
from service.jobs import table
from service.storage.database import Database
from service.storage.schema import blobs
from tests.support import build


def add(database: Database, *jobs: object) -> None:
    """Insert jobs."""
    for job in jobs:
        database.run_here(lambda connection, job=job: table.add(connection, job))  # type: ignore[misc]


def test_a_job_comes_back_as_it_was_written(database: Database) -> None:
    """Every field, also odd text and large seeds."""
    odd = build.params(
        prompt='ünïcödé 🍎 "quotes" \\ \n', seed=2**53 - 1, guidance_scale=7.1, output_format=ImageFormat.WEBP
    )
    job = build.job(
        "a" * 32,
        params=odd,
        priority=Priority.HIGH,
        cache_key="k",
        created_at=1700000000.123456,
        timings={Stage.QUEUE_WAIT: 0.25},
        prompt_truncated=True,
        detail="why",
        reason=Reason.MODEL_ERROR,
    )
    add(database, job)
    assert database.run_here(lambda connection: table.get(connection, job.id)) == job
    assert database.run_here(lambda connection: table.get(connection, "b")) is None


def test_a_database_of_an_earlier_version_gets_its_missing_columns(database: Database) -> None:
    """What it holds stays."""
    database.run_here(lambda connection: table.add(connection, build.job("old")))
    database.run_here(lambda connection: connection.execute(text("ALTER TABLE jobs DROP COLUMN traceparent")))
    again = Database(database.engine.url.render_as_string(hide_password=False))
    try:
        again.run_here(lambda connection: table.add(connection, build.job("new", traceparent="00-1-2-01")))
        found = {each.id: each.traceparent for each in again.run_here(table.unfinished)}
        assert found == {"old": None, "new": "00-1-2-01"}
    finally:
        again.close()


def test_a_terminal_state_is_final(database: Database) -> None:
    """What is saved over a finished job changes nothing."""
    job = build.job()
    add(database, job)

    def end_twice(connection: Connection) -> None:
        table.save(connection, job.but(state=JobState.PROCESSING, started_at=1.0))
        table.save(connection, job.but(state=JobState.CANCELLED, finished_at=2.0))
        table.save(connection, job.but(state=JobState.COMPLETED, finished_at=3.0))

    database.run_here(end_twice)
    kept = database.run_here(lambda connection: table.get(connection, job.id))
    assert kept is not None
    assert (kept.state, kept.finished_at) == (JobState.CANCELLED, 2.0)


def test_unfinished_jobs_come_oldest_first(database: Database) -> None:
    """Waiting and running ones, and no finished one."""
    ended = {JobState.PENDING: None, JobState.COMPLETED: 101.0, JobState.PROCESSING: None, JobState.FAILED: 102.0}
    jobs = [
        build.job(str(number), created_at=100.0 - number, state=state, finished_at=finished_at)
        for number, (state, finished_at) in enumerate(ended.items())
    ]
    add(database, *jobs)
    assert [job.id for job in database.run_here(table.unfinished)] == ["2", "0"]


def test_pages_are_cut_at_the_cursor(database: Database) -> None:
    """Jobs of the same moment are told apart by their ids; finished ones past their time are left out."""
    add(database, *(build.job(name, created_at=5.0) for name in "abc"))
    add(database, build.job("old", state=JobState.COMPLETED, created_at=1.0, finished_at=2.0))

    def page(before: tuple[float, str] | None, *states: JobState) -> list[str]:
        return [
            job.id
            for job in database.run_here(lambda connection: table.page(connection, states, (), 2, before, since=2.0))
        ]

    assert page(None) == ["c", "b"]
    assert page((5.0, "b")) == ["a"]
    assert page(None, JobState.COMPLETED) == []
    assert page(None, JobState.PENDING) == ["c", "b"]


def test_an_idempotency_key_stands_for_one_job_for_a_day(database: Database) -> None:
    """The same body finds the job, another is a conflict, a day later the key is free."""
    add(database, build.job("a"))
    database.run_here(lambda connection: table.bind_key(connection, "key", "print", "a", now=1000.0))

    def find(fingerprint: str, now: float) -> str | None:
        job = database.run_here(lambda connection: table.find_by_key(connection, "key", fingerprint, now))
        return job and job.id

    assert find("print", 1001.0) == "a"
    with pytest.raises(Conflict):
        find("another", 1001.0)
    with pytest.raises(IntegrityError):
        database.run_here(lambda connection: table.bind_key(connection, "key", "print", "a", now=1001.0))
    assert find("print", 1000.0 + 86_400) is None
    database.run_here(lambda connection: table.bind_key(connection, "key", "another", "a", now=90_000.0))


def test_deletion_takes_old_jobs_their_keys_and_unused_blobs(database: Database) -> None:
    """A blob goes with the last job that points at it."""

    def fill(connection: Connection) -> None:
        for blob in ("shared", "alone"):
            table.add_blob(connection, blob, 10, 0.0)
        done = build.job("old", state=JobState.COMPLETED, finished_at=10.0, blob="shared")
        table.add(connection, done)
        table.add(connection, replace(done, id="older", finished_at=9.0, blob="alone"))
        table.add(connection, replace(done, id="new", finished_at=20.0))
        table.bind_key(connection, "key", "print", "old", now=10.0)

    database.run_here(fill)
    assert database.run_here(lambda connection: table.delete_finished(connection, 10.0, now=20.0)) == 2
    assert database.run_here(table.delete_unused_blobs) == ["alone"]
    assert database.run_here(lambda connection: table.find_by_key(connection, "key", "print", 20.0)) is None
    database.run_here(lambda connection: table.delete_finished(connection, 20.0, now=20.0))
    assert database.run_here(table.delete_unused_blobs) == ["shared"]
    assert database.run_here(lambda connection: connection.execute(select(blobs)).all()) == []


def test_a_job_cannot_point_at_a_blob_that_is_not_there(database: Database) -> None:
    """So a cache hit that races with a deletion is refused rather than left without pictures."""
    with pytest.raises(IntegrityError):
        add(database, build.job("a", blob="deleted"))


def test_two_processes_may_write_at_the_same_time(tmp_path: Path) -> None:
    """Each reads before it writes; none is told that the database is locked, and none writes over the other."""
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    databases = [Database(url), Database(url)]  # as two processes have them
    databases[0].run_here(lambda connection: table.add(connection, build.job("a", expires_at=0.0)))

    def count_up(connection: Connection) -> None:
        job = table.get(connection, "a")
        assert job is not None
        time.sleep(0.001)
        table.save(connection, job.but(expires_at=job.expires_at + 1))

    def work(database: Database) -> None:
        for _ in range(50):
            database.run_here(count_up)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, databases))
    job = databases[0].run_here(lambda connection: table.get(connection, "a"))
    assert job is not None
    assert job.expires_at == 100.0
    for each in databases:
        each.close()
