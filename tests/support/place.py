"""Where a service is started, and started again: alone in a folder, or as a fleet with all that this needs.

A test that takes its service from a place says nothing of what it is.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import create_engine, text

from tests.support.postgresql import PostgresServer
from tests.support.redis import RedisServer
from tests.support.s3 import S3Server, reachable
from tests.support.server import Server, serving, until

WORKERS = 2
STILL_SECONDS = 0.1  # several steps of a fake model


class Place(Protocol):
    """What a service leaves behind is there for the next one."""

    def serving(self, **settings: object) -> Any:
        """A ready service, until the block ends."""


class Alone:
    """One process, which keeps everything in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def serving(self, **settings: object) -> Iterator[Server]:
        """See `Place`."""
        with serving(self._folder, **settings) as server:
            yield server


class FleetServer(Server):
    """The API of a fleet with two workers, and its address."""

    engines = WORKERS
    tells_every_step = False

    def __init__(self, folder: Path, **settings: object) -> None:
        worker = {**settings, "metrics_port": 0}
        self.workers = [Server(folder, ("service", "worker"), f"worker-{n}", **worker) for n in range(WORKERS)]
        self._database_url = str(settings["database_url"])
        super().__init__(folder, name="api", **settings)

    def await_ready(self) -> Server:
        """Wait until the API knows both workers."""
        for each in self.workers:
            each.await_ready()
        until(lambda: super(FleetServer, self).metric("safelight_workers", pool="on_demand") == WORKERS)
        return super().await_ready()

    def metric(self, name: str, **labels: str) -> float:
        """The sum over all processes."""
        return super().metric(name, **labels) + sum(each.metric(name, **labels) for each in self.workers)

    def recorded(self, job_id: str) -> dict[str, Any] | None:
        """The job's row in the database."""
        engine = create_engine(self._database_url)
        try:
            with engine.connect() as connection:
                row = connection.execute(text("SELECT * FROM jobs WHERE id = :id"), {"id": job_id}).mappings().first()
            return None if row is None else dict(row)
        finally:
            engine.dispose()

    def settle(self) -> None:
        """Wait until no engine makes a step."""

        def is_still() -> bool:
            before = self.metric("safelight_steps_total"), self.metric("safelight_requests_running")
            time.sleep(STILL_SECONDS)
            return (self.metric("safelight_steps_total"), 0.0) == before

        until(is_still)

    def stop(self) -> int:
        """SIGTERM for all; the worst exit status."""
        return max([super().stop(), *(each.stop() for each in self.workers)])

    def end(self) -> None:
        """Kill what lives."""
        for each in (*self.workers, self):
            Server.end(each)


class Fleet:
    """An API and two workers on Redis, PostgreSQL and S3."""

    def __init__(self, folder: Path, redis: RedisServer, database: PostgresServer, storage: S3Server) -> None:
        self._folder = folder
        self._storage = storage
        self._settings = {
            "queue_url": redis.url,
            "database_url": database.new_database(),
            "storage_url": storage.bucket(),
        }

    @contextmanager
    def serving(self, **settings: object) -> Iterator[Server]:
        """See `Place`."""
        with reachable(self._storage):
            server = FleetServer(self._folder, **{**self._settings, **settings})
        try:
            yield server.await_ready()
        finally:
            server.end()
