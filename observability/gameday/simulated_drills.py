"""Drills of GPUs, containers and hosts, which simulated exporters tell of."""

from dataclasses import replace

from observability.gameday.causes import asked, simulated, together, with_faults
from observability.gameday.drill import GPU, HOT, PATIENT, SLOW, Drill


def _of(job: str, what: str, alert: str, within: str, **values: float) -> Drill:
    return Drill(what, (alert,), simulated(job, **values), within, is_simulated=True)


SIMULATED = (
    _of(GPU, "the GPU has no room for a burst", "GpuSaturated", "20m", DCGM_FI_DEV_GPU_UTIL_RATIO=0.99),
    Drill(
        "the GPU idles while jobs wait",
        ("GpuIdleWithWork", "QueueOldestOld"),
        together(simulated(GPU, DCGM_FI_DEV_GPU_UTIL_RATIO=0.1), SLOW, asked(12, **PATIENT)),
        within={"GpuIdleWithWork": "18m", "QueueOldestOld": "5m"},
        is_simulated=True,
    ),
    _of(GPU, "the GPU's memory is nearly full", "GpuMemoryHigh", "7m", DCGM_FI_DEV_FB_USED_BYTES=79e9),
    replace(_of(GPU, "the GPU reports XID 79", "GpuXidFatal", "2m", DCGM_EXP_XID_ERRORS_COUNT=79), is_core=True),
    _of(GPU, "the GPU reports XID 31", "GpuXid", "2m", DCGM_EXP_XID_ERRORS_COUNT=31),
    _of(GPU, "the GPU's memory loses data", "GpuEccUncorrectable", "2m", DCGM_FI_DEV_ECC_DBE_VOL_TOTAL=1),
    _of(GPU, "the GPU cannot replace a broken row", "GpuRowRemapFailed", "2m", DCGM_FI_DEV_ROW_REMAP_FAILED=1),
    _of(GPU, "the GPU is hot", "GpuHot", "7m", **HOT),
    _of(
        GPU,
        "heat slows the GPU down",
        "GpuThermalThrottling",
        "12m",
        DCGM_FI_DEV_GPU_THERMAL_THROTTLE_SECONDS_TOTAL=0.5,
    ),
    Drill(
        "the GPU is held at its power limit, and hot",
        ("GpuPowerThrottling", "GpuHot"),
        simulated(GPU, DCGM_FI_DEV_GPU_POWER_THROTTLE_SECONDS_TOTAL=0.9, **HOT),
        within={"GpuPowerThrottling": "18m", "GpuHot": "7m"},
        is_simulated=True,
    ),
    Drill(
        "the only GPU is gone",
        ("GpuMissing", "GpuExporterStale"),
        simulated(GPU, gone=1),
        within="6m",
        is_simulated=True,
        is_core=True,
    ),
    _of(GPU, "NVML hangs", "GpuFactsUnavailable", "7m", safelight_nvml_state=1),
    Drill(
        "a container starts again and again",
        ("ContainerRestarting",),
        with_faults("cadvisor", 1.5, lambda number: {"container_start_time_seconds": 1e9 + number}),
        within="16m",
        is_simulated=True,
    ),
    _of(
        "cadvisor",
        "a container needs more memory than it may",
        "ContainerOomKilled",
        "2m",
        container_oom_events_total=1,
    ),
    _of(
        "cadvisor",
        "a container gets too little processor time",
        "ContainerCpuThrottled",
        "18m",
        container_cpu_cfs_throttled_periods_total=6,
    ),
    _of(
        "cadvisor",
        "a container is near its memory limit",
        "ContainerMemoryHigh",
        "7m",
        container_memory_working_set_bytes=1.95e9,
    ),
    _of("node", "a disk is nearly full", "DiskNearlyFull", "7m", node_filesystem_avail_bytes=7e9),
    Drill(
        "a disk is full",
        ("DiskFull",),
        simulated("node", node_filesystem_avail_bytes=1e9),
        within="3m",
        muted=("DiskNearlyFull",),
        is_simulated=True,
        is_core=True,
    ),
    _of("node", "the host is short of memory", "HostMemoryLow", "7m", node_memory_MemAvailable_bytes=1e9),
    Drill(
        "an exporter answers slowly, and a GPU is hot",
        ("ScrapeSlow", "GpuHot"),
        together(simulated("cadvisor", slow=0.6), simulated(GPU, **HOT)),
        within={"ScrapeSlow": "14m", "GpuHot": "7m"},
        is_simulated=True,
    ),
)
