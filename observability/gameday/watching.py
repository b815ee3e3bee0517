"""What Prometheus and the inbox tell of alerts, and when it was first so."""

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from observability.gameday.stack import Stack
from observability.gameday.traffic import send

WATCHDOG = "Watchdog"
ALWAYS = frozenset({WATCHDOG})
LOOK_SECONDS = 0.2


@dataclass(slots=True)
class Seen:
    """When an alert was first seen so, in Unix seconds. Resolved is what the inbox was told so of all its series."""

    pending: float | None = None
    firing: float | None = None
    notified: float | None = None
    resolved: float | None = None


@dataclass(slots=True)
class Watch:
    """Alerts by name, of those that the inbox has heard of since `began` or that Prometheus has.

    The inbox is never told of a Watchdog; that it misses it counts as told, and that it is back as resolved.
    """

    stack: Stack
    began: float = field(default_factory=time.time)
    seen: dict[str, Seen] = field(default_factory=dict)

    def look(self) -> None:
        """Note what is new."""
        now = time.time()
        for alert in in_prometheus(self.stack):
            name = alert["labels"]["alertname"]
            if name in ALWAYS:
                continue
            seen = self.seen.setdefault(name, Seen())
            seen.pending = seen.pending or now
            if alert["state"] == "firing":
                seen.firing = seen.firing or now
        self._look_into_inbox()
        self._look_at_watchdog(now)

    def _look_into_inbox(self) -> None:
        by_name: dict[str, list[dict[str, Any]]] = {}
        for record in self._records():
            by_name.setdefault(record["alertname"], []).append(record)
        for name, records in by_name.items():
            seen = self.seen.setdefault(name, Seen())
            told = [each["received_firing_at"] for each in records if each["received_firing_at"]]
            seen.notified = seen.notified or min(told, default=None)
            ended = [each["received_resolved_at"] or each["last_seen"] for each in records]
            is_over = all(each["status"] == "resolved" for each in records)
            seen.resolved = max(ended) if is_over else None

    def _records(self) -> list[dict[str, Any]]:
        """Of alerts that the inbox was first told of since the beginning."""
        found = send(self.stack.url("inbox", f"/alerts?since={self.began}&limit=1000")) or []
        return [each for each in found if (each["received_firing_at"] or 0) >= self.began]

    def _look_at_watchdog(self, now: float) -> None:
        state = (send(self.stack.url("inbox", "/watchdog")) or {}).get("state")
        seen = self.seen.get(WATCHDOG)
        if state == "missing" and seen is None:
            self.seen[WATCHDOG] = Seen(firing=now, notified=now)
        elif seen is not None:
            seen.resolved = (seen.resolved or now) if state == "ok" else None

    def is_so(self, what: str, name: str) -> bool:
        """Whether an alert has been seen `what`, as `Seen` has it."""
        return getattr(self.seen.get(name, Seen()), what) is not None

    @property
    def notified(self) -> frozenset[str]:
        """What somebody was told of."""
        return frozenset(name for name, seen in self.seen.items() if seen.notified is not None)


def in_prometheus(stack: Stack) -> list[dict[str, Any]]:
    """Its alerts that are pending or fire; none while it is away."""
    answer = send(stack.url("prometheus", "/api/v1/alerts"))
    return answer["data"]["alerts"] if isinstance(answer, dict) else []


def restless(stack: Stack, ignored: Collection[str] = ()) -> set[str]:
    """Alerts that are pending, fire, or are still told of as firing; and what does not answer at all."""
    if send(stack.url("prometheus", "/-/ready")) is None:
        return {"Prometheus is not ready"}
    found = {each["labels"]["alertname"] for each in in_prometheus(stack)}
    found |= {each["alertname"] for each in send(stack.url("inbox", "/alerts?status=firing&limit=1000")) or []}
    if (send(stack.url("inbox", "/watchdog")) or {}).get("state") != "ok":
        found.add("the inbox has no Watchdog")
    return found - ALWAYS - set(ignored)
