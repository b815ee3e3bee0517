"""Simulated exporters: what a GPU, containers and a host would tell, under the real exporters' own names.

For trying dashboards and alerts where there is no GPU, no container engine, or no wish to fill a disk. Every series has
the label `simulated="true"`. A fault is a value put in the place of a gauge's, or of the rate at which a counter grows.
"""

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from fastapi import FastAPI, HTTPException, Request, Response
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

XID = "DCGM_EXP_XID_ERRORS_COUNT"  # its fault is the number of the error
NVML = "safelight_nvml_state"  # with this fault, the service is said to see an NVML that hangs
SLOW = "slow"  # its fault is seconds before every answer
GONE = "gone"  # with this fault, no series of the exporter's devices is left


@dataclass(slots=True)
class Series:
    """One series: `value` is that of a gauge, or the growth of a counter a second, at a time in seconds."""

    name: str
    text: str
    value: Callable[[float], float]
    labels: Mapping[str, str] = field(default_factory=dict)
    is_counter: bool = False
    total: float = 0.0
    seen: float | None = None

    def sample(self, now: float, fault: float | None) -> float:
        """The value at `now`; that of a counter grew since the last look."""
        value = self.value(now) if fault is None else fault
        if not self.is_counter:
            return value
        self.total += value * max(0.0, now - self.seen if self.seen is not None else 0.0)
        self.seen = now
        return self.total


def _steady(value: float) -> Callable[[float], float]:
    return lambda _now: value


def _wave(middle: float, swing: float, period: float = 300.0) -> Callable[[float], float]:
    return lambda now: middle + swing * math.sin(2 * math.pi * now / period)


def gpu() -> list[Series]:
    """One busy GPU, as dcgm-exporter 4.9 tells of it."""
    labels = {"gpu": "0", "UUID": "GPU-simulated-0", "modelName": "Simulated GPU 80GB", "hostname": "simulated"}
    gauges = {
        "DCGM_FI_DEV_GPU_UTIL_RATIO": ("GPU utilization.", _wave(0.78, 0.06)),
        "DCGM_FI_DEV_MEMORY_UTIL_RATIO": ("Memory utilization.", _wave(0.45, 0.05)),
        "DCGM_FI_DEV_FB_USED_BYTES": ("Memory in use.", _wave(38e9, 2e9)),
        "DCGM_FI_DEV_FB_CAPACITY_BYTES": ("Memory.", _steady(80e9)),
        "DCGM_FI_DEV_GPU_TEMP_CELSIUS": ("Temperature.", _wave(62, 4)),
        "DCGM_FI_DEV_BOARD_POWER_WATTS": ("Power.", _wave(420, 40)),
        "DCGM_FI_DEV_SM_CLOCK_HERTZ": ("Clock.", _wave(1.7e9, 3e7)),
        "DCGM_FI_DEV_ROW_REMAP_FAILED": ("Whether remapping failed.", _steady(0)),
    }
    counters = {
        "DCGM_FI_DEV_GPU_ENERGY_JOULES_TOTAL": ("Energy.", _wave(420, 40)),
        "DCGM_FI_DEV_GPU_THERMAL_THROTTLE_SECONDS_TOTAL": ("Time slowed down by heat.", _steady(0)),
        "DCGM_FI_DEV_GPU_POWER_THROTTLE_SECONDS_TOTAL": ("Time slowed down for want of power.", _steady(0)),
        "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL": ("Uncorrectable memory errors.", _steady(0)),
    }
    return [*_series(gauges, labels), *_series(counters, labels, is_counter=True)]


def containers(names: Iterable[str] = ("api", "prometheus")) -> list[Series]:
    """Containers, as cAdvisor tells of them."""
    began = time.time()
    found: list[Series] = []
    for number, name in enumerate(names):
        labels = {"id": f"/docker/{number}", "name": name, "container_label_com_docker_compose_service": name}
        gauges = {
            "container_memory_working_set_bytes": ("Memory in use.", _wave(6e8, 5e7)),
            "container_spec_memory_limit_bytes": ("Memory allowed.", _steady(2e9)),
            "container_start_time_seconds": ("When it began.", _steady(began)),
        }
        counters = {
            "container_cpu_usage_seconds_total": ("Processor time.", _wave(0.8, 0.1)),
            "container_cpu_cfs_periods_total": ("Time slices.", _steady(10)),
            "container_cpu_cfs_throttled_periods_total": ("Time slices held back.", _steady(0.1)),
            "container_network_receive_bytes_total": ("Bytes received.", _wave(2e4, 1e4)),
            "container_network_transmit_bytes_total": ("Bytes sent.", _wave(5e4, 1e4)),
            "container_oom_events_total": ("Kills for want of memory.", _steady(0)),
        }
        found += [*_series(gauges, labels), *_series(counters, labels, is_counter=True)]
    return found


