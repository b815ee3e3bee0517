"""Scrapes over a real socket, on a port of their own."""

import logging
from collections.abc import Iterator

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from observability.exposition import Exposition, MetricsServer

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


@pytest.fixture
def levels() -> list[str]:
    """The levels of the log that the server was asked for."""
    return []


@pytest.fixture
def client(levels: list[str]) -> Iterator[httpx.Client]:
    """A client of a server with one metric of the test's."""
    registry = CollectorRegistry()
    Counter("apples_total", "Apples.", registry=registry).inc(3)
    server = MetricsServer(Exposition(registry), "127.0.0.1", 0, levels.append)
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}") as client:
        yield client
    server.close()


def samples(text: str) -> dict[str, float]:
    """Values by name."""
    return {each.name: each.value for family in text_string_to_metric_families(text) for each in family.samples}


def test_scrape_tells_of_the_one_before(client: httpx.Client) -> None:
    """How many series it had and how long it took."""
    first, second = samples(client.get("/metrics").text), samples(client.get("/metrics").text)
    assert first["apples_total"] == 3
    assert first["safelight_scrape_duration_seconds_count"] == 0
    assert second["safelight_scrape_duration_seconds_count"] == 1
    assert second["safelight_scrape_series"] >= len(first)


def test_openmetrics_is_served_when_asked_for(client: httpx.Client) -> None:
    """The official parser reads it."""
    response = client.get("/metrics", headers={"Accept": OPENMETRICS})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    names = {family.name for family in parse_openmetrics(response.text)}
    assert {"apples", "safelight_scrape_duration_seconds"} <= names


def test_there_is_nothing_but_metrics(client: httpx.Client) -> None:
    """What is not there is not found; a HEAD has no body."""
    assert client.get("/").status_code == 404
    assert client.post("/metrics").status_code == 404
    head = client.head("/metrics")
    assert (head.status_code, head.content) == (200, b"")


def test_the_log_level_can_be_changed(client: httpx.Client, levels: list[str]) -> None:
    """In one word; anything else changes nothing."""
    log = logging.getLogger("safelight")
    before = log.level
    try:
        assert client.put("/debug/log-level", content="debug").text == "debug\n"
        assert log.level == logging.DEBUG
        for body in ("loud", "", "x" * 5000):
            refused = client.put("/debug/log-level", content=body)
            assert refused.status_code == 400
            assert "debug, info, warning, error" in refused.text
        assert log.level == logging.DEBUG
        assert client.get("/debug/log-level").status_code == 404
        assert levels == ["debug"]
    finally:
        log.setLevel(before)


def test_metrics_can_be_served_on_an_ipv6_address() -> None:
    """As the API can."""
    server = MetricsServer(Exposition(CollectorRegistry()), "::1", 0)
    assert httpx.get(f"http://[::1]:{server.port}/metrics").status_code == 200
    server.close()
