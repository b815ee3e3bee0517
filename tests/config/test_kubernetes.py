"""The manifests: valid, of one piece, and about things that exist."""

import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from observability.generate.files import ROOT
from service.__main__ import main
from service.settings import PREFIX, Settings
from tests.config.test_prometheus import KNOWN, names

FOLDER = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("cpu", "gpu", "spot")
VERSION = "1.31"
BY_NAME = {"containers", "volumes", "volumeMounts", "env"}  # lists that are merged by their members' names

Resource = dict[str, Any]

# Of custom resources, what is used here: no field that is not in this list may be.
STRING, NUMBER = {"type": "string"}, {"type": "integer"}


def record(required: str = "", **properties: Any) -> dict[str, Any]:
    """A schema of an object with these fields and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def many(of: dict[str, Any]) -> dict[str, Any]:
    """A list."""
    return {"type": "array", "items": of, "minItems": 1}


SELECTOR = record("matchLabels", matchLabels={"type": "object"})
RELABELING = record("targetLabel", targetLabel=STRING, replacement=STRING)
RULE = record(
    "expr",
    alert=STRING,
    record=STRING,
    expr=STRING,
    **{"for": STRING},
    keep_firing_for=STRING,
    labels={"type": "object"},
    annotations={"type": "object"},
)
SCHEMAS = {
    ("monitoring.coreos.com/v1", "PodMonitor"): record(
        "selector podMetricsEndpoints",
        selector=SELECTOR,
        podMetricsEndpoints=many(record("port", port=STRING, interval=STRING, relabelings=many(RELABELING))),
    ),
    ("monitoring.coreos.com/v1", "PrometheusRule"): record(
        "groups", groups=many(record("name rules", name=STRING, interval=STRING, rules=many(RULE)))
    ),
    ("keda.sh/v1alpha1", "ScaledObject"): record(
        "scaleTargetRef triggers",
        scaleTargetRef=record("name", name=STRING),
        pollingInterval=NUMBER,
        minReplicaCount=NUMBER,
        maxReplicaCount=NUMBER,
        fallback=record("failureThreshold replicas", failureThreshold=NUMBER, replicas=NUMBER),
        advanced=record(horizontalPodAutoscalerConfig=record(behavior={"type": "object"})),
        triggers=many(
            record(
                "type metadata",
                type=STRING,
                metricType=STRING,
                metadata={"type": "object", "additionalProperties": STRING},
            )
        ),
    ),
}


def documents(path: Path) -> list[Resource]:
    """Of one file."""
    return list(yaml.safe_load_all(path.read_text()))


def merged(old: Any, new: Any, field: str = "") -> Any:
    """A strategic merge, as far as these overlays need it."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{name: merged(old.get(name), value, name) for name, value in new.items()}}
    if isinstance(old, list) and field in BY_NAME:
        found = {each["name"]: each for each in old}
        return list({**found, **{each["name"]: merged(found.get(each["name"]), each) for each in new}}.values())
    return deepcopy(new)


def key(resource: Resource) -> tuple[str, str]:
    """What a resource is found by."""
    return resource["kind"], resource["metadata"]["name"]


def built(folder: Path) -> dict[tuple[str, str], Resource]:
    """What `kubectl apply -k` would apply."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    found: dict[tuple[str, str], Resource] = {}
    for name in kustomization["resources"]:
        path = folder / name
        more = built(path.resolve()) if path.is_dir() else {key(each): each for each in documents(path)}
        assert not found.keys() & more.keys()
        found |= more
    for patch in kustomization.get("patches", []):
        for each in documents(folder / patch["path"]):
            found[key(each)] = merged(found[key(each)], each)
    return found


@pytest.fixture(scope="module", params=OVERLAYS)
def resources(request: pytest.FixtureRequest) -> dict[tuple[str, str], Resource]:
    """All of an overlay."""
    return built(FOLDER / "overlays" / request.param)


def of_kind(resources: dict[tuple[str, str], Resource], kind: str) -> list[Resource]:
    """Those of a kind."""
    return [each for (found, _), each in resources.items() if found == kind]


def containers(deployment: Resource) -> Iterator[Resource]:
    """Of its pods."""
    yield from deployment["spec"]["template"]["spec"]["containers"]


def matches(selector: dict[str, str], deployment: Resource) -> bool:
    """Whether a selector finds its pods."""
    return selector.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()


def test_resources_are_valid(resources: dict[tuple[str, str], Resource]) -> None:
    """By Kubernetes' own schemas, and for custom resources by the fields that theirs have."""
    for resource in resources.values():
        schema = SCHEMAS.get((resource["apiVersion"], resource["kind"]))
        if schema is None:
            kubernetes_validate.validate(resource, VERSION, strict=True)
        else:
            assert resource.keys() == {"apiVersion", "kind", "metadata", "spec"}
            jsonschema.validate(resource["spec"], schema)


