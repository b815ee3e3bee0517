"""The alerts that were heard of, in a SQLite file. All times are Unix seconds."""

import json
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from observability.inbox.webhook import Alert
from observability.labels import AlertStatus

MAX_ALERTS = 10_000
BUSY_SECONDS = 10.0

SCHEMA = """
CREATE TABLE IF NOT EXISTS alerts (
    id INTEGER PRIMARY KEY,
    fingerprint TEXT NOT NULL,
    starts_at REAL NOT NULL,
    status TEXT NOT NULL,
    alertname TEXT NOT NULL,
    labels TEXT NOT NULL,
    annotations TEXT NOT NULL,
    generator_url TEXT NOT NULL,
    ends_at REAL,
    received_firing_at REAL,
    received_resolved_at REAL,
    last_seen REAL NOT NULL,
    notifications INTEGER NOT NULL,
    UNIQUE (fingerprint, starts_at)
);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value NOT NULL);
"""
TAKE = """
INSERT INTO alerts (
    fingerprint, starts_at, status, alertname, labels, annotations, generator_url, ends_at,
    received_firing_at, received_resolved_at, last_seen, notifications
) VALUES (
    :fingerprint, :starts_at, :status, :alertname, :labels, :annotations, :generator_url, :ends_at,
    :received_firing_at, :received_resolved_at, :last_seen, 1
)
ON CONFLICT (fingerprint, starts_at) DO UPDATE SET
    status = excluded.status,
    annotations = excluded.annotations,
    generator_url = excluded.generator_url,
    ends_at = excluded.ends_at,
    received_firing_at = coalesce(received_firing_at, excluded.received_firing_at),
    received_resolved_at =
        CASE excluded.status WHEN 'resolved' THEN coalesce(received_resolved_at, excluded.received_resolved_at) END,
    last_seen = excluded.last_seen,
    notifications = notifications + 1
"""
# What fires anew between two notifications of its group is never called resolved.
SUPERSEDE = """
UPDATE alerts SET status = 'resolved'
WHERE fingerprint = :fingerprint AND starts_at < :starts_at AND status = 'firing'
"""
SELECT = """
SELECT * FROM alerts
WHERE (:status IS NULL OR status = :status)
    AND (:alertname IS NULL OR alertname = :alertname)
    AND (:since IS NULL OR last_seen >= :since)
ORDER BY last_seen DESC, id DESC LIMIT :limit
"""
FORGET = """
DELETE FROM alerts WHERE id NOT IN (SELECT id FROM alerts ORDER BY status = 'firing' DESC, last_seen DESC LIMIT ?)
"""


@dataclass(frozen=True, slots=True)
class Record:
    """One alert from one start, and what was heard of it.

    `starts_at` and `ends_at` are the alert's own; the other times are by the inbox's clock: of the first notification
    that it fires, the first that it is over, and the last one.
    """

    fingerprint: str
    status: AlertStatus
    alertname: str
    labels: dict[str, str]
    annotations: dict[str, str]
    generator_url: str
    starts_at: float
    ends_at: float | None
    received_firing_at: float | None
    received_resolved_at: float | None
    last_seen: float
    notifications: int


class Store:
    """May be used from any thread. What a call has written is on disk when it returns.

    Raises `sqlite3.Error` or `OSError` when the file cannot be used.
    """

    def __init__(self, path: Path, max_alerts: int = MAX_ALERTS) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._max_alerts = max_alerts
        self._lock = Lock()
        self._database = sqlite3.connect(path, timeout=BUSY_SECONDS, check_same_thread=False)
        self._database.row_factory = sqlite3.Row
        try:
            self._database.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; {SCHEMA}")
        except sqlite3.Error:
            self._database.close()
            raise

    def take(self, alerts: Iterable[Alert], now: float) -> None:
        """Keep what is told of `alerts`, all of it or nothing."""
        rows = [_row(alert, now) for alert in alerts]
        with self._lock, self._database:
            self._database.executemany(TAKE, rows)
            self._database.executemany(SUPERSEDE, rows)
            if self._count() > self._max_alerts:
                self._database.execute(FORGET, (self._max_alerts,))

    def alerts(
        self,
        status: AlertStatus | None = None,
        alertname: str | None = None,
        since: float | None = None,
        limit: int = 100,
    ) -> list[Record]:
        """Those that were heard of at or after `since`; the one that was heard of last is first."""
        wanted = {"status": status, "alertname": alertname, "since": since, "limit": limit}
        with self._lock, closing(self._database.execute(SELECT, wanted)) as rows:
            return [_record(row) for row in rows]

    def firing(self) -> int:
        """How many fire."""
        with self._lock:
            return self._count("WHERE status = 'firing'")

    def forget(self, before: float) -> None:
        """Delete what was last heard of before then."""
        with self._lock, self._database:
            self._database.execute("DELETE FROM alerts WHERE last_seen < ?", (before,))

    def fact(self, name: str) -> Any:
        """What was noted under `name`, or None."""
        with self._lock, closing(self._database.execute("SELECT value FROM facts WHERE name = ?", (name,))) as rows:
            row = rows.fetchone()
        return row and row["value"]

    def note(self, name: str, value: str | float) -> None:
        """Note `value` under `name`."""
        with self._lock, self._database:
            self._database.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def close(self) -> None:
        """Write no more."""
        with self._lock:
            self._database.close()

    def _count(self, where: str = "") -> int:
        (count,) = self._database.execute(f"SELECT count(*) FROM alerts {where}").fetchone()
        return int(count)


def _row(alert: Alert, now: float) -> dict[str, object]:
    is_firing = alert.status is AlertStatus.FIRING
    return {
        "fingerprint": alert.fingerprint,
        "starts_at": alert.starts_at.timestamp(),
        "status": alert.status.value,
        "alertname": alert.name,
        "labels": json.dumps(alert.labels),
        "annotations": json.dumps(alert.annotations),
        "generator_url": alert.generator_url,
        "ends_at": alert.ended_at,
        "received_firing_at": now if is_firing else None,
        "received_resolved_at": None if is_firing else now,
        "last_seen": now,
    }


def _record(row: sqlite3.Row) -> Record:
    fields = {name: row[name] for name in row.keys() if name != "id"}  # noqa: SIM118  # a Row iterates over values
    parsed = {name: json.loads(fields[name]) for name in ("labels", "annotations")}
    return Record(**{**fields, **parsed, "status": AlertStatus(row["status"])})
