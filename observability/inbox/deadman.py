"""The dead-man's switch: an alert that always fires is missed when it does not come."""

import http.client
import json
import logging
import os
import subprocess
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum

from observability.inbox.store import Store
from observability.labels import CallResult

log = logging.getLogger("safelight.inbox")

COMMAND_SECONDS = 30.0
URL_SECONDS = 10.0
STATE_VARIABLE = "SAFELIGHT_WATCHDOG_STATE"
LAST_SEEN = "watchdog.last_seen"


class State(StrEnum):
    """`waiting` until the watchdog is heard of for the first time, or should have been."""

    WAITING = "waiting"
    OK = "ok"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Status:
    """How it is with the watchdog; `last_seen` is in Unix seconds."""

    state: State
    last_seen: float | None
    timeout_seconds: float

    @property
    def text(self) -> str:
        """In a sentence."""
        when = "never" if self.last_seen is None else f"{datetime.fromtimestamp(self.last_seen, UTC):%F %T} UTC"
        if self.state is State.MISSING:
            return f"The watchdog is missing, last heard of: {when}. Alerts may not arrive."
        return f"The watchdog is {self.state}, last heard of: {when}."


class CallFailed(Exception):
    """A call for help did not get through."""


Call = Callable[[Status], None]
"""Tells someone outside. Raises `CallFailed`."""


class Deadman:
    """Knows whether the watchdog is there, and tells each of `calls`, by name, when that changes.

    A call that fails is made again at the next check. What was told outlives a restart, so that an outage is told once
    and its end too.
    """

    def __init__(
        self,
        store: Store,
        timeout: float,
        calls: Mapping[str, Call],
        on_call: Callable[[CallResult], None],
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._timeout = timeout
        self._calls = calls
        self._on_call = on_call
        self._monotonic, self._wall = monotonic, wall
        self._last_seen: float | None = store.fact(LAST_SEEN)
        age = timeout if self._last_seen is None else wall() - self._last_seen
        self._is_heard = 0 <= age < timeout
        self._silent_since = monotonic() - (age if self._is_heard else 0.0)
        self._told = {name: State(store.fact(_told(name)) or State.OK) for name in calls}
        self._logged = State.WAITING

    def hear(self) -> None:
        """The watchdog has come."""
        self._last_seen = self._wall()
        self._silent_since = self._monotonic()
        self._is_heard = True
        self._store.note(LAST_SEEN, self._last_seen)

    def status(self) -> Status:
        """Now."""
        is_late = self._monotonic() - self._silent_since >= self._timeout
        state = State.MISSING if is_late else State.OK if self._is_heard else State.WAITING
        return Status(state, self._last_seen, self._timeout)

    def check(self) -> None:
        """Tell what is not told yet; takes as long as the calls."""
        status = self.status()
        if status.state is not self._logged:
            self._logged = status.state
            log.log(logging.ERROR if status.state is State.MISSING else logging.INFO, status.text)
        if status.state is State.WAITING:
            return
        for name, call in self._calls.items():
            if self._told[name] is not status.state:
                self._tell(name, call, status)

    def _tell(self, name: str, call: Call, status: Status) -> None:
        try:
            call(status)
        except CallFailed as error:
            self._on_call(CallResult.FAILED)
            log.warning("the %s could not be told that the watchdog is %s: %s", name, status.state, error)
            return
        self._on_call(CallResult.OK)
        self._told[name] = status.state
        self._store.note(_told(name), status.state.value)


def _told(name: str) -> str:
    return f"watchdog.told.{name}"


def _document(status: Status) -> bytes:
    return json.dumps({**asdict(status), "text": status.text}).encode()


def run(argv: Sequence[str], status: Status, seconds: float = COMMAND_SECONDS) -> None:
    """Run a program, without a shell: the state is in `SAFELIGHT_WATCHDOG_STATE`, all of it as JSON on its input.

    Raises `CallFailed` unless it ends in time with status 0.
    """
    environment = {**os.environ, STATE_VARIABLE: status.state.value}
    try:
        done = subprocess.run(argv, input=_document(status), env=environment, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise CallFailed(f"not done in {seconds:g} s") from None
    except (OSError, ValueError) as error:
        raise CallFailed(str(error)) from error
    if done.returncode:
        raise CallFailed(f"exit status {done.returncode}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """What is posted would not come along."""

    def redirect_request(self, *_: object) -> None:
        """Follow nowhere."""


def post(url: str, status: Status, seconds: float = URL_SECONDS) -> None:
    """Post the state as JSON. Raises `CallFailed` unless the answer is a success."""
    try:
        request = urllib.request.Request(url, _document(status), {"Content-Type": "application/json"})
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=seconds):
            pass
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise CallFailed(str(error)) from error
