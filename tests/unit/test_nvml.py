"""GPU metrics through the real NVML binding, over a library in C whose answers are scripted."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

SOURCE = Path(__file__).parents[1] / "support" / "nvml.c"
ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 30.0
NOT_SUPPORTED, NO_PERMISSION, DRIVER_NOT_LOADED, GPU_IS_LOST, UNKNOWN, HANG = 3, 4, 9, 15, 999, -1

SCRAPER = """
import os
import sys
from prometheus_client import CollectorRegistry, generate_latest
from observability import nvml
from observability.nvml import Nvml, NvmlCollector, XidWatch
nvml.DEADLINE_SECONDS = float(os.environ["DEADLINE"])

xids = XidWatch()
xids.start()
registry = CollectorRegistry()
registry.register(NvmlCollector(Nvml(xids, lambda: {os.getpid()}), xids))
for _ in sys.stdin:
    text = generate_latest(registry)
    sys.stdout.buffer.write(b"%d\\n" % len(text) + text)
    sys.stdout.flush()
"""

Samples = dict[tuple[str, ...], float]  # by name and label values


class Scraper:
    """A process with the collector; it scrapes when asked. `script` sets the library's answers."""

    def __init__(self, library: Path, folder: Path, deadline: float, **answers: int) -> None:
        self._script = folder / "script"
        self.script(**answers)
        environment = {
            **os.environ,
            "NVML_SCRIPT": str(self._script),
            "LD_LIBRARY_PATH": str(library),
            "DEADLINE": str(deadline),
        }
        command = [sys.executable, "-c", SCRAPER]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=ROOT
        )

    def script(self, **answers: int) -> None:
        """From now on these, and otherwise a healthy GPU."""
        partial = self._script.with_suffix(".partial")
        partial.write_text("".join(f"{name} {number}\n" for name, number in answers.items()))
        partial.replace(self._script)

    def scrape(self) -> Samples:
        """All samples; no metric is told twice."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        text = self.process.stdout.read(int(self.process.stdout.readline())).decode()
        samples: Samples = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                gpu_first = sorted(sample.labels.items(), key=lambda item: (item[0] != "gpu", item[0]))
                key = (sample.name.removeprefix("safelight_"), *(value for _, value in gpu_first))
                assert key not in samples
                samples[key] = sample.value
        return samples

    def scrape_until(self, key: tuple[str, ...], value: float) -> Samples:
        """The first scrape in which a sample has that value."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (samples := self.scrape()).get(key) != value:
            assert time.monotonic() < deadline, samples
            time.sleep(0.05)
        return samples


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the compiled library."""
    folder = tmp_path_factory.mktemp("nvml")
    command = ["cc", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(folder / "libnvidia-ml.so.1")]
    subprocess.run([*command, str(SOURCE)], check=True)
    return folder


Start = Callable[..., Scraper]


@pytest.fixture
def start(library: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts a scraper on the stand-in library with given answers."""
    started = []

    def scraper(folder: Path = library, deadline: float = PATIENCE_SECONDS, **answers: int) -> Scraper:
        started.append(Scraper(folder, tmp_path, deadline, **answers))
        return started[-1]

    yield scraper
    for each in started:
        with each.process:
            each.process.kill()


@pytest.fixture
def gpu(start: Start) -> Scraper:
    """A scraper of one healthy GPU."""
    return start()


def state(samples: Samples) -> str:
    """The one state that is told."""
    (found,) = (key[1] for key, value in samples.items() if key[0] == "nvml_state" and value == 1.0)
    return found


def gpus(samples: Samples) -> set[str]:
    """The GPUs of which anything is told."""
    return {key[1] for key in samples if key[0].startswith("gpu_")}


