"""A real PostgreSQL on a socket in a folder of its own."""

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg


class PostgresServer:
    """One that runs, and can be started again."""

    def __init__(self, folder: Path) -> None:
        programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        assert programs, "PostgreSQL's server programs are missing; `make test` installs them"
        as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []  # it refuses to run as root
        if as_user:
            shutil.chown(folder, "postgres")
        self._folder = folder
        self._control = [*as_user, str(programs[-1] / "pg_ctl"), "-D", str(folder / "data")]
        initdb = [*as_user, str(programs[-1] / "initdb"), "-D", str(folder / "data")]
        self._run(*initdb, "-A", "trust", "-U", "safelight", "--no-sync")
        self.url = f"postgresql+psycopg://safelight@/postgres?host={folder}"
        self.start()

    def _run(self, *command: str) -> None:
        subprocess.run(command, check=True, capture_output=True, cwd=self._folder)

    def new_database(self) -> str:
        """The URL of an empty one."""
        name = f"safelight_{uuid.uuid4().hex}"
        address = self.url.replace("postgresql+psycopg", "postgresql")
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return self.url.replace("/postgres?", f"/{name}?")

    def start(self) -> None:
        """Start it with what it had."""
        options = f"-c listen_addresses='' -c unix_socket_directories={self._folder} -c fsync=off"
        self._run(*self._control, "-w", "-l", str(self._folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        """As if it were killed: without a word to whoever is connected, and with a recovery at the next start."""
        self._run(*self._control, "-m", "immediate", "stop")


@contextmanager
def postgresql() -> Iterator[PostgresServer]:
    """One that is there until the block ends."""
    with tempfile.TemporaryDirectory(prefix="safelight-postgresql-") as folder:
        server = PostgresServer(Path(folder))
        try:
            yield server
        finally:
            server.stop()
