"""A real service in a process of its own, and clients that cost little."""

import http.client
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.traffic import Request

CLIENT_SECONDS = 660.0  # more than the service holds an answer
LEAD_SECONDS = 0.1  # between making the clients of a block and its time 0
START_SECONDS = 300.0
STOP_SECONDS = 60.0
PNG = b"\x89PNG"


@dataclass(frozen=True, slots=True)
class Service:
    """A service that is ready."""

    host: str
    port: int
    pid: int
    log: Path

    def connect(self) -> http.client.HTTPConnection:
        """A connection of one client."""
        return http.client.HTTPConnection(self.host, self.port, timeout=CLIENT_SECONDS)

    def get(self, path: str) -> bytes:
        """The body of a GET. Raises `RuntimeError` for any other status than 200."""
        connection = self.connect()
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        if answer.status != 200:
            raise RuntimeError(f"GET {path} was answered {answer.status}: {body[:500]!r}")
        return body

    def get_json(self, path: str) -> Any:
        """The JSON of a GET."""
        return json.loads(self.get(path))

    def freeze(self) -> None:
        """Stop its processes where they are, so that they leave the machine to others."""
        os.killpg(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        os.killpg(self.pid, signal.SIGCONT)

    def slots(self) -> int:
        """Slots for pictures of the model's own size."""
        slots: int = self.get_json("/model")["profile"][0]["slots"]
        return slots


@contextmanager
def service(model: str, settings: Mapping[str, object], module: str = "service") -> Iterator[Service]:
    """A ready service on the CPU in float32, with `settings` (no prefix in their names). Its data goes at the end.

    `module` is that of the command line.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        given = {"data_dir": folder, "port": 0, "device": "cpu", "dtype": "float32", "model": model, **settings}
        environment = {f"SAFELIGHT_{name.upper()}": str(value) for name, value in given.items()}
        with log.open("w") as stderr:
            command = [sys.executable, "-m", module, "serve"]
            process = subprocess.Popen(
                command, env={**os.environ, **environment}, stderr=stderr, start_new_session=True
            )
        try:
            yield _when_ready(process, log)
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise


def _when_ready(process: subprocess.Popen[bytes], log: Path) -> Service:
    deadline = time.monotonic() + START_SECONDS
    while not (found := re.search(r"listens on http://([\d.]+):(\d+)", log.read_text())):
        _check_alive(process, log, deadline)
    started = Service(found[1], int(found[2]), process.pid, log)
    while True:
        _check_alive(process, log, deadline)
        try:
            started.get("/health/ready")
        except (OSError, RuntimeError):
            continue
        return started


def _check_alive(process: subprocess.Popen[bytes], log: Path, deadline: float) -> None:
    if process.poll() is not None:
        raise SystemExit(f"{log.read_text()}the service ended with {process.returncode}")
    if time.monotonic() > deadline:
        raise SystemExit(f"{log.read_text()}the service was not ready within {START_SECONDS:g} s")
    time.sleep(0.1)


def ask(connection: http.client.HTTPConnection, request: Request) -> None:
    """Wait for one picture; anything else ends the program."""
    headers = {"Content-Type": "application/json", "Accept": "image/png"}
    connection.request("POST", "/generate", json.dumps(request.body()), headers)
    response = connection.getresponse()
    answer = response.read()
    if response.status != 200 or not answer.startswith(PNG):
        raise SystemExit(f"the service answered {response.status}: {answer[:500]!r}")


def open_loop(target: Service, requests: Sequence[Request]) -> list[float]:
    """Ask for each of `requests` at its time, whatever became of the others; the seconds from that time to its picture.

    One sleeping thread a request: on two cores, the engine needs them both.
    """
    with ThreadPoolExecutor(max_workers=len(requests)) as pool:
        origin = time.perf_counter() + LEAD_SECONDS

        def client(request: Request) -> float:
            due = origin + request.at
            time.sleep(max(0.0, due - time.perf_counter()))
            connection = target.connect()
            try:
                ask(connection, request)
                return time.perf_counter() - due
            finally:
                connection.close()

        return list(pool.map(client, requests))


class ClosedLoop:
    """`clients` of a service, each of which asks for its next picture as soon as it has one.

    The service works only while `seconds` waits for pictures; between, it is frozen in the middle of its work.
    """

    def __init__(self, target: Service, requests: Sequence[Request], clients: int) -> None:
        self._target = target
        self._requests = requests
        self._connections = [target.connect() for _ in range(clients)]
        self._pool = ThreadPoolExecutor(max_workers=clients)
        self._completed = threading.Semaphore(0)
        self._is_over = False
        self._clients = [self._pool.submit(self._client, number) for number in range(clients)]

    def __enter__(self) -> "ClosedLoop":
        self.seconds(len(self._clients))
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._target.thaw()
        for connection in self._connections:  # the service cancels what nobody waits for
            if connection.sock is not None:
                connection.sock.shutdown(socket.SHUT_RDWR)
        self._pool.shutdown()

    def seconds(self, pictures: int) -> float:
        """Seconds until so many more pictures have been answered."""
        began = time.perf_counter()
        self._target.thaw()
        for _ in range(pictures):
            while not self._completed.acquire(timeout=1.0):
                for each in self._clients:
                    if each.done():
                        each.result()
        self._target.freeze()
        return time.perf_counter() - began

    def _client(self, number: int) -> None:
        try:
            for picture in itertools.count(number, len(self._connections)):
                ask(self._connections[number], self._requests[picture % len(self._requests)])
                self._completed.release()
                self._connections[number] = self._target.connect()  # the old one may die of old age in the frost
                if self._is_over:  # too late for the new one to be cut off
                    return
        except (OSError, http.client.HTTPException, SystemExit):
            if not self._is_over:
                raise
