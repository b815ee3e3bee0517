"""The service with telemetry that can be switched off, to measure what it costs: `python -m benchmarks.switched serve`.

After SIGUSR1 no event is taken, no HTTP request is counted or traced and nothing is logged; after SIGUSR2 all is as
ever. One process does both, since one process is faster than the next by its luck with memory.
"""

import logging
import signal
from typing import Any

from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from observability.events import Event, RequestAccepted, RequestFinished
from observability.observer import FanOut
from service import app as service_app
from service import telemetry


class Switch:
    """Whether telemetry is on. Takes signals."""

    is_on = True

    def __call__(self, number: int, _frame: object) -> None:
        """Switch on or off."""
        self.is_on = number == signal.SIGUSR2
        logging.disable(logging.NOTSET if self.is_on else logging.CRITICAL)


SWITCH = Switch()
BUILD = service_app.build_app


class SwitchedFanOut(FanOut):
    """Forgets events while telemetry is off, but for the ends of requests whose beginnings it took."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._open: set[str] = set()

    def observe(self, event: Event) -> None:
        """Take one event."""
        is_end = isinstance(event, RequestFinished) and event.request.id in self._open
        if isinstance(event, RequestAccepted) and SWITCH.is_on:
            self._open.add(event.request.id)
        elif isinstance(event, RequestFinished):
            self._open.discard(event.request.id)
        if SWITCH.is_on or is_end:
            super().observe(event)


class Nothing:
    """Takes the place of what instruments an application."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def add(self, *_: object) -> "Nothing":
        """Add nothing."""
        return self

    def instrument(self, app: FastAPI) -> None:
        """Leave `app` as it is."""


class SwitchedApp:
    """Two applications on the same services, one of which is not instrumented."""

    def __init__(self, *arguments: Any) -> None:
        self._on = BUILD(*arguments)
        saved = {name: getattr(service_app, name) for name in ("Instrumentator", "instrument")}
        for name in saved:
            setattr(service_app, name, Nothing)
        self._off = BUILD(*arguments)
        for name, value in saved.items():
            setattr(service_app, name, value)
        self._off.state = self._on.state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        await (self._on if SWITCH.is_on or scope["type"] == "lifespan" else self._off)(scope, receive, send)


if __name__ == "__main__":
    from service.__main__ import main

    signal.signal(signal.SIGUSR1, SWITCH)
    signal.signal(signal.SIGUSR2, SWITCH)
    vars(telemetry).update(FanOut=SwitchedFanOut)
    vars(service_app).update(build_app=SwitchedApp)
    main()
