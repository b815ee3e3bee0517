"""A fleet as Prometheus sees it: a stack of its own, with a stand-in for a model, under load."""

import time
from collections.abc import Iterator

import httpx
import pytest

from observability.gameday.fleet import FleetStack
from observability.gameday.stack import running, until
from observability.generate import fleet_alerts
from observability.generate.dashboards.panel import everywhere
from observability.generate.files import alerts
from observability.generate.timing import Timing
from tests.stack.conftest import SCRAPE_SECONDS, Prometheus
from tests.stack.test_live import DASHBOARDS, OF_FLEET, OF_FLEETS, PATIENCE, without_data
from tests.stack.traffic import flowing

WARM_SECONDS = 45.0  # it is decided every 30 s how many workers there should be


@pytest.fixture
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus of the stack."""
    timing = Timing(scrape=SCRAPE_SECONDS)
    with running(tmp_path_factory.mktemp("fleet"), timing, FleetStack) as started, flowing(started.url("api")):
        time.sleep(WARM_SECONDS)
        with httpx.Client(base_url=started.url("prometheus"), timeout=30, trust_env=False) as client:
            yield Prometheus(client)


def test_a_fleet_is_seen(fleet: Prometheus) -> None:
    """All its processes answer, its dashboard has data, its alerts read what is there, and none fires."""
    (dashboard,) = (each for each in DASHBOARDS if each.name == OF_FLEET)
    queries = {everywhere(query.expr) for panel in dashboard.panels for query in panel.queries}
    jobs = ["alertmanager", "api", "inbox", "prometheus", "worker", "worker"]
    until(lambda: sorted(each["metric"]["job"] for each in fleet.query("up == 1")) == jobs, PATIENCE, "all targets")
    assert without_data(fleet, queries | OF_FLEETS) == set()
    found = fleet.evaluated_rules(PATIENCE)
    assert [(each["name"], each.get("lastError")) for each in found if each["health"] != "ok"] == []
    firing = {each["metric"]["alertname"] for each in fleet.query('ALERTS{alertstate="firing"}')}
    assert not firing & {alert.name for alert in alerts(fleet_alerts.groups())}
