"""`docker-compose up`: a picture, targets, an alert in the inbox."""

from typing import Any

import httpx
import pytest
import yaml

from observability.gameday.stack import until
from tests.compose.conftest import CORE, Compose, run

PATIENCE = 180.0


@pytest.mark.parametrize("profile", ["", "gpu", "demo-gpu", "scale"])
@pytest.mark.parametrize("load", ["", "1"])
def test_every_profile_is_accepted(profile: str, load: str) -> None:
    """By docker-compose itself, with what the profile adds."""
    config = yaml.safe_load(run("tools/compose", "config", PROFILE=profile, LOAD=load))
    services = config["services"]
    assert {"api", "grafana", "tempo"} <= services.keys()
    (targets,) = (each for each in services["prometheus"]["volumes"] if "targets.yml" in str(each))
    assert f"targets/{profile or 'cpu'}.yml" in str(targets)
    assert ("deploy" in services["api"]) == (profile == "gpu")


def test_all_is_healthy(compose: Compose) -> None:
    """By the health checks of the compose file."""
    assert compose.health() == {service: ["healthy"] for service in CORE}


def test_a_picture_is_made(compose: Compose) -> None:
    """By the embedded model, in a container without root and with a root file system that cannot be written to."""
    with httpx.Client(base_url=compose.url("api", 8000), timeout=120, trust_env=False) as client:
        body = {"prompt": "a red apple on a blue background"}
        answer = client.post("/generate", json=body, headers={"Accept": "image/png"})
    assert answer.status_code == 200
    assert answer.content.startswith(b"\x89PNG")
    assert run("docker", "exec", *compose("ps", "-q", "api").split(), "id", "-u").strip() == "10001"


def test_all_targets_are_up(compose: Compose) -> None:
    """Each of the profile's that runs here."""
    assert until(lambda: compose.targets() == dict.fromkeys(CORE, 1), PATIENCE, "all targets up")


def test_an_alert_reaches_the_inbox(compose: Compose) -> None:
    """A batch that does not fit into memory, and the alert that always fires."""
    with (
        httpx.Client(base_url=compose.url("api", 8000), timeout=120, trust_env=False) as api,
        httpx.Client(base_url=compose.url("inbox", 8002), timeout=10, trust_env=False) as inbox,
    ):
        body = {"prompt": "a red apple", "num_images": 4, "num_inference_steps": 4}
        assert api.post("/generate", params={"wait": 60}, json=body).status_code == 200

        def told() -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = inbox.get("/alerts", params={"alertname": "OutOfMemorySplits"}).json()
            return found

        (alert, *_) = until(told, PATIENCE, "OutOfMemorySplits at the inbox")
        assert alert["status"] == "firing"
        until(lambda: inbox.get("/watchdog").json()["state"] == "ok", PATIENCE, "Watchdog at the inbox")
        assert "OutOfMemorySplits" in inbox.get("/").text
        assert inbox.get("/runbooks/OutOfMemorySplits").status_code == 200
