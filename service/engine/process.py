"""The service's end of the engine process."""

import logging
import multiprocessing
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from queue import SimpleQueue

from service.engine import worker
from service.engine.contract import Command, LoadFailed, LogLevel, Lost, Message, PutFaults
from service.settings import FAULTS_ALLOWED, EngineSettings, check_faults

log = logging.getLogger("safelight.engine")


class ProcessEngine:
    """An engine in a spawned process; `start` after a `Lost` message starts a new one.

    In a process of its own the engine's Python never waits for the API's, and a crash of the device's driver
    does not take the API down.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._context = multiprocessing.get_context("spawn")
        self._outbox: SimpleQueue[Command | None] | None = None
        self._process: multiprocessing.process.BaseProcess | None = None
        self._stopping = False

    @property
    def pid(self) -> int | None:
        """The process' id; None before the first start."""
        return None if self._process is None else self._process.pid

    def start(self, on_messages: Callable[[Sequence[Message]], None]) -> None:
        """Start the process and the thread that reads from it."""
        if self._stopping:
            return
        outbox: SimpleQueue[Command | None] = SimpleQueue()
        self._outbox = outbox  # before the settings are read: what another thread puts meanwhile is in one or the other
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=worker.main, args=(theirs, self._settings), name="safelight-engine", daemon=True
        )
        process.start()
        theirs.close()
        self._process = process
        for name, work, args in (
            ("reader", self._read, (ours, process, outbox, on_messages)),
            ("writer", _write, (ours, outbox)),
        ):
            threading.Thread(target=work, args=args, name=f"safelight-engine-{name}", daemon=True).start()

    def _read(
        self,
        connection: "Connection[Command, Sequence[Message]]",
        process: multiprocessing.process.BaseProcess,
        outbox: "SimpleQueue[Command | None]",
        on_messages: Callable[[Sequence[Message]], None],
    ) -> None:
        load_failed = False
        try:
            while True:
                messages = connection.recv()
                load_failed |= any(isinstance(each, LoadFailed) for each in messages)
                on_messages(messages)
        except (EOFError, OSError):
            log.debug("the engine closed its end")
        except Exception:
            log.exception("the engine said something that cannot be read")
        outbox.put(None)
        if not load_failed:
            process.kill()  # it holds the device's memory as long as it lives
        process.join(timeout=10)
        if not self._stopping and not load_failed:
            on_messages([Lost(process.exitcode)])

    def set_log_level(self, level: str) -> None:
        """Of the process that runs, and of any that is started after it. `level` is one that the settings may name."""
        self._settings = self._settings.model_copy(update={"log_level": level})
        self.send(LogLevel(level))

    def put_faults(self, text: str) -> None:
        """Of the process that runs, and of any that is started after it; none in an empty text.

        Raises `ValueError` if `text` is no such thing.
        """
        check_faults(text)
        self._settings = self._settings.model_copy(update={"faults": text or FAULTS_ALLOWED})
        self.send(PutFaults(text))

    def send(self, command: Command) -> None:
        """Hand over a command; it is dropped when the process is gone, which `Lost` has told or will tell."""
        if self._outbox is not None:
            self._outbox.put(command)

    def stop(self) -> None:
        """Kill the process: whatever runs is recorded as unfinished and runs again at the next start."""
        self._stopping = True
        if self._process is not None:
            self._process.kill()
            self._process.join(timeout=10)


def _write(connection: "Connection[Command, Sequence[Message]]", outbox: "SimpleQueue[Command | None]") -> None:
    """Send what is put into `outbox`, up to a None. In a thread, since an engine that does not read blocks it."""
    try:
        while (command := outbox.get()) is not None:
            connection.send(command)
    except OSError:
        log.debug("the engine is gone; what was not sent is dropped")
