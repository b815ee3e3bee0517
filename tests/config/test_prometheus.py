"""Prometheus' configuration, rules and their tests."""

import re
from collections.abc import Iterator
from pathlib import Path

import promql_parser
import pytest
import yaml

from observability import catalogue, slo
from observability.declared import PREFIX
from observability.generate.__main__ import written
from observability.generate.alert import Alert, Recording
from observability.generate.files import ROOT, alerts, rule_files
from observability.generate.timing import SHIPPED, Timing
from tests.config.conftest import run

FOUND = slo.load()
GROUPS = [group for groups in rule_files(FOUND).values() for group in groups]
RULES = [rule for group in GROUPS for rule in group.rules]
ALERTS = [rule for rule in RULES if isinstance(rule, Alert)]
RECORDED = {rule.record for rule in RULES if isinstance(rule, Recording)}
TESTS = sorted((ROOT / "prometheus" / "tests").glob("*.yml"))

# What others export, by their own names; the facade is where GPUs' and containers' may be named.
FOREIGN = re.compile(
    r"ALERTS|up|scrape_\w+|node_\w+|prometheus_\w+|alertmanager_\w+|process_\w+|http_requests_total|DCGM_\w+|container_\w+"
)
BESIDE = {"model_info", "engine_process_cpu_seconds_total", "engine_process_resident_memory_bytes"}
KNOWN = {PREFIX + name for name in catalogue.names() | BESIDE} | RECORDED


def names(expr: str) -> Iterator[str]:
    """The metrics that an expression reads."""
    found = promql_parser.parse(SHIPPED.expression(expr))
    yield from re.findall(r"[a-zA-Z_:][\w:]*", " ".join(_selectors(found)))


def _selectors(node: object) -> Iterator[str]:
    if isinstance(node, promql_parser.VectorSelector):
        yield node.name
    for part in ("lhs", "rhs", "expr", "param", "vector_selector"):
        if (inner := getattr(node, part, None)) is not None:
            yield from _selectors(inner)
    for argument in getattr(node, "args", None) or ():
        yield from _selectors(argument)


def real_name(metric: str) -> str:
    """The declared metric of a histogram's series."""
    base = re.sub(r"_(bucket|sum|count)$", "", metric)
    return base if base in KNOWN else metric


def test_what_is_committed_is_what_would_be_written() -> None:
    """`make config` changes nothing, and nothing lies beside it that Prometheus or Grafana would read too."""
    found = dict(written())
    assert [str(path) for path, text in found.items() if not path.is_file() or path.read_text() != text] == []
    folders = ("prometheus/rules", "prometheus/slo", "prometheus/tests", "grafana/dashboards")
    assert {path for folder in folders for path in (ROOT / folder).iterdir()} <= found.keys()


def test_promtool_takes_the_configuration(prometheus_folder: Path) -> None:
    """In every profile, with its rules."""
    assert "SUCCESS" in run("promtool", "check", "config", "--lint=all", prometheus_folder / "prometheus.yml")


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_alerts_fire_when_they_should_and_only_then(path: Path) -> None:
    """Promtool runs each alert's own cases."""
    assert "SUCCESS" in run("promtool", "test", "rules", path, folder=path.parent)


def test_every_alert_is_tested() -> None:
    """Each fires in one test and, but for the one that always fires, does not in another."""
    found = "".join(path.read_text() for path in TESTS)
    for alert in ALERTS:
        assert alert.silent is not None or alert.name == "Watchdog"
        assert f'alertname="{alert.name}"' in found


def test_rules_read_only_what_exists() -> None:
    """Every metric is declared in the code, recorded by a rule, or of a known exporter."""
    read = {real_name(name) for rule in RULES for name in names(rule.expr)}
    assert {name for name in read if name not in KNOWN and not FOREIGN.fullmatch(name)} == set()


