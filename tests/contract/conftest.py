"""Real databases: SQLite in a file, PostgreSQL as a server of the tests' own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.storage.database import Database
from service.storage.schema import metadata
from tests.support import postgresql as servers


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a PostgreSQL server that lives as long as the tests."""
    with servers.postgresql() as server:
        yield server.url


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An empty database of each kind that is supported."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'safelight.db'}"
    else:
        url = request.getfixturevalue("postgresql")
    database = Database(url)
    try:
        yield database
    finally:
        metadata.drop_all(database.engine)
        database.close()
