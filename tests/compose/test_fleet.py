"""`make stack PROFILE=scale`: workers that Prometheus finds, and the pictures that they make."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from observability.gameday.stack import until
from tests.compose.conftest import FLEET, Compose

PATIENCE = 180.0
JOBS = 12


def made(compose: Compose) -> Counter[str]:
    """The ends of a few jobs, each asked for by a client of its own."""
    with (
        httpx.Client(base_url=compose.url("api", 8000), timeout=180, trust_env=False) as client,
        ThreadPoolExecutor(JOBS) as pool,
    ):

        def ask(number: int) -> dict[str, Any]:
            body = {"prompt": "a red apple", "num_inference_steps": 8, "seed": number}
            answer: dict[str, Any] = client.post("/generate", params={"wait": 120}, json=body).json()
            picture = client.get(answer["image_url"]) if answer.get("image_url") else None
            assert picture is not None, answer
            assert picture.content.startswith(b"\x89PNG")
            return answer

        return Counter(answer["status"] for answer in pool.map(ask, range(JOBS)))


def up(workers: int) -> dict[str, int]:
    """Targets that are up, by job."""
    jobs = {"redis-exporter": "redis", "postgres-exporter": "postgres"}
    watched = [service for service in FLEET if service not in ("redis", "postgres", "storage")]
    return {jobs.get(service, service): workers if service == "worker" else 1 for service in watched}


def test_all_is_healthy(fleet: Compose) -> None:
    """By the health checks of the compose files."""
    exporters = ("redis-exporter", "postgres-exporter")
    expected = {service: ["running" if service in exporters else "healthy"] for service in FLEET}
    assert fleet.health() == expected | {"worker": ["healthy", "healthy"]}


def test_pictures_are_made(fleet: Compose) -> None:
    """By workers, through the queue, the table and the store."""
    assert made(fleet) == {"completed": JOBS}


def test_workers_are_found(fleet: Compose) -> None:
    """By Prometheus: two, and one more when there is one more."""
    assert until(lambda: fleet.targets() == up(workers=2), PATIENCE, "two workers and all else up")
    fleet.up("--scale", "worker=3")
    assert until(lambda: fleet.targets() == up(workers=3), PATIENCE, "three workers and all else up")
    assert made(fleet) == {"completed": JOBS}