def test_healthy_gpu_tells_everything_in_base_units(gpu: Scraper) -> None:
    """Values arrive with the right scale and label."""
    gpu.script(pid=gpu.process.pid, reasons=0x4 | 0x40)
    samples = gpu.scrape_until(("gpu_xid_watched", "0"), 1.0)
    assert state(samples) == "available"
    expected = {
        ("nvml_available",): 1,
        ("nvml_failed_calls",): 0,
        ("gpu_info", "0", "Stand-in 1", "GPU-1"): 1,
        ("gpu_memory_used_bytes", "0"): 60_000,
        ("gpu_memory_reserved_bytes", "0"): 500,
        ("gpu_memory_total_bytes", "0"): 80_000,
        ("gpu_memory_own_bytes", "0"): 7_000,
        ("gpu_utilization_ratio", "0"): 0.87,
        ("gpu_memory_busy_ratio", "0"): 0.40,
        ("gpu_temperature_celsius", "0"): 61,
        ("gpu_power_watts", "0"): 250,
        ("gpu_power_limit_watts", "0"): 400,
        ("gpu_energy_joules_total", "0"): 123.456,
        ("gpu_clock_hertz", "0", "graphics"): 1.000e9,
        ("gpu_clock_hertz", "0", "sm"): 1.001e9,
        ("gpu_clock_hertz", "0", "memory"): 1.002e9,
        ("gpu_clock_event", "0", "software_power_cap"): 1,
        ("gpu_clock_event", "0", "hardware_thermal"): 1,
        ("gpu_clock_event", "0", "idle"): 0,
        ("gpu_ecc_errors_total", "0", "corrected"): 4,
        ("gpu_ecc_errors_total", "0", "uncorrected"): 0,
        ("gpu_pcie_bytes_per_second", "0", "sent"): 10 * 1024,
        ("gpu_pcie_bytes_per_second", "0", "received"): 20 * 1024,
        ("gpu_pcie_generation", "0"): 5,
        ("gpu_pcie_lanes", "0"): 16,
        ("gpu_pcie_replays_total", "0"): 2,
        ("gpu_mig_enabled", "0"): 0,
        ("gpu_xid_errors_total", "0", "79"): 0,
    }
    assert {key: samples.get(key) for key in expected} == expected


def test_memory_of_other_processes_is_not_our_own(gpu: Scraper) -> None:
    """Where none of the process ids is ours, as in a container, nothing is claimed."""
    gpu.script(pid=1)
    assert not any(key[0] == "gpu_memory_own_bytes" for key in gpu.scrape())


def test_no_library_is_told_as_such(start: Start, tmp_path: Path) -> None:
    """A machine without NVIDIA's driver package has a state and no GPU series."""
    (tmp_path / "libnvidia-ml.so.1").touch()  # hides a real one
    samples = start(tmp_path).scrape()
    assert (state(samples), samples["nvml_available",], gpus(samples)) == ("no_library", 0.0, set())


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"nvmlInitWithFlags": DRIVER_NOT_LOADED}, "no_driver"),
        ({"nvmlInitWithFlags": NO_PERMISSION}, "no_permission"),
        ({"nvmlInitWithFlags": UNKNOWN}, "failed"),
        ({"nvmlDeviceGetCount_v2": UNKNOWN}, "failed"),
        ({"gpus": 0}, "no_gpu"),
    ],
)
def test_without_a_gpu_the_state_says_why(start: Start, answers: dict[str, int], expected: str) -> None:
    """Each cause has a state of its own, and no values are made up."""
    samples = start(**answers).scrape()
    assert (state(samples), samples["nvml_available",], gpus(samples)) == (expected, 0.0, set())


def test_driver_that_comes_back_is_found(start: Start) -> None:
    """A state is never for ever."""
    gpu = start(nvmlInitWithFlags=DRIVER_NOT_LOADED)
    assert state(gpu.scrape()) == "no_driver"
    gpu.script()
    assert state(gpu.scrape()) == "available"


def test_lost_gpu_does_not_hide_the_others(gpu: Scraper) -> None:
    """What the healthy one tells is there, the failure is counted, and without any GPU the state is another."""
    gpu.script(gpus=2, lost=1)
    samples = gpu.scrape()
    assert (state(samples), samples["nvml_failed_calls",]) == ("partial", 1.0)
    assert ("gpu_temperature_celsius", "0") not in samples
    assert samples["gpu_temperature_celsius", "1"] == 61
    gpu.script(gpus=1, lost=1)
    assert state(gpu.scrape()) == "failed"


