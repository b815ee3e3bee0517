"""What is drilled, and what is told of it."""

import json

import pytest

from observability import slo
from observability.gameday.drill import Drill
from observability.gameday.drills import DRILLS
from observability.gameday.report import table, to_json, to_markdown
from observability.gameday.run import COMPRESSED, Result, Row
from observability.generate.files import alerts, rule_files
from observability.generate.timing import SHIPPED, seconds

ALERTS = {alert.name for groups in rule_files(slo.load()).values() for alert in alerts(groups)}


def names(drill: Drill) -> set[str]:
    """Of the alerts that it makes fire."""
    return {*drill.alerts, *drill.muted}


def test_every_alert_is_drilled() -> None:
    """And no other."""
    assert {name for drill in DRILLS for name in names(drill)} == ALERTS
    assert {name for drill in DRILLS for name in drill.beside} <= ALERTS


def test_the_core_covers_ten_alerts() -> None:
    """Of the service, of what is simulated and of the stack itself."""
    core = [drill for drill in DRILLS if drill.is_core]
    assert len(core) >= 10
    assert {drill.is_simulated for drill in core} == {True, False}
    assert {"ApiDown", "EngineStalled", "AlertmanagerUnreachable", "Watchdog"} <= {n for d in core for n in names(d)}


@pytest.mark.parametrize("drill", DRILLS, ids=lambda drill: drill.what)
def test_every_drill_says_how_long_it_may_take(drill: Drill) -> None:
    """For each of its alerts; none is expected and also merely allowed."""
    assert all(seconds(drill.expected(name)) > 0 for name in names(drill))
    assert not names(drill) & drill.beside


RESULT = Result(
    (
        Row("GpuHot", "heat", True, 1.0, 6.0, 6.5, 17.0, 2.0),
        Row("GpuXid", "an error", True, None, 1.0, 40.0, 17.0, None),
        Row("DiskNearlyFull", "a full disk", True, 1.0, 2.0, None, 17.0, None, is_muted=True),
    ),
    ("ApiDown",),
    ("GpuXid never resolved",),
)
RESULTS = [(DRILLS[0], RESULT)]


def test_the_table_has_a_line_for_each_alert() -> None:
    """With who was late, who is muted, and what was wrong."""
    lines = table(RESULTS).splitlines()
    assert lines[1].split()[-4:] == ["6.0", "6.5", "17.0", "2.0"]
    assert lines[2].split()[-4:] == ["40.0", "late", "17.0", "-"]
    assert lines[3].split()[-3:] == ["muted", "-", "-"]
    assert lines[-2] == f"{DRILLS[0].what}: GpuXid never resolved"
    assert lines[-1] == "1 drills of 3 alerts, 1 problems, 1 late"


def test_results_are_kept() -> None:
    """As JSON and as a page that says how time ran."""
    kept = json.loads(to_json(RESULTS, COMPRESSED))
    assert (kept["factor"], kept["scrape_seconds"]) == (60, 1)
    assert kept["drills"][0]["rows"][1]["is_late"] is True
    page = to_markdown(RESULTS, COMPRESSED)
    assert "60 times faster" in page
    assert "| GpuHot | heat | simulated | 1.0 | 6.0 | 6.5 | 17.0 | 2.0 |" in page
    assert "as shipped" in to_markdown(RESULTS, SHIPPED)
