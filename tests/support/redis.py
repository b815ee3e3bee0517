"""A real Redis behind a socket in a folder, with an append-only file, as it is to be used."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.server import PATIENCE, until


class RedisServer:
    """One that runs, and can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._socket = folder / "redis.sock"
        self.url = f"unix://{self._socket}"
        self.start()

    def start(self) -> None:
        """Start it with what it had."""
        options = {
            "port": 0,
            "unixsocket": self._socket,
            "dir": self._folder,
            "appendonly": "yes",
            "save": "",
            "logfile": self._folder / "redis.log",
        }
        arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        self._socket.unlink(missing_ok=True)
        self.process = subprocess.Popen(["redis-server", *arguments], stdout=subprocess.DEVNULL)
        until(lambda: self._socket.exists() and self.cli("ping") == "PONG")

    def kill(self) -> None:
        """`kill -9`."""
        self.process.kill()
        self.process.wait(PATIENCE)

    def cli(self, *words: str) -> str:
        """The answer to one command."""
        command = ["redis-cli", "-s", str(self._socket), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE).stdout.strip()


@contextmanager
def redis(folder: Path) -> Iterator[RedisServer]:
    """One that is there until the block ends."""
    server = RedisServer(folder)
    try:
        yield server
    finally:
        server.kill()
