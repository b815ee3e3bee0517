"""A `safelight inbox` as a process of its own."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.support.alerts import notification
from tests.support.server import PATIENCE, environment, until

LISTENS = re.compile(r"listens on (http://127\.0\.0\.1:(\d+))")


class Running:
    """One inbox, and a client for it."""

    def __init__(self, folder: Path, **settings: object) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "inbox.log"
        given = {"inbox_port": 0, "inbox_data_dir": folder / "data", "inbox_runbooks": folder / "runbooks", **settings}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "service", "inbox"], env=environment(folder, **given), stderr=log
            )
        try:
            self.client = httpx.Client(base_url=str(until(self._address)), timeout=PATIENCE)
            until(lambda: self.client.get("/health/live").status_code == 200)
        except BaseException:
            self.process.kill()
            raise

    def _address(self) -> str | None:
        match = LISTENS.search(self.log.read_text())
        assert match or self.process.poll() is None, self.log.read_text()
        return match and match[1]

    def post(self, *alerts: dict[str, Any]) -> None:
        """One notification of these alerts, which is taken."""
        response = self.client.post("/webhook", json=notification(*alerts))
        assert (response.status_code, response.json()) == (200, {"alerts": len(alerts)}), response.text

    def alerts(self, **asked: Any) -> list[dict[str, Any]]:
        """GET /alerts."""
        found: list[dict[str, Any]] = self.client.get("/alerts", params=asked).json()
        return found

    def metric(self, name: str, **labels: str) -> float:
        """The present value of one series."""
        (value,) = (
            each.value
            for family in text_string_to_metric_families(self.client.get("/metrics").text)
            for each in family.samples
            if each.name == f"safelight_inbox_{name}" and each.labels == labels
        )
        return float(value)

    def close(self) -> None:
        """End it, however it goes."""
        self.process.kill()
        self.process.wait(PATIENCE)
        self.client.close()


@contextmanager
def running(folder: Path, **settings: object) -> Iterator[Running]:
    """An inbox that answers."""
    inbox = Running(folder, **settings)
    try:
        yield inbox
    finally:
        inbox.close()
