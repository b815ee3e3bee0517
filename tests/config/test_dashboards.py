"""Dashboards: the rules of Grafana's dashboard linter, and that every query reads what there is."""

import json
from pathlib import Path
from typing import Any

import promql_parser
import pytest

from observability import slo
from observability.generate import dashboards
from observability.generate.dashboards.panel import Dashboard, Kind, everywhere
from observability.generate.files import ROOT
from tests.config.test_prometheus import FOREIGN, KNOWN, names, real_name

FILES = sorted((ROOT / "grafana" / "dashboards").glob("*.json"))
DASHBOARDS = dashboards.every(slo.load())

# Exclusions. Series of GPUs, containers, targets and alerts are of no process of the service that could be chosen, so
# that their dashboards have a data source to choose and nothing else.
WITHOUT_INSTANCES = {"gpu", "container", "alerts"}
# What a rule has recorded for the service as a whole, and what is not its own, cannot be filtered by its processes.
WHOLE = ("slo:", "service:", "gpu:", "container:", "ALERTS", "safelight_probe")


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """Without rows."""
    return [each for each in dashboard["panels"] if each["type"] != "row"]


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def found(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """The name and content of a file."""
    path: Path = request.param
    return path.stem, json.loads(path.read_text())


def test_there_are_enough_panels() -> None:
    """Seven dashboards, sixty panels and more."""
    assert len(DASHBOARDS) == len(FILES) == 7
    assert sum(len(each.panels) for each in DASHBOARDS) >= 100


def test_it_is_classic_json_that_nobody_edits_by_hand(found: tuple[str, dict[str, Any]]) -> None:
    """Of the schema that Grafana 11.6 writes and later ones migrate; its uid is where alerts point to."""
    name, dashboard = found
    assert dashboard["schemaVersion"] == 41
    assert dashboard["editable"] is False
    assert dashboard["uid"] == f"safelight-{name}"
    assert {each["name"] for each in dashboard["annotations"]["list"]} == {"Alerts", "Restarts"}
    assert all("{{instance}}" in each["titleFormat"] for each in dashboard["annotations"]["list"])
    (link,) = dashboard["links"]
    assert link["includeVars"]
    assert link["keepTime"]


def test_variables_choose_the_data_source_job_and_instance(found: tuple[str, dict[str, Any]]) -> None:
    """With several values, and all of them at first."""
    name, dashboard = found
    variables = {each["name"]: each for each in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    chosen = set() if name in WITHOUT_INSTANCES else {"job", "instance", "model"}
    assert variables.keys() - {"datasource"} == chosen
    for each in chosen:
        assert variables[each]["multi"]
        assert variables[each]["includeAll"]
        assert variables[each]["allValue"] == ".+"
        assert variables[each]["datasource"]["uid"] == "$datasource"


def test_panels_say_what_they_show(found: tuple[str, dict[str, Any]]) -> None:
    """Title, description that names the metric, unit, text for no data, the chosen data source; no two overlap."""
    _, dashboard = found
    places = set()
    for panel in panels(dashboard):
        assert panel["title"]
        assert "`" in panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["fieldConfig"]["defaults"]["noValue"]
        assert panel["datasource"]["uid"] == "$datasource"
        position = panel["gridPos"]
        for column in range(position["x"], position["x"] + position["w"]):
            for row in range(position["y"], position["y"] + position["h"]):
                assert (column, row) not in places, panel["title"]
                places.add((column, row))
        assert position["x"] + position["w"] <= 24
    assert len({panel["id"] for panel in panels(dashboard)}) == len(panels(dashboard))


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda each: each.name)
def test_rows_are_filled(dashboard: Dashboard) -> None:
    """Panels of a row fill lines of 24 columns."""
    for row in dashboard.rows:
        assert sum(panel.width for panel in row.panels) % 24 == 0, f"{dashboard.title}: {row.title}"


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda each: each.name)
def test_queries_read_what_there_is(dashboard: Dashboard) -> None:
    """Valid PromQL, of metrics that are declared, recorded, or a known exporter's."""
    for panel in dashboard.panels:
        for query in panel.queries:
            unknown = {
                name
                for name in map(real_name, names(everywhere(query.expr)))
                if name not in KNOWN and not FOREIGN.fullmatch(name)
            }
            assert unknown == set(), f"{panel.title}: {query.expr}"


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda each: each.name)
def test_rates_follow_the_panel(dashboard: Dashboard) -> None:
    """Counters are read by rate or increase, over a window that fits what is drawn."""
    for panel in dashboard.panels:
        for query in panel.queries:
            counters = [
                name for name in names(everywhere(query.expr)) if name.endswith(("_total", "_bucket", "_sum", "_count"))
            ]
            if counters:
                assert "rate(" in query.expr or "increase(" in query.expr, query.expr
            if "rate(" in query.expr:
                assert "[$__rate_interval]" in query.expr


@pytest.mark.parametrize(
    "dashboard", [each for each in DASHBOARDS if each.chooses_instances], ids=lambda each: each.name
)
def test_queries_are_of_the_chosen_processes(dashboard: Dashboard) -> None:
    """Every selector has the job and the instance, but of what is recorded for the whole service."""
    for panel in dashboard.panels:
        for query in panel.queries:
            of_whole = all(name.startswith(WHOLE) for name in names(everywhere(query.expr)))
            assert of_whole or "$instance" in query.expr, query.expr


def test_descriptions_name_the_metrics_that_are_everywhere() -> None:
    """So that whoever reads a panel can look further."""
    for dashboard in DASHBOARDS:
        for panel in dashboard.panels:
            read = {real_name(name) for query in panel.queries for name in names(everywhere(query.expr))}
            assert any(f"`{name}" in panel.description for name in read), panel.title


def test_tables_and_numbers_ask_for_one_moment(found: tuple[str, dict[str, Any]]) -> None:
    """Only what is drawn over time asks for all of it."""
    _, dashboard = found
    for panel in panels(dashboard):
        for target in panel["targets"]:
            assert target.get("instant", False) == (panel["type"] in {"stat", "table"})


def test_promql_is_parsed() -> None:
    """The parser knows the functions that are used."""
    assert list(names("histogram_quantile(0.5, sum by (le) (rate(a_bucket[5m]))) / on () group_left () (b > 0)")) == [
        "a_bucket",
        "b",
    ]
    assert promql_parser.parse("up == 0") is not None
    assert {kind.value for kind in Kind} >= {"heatmap", "stat"}
