"""The one door through which events leave business code, and its fan-out."""

import logging
from collections.abc import Sequence
from typing import Protocol

from observability.events import Event

log = logging.getLogger("safelight.observer")


class Observer(Protocol):
    """Takes events. `observe` is called on the event loop's thread: it must be quick and must not block."""

    def observe(self, event: Event) -> None:
        """Take one event."""


class FanOut:
    """Hands each event to every observer; one observer's error neither reaches the caller nor the others."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = tuple(observers)

    def observe(self, event: Event) -> None:
        """Take one event."""
        for observer in self._observers:
            try:
                observer.observe(event)
            except Exception:
                log.exception("%s could not take %s", type(observer).__name__, type(event).__name__)
