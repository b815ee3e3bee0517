"""A fleet on this machine: a real Redis, and processes that share a data folder."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.redis import RedisServer, redis
from tests.support.server import PATIENCE, Server

MODEL = "fake:?step_ms=20"


class Fleet:
    """Its Redis, and whatever processes a test starts; all end with it. A worker of `moment` dies then."""

    def __init__(self, folder: Path, server: RedisServer, model: str = MODEL) -> None:
        self.folder = folder
        self.redis = server
        self._model = model
        self._members: list[Server] = []
        self._numbers = itertools.count(1)

    def api(self, moment: str = "never", **settings: object) -> Server:
        """A process that serves the API."""
        return self._member(moment, "serve", **settings)

    def worker(self, moment: str = "never", **settings: object) -> Server:
        """One that makes pictures, two at a time."""
        return self._member(moment, "worker", **{"max_batch": 2, "metrics_port": 0, **settings})

    def _member(self, moment: str, what: str, **settings: object) -> Server:
        name = f"{what}-{next(self._numbers)}"
        command = ("tests.support.doomed", moment, what)
        given = {"queue_url": self.redis.url, "model": self._model, **settings}
        member = Server(self.folder, command, name, **given)
        self._members.append(member)
        return member

    def end(self) -> None:
        """Kill what lives."""
        for each in self._members:
            if each.process.poll() is None:
                each.process.kill()
                each.process.wait(PATIENCE)
            each.client.close()


@contextmanager
def fleet(folder: Path, model: str = MODEL) -> Iterator[Fleet]:
    """One without processes yet."""
    with redis(folder / "redis") as server:
        made = Fleet(folder / "data", server, model)
        try:
            yield made
        finally:
            made.end()
