"""What the inbox tells of itself."""

from prometheus_client import CollectorRegistry

from observability.declared import Declarations
from observability.inbox.deadman import Deadman, State
from observability.labels import AlertStatus, CallResult


class InboxMetrics:
    """May be used from any thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        make = Declarations(registry)
        self.notifications = make.counter(
            "inbox_notifications_total", "Notifications taken, by the status of their group.", {"status": AlertStatus}
        )
        self.firing = make.gauge("inbox_alerts_firing", "Alerts that fire, but for the watchdog.")
        self.rejected = make.counter(
            "inbox_rejected_total", "Notifications refused: of a stranger, too long, or none of Alertmanager's."
        )
        self._watchdog_ok = make.gauge("inbox_watchdog_ok", "1 while the watchdog is heard of.")
        self._watchdog_last_seen = make.gauge(
            "inbox_watchdog_last_seen_timestamp_seconds", "Unix time at which the watchdog was last heard of, or 0."
        )
        self._calls = make.counter(
            "inbox_calls_total", "Calls of the command or URL for a missing watchdog.", {"result": CallResult}
        )
        self.declared = tuple(make.declared)

    def called(self, result: CallResult) -> None:
        """A command was run or a URL was called."""
        self._calls.labels(result).inc()

    def watch(self, deadman: Deadman) -> None:
        """From now on, tell at every scrape how it is then."""
        self._watchdog_ok.set_function(lambda: deadman.status().state is State.OK)
        self._watchdog_last_seen.set_function(lambda: deadman.status().last_seen or 0.0)
