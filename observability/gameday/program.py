"""One process of a local stack."""

import contextlib
import os
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from observability.generate.files import ROOT

STOP_SECONDS = 30.0


class CannotStart(Exception):
    """A program is missing, or did not answer in time; the text says which, and shows the end of its log."""


@dataclass(slots=True)
class Program:
    """One process, and how to know that it works."""

    command: list[str]
    log: Path
    ready_url: str
    environment: dict[str, str] = field(default_factory=dict)
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        """Start it; `Stack.await_ready` waits for it."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=_world() | self.environment,
                start_new_session=True,
            )

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it and what it started."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            if how is signal.SIGKILL:
                os.killpg(self.process.pid, how)
            else:
                self.process.send_signal(how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):  # what it left behind, or itself
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None


def _world() -> dict[str, str]:
    """The environment without settings that are meant for another service."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SAFELIGHT_")}