def test_pods_are_confined_and_looked_after(resources: dict[tuple[str, str], Resource]) -> None:
    """Not root, nothing to write to but volumes, bounds, probes on ports that there are, time to leave."""
    for deployment in of_kind(resources, "Deployment"):
        pod = deployment["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        assert matches(deployment["spec"]["selector"]["matchLabels"], deployment)
        for container in containers(deployment):
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
            assert "memory" in container["resources"]["limits"]
            ports = {each["name"] for each in container["ports"]}
            probes = [container[f"{kind}Probe"] for kind in ("readiness", "liveness")]
            assert {each["httpGet"]["port"] for each in probes} <= ports
            assert {each["name"] for each in container["volumeMounts"]} <= {each["name"] for each in pod["volumes"]}
            assert container["args"][0] in main.commands


def test_pods_leave_in_time(resources: dict[tuple[str, str], Resource]) -> None:
    """More than they are told to drain for."""
    settings = resources["ConfigMap", "safelight"]["data"]
    for deployment in of_kind(resources, "Deployment"):
        (container,) = containers(deployment)
        if container["args"][0] != "probe":
            own = {each["name"]: each.get("value") for each in container.get("env", [])}
            drain = float(own.get("SAFELIGHT_DRAIN_SECONDS") or settings["SAFELIGHT_DRAIN_SECONDS"])
            assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > drain + 10


def test_settings_exist(resources: dict[tuple[str, str], Resource]) -> None:
    """In the ConfigMap, in the example of a Secret, and of each container; what is named by reference is there."""
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    (secret,) = documents(FOLDER / "base" / "secret.example.yaml")
    given = {*resources["ConfigMap", "safelight"]["data"], *secret["stringData"]}
    for deployment in of_kind(resources, "Deployment"):
        for container in containers(deployment):
            given |= {each["name"] for each in container.get("env", [])}
            for source in container.get("envFrom", []):
                (reference,) = source.values()
                assert reference["name"] == secret["metadata"]["name"] == "safelight"
    assert {each for each in given if each.startswith(PREFIX)} <= known


def test_who_scales_what(resources: dict[tuple[str, str], Resource]) -> None:
    """Each deployment but the probe has one that does, never two, and no number of its own."""
    scaled = [each["spec"]["scaleTargetRef"]["name"] for each in of_kind(resources, "HorizontalPodAutoscaler")]
    assert scaled == ["safelight-api"]
    by_keda = [each["spec"]["scaleTargetRef"]["name"] for each in of_kind(resources, "ScaledObject")]
    deployments = {each["metadata"]["name"]: each for each in of_kind(resources, "Deployment")}
    assert sorted([*scaled, *by_keda, "safelight-probe"]) == sorted(deployments)
    assert all("replicas" not in deployments[name]["spec"] for name in (*scaled, *by_keda))


def test_metrics_exist(resources: dict[tuple[str, str], Resource]) -> None:
    """Of every trigger."""
    queries = [
        trigger["metadata"]["query"]
        for each in of_kind(resources, "ScaledObject")
        for trigger in each["spec"]["triggers"]
        if trigger["type"] == "prometheus"
    ]
    assert queries
    for query in queries:
        assert set(names(query)) <= KNOWN


def test_selectors_find_pods(resources: dict[tuple[str, str], Resource]) -> None:
    """Of services, budgets, policies and monitors; and ports have the names that they use."""
    deployments = of_kind(resources, "Deployment")
    ports = {port["name"] for each in deployments for container in containers(each) for port in container["ports"]}
    for kind, path in (
        ("PodDisruptionBudget", "selector"),
        ("NetworkPolicy", "podSelector"),
        ("PodMonitor", "selector"),
    ):
        for each in of_kind(resources, kind):
            assert any(matches(each["spec"][path]["matchLabels"], found) for found in deployments), each["metadata"]
    (service,) = of_kind(resources, "Service")
    assert any(matches(service["spec"]["selector"], found) for found in deployments)
    used = {port["targetPort"] for port in service["spec"]["ports"]}
    used |= {
        each["port"] for monitor in of_kind(resources, "PodMonitor") for each in monitor["spec"]["podMetricsEndpoints"]
    }
    policies = of_kind(resources, "NetworkPolicy")
    used |= {port["port"] for each in policies for rule in each["spec"]["ingress"] for port in rule["ports"]}
    assert used <= ports


def test_metrics_are_for_prometheus_alone(resources: dict[tuple[str, str], Resource]) -> None:
    """Every pod is under the policy; the other one opens the API's own port, and no more."""
    policy = resources["NetworkPolicy", "safelight-metrics"]["spec"]
    assert all(matches(policy["podSelector"]["matchLabels"], each) for each in of_kind(resources, "Deployment"))
    assert all("from" in rule for rule in policy["ingress"])
    (api,) = resources["NetworkPolicy", "safelight-api"]["spec"]["ingress"]
    assert [port["port"] for port in api["ports"]] == ["http"]


def test_jobs_are_named_as_rules_name_them(resources: dict[tuple[str, str], Resource]) -> None:
    """As in Prometheus' own configuration."""
    jobs = {
        relabeling["replacement"]
        for monitor in of_kind(resources, "PodMonitor")
        for endpoint in monitor["spec"]["podMetricsEndpoints"]
        for relabeling in endpoint["relabelings"]
    }
    config = yaml.safe_load((ROOT / "prometheus" / "prometheus.yml").read_text())
    assert jobs == {"api", "worker", "probe"} <= {each["job_name"] for each in config["scrape_configs"]}


def test_a_spot_worker_says_so() -> None:
    """And urgent work has workers that stay."""
    spot = built(FOLDER / "overlays" / "spot")
    pools = {
        name: {each["name"]: each.get("value") for each in container["env"]}["SAFELIGHT_POOL"]
        for (kind, name), deployment in spot.items()
        if kind == "Deployment" and re.search("worker", name)
        for container in containers(deployment)
    }
    assert pools == {"safelight-worker": "on_demand", "safelight-worker-spot": "spot"}
    assert spot["ScaledObject", "safelight-worker"]["spec"]["minReplicaCount"] >= 1
