"""The parts of an inbox, and the thread that looks after them."""

import hmac
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread

from observability.exposition import Exposition
from observability.inbox.deadman import Call, Deadman
from observability.inbox.metrics import InboxMetrics
from observability.inbox.pages import Pages
from observability.inbox.store import Store
from observability.inbox.webhook import WATCHDOG, Notification
from observability.process import new_registry

log = logging.getLogger("safelight.inbox")

MAX_CHECK_SECONDS = 5.0
CHECKS_PER_TIMEOUT = 10
FORGET_SECONDS = 3600.0
STOP_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Options:
    """What an inbox is told at its start. Without a `token`, everybody may post."""

    data_dir: Path
    runbooks: Path
    watchdog_timeout: float
    retention_seconds: float
    calls: Mapping[str, Call] = field(default_factory=dict)
    token: str | None = field(default=None, repr=False)


class Inbox:
    """May be used from any thread. Raises `sqlite3.Error` or `OSError` when its file cannot be used."""

    def __init__(
        self,
        options: Options,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._options = options
        self._monotonic = monotonic
        self.wall = wall
        registry = new_registry()
        self.metrics = InboxMetrics(registry)
        self.exposition = Exposition(registry)
        self.pages = Pages(options.runbooks)
        self.store = Store(options.data_dir / "inbox.db")
        self.deadman = Deadman(
            self.store,
            options.watchdog_timeout,
            options.calls,
            self.metrics.called,
            monotonic=monotonic,
            wall=wall,
        )
        self.metrics.watch(self.deadman)
        self.metrics.firing.set(self.store.firing())
        self._stopping = Event()
        self._thread = Thread(target=self._look_after, name="safelight-inbox", daemon=True)

    def knows(self, authorization: str) -> bool:
        """Whether this header's value is that of someone who may post."""
        if self._options.token is None:
            return True
        scheme, _, token = authorization.partition(" ")
        is_right = hmac.compare_digest(token.strip().encode(), self._options.token.encode())
        return is_right and scheme.lower() == "bearer"

    def take(self, notification: Notification) -> None:
        """Keep what it tells."""
        alerts = [each for each in notification.alerts if each.name != WATCHDOG]
        if alerts:
            self.store.take(alerts, self.wall())
            told = [f"{each.name}: {each.status.value}" for each in alerts]
            log.info("%d alerts", len(alerts), extra={"alerts": ", ".join(told)})
        if notification.has_watchdog:
            self.deadman.hear()
        self.metrics.notifications.labels(notification.status).inc()
        self.metrics.firing.set(self.store.firing())

    def start(self) -> None:
        """Look after it all from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Take no more. A call that is under way does not hold this up."""
        self._stopping.set()
        self._thread.join(STOP_SECONDS)
        self.store.close()

    def _look_after(self) -> None:
        interval = min(MAX_CHECK_SECONDS, self._options.watchdog_timeout / CHECKS_PER_TIMEOUT)
        forget_at = self._monotonic()
        while not self._stopping.is_set():
            try:
                self.deadman.check()
                if self._monotonic() >= forget_at:
                    forget_at += FORGET_SECONDS
                    self.forget()
            except Exception:
                log.exception("not all was looked after; trying again")
            self._stopping.wait(interval)

    def forget(self) -> None:
        """Delete what is older than it is to be."""
        self.store.forget(self.wall() - self._options.retention_seconds)
        self.metrics.firing.set(self.store.firing())
