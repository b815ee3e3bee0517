"""Simulated exporters: real names, a label that says so, and faults on demand."""

import pytest
from fastapi.testclient import TestClient
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from observability.simulated import GONE, KINDS, XID, Simulation, make_app

TEMPERATURE = "DCGM_FI_DEV_GPU_TEMP_CELSIUS"
THROTTLED = "DCGM_FI_DEV_GPU_THERMAL_THROTTLE_SECONDS_TOTAL"


class Clock:
    """Stands still until told."""

    now = 1000.0

    def __call__(self) -> float:
        """The time."""
        return self.now


def samples(simulation: Simulation) -> dict[str, float]:
    """Values by name, as a scrape has them."""
    registry = CollectorRegistry()
    registry.register(simulation)
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {sample.name: sample.value for family in families for sample in family.samples}


@pytest.mark.parametrize("kind", KINDS)
def test_every_series_says_that_it_is_simulated(kind: str) -> None:
    """Nobody takes it for hardware."""
    found = list(Simulation(KINDS[kind]()).collect())
    assert found
    assert all(sample.labels["simulated"] == "true" for family in found for sample in family.samples)


def test_names_are_those_of_the_exporters() -> None:
    """Also those of counters, which DCGM does not name as Prometheus does."""
    assert {TEMPERATURE, THROTTLED, "DCGM_FI_DEV_FB_USED_BYTES"} <= samples(Simulation(KINDS["gpu"]())).keys()
    assert "container_cpu_usage_seconds_total" in samples(Simulation(KINDS["containers"]()))


def test_a_fault_takes_the_place_of_a_value() -> None:
    """Until it is taken back."""
    simulation = Simulation(KINDS["gpu"](), Clock())
    healthy = samples(simulation)[TEMPERATURE]
    simulation.set_faults({TEMPERATURE: 95})
    assert samples(simulation)[TEMPERATURE] == 95
    simulation.set_faults({})
    assert samples(simulation)[TEMPERATURE] == healthy


def test_a_counter_grows_at_the_rate_of_its_fault() -> None:
    """And never falls."""
    clock = Clock()
    simulation = Simulation(KINDS["gpu"](), clock)
    before = samples(simulation)[THROTTLED]
    simulation.set_faults({THROTTLED: 0.5})
    clock.now += 10
    assert samples(simulation)[THROTTLED] == before + 5
    simulation.set_faults({})
    clock.now += 10
    assert samples(simulation)[THROTTLED] == before + 5


def test_an_error_and_a_gpu_that_is_gone() -> None:
    """Series that come and go."""
    simulation = Simulation(KINDS["gpu"]())
    assert XID not in samples(simulation)
    simulation.set_faults({XID: 79})
    found = next(family for family in simulation.collect() if family.name == XID)
    assert found.samples[0].labels["xid"] == "79"
    simulation.set_faults({GONE: 1})
    assert samples(simulation) == {}


def test_faults_are_set_over_http() -> None:
    """A name that there is not is refused, and says which there are."""
    client = TestClient(make_app(Simulation(KINDS["gpu"]())))
    assert client.put("/faults", json={TEMPERATURE: 95}).status_code == 204
    assert f"{TEMPERATURE}{{" in client.get("/metrics").text
    refused = client.put("/faults", json={"temperature": 95})
    assert refused.status_code == 422
    assert TEMPERATURE in refused.json()["detail"]
    assert client.delete("/faults").status_code == 204
