"""What an operator asks the service, over a real socket."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from tests.support.server import PATIENCE, Server, environment, serving, until

METRICS = re.compile(r"metrics are on (http://127\.0\.0\.1:\d+/metrics)")


def families(text: str) -> set[str]:
    """The names of all metrics."""
    return {family.name for family in text_string_to_metric_families(text)}


def test_metrics_tell_of_every_part(fake: Server) -> None:
    """Requests, engine, its process, GPUs, HTTP, the scrape itself."""
    fake.generate(params={"wait": 60}, expect=200, num_inference_steps=2)
    found = families(fake.client.get("/metrics").text)
    assert {
        "safelight_requests",
        "safelight_step_duration_seconds",
        "safelight_engine_process_resident_memory_bytes",
        "safelight_nvml_available",
        "safelight_scrape_duration_seconds",
        "safelight_model_info",
        "http_requests",
        "process_cpu_seconds",
    } <= found
    assert fake.metric("safelight_queue_limit") == 100
    assert fake.metric("safelight_engine_process_resident_memory_bytes") > 1e7


def test_openmetrics_parses_with_the_official_parser(fake: Server) -> None:
    """It is served to whom asks for it."""
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    response = fake.client.get("/metrics", headers=accept)
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert "safelight_requests" in {family.name for family in parse_openmetrics(response.text)}


def test_metrics_on_a_port_of_their_own_are_nowhere_else(data_dir: Path) -> None:
    """The main port says where they are not; the other port has nothing else."""
    with serving(data_dir, model="fake:", metrics_port=0) as server:
        match = METRICS.search(server.log.read_text())
        assert match is not None, server.log.read_text()
        assert "safelight_requests" in families(httpx.get(match[1]).text)
        assert httpx.get(match[1].replace("/metrics", "/jobs")).status_code == 404
        assert server.client.get("/metrics").status_code == 404
        assert server.stop() == 0


def test_the_level_of_the_log_changes_in_both_processes(data_dir: Path) -> None:
    """The engine's own warning of a failure is told from then on, also by the engine that follows a lost one."""
    with serving(data_dir, model="fake:?fail=poison", metrics_port=0, log_level="error") as server:
        match = METRICS.search(server.log.read_text())
        assert match is not None, server.log.read_text()

        def tells() -> bool:
            server.generate(params={"wait": 60}, expect=200, prompt="poison", cache=False)
            return "a picture of job" in server.log.read_text()

        assert not tells()
        assert httpx.put(match[1].replace("/metrics", "/debug/log-level"), content="warning").status_code == 200
        until(tells)
        assert "request failed" in server.log.read_text()
        told = server.log.read_text().count("a picture of job")
        os.kill(server.engine(), signal.SIGKILL)

        def tells_again() -> bool:
            server.client.post("/generate", params={"wait": 60}, json={"prompt": "poison", "cache": False})
            return server.log.read_text().count("a picture of job") > told

        until(tells_again)


def test_metrics_port_that_is_taken_stops_the_start(fake: Server, data_dir: Path) -> None:
    """The error names the variable."""
    port = httpx.URL(fake.url).port
    ended = subprocess.run(
        [sys.executable, "-m", "service", "serve"],
        env=environment(data_dir, model="fake:", metrics_port=port),
        capture_output=True,
        check=False,
        text=True,
        timeout=PATIENCE,
    )
    assert ended.returncode != 0
    assert "SAFELIGHT_METRICS_PORT" in ended.stderr


def test_retries_of_a_client_are_counted(fake: Server) -> None:
    """As OpenAI's client tells them."""
    before = fake.metric("safelight_client_retries_total")
    for count in ("0", "1", "2"):
        headers = {"X-Stainless-Retry-Count": count}
        fake.client.post("/generate", json={"prompt": "an apple"}, headers=headers).raise_for_status()
    assert fake.metric("safelight_client_retries_total") == before + 2


def test_event_loop_lag_is_observed(fake: Server) -> None:
    """Once a second."""
    assert until(lambda: fake.metric("safelight_event_loop_lag_seconds_count") >= 1)


def test_slo_tells_objectives_and_attainment(data_dir: Path) -> None:
    """From this process' own requests; before there are enough, nothing is claimed."""
    with serving(data_dir, model="fake:?step_ms=1&fail=poison", slo_profile="demo") as server:

        def objective(name: str) -> dict[str, object]:
            answer = server.client.get("/slo").json()
            assert answer["profile"] == "demo"
            (found,) = (each for each in answer["objectives"] if each["name"] == name)
            return dict(found)

        nothing = objective("availability")
        assert (nothing["total"], nothing["attainment"], nothing["is_met"]) == (0, None, None)
        for number in range(18):
            server.generate(params={"wait": 60}, expect=200, prompt=f"apple {number}", num_inference_steps=2)
        server.generate(params={"wait": 60}, expect=200, prompt="poison", num_inference_steps=2)
        early = objective("availability")
        assert (early["good"], early["total"], early["is_met"]) == (18, 19, None)
        server.generate(params={"wait": 60}, expect=200, prompt="poison again", num_inference_steps=2)
        found = objective("availability")
        assert (found["attainment"], found["is_met"]) == (0.9, False)
        assert found["budget_left"] == pytest.approx(-1.0)
        assert objective("latency_few")["total"] == 18
        assert objective("latency_few")["threshold_seconds"] == 3.0
