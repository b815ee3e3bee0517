"""Every panel and every rule against a live stack: nothing is empty that should not be, and nothing is wrong."""

import httpx
import pytest

from observability import slo
from observability.gameday.stack import Stack, until
from observability.generate import dashboards
from observability.generate.alert import Alert, Recording
from observability.generate.dashboards.panel import Dashboard, Panel
from observability.generate.files import rule_files
from tests.config.test_prometheus import names
from tests.stack.conftest import Prometheus

FOUND = slo.load()
DASHBOARDS = dashboards.every(FOUND)
GROUPS = [group for path, groups in rule_files(FOUND).items() if path != "slo/default.yml" for group in groups]
RULES = [rule for group in GROUPS for rule in group.rules]
PATIENCE = 90.0

# Series that are there only once something has gone wrong; alerts read them.
RARE = {
    "prometheus_notifications_dropped_total",
    "alertmanager_notifications_failed_total",
}


def filled(expr: str) -> str:
    """A panel's query as Grafana sends it with everything chosen."""
    words = {"$__rate_interval": "1m", "$__range": "1h", "$job": ".+", "$instance": ".+"}
    for word, value in words.items():
        expr = expr.replace(word, value)
    return expr


def test_all_targets_are_up(prometheus: Prometheus) -> None:
    """Each process of the stack answers."""
    found = until(lambda: prometheus.query("up"), PATIENCE, "the first scrape")
    assert {each["metric"]["job"]: each["value"][1] for each in found} == dict.fromkeys(
        ("api", "probe", "inbox", "dcgm", "cadvisor", "node", "prometheus", "alertmanager"), "1"
    )


def test_no_rule_has_an_error(prometheus: Prometheus) -> None:
    """Prometheus has evaluated all of them."""
    found = [rule for group in prometheus.get("/api/v1/rules")["groups"] for rule in group["rules"]]
    assert len(found) == len(RULES)
    assert [(each["name"], each.get("lastError")) for each in found if each["health"] != "ok"] == []


@pytest.mark.parametrize("rule", [each for each in RULES if isinstance(each, Recording)], ids=lambda rule: rule.record)
def test_recording_rules_record(prometheus: Prometheus, rule: Recording) -> None:
    """Each has a series."""
    labels = ", ".join(f'{name}="{value}"' for name, value in rule.labels.items())
    until(lambda: prometheus.query(f"{rule.record}{{{labels}}}"), PATIENCE, rule.record)


@pytest.mark.parametrize("rule", [each for each in RULES if isinstance(each, Alert)], ids=lambda rule: rule.name)
def test_alerts_read_what_is_there(prometheus: Prometheus, rule: Alert) -> None:
    """Each metric that an alert goes by exists, so that it is silent because all is well."""
    for name in set(names(rule.expr)) - RARE - {"ALERTS"}:
        assert prometheus.query(f"count({name})"), name


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda each: each.name)
def test_every_panel_has_data(prometheus: Prometheus, dashboard: Dashboard) -> None:
    """But those that say why they may be empty."""
    empty = [
        (panel.title, query.expr)
        for panel in dashboard.panels
        for query in panel.queries
        if panel.empty is None and not _has_data(prometheus, query.expr)
    ]
    assert empty == []


def test_panels_of_hardware_have_data_once_there_is_some(prometheus: Prometheus) -> None:
    """Those that may be empty are at most a tenth, or are fed by a simulated exporter here."""
    panels = [panel for dashboard in DASHBOARDS for panel in dashboard.panels]
    may_be_empty = [panel for panel in panels if panel.empty is not None]
    still = [panel.title for panel in may_be_empty if not _is_fed(prometheus, panel)]
    assert still == []


def _is_fed(prometheus: Prometheus, panel: Panel) -> bool:
    return all(_has_data(prometheus, query.expr) for query in panel.queries)


def _has_data(prometheus: Prometheus, expr: str) -> bool:
    try:
        return bool(until(lambda: prometheus.query(filled(expr)), PATIENCE / 3, expr))
    except TimeoutError:
        return False


def test_queries_are_quick(prometheus: Prometheus, capsys: pytest.CaptureFixture[str]) -> None:
    """How long each took is printed; no timing decides whether this passes."""
    for dashboard in DASHBOARDS:
        for panel in dashboard.panels:
            for query in panel.queries:
                prometheus.query(filled(query.expr))
    slowest = sorted(prometheus.seconds.items(), key=lambda pair: -pair[1])[:3]
    with capsys.disabled():
        print(f"\n{len(prometheus.seconds)} queries; the slowest:")  # noqa: T201  # for whoever runs it
        for expr, seconds in slowest:
            print(f"  {seconds * 1000:.0f} ms  {' '.join(expr.split())}")  # noqa: T201


def test_an_alert_reaches_the_inbox(stack: Stack) -> None:
    """The one that always fires has arrived, by Prometheus and Alertmanager."""

    def state() -> bool:
        return bool(httpx.get(stack.url("inbox", "/watchdog"), trust_env=False).json()["state"] == "ok")

    until(state, PATIENCE, "Watchdog at the inbox")
