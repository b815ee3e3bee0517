"""The shield against exporters: what DCGM (old names and new), NVML and cAdvisor tell, under names of our own.

Nothing else names an exporter's metric of a GPU or a container. Of a GPU that both DCGM and NVML tell of, DCGM's word
counts, since it also sees what the service does not use. Names and units of DCGM are those of dcgm-exporter before 4.9
and from it on.
"""

from dataclasses import dataclass

from observability.generate.alert import Group, Recording

INFO = "on (instance, gpu) group_left (uuid, model) safelight_gpu_info"
MIB = 2**20
LAST_XID, LAST_XID_BEFORE = (
    f"(DCGM_FI_DEV_XID_ERROR{when} or DCGM_FI_DEV_XID_ERRORS{when})" for when in ("", " offset 5m")
)


@dataclass(frozen=True, slots=True)
class Source:
    """One fact of GPUs under `name`, from each exporter's own metric and unit; with `by`, by one more label."""

    name: str
    dcgm: tuple[str, ...]
    nvml: str
    by: str | None = None


def _clock_events(reasons: str) -> str:
    return f'max by (instance, gpu) (avg_over_time(safelight_gpu_clock_event{{reason=~"{reasons}"}}[5m]))'


GPU = (
    Source(
        "gpu:utilization:ratio",
        ("DCGM_FI_DEV_GPU_UTIL_RATIO", "DCGM_FI_DEV_GPU_UTIL / 100"),
        "safelight_gpu_utilization_ratio",
    ),
    Source(
        "gpu:memory_busy:ratio",
        ("DCGM_FI_DEV_MEMORY_UTIL_RATIO", "DCGM_FI_DEV_MEM_COPY_UTIL / 100"),
        "safelight_gpu_memory_busy_ratio",
    ),
    Source(
        "gpu:memory_used:bytes",
        ("DCGM_FI_DEV_FB_USED_BYTES", f"DCGM_FI_DEV_FB_USED * {MIB}"),
        "safelight_gpu_memory_used_bytes",
    ),
    Source(
        "gpu:memory_total:bytes",
        (
            "DCGM_FI_DEV_FB_CAPACITY_BYTES",
            "(DCGM_FI_DEV_FB_USED + DCGM_FI_DEV_FB_FREE + (DCGM_FI_DEV_FB_RESERVED or DCGM_FI_DEV_FB_FREE * 0)) * "
            f"{MIB}",
        ),
        "safelight_gpu_memory_total_bytes",
    ),
    Source(
        "gpu:temperature:celsius",
        ("DCGM_FI_DEV_GPU_TEMP_CELSIUS", "DCGM_FI_DEV_GPU_TEMP"),
        "safelight_gpu_temperature_celsius",
    ),
    Source(
        "gpu:power:watts", ("DCGM_FI_DEV_BOARD_POWER_WATTS", "DCGM_FI_DEV_POWER_USAGE"), "safelight_gpu_power_watts"
    ),
    Source(
        "gpu:energy:joules_rate5m",
        (
            "rate(DCGM_FI_DEV_GPU_ENERGY_JOULES_TOTAL[5m])",
            "rate(DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION[5m]) / 1000",
        ),
        "rate(safelight_gpu_energy_joules_total[5m])",
    ),
    Source(
        "gpu:sm_clock:hertz",
        ("DCGM_FI_DEV_SM_CLOCK_HERTZ", "DCGM_FI_DEV_SM_CLOCK * 1000000"),
        'safelight_gpu_clock_hertz{clock="sm"}',
    ),
    # Shares of time in which the clocks were held down; old DCGM counts nanoseconds.
    Source(
        "gpu:thermal_throttle:ratio_rate5m",
        (
            "rate(DCGM_FI_DEV_GPU_THERMAL_THROTTLE_SECONDS_TOTAL[5m])",
            "rate(DCGM_FI_DEV_THERMAL_VIOLATION[5m]) / 1000000000",
        ),
        _clock_events("hardware_thermal|software_thermal"),
    ),
    Source(
        "gpu:power_throttle:ratio_rate5m",
        (
            "rate(DCGM_FI_DEV_GPU_POWER_THROTTLE_SECONDS_TOTAL[5m])",
            "rate(DCGM_FI_DEV_POWER_VIOLATION[5m]) / 1000000000",
        ),
        _clock_events("software_power_cap|power_brake"),
    ),
    Source(
        "gpu:ecc_uncorrectable:increase15m",
        ("increase(DCGM_FI_DEV_ECC_DBE_VOL_TOTAL[15m])",),
        'increase(safelight_gpu_ecc_errors_total{kind="uncorrected"}[15m])',
    ),
    Source(
        "gpu:row_remap_failed:bool",
        ("DCGM_FI_DEV_ROW_REMAP_FAILED", "DCGM_FI_DEV_ROW_REMAP_FAILURE"),
        "",
    ),
    # Where the exporter does not count errors, it has the last one, which stays: it is new if another stood for it
    # before, when the exporter was there.
    Source(
        "gpu:xid_errors:increase5m",
        (
            "DCGM_EXP_XID_ERRORS_COUNT > 0",
            f'count_values by (UUID, gpu, modelName, simulated) ("xid", {LAST_XID} > 0 '
            f'and on (instance) up{{job="dcgm"}} offset 5m == 1 unless {LAST_XID} == {LAST_XID_BEFORE})',
        ),
        "increase(safelight_gpu_xid_errors_total[5m]) > 0",
        by="xid",
    ),
)

