"""A whole stack: the real Prometheus and Alertmanager, the API with the embedded model under load, probe, inbox; GPU,
containers and host simulated.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from observability.gameday.stack import Stack, running, until
from observability.generate.timing import Timing
from tests.stack.traffic import POISON, flowing

SCRAPE_SECONDS = 2.0
WARM_SECONDS = 100.0  # objectives are evaluated every minute, and a rate needs two of anything


class Prometheus:
    """Questions to a Prometheus; remembers how long each took."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self.seconds: dict[str, float] = {}

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The series of an instant query; a scalar or an error fails the test."""
        began = time.perf_counter()
        answer = self._client.get("/api/v1/query", params={"query": expr})
        self.seconds[expr] = time.perf_counter() - began
        assert answer.status_code == 200, f"{expr}: {answer.text}"
        found: list[dict[str, Any]] = answer.json()["data"]["result"]
        return found

    def get(self, path: str) -> Any:
        """The data of another question."""
        answer = self._client.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def evaluated_rules(self, patience: float) -> list[dict[str, Any]]:
        """All rules, once each has been evaluated: that begins at another moment for each of their groups."""

        def found() -> list[dict[str, Any]]:
            rules = [rule for group in self.get("/api/v1/rules")["groups"] for rule in group["rules"]]
            return [] if "unknown" in {each["health"] for each in rules} else rules

        rules: list[dict[str, Any]] = until(found, patience, "the first evaluation of all rules")
        return rules


@pytest.fixture(scope="package")  # it ends before another package has a stack of its own
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """With shipped windows and quick scrapes, warmed up, under load."""
    folder: Path = tmp_path_factory.mktemp("stack")
    settings = {"gpu_dollars_per_hour": "1", "faults": f"fail={POISON}"}
    with running(folder, Timing(scrape=SCRAPE_SECONDS), **settings) as started, flowing(started.url("api")):
        fault = {"DCGM_EXP_XID_ERRORS_COUNT": 31}
        assert httpx.put(started.url("dcgm", "/faults"), json=fault, trust_env=False).status_code == 204
        time.sleep(WARM_SECONDS)
        yield started


@pytest.fixture(scope="package")  # it ends before another package has a stack of its own
def prometheus(stack: Stack) -> Iterator[Prometheus]:
    """Prometheus of the stack."""
    with httpx.Client(base_url=stack.url("prometheus"), timeout=30, trust_env=False) as client:
        yield Prometheus(client)
