"""The stack of a fleet: two workers with a stand-in for a model, on a Redis, a PostgreSQL and a server with S3's
interface, each of which is a process of this machine and can be ended.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from observability.gameday.program import CannotStart, Program
from observability.gameday.stack import Stack
from observability.generate.timing import SHIPPED, Timing

SERVERS = ("redis", "database", "storage")
WORKERS = ("worker-1", "worker-2")
CRASH = "landmine"  # a prompt with this word ends the engine that runs it
MODEL = f"fake:?step_ms=50&crash={CRASH}"
KEYS = {"AWS_ACCESS_KEY_ID": "safelight", "AWS_SECRET_ACCESS_KEY": "safelight", "AWS_DEFAULT_REGION": "us-east-1"}
SCALE_SECONDS, SCALE_DOWN_SECONDS = 30.0, 300.0


class FleetStack(Stack):
    """See the module's words. There are no exporters and no probe: those of the other stack are enough."""

    jobs = ("api", *WORKERS, *SERVERS, "inbox", "prometheus", "alertmanager")

    def __init__(
        self, folder: Path, timing: Timing = SHIPPED, profile: str = "demo", settings: Mapping[str, str] | None = None
    ) -> None:
        # PostgreSQL has another user, who may not get into the stack's own folder.
        self._temporary = tempfile.TemporaryDirectory(prefix="safelight-database-", ignore_cleanup_errors=True)
        super().__init__(folder, timing, profile, settings)

    def start(self) -> None:
        """Start the servers before those that need them. Raises `CannotStart`."""
        self.configure()
        for names in (SERVERS, [name for name in self.programs if name not in SERVERS]):
            for name in names:
                self.programs[name].start()
            for name in names:
                self.await_ready(name)

    def configure(self) -> None:
        """Also an empty database."""
        super().configure()
        (self.folder / "redis").mkdir(parents=True, exist_ok=True)
        self._initialise_database()

    def _initialise_database(self) -> None:
        data = self._database_folder
        if (data / "PG_VERSION").exists():
            return
        if os.geteuid() == 0:
            shutil.chown(data, "postgres")
        command = [*_as_postgres(), str(_postgresql("initdb")), "-D", str(data), "-A", "trust", "-U", "safelight"]
        done = subprocess.run([*command, "--no-sync"], capture_output=True, text=True, check=False, cwd="/")
        if done.returncode:
            raise CannotStart(f"initdb: {done.stderr[-2000:]}")

    def stop(self) -> None:
        """Also forget the database."""
        super().stop()
        self._temporary.cleanup()

    @property
    def _database_folder(self) -> Path:
        return Path(self._temporary.name)

    def _targets(self) -> Any:
        processes = {"api": ["metrics"], "worker": list(WORKERS)}
        watchers = {name: [name] for name in ("inbox", "prometheus", "alertmanager")}
        return [
            {"targets": [f"127.0.0.1:{self.ports[name]}"], "labels": {"job": job}}
            for job, names in (processes | watchers).items()
            for name in names
        ]

    def _programs(self) -> dict[str, Program]:
        workers = {name: self._own(["worker"], name, "/health/ready", self._worker_settings(name)) for name in WORKERS}
        api = self._own(["serve"], "api", "/health/ready", self._api_settings() | KEYS)
        inbox = self._own(self._inbox_arguments(), "inbox", "/health/live")
        return {**workers, "api": api, "inbox": inbox, **self._watchers(), **self._servers()}

    def _servers(self) -> dict[str, Program]:
        port = {name: str(self.ports[name]) for name in SERVERS}
        folder = self.folder / "redis"
        redis = ["redis-server", "--port", port["redis"], "--dir", str(folder), "--appendonly", "yes", "--save", ""]
        data = self._database_folder
        options = ["-c", "unix_socket_directories=", "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
        database = [*_as_postgres(), str(_postgresql("postgres")), "-D", str(data), "-p", port["database"], *options]
        storage = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", port["storage"]]
        commands = {"redis": redis, "database": database, "storage": storage}
        return {
            name: Program(command, self.folder / f"{name}.log", f"tcp://127.0.0.1:{port[name]}")
            for name, command in commands.items()
        }

    def _api_settings(self) -> dict[str, str]:
        faster = self.timing.factor
        scaling = {
            "SAFELIGHT_WORKERS": "2:3",
            "SAFELIGHT_WORKERS_LOCAL": "false",
            "SAFELIGHT_SCALE_SECONDS": f"{max(0.5, SCALE_SECONDS / faster):g}",
            "SAFELIGHT_SCALE_DOWN_SECONDS": f"{max(2.0, SCALE_DOWN_SECONDS / faster):g}",
        }
        return super()._api_settings() | self._shared() | scaling

    def _worker_settings(self, name: str) -> Mapping[str, str]:
        return self._shared() | KEYS | {"SAFELIGHT_METRICS_PORT": str(self.ports[name]), "SAFELIGHT_MAX_BATCH": "8"}

    def _shared(self) -> dict[str, str]:
        return {
            "SAFELIGHT_MODEL": MODEL,
            "SAFELIGHT_DATA_DIR": str(self.folder / "data"),
            "SAFELIGHT_QUEUE_URL": f"redis://127.0.0.1:{self.ports['redis']}",
            "SAFELIGHT_DATABASE_URL": f"postgresql+psycopg://safelight@127.0.0.1:{self.ports['database']}/postgres",
            "SAFELIGHT_STORAGE_URL": "s3://pictures/all",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.ports['storage']}",
        }


def _postgresql(program: str) -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))
    if not found:
        raise CannotStart(f"there is no {program}; Debian has it in the package postgresql")
    return found[-1]


def _as_postgres() -> list[str]:
    """It refuses to run as root."""
    if os.geteuid() != 0:
        return []
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