SERVICE = "container_label_com_docker_compose_service"
OF_SERVICES = f'{SERVICE}!=""'


def _gpu(source: Source) -> Recording:
    labels = ["uuid", "gpu", "model", "simulated", *([source.by] if source.by else [])]
    by = f"max by ({', '.join(labels)})"
    # One metric may bear the old name and the new one side by side while a fleet is renewed.
    dcgm = " or ".join(source.dcgm)
    found = [
        f"{by} (\n  label_replace(label_replace({dcgm},\n"
        '    "uuid", "$1", "UUID", "(.+)"), "model", "$1", "modelName", "(.+)")\n)'
    ]
    if source.nvml:
        found.append(f"{by} ({_joined(source.nvml)})")
    matching = "or on (uuid)" if source.by is None else f"or on (uuid, {source.by})"
    return Recording(source.name, f"\n{matching}\n".join(found))


def _joined(nvml: str) -> str:
    metric, bound, limit = nvml.partition(" > ")
    return f"{metric} * {INFO}{bound}{limit}"


def _by_container(function: str, metric: str) -> str:
    return f'{function} by (container, simulated) (label_replace({metric}, "container", "$1", "{SERVICE}", "(.+)"))'


def groups() -> tuple[Group, ...]:
    """All of them."""

    def of(metric: str) -> str:
        return f"{metric}{{{OF_SERVICES}}}"

    def rate(metric: str) -> str:
        return f"rate({of(metric)}[5m])"

    periods = _by_container("sum", rate("container_cpu_cfs_periods_total"))
    limit = _by_container("max", of("container_spec_memory_limit_bytes"))
    containers = (
        Recording("container:cpu_usage:rate5m", _by_container("sum", rate("container_cpu_usage_seconds_total"))),
        Recording(
            "container:cpu_throttled:ratio_rate5m",
            f"{_by_container('sum', rate('container_cpu_cfs_throttled_periods_total'))}\n/ ({periods} > 0)",
        ),
        Recording("container:memory_working_set:bytes", _by_container("max", of("container_memory_working_set_bytes"))),
        Recording("container:memory_limit:bytes", f"{limit} > 0"),
        Recording("container:memory:ratio", "container:memory_working_set:bytes / container:memory_limit:bytes"),
        Recording(
            "container:network_received:bytes_rate5m",
            _by_container("sum", rate("container_network_receive_bytes_total")),
        ),
        Recording(
            "container:network_sent:bytes_rate5m", _by_container("sum", rate("container_network_transmit_bytes_total"))
        ),
        Recording("container:start_time:seconds", _by_container("max", of("container_start_time_seconds"))),
        Recording(
            "container:oom_kills:increase15m",
            _by_container("sum", f"increase({of('container_oom_events_total')}[15m])"),
        ),
    )
    present = Recording("gpu:present:count", "count(count by (uuid) (gpu:memory_total:bytes)) or vector(0)")
    ratio = Recording("gpu:memory:ratio", "gpu:memory_used:bytes / gpu:memory_total:bytes")
    energy = Recording(
        "service:energy_per_image:joules_5m",
        "sum(gpu:energy:joules_rate5m) / (sum(rate(safelight_images_total[5m])) > 0)",
    )
    gpus = (*(_gpu(each) for each in GPU), ratio, present, energy)
    return Group("gpus", gpus), Group("containers", containers)
