"""The compose file against what Prometheus, Grafana and the service expect of it."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from observability.generate.facade import GPU
from service.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SCALE: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.scale.yml").read_text())["services"]
PROFILES = ("cpu", "gpu", "demo-gpu")
VERSION = re.compile(r"\$\{[A-Z_]+:-[a-z0-9./-]+:v?\d+\.\d+\.\d+[a-z0-9.-]*\}")
PUBLISHED = {"api": 8000, "inbox": 8002, "grafana": 3000}


def in_profile(profile: str) -> set[str]:
    """The services that a profile starts."""
    return {name for name, each in SERVICES.items() if profile in each.get("profiles", [profile])}


@pytest.mark.parametrize("profile", PROFILES)
def test_every_target_is_a_service(profile: str) -> None:
    """Of the same profile, and each with metrics is a target."""
    listed = yaml.safe_load((ROOT / "prometheus" / "targets" / f"{profile}.yml").read_text())
    targets = {target.partition(":")[0] for each in listed for target in each["targets"]}
    assert targets == in_profile(profile)


def test_images_are_named_by_version() -> None:
    """All but the one that is built here."""
    images = {name: each["image"] for name, each in SERVICES.items()}
    built = {name for name, image in images.items() if image == "${SAFELIGHT_IMAGE:-safelight:local}"}
    assert built == {"api", "probe", "inbox", "gpu-simulator"}
    assert [image for name, image in images.items() if name not in built and not VERSION.fullmatch(image)] == []


def test_only_three_ports_are_published() -> None:
    """On the loopback interface, unless somebody says otherwise."""
    published = {name: each["ports"] for name, each in SERVICES.items() if "ports" in each}
    assert published.keys() == PUBLISHED.keys()
    for name, (port,) in published.items():
        assert port.startswith("${SAFELIGHT_BIND:-127.0.0.1}:")
        assert port.endswith(f":{PUBLISHED[name]}")


def test_containers_are_confined() -> None:
    """No privileges, no writing outside of volumes, a bound on memory, and they come back."""
    for name, each in SERVICES.items():
        assert "privileged" not in each, name
        assert each["cap_drop"] == ["ALL"], name
        assert each["security_opt"] == ["no-new-privileges:true"], name
        assert each["read_only"] is True, name
        assert {"mem_limit", "cpus"} <= each.keys(), name
        assert name == "cadvisor" or not any("/var/run" in volume for volume in each.get("volumes", [])), name
        assert each["restart"] == "unless-stopped", name
    assert {name for name, each in SERVICES.items() if "cap_add" in each} == {"cadvisor"}


def test_who_is_waited_for_is_healthy() -> None:
    """A dependency is on health, and on something whose health is checked."""
    for name, each in SERVICES.items():
        for other, how in each.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}, name
            assert "healthcheck" in SERVICES[other], name


def test_mounted_files_are_there() -> None:
    """With their defaults filled in."""
    mounts = [volume for each in SERVICES.values() for volume in each.get("volumes", [])]
    found = [re.sub(r"\$\{[A-Z_]+:-([^}]*)\}", r"\1", mount).partition(":")[0] for mount in mounts]
    assert [path for path in found if path.startswith("./") and not (ROOT / path).exists()] == []
    assert {path for path in found if re.fullmatch(r"[a-z]+", path)} == COMPOSE["volumes"].keys()


def test_settings_exist() -> None:
    """Every variable that the API gets is one of its settings."""
    settings = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    assert {name for name in SERVICES["api"]["environment"] if name.startswith(PREFIX)} <= settings


def test_no_proxy_is_between_services() -> None:
    """Each that speaks HTTP to another, or to itself for its health, is told so."""
    for name, each in SERVICES.items():
        if name in {"api", "probe", "inbox", "prometheus", "alertmanager", "grafana", "load"}:
            named = each["environment"]["NO_PROXY"].split(",")
            assert set(named) - {"localhost", "127.0.0.1"} <= SERVICES.keys()
            assert each["environment"]["no_proxy"] == each["environment"]["NO_PROXY"]


def test_whoever_can_tell_of_its_health_does() -> None:
    """Of the others, the image cannot, or does by itself (cAdvisor)."""
    assert {name for name, each in SERVICES.items() if "healthcheck" not in each} == {
        "tempo",
        "cadvisor",
        "dcgm-exporter",
        "load",
    }


def test_grafana_has_no_password() -> None:
    """Nor an account that one would be for."""
    environment = SERVICES["grafana"]["environment"]
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert not [name for name in environment if "PASSWORD" in name]


def test_dcgm_tells_what_rules_read() -> None:
    """Under the old name or the new one."""
    lines = (ROOT / "prometheus" / "dcgm-counters.csv").read_text().splitlines()
    counters = {line.partition(",")[0] for line in lines if not line.startswith("#")}
    for source in GPU:
        named = [set(re.findall(r"DCGM_\w+", each)) for each in source.dcgm]
        assert any(names <= counters for names in named), source.name
    assert all(len(line.split(", ", 2)) == 3 for line in lines if not line.startswith("#"))


def test_a_fleet_is_whole() -> None:
    """Its settings exist, its parts are confined as all others, and its targets are services; workers have no list."""
    listed = yaml.safe_load((ROOT / "prometheus" / "targets" / "scale.yml").read_text())
    targets = {target.partition(":")[0] for each in listed for target in each["targets"]}
    assert targets == in_profile("cpu") | {"redis-exporter", "postgres-exporter"}
    settings = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    for name in ("api", "worker"):
        assert {each for each in SCALE[name]["environment"] if each.startswith(PREFIX)} <= settings
        assert SCALE[name]["environment"]["SAFELIGHT_QUEUE_URL"] == "redis://redis:6379"
    for name, each in SCALE.items():
        if name != "api":
            assert each["cap_drop"] == ["ALL"], name
            assert each["read_only"] is True, name
            assert {"mem_limit", "cpus", "restart"} <= each.keys(), name
            assert "ports" not in each, name
        for other in each.get("depends_on", {}):
            assert "healthcheck" in SCALE[other], name
    assert "yes" in SCALE["redis"]["command"], "an append-only file"
