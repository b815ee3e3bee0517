"""Every panel and every rule against a live stack: nothing is empty that should not be, and nothing is wrong."""

import math
import time
from collections.abc import Iterable
from typing import Any

import httpx
import pytest

from observability import slo
from observability.gameday.stack import Stack, until
from observability.generate import dashboards
from observability.generate.alert import Alert, Recording
from observability.generate.dashboards.panel import Dashboard, everywhere
from observability.generate.files import rule_files
from tests.config.test_prometheus import names
from tests.stack.conftest import Prometheus

FOUND = slo.load()
DASHBOARDS = dashboards.every(FOUND)
GROUPS = [group for path, groups in rule_files(FOUND).items() if path != "slo/default.yml" for group in groups]
RULES = [rule for group in GROUPS for rule in group.rules]
PATIENCE = 90.0
OF_FLEET = "fleet"

# What only a fleet tells.
OF_FLEETS = {"safelight_workers", "safelight_dependency_up"}
# Old names beside new ones, of which an exporter has one.
RARE = {"DCGM_FI_DEV_GPU_TEMP"}


def test_all_targets_are_up(prometheus: Prometheus) -> None:
    """Each process of the stack answers."""
    jobs = {"api", "probe", "inbox", "dcgm", "cadvisor", "node", "prometheus", "alertmanager"}
    until(lambda: {each["metric"]["job"] for each in prometheus.query("up == 1")} == jobs, PATIENCE, "all targets")
    assert prometheus.query("up == 0") == []


def test_no_rule_has_an_error(prometheus: Prometheus) -> None:
    """Prometheus has evaluated all of them."""
    found = prometheus.evaluated_rules(PATIENCE)
    assert len(found) == len(RULES)
    assert [(each["name"], each.get("lastError")) for each in found if each["health"] != "ok"] == []


def is_number(series: dict[str, Any]) -> bool:
    """Whether Grafana would draw it."""
    return math.isfinite(float(series["value"][1]))


def without_data(prometheus: Prometheus, queries: Iterable[str]) -> set[str]:
    """Those of `queries` that have none, though they were given some time."""
    missing = set(queries)
    deadline = time.monotonic() + PATIENCE
    while missing and time.monotonic() < deadline:
        missing = {each for each in missing if not any(map(is_number, prometheus.query(each)))}
        time.sleep(1)
    return missing


def test_recording_rules_record(prometheus: Prometheus) -> None:
    """Each has a series."""
    recordings = [each for each in RULES if isinstance(each, Recording)]
    named = (
        f"{each.record}{{{', '.join(f'{name}={value!r}' for name, value in each.labels.items())}}}"
        for each in recordings
    )
    assert without_data(prometheus, named) == set()


def test_alerts_read_what_is_there(prometheus: Prometheus) -> None:
    """Each metric that an alert goes by exists, so that it is silent because all is well."""
    read = {name for rule in RULES if isinstance(rule, Alert) for name in names(rule.expr)}
    assert without_data(prometheus, read - RARE - OF_FLEETS) == set()


@pytest.mark.parametrize(
    "dashboard", [each for each in DASHBOARDS if each.name != OF_FLEET], ids=lambda each: each.name
)
def test_every_panel_has_data(prometheus: Prometheus, dashboard: Dashboard) -> None:
    """But those that say why they may be empty."""
    panels = [panel for panel in dashboard.panels if panel.empty is None]
    assert without_data(prometheus, {everywhere(query.expr) for panel in panels for query in panel.queries}) == set()


def test_panels_of_hardware_have_data_once_there_is_some(prometheus: Prometheus) -> None:
    """Those that may be empty are fed by simulated exporters here."""
    panels = [panel for dashboard in DASHBOARDS for panel in dashboard.panels if panel.empty is not None]
    assert without_data(prometheus, {everywhere(query.expr) for panel in panels for query in panel.queries}) == set()


def test_queries_are_quick(prometheus: Prometheus, capsys: pytest.CaptureFixture[str]) -> None:
    """How long each took is printed; no timing decides whether this passes."""
    for dashboard in DASHBOARDS:
        for panel in dashboard.panels:
            for query in panel.queries:
                prometheus.query(everywhere(query.expr))
    assert len(prometheus.seconds) > 100
    slowest = sorted(prometheus.seconds.items(), key=lambda pair: -pair[1])[:3]
    with capsys.disabled():
        print(f"\n{len(prometheus.seconds)} queries; the slowest:")  # noqa: T201  # for whoever runs it
        for expr, seconds in slowest:
            print(f"  {seconds * 1000:.0f} ms  {' '.join(expr.split())}")  # noqa: T201


def test_alerts_reach_the_inbox(stack: Stack) -> None:
    """By Prometheus and Alertmanager: the one that always fires, and one of a simulated GPU with its texts."""

    def asked(path: str, **parameters: str) -> Any:
        return httpx.get(stack.url("inbox", path), params=parameters, trust_env=False).json()

    until(lambda: asked("/watchdog")["state"] != "waiting", PATIENCE, "Watchdog at the inbox")
    assert asked("/watchdog")["state"] == "ok"
    found = until(lambda: asked("/alerts", alertname="GpuXid"), PATIENCE, "GpuXid at the inbox")
    (alert,) = found
    assert alert["labels"]["simulated"] == "true"
    assert alert["annotations"]["description"] == "GPU 0 (Simulated GPU 80GB, GPU-simulated-0) reported XID 31."
    assert alert["annotations"]["runbook_url"] == f"{FOUND.links.runbooks}/GpuXid"
