"""The one door through which events leave business code, and its fan-out."""

import logging
from collections.abc import Callable, Mapping
from typing import Protocol

from observability.events import Event
from observability.labels import Consumer

log = logging.getLogger("safelight.observer")


class Observer(Protocol):
    """Takes events. `observe` is called on the event loop's thread: it must be quick and must not block."""

    def observe(self, event: Event) -> None:
        """Take one event."""


class FanOut:
    """Hands each event to every observer; one observer's error neither reaches the caller nor the others.

    `on_error` is told whose it was.
    """

    def __init__(self, observers: Mapping[Consumer, Observer], on_error: Callable[[Consumer], None]) -> None:
        self._observers = dict(observers)
        self._on_error = on_error

    def observe(self, event: Event) -> None:
        """Take one event."""
        for consumer, observer in self._observers.items():
            try:
                observer.observe(event)
            except Exception:
                self._on_error(consumer)
                log.exception("%s could not take %s", type(observer).__name__, type(event).__name__)
