"""What NVML tells of one GPU, each fact declared once: name, help, unit, how to read it."""

import contextlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import pynvml
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

UNSUPPORTED = {pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND}


@dataclass(frozen=True, slots=True)
class Fact:
    """One metric of a GPU: `read` takes its handle and returns a number, or numbers by the values of `label`.

    None is for what is not known.
    """

    name: str
    text: str
    read: Callable[[Any], float | Mapping[str, float] | None]
    label: str | None = None
    is_counter: bool = False

    def family(self, prefix: str) -> GaugeMetricFamily | CounterMetricFamily:
        """The metric without samples."""
        labels = ["gpu"] if self.label is None else ["gpu", self.label]
        return (CounterMetricFamily if self.is_counter else GaugeMetricFamily)(
            prefix + self.name, self.text, labels=labels
        )


def _memory(part: str) -> Callable[[Any], float]:
    return lambda gpu: float(getattr(pynvml.nvmlDeviceGetMemoryInfo(gpu, pynvml.nvmlMemory_v2), part))


def _instance_memory(part: str) -> Callable[[Any], Mapping[str, float]]:
    return lambda gpu: {number: _memory(part)(instance) for number, instance in _instances(gpu).items()}


def _instances(gpu: Any) -> dict[str, Any]:
    """The parts of a GPU that is divided (MIG), by number."""
    found = {}
    for number in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(gpu) if is_partitioned(gpu) else 0):
        with contextlib.suppress(pynvml.NVMLError_NotFound):
            found[str(number)] = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, number)
    return found


def own_memory(pids: Callable[[], Collection[int]]) -> Fact:
    """Memory of the processes `pids`. In a container, where NVML tells the host's ids, it is not known."""

    def read(gpu: Any) -> float | None:
        ours = pids()
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses_v3(gpu)
        used = [each.usedGpuMemory for each in processes if each.pid in ours and each.usedGpuMemory is not None]
        return float(sum(used)) if used else None

    return Fact("gpu_memory_own_bytes", "Memory of the GPU that this service uses.", read)


def _clocks(gpu: Any) -> Mapping[str, float]:
    kinds = {"graphics": pynvml.NVML_CLOCK_GRAPHICS, "sm": pynvml.NVML_CLOCK_SM, "memory": pynvml.NVML_CLOCK_MEM}
    return {name: pynvml.nvmlDeviceGetClockInfo(gpu, kind) * 1e6 for name, kind in kinds.items()}


CLOCK_EVENTS = {
    "idle": pynvml.nvmlClocksEventReasonGpuIdle,
    "application_clocks": pynvml.nvmlClocksEventReasonApplicationsClocksSetting,
    "software_power_cap": pynvml.nvmlClocksEventReasonSwPowerCap,
    "hardware_slowdown": pynvml.nvmlClocksThrottleReasonHwSlowdown,
    "sync_boost": pynvml.nvmlClocksEventReasonSyncBoost,
    "software_thermal": pynvml.nvmlClocksEventReasonSwThermalSlowdown,
    "hardware_thermal": pynvml.nvmlClocksThrottleReasonHwThermalSlowdown,
    "power_brake": pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown,
}


def _clock_events(gpu: Any) -> Mapping[str, float]:
    reasons = pynvml.nvmlDeviceGetCurrentClocksEventReasons(gpu)
    return {name: float(bool(reasons & bit)) for name, bit in CLOCK_EVENTS.items()}


def _ecc_errors(gpu: Any) -> Mapping[str, float]:
    kinds = {
        "corrected": pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED,
        "uncorrected": pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
    }
    return {
        name: float(pynvml.nvmlDeviceGetTotalEccErrors(gpu, kind, pynvml.NVML_VOLATILE_ECC))
        for name, kind in kinds.items()
    }


def _pcie_throughput(gpu: Any) -> Mapping[str, float]:
    ways = {"sent": pynvml.NVML_PCIE_UTIL_TX_BYTES, "received": pynvml.NVML_PCIE_UTIL_RX_BYTES}
    return {name: pynvml.nvmlDeviceGetPcieThroughput(gpu, way) * 1024.0 for name, way in ways.items()}


FACTS = (
    Fact("gpu_memory_used_bytes", "Memory of the GPU in use.", _memory("used")),
    Fact("gpu_memory_reserved_bytes", "Memory of the GPU that the driver keeps for itself.", _memory("reserved")),
    Fact("gpu_memory_total_bytes", "Memory of the GPU.", _memory("total")),
    Fact(
        "gpu_utilization_ratio",
        "Share of the last sample period in which a kernel ran.",
        lambda gpu: pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100,
    ),
    Fact(
        "gpu_memory_busy_ratio",
        "Share of the last sample period in which memory was read or written.",
        lambda gpu: pynvml.nvmlDeviceGetUtilizationRates(gpu).memory / 100,
    ),
    Fact(
        "gpu_temperature_celsius",
        "Temperature of the GPU.",
        lambda gpu: pynvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU),
    ),
    Fact("gpu_power_watts", "Power drawn.", lambda gpu: pynvml.nvmlDeviceGetPowerUsage(gpu) / 1e3),
    Fact("gpu_power_limit_watts", "Power allowed.", lambda gpu: pynvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / 1e3),
    Fact(
        "gpu_energy_joules",
        "Energy used since the driver was loaded.",
        lambda gpu: pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1e3,
        is_counter=True,
    ),
    Fact("gpu_clock_hertz", "Clock frequency.", _clocks, "clock"),
    Fact("gpu_clock_event", "1 while this lowers the clocks.", _clock_events, "reason"),
    Fact("gpu_ecc_errors", "Memory errors since the driver was loaded.", _ecc_errors, "kind", is_counter=True),
    Fact("gpu_pcie_bytes_per_second", "Traffic over PCIe, over 20 ms.", _pcie_throughput, "direction"),
    Fact("gpu_pcie_generation", "PCIe generation in use.", pynvml.nvmlDeviceGetCurrPcieLinkGeneration),
    Fact("gpu_pcie_lanes", "PCIe lanes in use.", pynvml.nvmlDeviceGetCurrPcieLinkWidth),
    Fact("gpu_pcie_replays", "PCIe packets sent again.", pynvml.nvmlDeviceGetPcieReplayCounter, is_counter=True),
    Fact("gpu_instance_memory_used_bytes", "Memory in use of a part (MIG).", _instance_memory("used"), "instance"),
    Fact("gpu_instance_memory_total_bytes", "Memory of a part (MIG).", _instance_memory("total"), "instance"),
    Fact("gpu_mig_enabled", "1 where the GPU is partitioned.", lambda gpu: float(is_partitioned(gpu))),
)


def is_partitioned(gpu: Any) -> bool:
    """Whether the GPU is divided into instances (MIG)."""
    try:
        return bool(pynvml.nvmlDeviceGetMigMode(gpu)[0] == pynvml.NVML_DEVICE_MIG_ENABLE)
    except pynvml.NVMLError as error:
        if error.value in UNSUPPORTED:
            return False
        raise
