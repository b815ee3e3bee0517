"""Rule groups as Prometheus' YAML, and the tests of the alerts as promtool's."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from observability.generate.alert import Alert, Case, Group, Recording
from observability.generate.timing import SHIPPED, Timing
from observability.slo import Links

HEAD = "# Written by make config from {source}; do not edit.\n"


class Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks, long ones on one line, lists indented."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


Dumper.add_representer(str, _represent_text)


def to_yaml(data: object, source: str) -> str:
    """A document that reads well, with a word on where it comes from."""
    return HEAD.format(source=source) + yaml.dump(
        data, Dumper=Dumper, sort_keys=False, width=10_000, allow_unicode=True
    )


def rule_groups(groups: Iterable[Group], links: Links, timing: Timing = SHIPPED) -> dict[str, Any]:
    """The content of a rule file."""
    return {"groups": [_group(each, links, timing) for each in groups]}


def _group(group: Group, links: Links, timing: Timing) -> dict[str, Any]:
    interval = {} if group.interval is None else {"interval": timing.hold(group.interval)}
    rules = [
        _alert(rule, links, timing) if isinstance(rule, Alert) else _recording(rule, timing) for rule in group.rules
    ]
    return {"name": group.name, **interval, "rules": rules}


def _recording(rule: Recording, timing: Timing) -> dict[str, Any]:
    labels = {"labels": dict(rule.labels)} if rule.labels else {}
    return {"record": rule.record, "expr": timing.expression(rule.expr), **labels}


def _alert(rule: Alert, links: Links, timing: Timing) -> dict[str, Any]:
    hold = {} if rule.hold == "0s" else {"for": timing.hold(rule.hold)}
    keep = {} if rule.keep is None else {"keep_firing_for": timing.hold(rule.keep)}
    return {
        "alert": rule.name,
        "expr": timing.expression(rule.expr),
        **hold,
        **keep,
        "labels": labels_of(rule),
        "annotations": {
            "summary": rule.summary,
            "description": rule.description,
            "runbook_url": f"{links.runbooks}/{rule.name}",
            "dashboard_url": f"{links.dashboards}/d/safelight-{rule.dashboard}",
        },
    }


def labels_of(rule: Alert) -> dict[str, str]:
    """What routing and inhibition go by."""
    team = {} if rule.team is None else {"team": rule.team.value}
    return {"severity": rule.severity.value, "subject": rule.subject, **team, **rule.labels}


@dataclass(frozen=True, slots=True)
class Scenario:
    """One run of promtool: what happens, and which alerts fire of it or do not."""

    name: str
    case: Case
    expected: Mapping[str, bool]  # by the matchers of their labels


def scenarios(alerts: Iterable[Alert]) -> Iterator[Scenario]:
    """Two of each alert."""
    for alert in alerts:
        yield Scenario(f"{alert.name} fires", alert.fires, {matchers(alert): True})
        if alert.silent is not None:
            yield Scenario(f"{alert.name} does not fire", alert.silent, {matchers(alert): False})


def merged(name: str, alerts: Sequence[Alert], is_firing: bool) -> Scenario:
    """One for alerts that do not get in each other's way and look at the same moment."""
    cases = [each for alert in alerts if (each := alert.fires if is_firing else alert.silent) is not None]
    series = {name: values for case in cases for name, values in case.series.items()}
    return Scenario(name, replace(cases[0], series=series), {matchers(each): is_firing for each in alerts})


def tests(files: Sequence[str], found: Iterable[Scenario], evaluation: str) -> dict[str, Any]:
    """The content of a test file."""
    return {"rule_files": list(files), "evaluation_interval": evaluation, "tests": [_test(each) for each in found]}


def _test(scenario: Scenario) -> dict[str, Any]:
    case = scenario.case
    return {
        "name": scenario.name,
        "interval": case.every,
        "input_series": [{"series": series, "values": values} for series, values in case.series.items()],
        "promql_expr_test": [
            {
                "expr": f"count(ALERTS{{{matchers}}})",
                "eval_time": case.at,
                "exp_samples": [{"labels": "{}", "value": 1}] if is_firing else [],
            }
            for matchers, is_firing in scenario.expected.items()
        ],
    }


def matchers(alert: Alert) -> str:
    """What finds this alert, firing, among all that fire."""
    labels = {"alertname": alert.name, "alertstate": "firing", **labels_of(alert)}
    return ", ".join(f'{name}="{value}"' for name, value in labels.items())
