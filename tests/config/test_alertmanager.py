"""Alertmanager's configuration: it is taken, every alert reaches whom it should, and nothing is muted by chance."""

import sys
from pathlib import Path

import pytest
import yaml

from observability import slo
from observability.generate.alert import Severity
from observability.generate.files import ROOT, alerts, rule_files
from observability.generate.rules import labels_of
from tests.config.conftest import run

FOLDER = ROOT / "alertmanager"
FILES = [FOLDER / "alertmanager.yml", FOLDER / "receivers.yml"]
ALERTS = {(alert.name, alert.severity): alert for groups in rule_files(slo.load()).values() for alert in alerts(groups)}
INTENDED = ("empty-receiver",)  # nobody
RECEIVERS = {
    ("critical", "service"): "page-service",
    ("critical", "platform"): "page-platform",
    ("warning", "service"): "ticket-service",
    ("warning", "platform"): "ticket-platform",
    ("info", "service"): "note",
    ("info", "platform"): "note",
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_amtool_takes_it(path: Path) -> None:
    """With its templates."""
    assert "SUCCESS" in run("amtool", "check-config", path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_amlint_finds_nothing(path: Path) -> None:
    """Routes that are never reached, receivers that nobody uses and the like."""
    program = Path(sys.executable).with_name("amlint")
    rules = [f"--rules={ROOT / 'prometheus' / each}" for each in ("rules/*.yml", "slo/demo.yml")]
    run(program, "check", "--strict", *rules, *(f"--ignore={each}" for each in INTENDED), path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize(("name", "severity"), sorted(ALERTS))
def test_every_alert_reaches_its_receiver(path: Path, name: str, severity: str) -> None:
    """By its severity and team."""
    labels = labels_of(ALERTS[name, Severity(severity)])
    expected = {"Watchdog": "watchdog", "InfoInhibitor": "nobody"}.get(name)
    expected = expected or RECEIVERS[labels["severity"], labels["team"]]
    matchers = [f"{key}={value}" for key, value in {"alertname": name, **labels}.items()]
    run("amtool", "config", "routes", "test", f"--config.file={path}", f"--verify.receivers={expected}", *matchers)


def test_both_files_route_and_mute_alike() -> None:
    """Only the receivers differ."""
    first, second = (yaml.safe_load(path.read_text()) for path in FILES)
    assert first["route"] == second["route"]
    assert first["inhibit_rules"] == second["inhibit_rules"]
    assert [each["name"] for each in first["receivers"]] == [each["name"] for each in second["receivers"]]


def test_nothing_is_muted_by_what_both_lack() -> None:
    """Where an inhibition compares labels, one of them is on every alert, or the source is one alert by name."""
    always = set.intersection(*(set(labels_of(each)) for each in ALERTS.values()))
    for rule in yaml.safe_load(FILES[0].read_text())["inhibit_rules"]:
        is_there = {"instance"} if any(each.startswith("instance") for each in rule["source_matchers"]) else set()
        assert set(rule["equal"]) & (always | is_there | {"team"}), rule
        (severity,) = (each for each in rule["target_matchers"] if each.startswith("severity"))
        assert "critical" not in severity
