"""Real databases: SQLite in a file, PostgreSQL as a server of the tests' own."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.storage.database import Database, metadata


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a PostgreSQL server that lives as long as the tests, on a socket in a folder of its own."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    assert programs, "PostgreSQL's server programs are missing; `make test` installs them"
    with tempfile.TemporaryDirectory(prefix="safelight-postgresql-") as folder:
        data = Path(folder, "data")
        as_user: list[str] = []
        if os.geteuid() == 0:  # the server refuses to run as root
            shutil.chown(folder, "postgres")
            as_user = ["runuser", "-u", "postgres", "--"]
        start = [*as_user, programs[-1] / "pg_ctl", "-D", data]
        subprocess.run(
            [*as_user, programs[-1] / "initdb", "-D", data, "-A", "trust", "-U", "safelight", "--no-sync"],
            check=True,
            capture_output=True,
            cwd=folder,
        )
        options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
        log = Path(folder, "log")
        subprocess.run([*start, "-w", "-l", log, "-o", options, "start"], check=True, capture_output=True, cwd=folder)
        try:
            yield f"postgresql+psycopg://safelight@/postgres?host={folder}"
        finally:
            subprocess.run([*start, "-m", "immediate", "stop"], check=True, capture_output=True, cwd=folder)


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