def test_only_the_facade_names_what_exporters_call_gpus_and_containers() -> None:
    """So that a new name of theirs is one change."""
    outside = [group for group in GROUPS if group.name not in {"gpus", "containers"}]
    read = {(rule.expr, name) for group in outside for rule in group.rules for name in names(rule.expr)}
    assert {name for _, name in read if re.match(r"DCGM_|container_\w", name)} <= {
        "DCGM_FI_DEV_GPU_TEMP",  # whether the exporter tells of any GPU is about the exporter
        "DCGM_FI_DEV_GPU_TEMP_CELSIUS",
    }


def test_recording_rules_are_named_by_level_metric_and_operation() -> None:
    """As in Prometheus' own advice; no two rules record the same series."""
    recorded = [
        (path, rule.record, tuple(rule.labels.items()), rule.expr)
        for path, groups in rule_files(FOUND).items()
        for group in groups
        for rule in group.rules
        if isinstance(rule, Recording)
    ]
    assert all(re.fullmatch(r"[a-z]+:[a-z0-9_]+:[a-z0-9_]+", record) for _, record, *_ in recorded)
    assert len(recorded) == len(set(recorded))


def test_alerts_say_what_whose_and_where() -> None:
    """Labels for routing and inhibition, texts for people."""
    assert len({alert.name for alert in ALERTS}) >= 40
    for alert in ALERTS:
        assert alert.subject
        assert (alert.team is None) == (alert.name == "InfoInhibitor")
        assert alert.summary[0].isupper()
        assert not alert.summary.endswith(".")
        assert alert.description.endswith(".")


def test_every_alert_has_a_runbook() -> None:
    """With what it means, whom it hurts, how to find out and what to do; and no runbook is without its alert."""
    folder = ROOT / "docs" / "runbooks"
    assert {path.stem for path in folder.glob("*.md")} == {alert.name for alert in ALERTS} | {"README"}
    for path in folder.glob("*.md"):
        if path.stem != "README":
            headings = re.findall(r"^## (.+)$", path.read_text(), re.MULTILINE)
            assert headings == ["Meaning", "Impact", "Diagnosis", "Mitigation"], path


def test_queries_of_runbooks_can_be_run() -> None:
    """They are PromQL, of metrics that exist."""
    for path in (ROOT / "docs" / "runbooks").glob("*.md"):
        for query in re.findall(r"```promql\n(.+?)```", path.read_text(), re.DOTALL):
            unknown = {
                name for name in map(real_name, names(query)) if name not in KNOWN and not FOREIGN.fullmatch(name)
            }
            assert unknown == set(), f"{path.name}: {query}"


def test_targets_are_those_of_the_profile() -> None:
    """A GPU's exporter is listed where there is one, and a simulated one says so."""
    jobs = {
        profile: {(each["labels"]["job"], "simulated" in each["labels"]) for each in yaml.safe_load(path.read_text())}
        for path in (ROOT / "prometheus" / "targets").glob("*.yml")
        for profile in [path.stem]
    }
    assert jobs["gpu"] - jobs["cpu"] == {("dcgm", False)}
    assert jobs["demo-gpu"] - jobs["cpu"] == {("dcgm", True)}
    config = yaml.safe_load((ROOT / "prometheus" / "prometheus.yml").read_text())
    assert {job for job, _ in jobs["gpu"]} < {each["job_name"] for each in config["scrape_configs"]}


def test_compressed_rules_have_the_same_expressions() -> None:
    """Only durations are shorter, and no window holds fewer than five scrapes."""
    timing = Timing(factor=60, scrape=1)
    assert timing.expression("rate(a[5m]) > 3 and b offset 1h > <2m>") == "rate(a[5000ms]) > 3 and b offset 60000ms > 2"
    assert timing.hold("2m") == "2000ms"
    assert Timing().expression("rate(a[5m]) > <2m>") == "rate(a[5m]) > 120"


def test_budget_alerts_cover_every_objective() -> None:
    """Each objective at each speed, in every profile."""
    for profile, objectives in FOUND.profiles.items():
        found = {
            (each.labels["slo"], each.labels["window"]) for each in alerts(rule_files(FOUND)[f"slo/{profile}.yml"])
        }
        assert found == {(name, rate.long) for name in objectives for rate in FOUND.burn_rates}
