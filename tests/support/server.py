"""The service as users run it: a process of its own behind a real socket, on a free port."""

import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

T = TypeVar("T")

PATIENCE = 120.0  # seconds until a test gives up on something that should happen at once; no bar
LISTENS = re.compile(r"listens on (http://127\.0\.0\.1:(\d+))")


def environment(data_dir: Path, **settings: object) -> dict[str, str]:
    """The environment of the tests without `SAFELIGHT_*` variables, plus the given settings."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SAFELIGHT_")}
    given = {f"SAFELIGHT_{name.upper()}": str(value) for name, value in settings.items()}
    return {**clean, "SAFELIGHT_DATA_DIR": str(data_dir), "SAFELIGHT_PORT": "0", **given}


class Server:
    """One running server process and a client for it. A fake model makes no step while the file `hold` is there."""

    engines = 1
    tells_every_step = True  # to those who follow a job

    def __init__(
        self, data_dir: Path, command: Sequence[str] = ("service", "serve"), name: str = "server", **settings: object
    ) -> None:
        self.data_dir = data_dir
        data_dir.mkdir(parents=True, exist_ok=True)
        self.log = data_dir / f"{name}.log"
        self.hold = data_dir / "hold"
        model = str(settings.get("model", ""))
        if model.startswith("fake:"):
            settings["model"] = f"{model}{'&' if '?' in model else '?'}hold={quote(str(self.hold))}"
        with self.log.open("ab") as log:
            start = log.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command], env=environment(data_dir, **settings), stderr=log
            )
        self.url = self._await_address(start)
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE)

    def _await_address(self, start: int) -> str:
        def address() -> str | None:
            match = LISTENS.search(self.log.read_bytes()[start:].decode())
            assert match or self.process.poll() is None, self.log.read_text()
            return match and match[1]

        return str(until(address))

    def await_ready(self) -> "Server":
        """Wait until the model is loaded and warm."""

        def is_ready() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return self.client.get("/health/ready").status_code == 200

        until(is_ready)
        return self

    def generate(self, expect: int = 202, params: dict[str, Any] | None = None, **body: Any) -> dict[str, Any]:
        """POST /generate with `body`; the JSON of the answer, whose status must be `expect`."""
        response = self.client.post("/generate", json={"prompt": "a red apple", **body}, params=params)
        assert response.status_code == expect, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def job(self, job_id: str) -> dict[str, Any]:
        """GET /jobs/{id}."""
        response = self.client.get(f"/jobs/{job_id}")
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    @contextmanager
    def held(self) -> Iterator[None]:
        """Meanwhile the engine makes no step: a job that starts stays `processing`, the next ones stay `pending`."""
        self.hold.touch()
        try:
            yield
        finally:
            self.hold.unlink(missing_ok=True)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Meanwhile the engine's process does nothing at all; what it is sent waits for it."""
        engine = self.engine()
        os.kill(engine, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(engine, signal.SIGCONT)

    def start(self, **body: Any) -> dict[str, Any]:
        """POST /generate, and wait until the job is in a batch."""
        return self.await_status(self.generate(**body)["job_id"], "processing")

    def recorded(self, job_id: str) -> dict[str, Any] | None:
        """The job's row in the SQLite file, read past the service."""
        with closing(sqlite3.connect(f"file:{self.data_dir}/safelight.db?mode=ro", uri=True)) as database:
            database.row_factory = sqlite3.Row
            row = database.execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone()
        return row and dict(row)

    def children(self) -> set[int]:
        """The processes that the server has started."""
        found: set[int] = set()
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            with suppress(FileNotFoundError):  # a thread that has just ended
                found |= set(map(int, (task / "children").read_text().split()))
        return found

    def engine(self) -> int:
        """The engine's process."""
        (pid,) = (pid for pid in self.children() if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes())
        return pid

    def await_status(self, job_id: str, *statuses: str) -> dict[str, Any]:
        """The job, once it is in one of `statuses`."""

        def there() -> dict[str, Any] | None:
            job = self.job(job_id)
            return job if job["status"] in statuses else None

        job = until(there)
        assert job is not None
        return job

    def metric(self, name: str, **labels: str) -> float:
        """The present value of one series; 0.0 when it is not there."""
        for line in self.client.get("/metrics").text.splitlines():
            match = re.fullmatch(r"([a-z_]+)(?:\{(.*)\})? (\S+)", line)
            if match and match[1] == name and dict(re.findall(r'(\w+)="([^"]*)"', match[2] or "")) == labels:
                return float(match[3])
        return 0.0

    def settle(self) -> None:
        """Wait until the engine has left the batch of whatever was cancelled."""
        self.generate(params={"wait": 60}, expect=200, prompt="all before is over", num_inference_steps=1, cache=False)

    def end(self) -> None:
        """Kill it if it lives."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE)
        self.client.close()

    def kill(self) -> None:
        """`kill -9`."""
        self.process.kill()
        self.process.wait(PATIENCE)
        self.client.close()

    def terminate(self) -> None:
        """SIGTERM, without waiting."""
        self.process.send_signal(signal.SIGTERM)

    def stop(self) -> int:
        """SIGTERM, and the exit status; killed when that takes too long."""
        self.terminate()
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            self.client.close()


@contextmanager
def serving(data_dir: Path, **settings: object) -> Iterator[Server]:
    """A ready server, stopped at the end if the test has not done so."""
    server = Server(data_dir, **settings)
    try:
        yield server.await_ready()
    finally:
        server.end()


def block_picture(server: Server, job_id: str, index: int) -> Path:
    """Make a pipe that nobody reads where a PNG of the job will be written: storing it does not end."""
    pipe = server.data_dir / "images" / job_id[:2] / job_id / f"{index}.png"
    pipe.parent.mkdir(parents=True)
    os.mkfifo(pipe)
    return pipe


def is_running(pid: int) -> bool:
    """Whether there is such a process, other than as a zombie."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def until(condition: Callable[[], T]) -> T:
    """The first true value of `condition()`."""
    give_up = time.monotonic() + PATIENCE
    while time.monotonic() < give_up:
        try:
            if value := condition():
                return value
        except httpx.TransportError:
            pass
        time.sleep(0.02)
    raise AssertionError("it did not happen")
