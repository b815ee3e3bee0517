"""Servers that several tests of a module share; tests that need their own settings start their own.

A module that says `IN_BOTH_SETTINGS` runs on a fleet too, with `--setting fleet`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.place import Alone, Fleet, Place
from tests.support.postgresql import PostgresServer, postgresql
from tests.support.redis import redis
from tests.support.s3 import S3Server, s3
from tests.support.server import Server

FAKE = "fake:?step_ms=20&fail=poison&crash=landmine"
# A job that lasts far longer than any look at it: 400 steps of 20 ms with two slots, or 800 with one.
LONG: dict[str, Any] = {"num_images": 8, "num_inference_steps": 100}

Places = Callable[[Path], Any]  # a place in a folder, as a context


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On a fleet run those that can."""
    if config.getoption("--setting") == "alone":
        return
    here = Path(__file__).parent
    others = [
        each
        for each in items
        if isinstance(each, pytest.Function)
        and each.path.parent == here
        and not getattr(each.module, "IN_BOTH_SETTINGS", False)
    ]
    config.hook.pytest_deselected(items=others)
    items[:] = [each for each in items if each not in others]


@pytest.fixture(scope="session")
def setting(request: pytest.FixtureRequest) -> str:
    """`alone` or `fleet`."""
    return str(request.config.getoption("--setting"))


@pytest.fixture(scope="session")
def database_server() -> Iterator[PostgresServer]:
    """A PostgreSQL for all fleets."""
    with postgresql() as server:
        yield server


@pytest.fixture(scope="session")
def storage_server() -> Iterator[S3Server]:
    """A store for all fleets."""
    with s3() as server:
        yield server


@pytest.fixture(scope="module")
def places(request: pytest.FixtureRequest, setting: str) -> Places:
    """Makes places of the setting."""

    @contextmanager
    def place(folder: Path) -> Iterator[Place]:
        if setting == "alone":
            yield Alone(folder)
            return
        servers = request.getfixturevalue("database_server"), request.getfixturevalue("storage_server")
        with redis(folder / "redis") as queue:
            yield Fleet(folder / "data", queue, *servers)

    return place


@pytest.fixture(scope="module")
def fake(places: Places, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the fake model."""
    with places(tmp_path_factory.mktemp("fake")) as place, place.serving(model=FAKE, max_batch=2) as server:
        yield server


@pytest.fixture(scope="module")
def sequential(places: Places, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that runs one picture at a time, so that the order of the queue is the order of starts."""
    folder = tmp_path_factory.mktemp("sequential")
    with places(folder) as place, place.serving(model=FAKE, batching="sequential") as server:
        yield server


@pytest.fixture
def place(places: Places, tmp_path: Path) -> Iterator[Place]:
    """A place of the test's own."""
    with places(tmp_path) as found:
        yield found


@contextmanager
def held(server: Server) -> Iterator[None]:
    """`server.held()`, once the engine of a shared server has left the batch of a job that was cancelled."""
    server.settle()
    with server.held():
        yield


@contextmanager
def busy(server: Server, **first: Any) -> Iterator[list[str]]:
    """Every engine holds as many pictures as it can, and makes no step; the ids of the jobs.

    The first of them is over soon after, if it is made so.
    """
    with held(server):
        bodies = [{"prompt": f"blocker {n}", **LONG, **(first if n == 0 else {})} for n in range(server.engines)]
        yield [server.start(**body)["job_id"] for body in bodies]


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data folder of the test's own."""
    return tmp_path / "data"
