"""Scrapes over a real socket, on a port of their own."""

import logging
import re
import socket
from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Enum,
    Gauge,
    Histogram,
    Info,
    Summary,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from observability.encoding import Encoder
from observability.exposition import Exposition, MetricsServer
from observability.logs import set_level

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

    def put(level: str) -> None:
        set_level(level)
        levels.append(level)

    server = MetricsServer(Exposition(registry), "127.0.0.1", 0, {"log-level": put})
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


@pytest.mark.parametrize("is_open", [False, True])
def test_scrapes_are_written_as_by_the_library(is_open: bool) -> None:
    """Byte for byte: every kind of metric, labels and help that have to be escaped, numbers, exemplars."""
    disable_created_metrics()  # as the service does
    registry = CollectorRegistry()
    odd = 'a"b\\c\nd é'
    Counter("pears_total", odd, ["kind"], registry=registry).labels(odd).inc(2e9, exemplar={"trace_id": "1f"})
    Gauge("depth", "Depth.", ["z", "a"], unit="metres", registry=registry).labels("1", "2").set(float("-inf"))
    Gauge("none", "None.", registry=registry).set(float("nan"))
    Info("model", "Model.", registry=registry).info({"name": odd})
    Enum("state", "State.", states=["up", "down"], registry=registry)
    Summary("size", "Size.", registry=registry).observe(0.1)
    Histogram("age", "Age.", ["of"], registry=registry).labels("it").observe(1e-7, {"trace_id": "2e", "span_id": odd})
    encoder = Encoder()
    for _ in range(2):
        written = (encoder.openmetrics if is_open else encoder.text)(registry.collect())
        assert written == (openmetrics_latest if is_open else generate_latest)(registry)


def test_openmetrics_is_served_when_asked_for(client: httpx.Client) -> None:
    """The official parser reads it."""
    response = client.get("/metrics", headers={"Accept": OPENMETRICS})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    names = {family.name for family in parse_openmetrics(response.text)}
    assert {"apples", "safelight_scrape_duration_seconds"} <= names


def test_there_is_nothing_but_metrics(client: httpx.Client) -> None:
    """What is not there is not found; a HEAD has no body."""
    assert client.get("/").status_code == 404
    assert client.post("/metrics").status_code == 501
    head = client.head("/metrics")
    assert (head.status_code, head.content) == (200, b"")


def test_the_log_level_can_be_changed(client: httpx.Client, levels: list[str]) -> None:
    """In one word; anything else changes nothing."""
    log = logging.getLogger("safelight")
    before = log.level
    try:
        assert client.put("/debug/log-level", content="debug").text == "debug\n"
        assert log.level == logging.DEBUG
        for body in ("loud", ""):
            refused = client.put("/debug/log-level", content=body)
            assert refused.status_code == 400
            assert "debug, info, warning, error" in refused.text
        long = client.put("/debug/log-level", content="x" * 5000)
        assert (long.status_code, long.text) == (400, "log-level must be one word of at most 500 bytes\n")
        assert log.level == logging.DEBUG
        chunks = iter([b"war", b"ning"])  # without its length
        assert client.put("/debug/log-level", content=chunks).status_code == 400
        assert client.put("/metrics", content="debug").status_code == 404
        assert client.get("/debug/log-level").status_code == 404
        assert client.put("/debug/faults", content="fail=x").text == "there are GET /metrics, PUT /debug/log-level\n"
        assert levels == ["debug"]
    finally:
        log.setLevel(before)


def test_a_connection_is_kept(client: httpx.Client) -> None:
    """As Prometheus does; what is refused does not end it."""
    with socket.create_connection((client.base_url.host, client.base_url.port or 0)) as connection:
        answers = connection.makefile("rb")
        for path, status in (("/metrics", 200), ("/nothing", 404), ("/metrics?again", 200)):
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            head = b"".join(iter(answers.readline, b"\r\n"))
            length = re.search(rb"Content-Length: (\d+)", head)
            assert length
            assert head.startswith(f"HTTP/1.1 {status} ".encode())
            answers.read(int(length[1]))


def test_what_is_not_read_is_no_request(client: httpx.Client) -> None:
    """After a body that nobody asked for, or of a length that is none, the connection ends."""
    trouble = (
        b"GET /metrics HTTP/1.1\r\nContent-Length: 24\r\n\r\nGET /nothing HTTP/1.1\r\n\r\n",
        b"PUT /debug/log-level HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    )
    for each in trouble:
        with socket.create_connection((client.base_url.host, client.base_url.port or 0)) as connection:
            connection.sendall(each)
            with suppress(ConnectionResetError):
                assert connection.makefile("rb").read().count(b"HTTP/1.1 ") == 1
    assert client.get("/metrics").status_code == 200


def test_a_scrape_that_fails_is_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """And nothing else: the next one is answered."""
    registry = CollectorRegistry()
    Gauge("depth", "Depth.", registry=registry).set_function(lambda: 1 / next(numbers))
    numbers = iter([0, 2])
    server = MetricsServer(Exposition(registry), "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.port}/metrics"
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(url)
    assert "depth 0.5" in httpx.get(url).text
    server.close()
    (line,) = (each for each in caplog.records if each.name == "safelight.metrics")
    assert line.exc_info is not None


def test_metrics_can_be_served_on_an_ipv6_address() -> None:
    """As the API can."""
    server = MetricsServer(Exposition(CollectorRegistry()), "::1", 0)
    assert httpx.get(f"http://[::1]:{server.port}/metrics").status_code == 200
    server.close()