def test_call_without_permission_makes_the_facts_partial(gpu: Scraper) -> None:
    """One fact is missing, the others are there, and the failure is counted."""
    gpu.script(nvmlDeviceGetPowerUsage=NO_PERMISSION)
    samples = gpu.scrape()
    assert (state(samples), samples["nvml_available",], samples["nvml_failed_calls",]) == ("partial", 1.0, 1.0)
    assert ("gpu_power_watts", "0") not in samples
    assert samples["gpu_temperature_celsius", "0"] == 61


def test_what_a_gpu_does_not_support_is_no_failure(gpu: Scraper) -> None:
    """A GPU without ECC memory is healthy."""
    gpu.script(nvmlDeviceGetTotalEccErrors=NOT_SUPPORTED)
    samples = gpu.scrape()
    assert state(samples) == "available"
    assert not any(key[0] == "gpu_ecc_errors_total" for key in samples)


def test_partitioned_gpu_tells_the_memory_of_its_instances(gpu: Scraper) -> None:
    """Under MIG there is no utilisation, and each instance has memory of its own."""
    gpu.script(mig=2)
    samples = gpu.scrape()
    assert state(samples) == "available"
    assert samples["gpu_mig_enabled", "0"] == 1
    assert ("gpu_utilization_ratio", "0") not in samples
    totals = {key[1:]: value for key, value in samples.items() if key[0] == "gpu_instance_memory_total_bytes"}
    assert totals == {("0", "0"): 10_000, ("0", "1"): 10_000}
    assert samples["gpu_memory_total_bytes", "0"] == 80_000


def test_hanging_call_does_not_hold_up_a_scrape(start: Start) -> None:
    """The scrape ends although the call does not, and says so; all is well afterwards."""
    gpu = start(deadline=0.2, nvmlDeviceGetTemperature=HANG)
    assert state(gpu.scrape()) == "hanging"
    samples = gpu.scrape()
    assert (state(samples), samples["nvml_available",]) == ("hanging", 0.0)
    assert not any(key[0] == "gpu_temperature_celsius" for key in samples)
    gpu.script()
    gpu.scrape_until(("nvml_state", "available"), 1.0)


def test_xid_event_is_counted_by_its_code(gpu: Scraper) -> None:
    """A code that needs action has a series, any other is told as `other`."""
    gpu.script(xid=79)
    gpu.scrape_until(("gpu_xid_errors_total", "0", "79"), 1.0)
    gpu.script(xid=144)
    samples = gpu.scrape_until(("gpu_xid_errors_total", "0", "other"), 1.0)
    assert samples["gpu_xid_errors_total", "0", "79"] == 1.0


def test_errors_of_a_gpu_that_is_lost_are_still_told(gpu: Scraper) -> None:
    """The watch ends with the GPU; what it has counted stays, and nothing claims that it goes on."""
    gpu.script(xid=79)
    gpu.scrape_until(("gpu_xid_errors_total", "0", "79"), 1.0)
    gpu.script(xid=79, lost=1, nvmlEventSetWait_v2=GPU_IS_LOST)
    samples = gpu.scrape_until(("gpu_xid_watched", "0"), 0.0)
    assert samples["gpu_xid_errors_total", "0", "79"] == 1.0
    assert state(samples) == "failed"


def test_gpu_without_events_is_not_watched(start: Start) -> None:
    """Then there is no series of 0 errors that would look like health."""
    gpu = start(gpus=2, nvmlDeviceRegisterEvents=NOT_SUPPORTED)
    for _ in range(5):
        assert not any(key[0].startswith("gpu_xid") for key in gpu.scrape())
        time.sleep(0.1)


def test_ecc_errors_are_told_by_kind(gpu: Scraper) -> None:
    """Uncorrected errors are what an alert looks at."""
    gpu.script(ecc=3)
    samples = gpu.scrape()
    assert samples["gpu_ecc_errors_total", "0", "uncorrected"] == 3
    assert samples["gpu_ecc_errors_total", "0", "corrected"] == 4
