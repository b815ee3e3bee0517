"""Which rules and tests stand in which file of Prometheus' folder."""

from collections.abc import Iterator
from pathlib import Path

from observability import slo
from observability.generate import (
    engine_alerts,
    facade,
    fleet_alerts,
    gpu_alerts,
    objectives,
    platform_alerts,
    request_alerts,
    rules,
    service_rules,
    stack_alerts,
)
from observability.generate.alert import Alert, Group
from observability.generate.timing import SHIPPED, Timing

ROOT = Path(__file__).parents[2]
SOURCE = "observability/slo.yaml and observability/generate"


def rule_files(found: slo.Objectives) -> dict[str, tuple[Group, ...]]:
    """Groups by file: those of all profiles, and those of one."""
    limits = found.limits
    gpus, containers = facade.groups()
    common = {
        "rules/service.yml": (*service_rules.groups(), *request_alerts.groups(limits), *engine_alerts.groups(limits)),
        "rules/fleet.yml": fleet_alerts.groups(),
        "rules/gpu.yml": (gpus, *gpu_alerts.groups(limits)),
        "rules/platform.yml": (containers, *platform_alerts.groups(limits)),
        "rules/stack.yml": stack_alerts.groups(limits),
    }
    return common | {f"slo/{profile}.yml": objectives.groups(found, profile) for profile in found.profiles}


def alerts(groups: tuple[Group, ...]) -> tuple[Alert, ...]:
    """Those of some groups."""
    return tuple(alert for group in groups for alert in group.alerts)


def prometheus(found: slo.Objectives, timing: Timing = SHIPPED) -> Iterator[tuple[str, str]]:
    """Rule files, by their path in Prometheus' folder."""
    for path, groups in rule_files(found).items():
        yield path, rules.to_yaml(rules.rule_groups(groups, found.links, timing), SOURCE)


def promtool(found: slo.Objectives) -> Iterator[tuple[str, str]]:
    """Test files, by their path in Prometheus' folder; cases that take hours have a file of their own."""
    for path, groups in rule_files(found).items():
        folder, name = path.removesuffix(".yml").split("/")
        if folder == "rules":
            scenarios = list(rules.scenarios(alerts(groups)))
        else:
            scenarios = list(objectives.scenarios(found, name, alerts(groups)))
        for every in sorted({each.case.every for each in scenarios}):
            cases = [each for each in scenarios if each.case.every == every]
            # What mutes an alert of information is one of the service's.
            files = {f"../{path}", *(["../rules/service.yml"] if name == "stack" and every == "1m" else [])}
            yield f"tests/{folder}-{name}-{every}.yml", rules.to_yaml(rules.tests(sorted(files), cases, every), SOURCE)
