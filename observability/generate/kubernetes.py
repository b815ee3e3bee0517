"""Rules and dashboards as Kubernetes' operators take them: the same as for the compose file, in other paper."""

from typing import Any

import yaml

from observability import slo
from observability.generate import dashboards, rules
from observability.generate.alert import Group
from observability.generate.dashboards import build

PROFILE = "default"
OWN = ("rules/service.yml", "rules/fleet.yml", "rules/gpu.yml")
GRAFANA = {"grafana_dashboard": "1"}  # what Grafana's sidecar looks for
Groups = dict[str, tuple[Group, ...]]


def prometheus_rule(found: slo.Objectives, files: Groups, source: str) -> str:
    """All rules of one profile as a PrometheusRule."""
    chosen = [group for path, groups in files.items() for group in groups if _is_chosen(path, group.name)]
    resource = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "safelight"},
        "spec": rules.rule_groups(chosen, found.links),
    }
    return rules.to_yaml(resource, source)


def _is_chosen(path: str, group: str) -> bool:
    """Not what watches a whole machine or Prometheus itself: in a cluster others do, and would be watched too."""
    return path in {*OWN, f"slo/{PROFILE}.yml"} or group == "probe"


def config_maps(found: slo.Objectives, source: str) -> str:
    """A ConfigMap for each dashboard."""
    resources = (_config_map(each.name, build.to_json(each)) for each in dashboards.every(found))
    return rules.HEAD.format(source=source) + "---\n".join(map(_text, resources))


def _config_map(name: str, text: str) -> dict[str, Any]:
    metadata = {"name": f"safelight-dashboard-{name}", "labels": dict(GRAFANA)}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {f"{name}.json": text}}


def _text(resource: dict[str, Any]) -> str:
    return yaml.dump(resource, Dumper=rules.Dumper, sort_keys=False, width=10_000, allow_unicode=True)