def host() -> list[Series]:
    """A host, as node exporter tells of it."""
    disk = {"device": "/dev/vda1", "mountpoint": "/", "fstype": "ext4"}
    disks = {
        "node_filesystem_avail_bytes": ("Free bytes.", _steady(60e9)),
        "node_filesystem_size_bytes": ("Bytes.", _steady(100e9)),
    }
    memory = {
        "node_memory_MemAvailable_bytes": ("Memory left.", _wave(16e9, 1e9)),
        "node_memory_MemTotal_bytes": ("Memory.", _steady(32e9)),
    }
    busy = {"node_cpu_seconds_total": ("Processor time.", _wave(0.5, 0.1))}
    return [
        *_series(disks, disk),
        *_series(memory, {}),
        *_series(busy, {"cpu": "0", "mode": "idle"}, is_counter=True),
    ]


KINDS: Mapping[str, Callable[[], list[Series]]] = {"gpu": gpu, "containers": containers, "host": host}


def _series(
    facts: Mapping[str, tuple[str, Callable[[float], float]]], labels: Mapping[str, str], is_counter: bool = False
) -> Iterator[Series]:
    for name, (text, value) in facts.items():
        yield Series(name, text, value, {**labels, "simulated": "true"}, is_counter)


class Simulation(Collector):
    """The series of one exporter, and the faults that are in force."""

    def __init__(self, series: Iterable[Series], clock: Callable[[], float] = time.time) -> None:
        self._series = list(series)
        self._clock = clock
        self._lock = threading.Lock()
        self._faults: dict[str, float] = {}
        self.names = {each.name for each in self._series} | {GONE, SLOW}
        if any(each.name.startswith("DCGM_") for each in self._series):
            self.names |= {XID, NVML}

    def set_faults(self, faults: Mapping[str, float]) -> None:
        """Take these in the place of those in force. Raises `KeyError` with the name of a series that there is not."""
        if unknown := faults.keys() - self.names:
            raise KeyError(min(unknown))
        with self._lock:
            self._faults = dict(faults)

    def delay(self) -> float:
        """Seconds to wait before an answer."""
        with self._lock:
            return self._faults.get(SLOW, 0.0)

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client."""
        families: dict[str, Metric] = {}
        with self._lock:
            now = self._clock()
            for each in self._series:
                family = families.setdefault(each.name, _family(each.name, each.text, each.is_counter))
                family.add_sample(each.name, dict(each.labels), each.sample(now, self._faults.get(each.name)))
            if GONE in self._faults:
                return
            if (code := self._faults.get(XID)) is not None:
                families[XID] = _family(XID, "XID errors of the last minutes.", is_counter=False)
                families[XID].add_sample(XID, {**self._series[0].labels, "xid": f"{code:g}"}, 1)
            if NVML in self._faults:
                families[NVML] = _family(NVML, "How NVML is doing.", is_counter=False)
                families[NVML].add_sample(NVML, {"state": "hanging", "simulated": "true"}, 1)
        yield from families.values()


def _family(name: str, text: str, is_counter: bool) -> Metric:
    """DCGM's counters do not end as Prometheus' do, so that their type cannot be told."""
    if is_counter and name.endswith("_total"):
        return Metric(name.removesuffix("_total"), text, "counter")
    return Metric(name, text, "unknown" if is_counter else "gauge")


def make_app(simulation: Simulation) -> FastAPI:
    """`GET /metrics`, `PUT /faults` with values by the names of series, `DELETE /faults`."""
    registry = CollectorRegistry()
    registry.register(simulation)
    app = FastAPI(title="Safelight's simulated exporter")

    @app.get("/metrics")
    def metrics(request: Request) -> Response:
        time.sleep(simulation.delay())
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"Content-Type": content_type})

    @app.put("/faults", status_code=204)
    def put(faults: dict[str, float]) -> None:
        try:
            simulation.set_faults(faults)
        except KeyError as error:
            raise HTTPException(
                422, f"no series {error.args[0]}; there are {', '.join(sorted(simulation.names))}"
            ) from error

    @app.delete("/faults", status_code=204)
    def clear() -> None:
        simulation.set_faults({})

    return app
