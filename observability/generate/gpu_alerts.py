"""Alerts about GPUs, from the facade's series alone."""

from observability.generate.alert import Alert, Case, Group, Severity, Team
from observability.slo import Limits

# Errors after which a GPU needs a reset or a replacement; 94 is a contained one, its process is lost alone.
FATAL_XIDS = ("48", "62", "64", "74", "79", "95", "119", "120")

OF_DCGM = 'gpu="0", UUID="GPU-1", modelName="H100", instance="dcgm:9400"'
OF_NVML = 'gpu="0", instance="api:8000"'
UP = 'up{job="dcgm", instance="dcgm:9400"}'
INFO = {'safelight_gpu_info{gpu="0", instance="api:8000", uuid="GPU-1", model="H100"}': "1x200"}


def _dcgm(metric: str, more: str = "") -> str:
    return f"{metric}{{{OF_DCGM}{more}}}"


def _nvml(metric: str, more: str = "") -> str:
    return f"safelight_{metric}{{{OF_NVML}{more}}}"


def groups(limits: Limits) -> tuple[Group, ...]:
    """All of them."""
    busy = (_saturated(limits), _idle_with_work(limits), _memory_high(limits))
    health = (_fatal_xid(), _xid(), _ecc(), _row_remap(), _hot(limits), _thermal(limits), _power())
    facts = (_missing(), _facts_unavailable(), _exporter_stale())
    return Group("gpu-saturation", busy), Group("gpu-health", health), Group("gpu-facts", facts)


def _saturated(limits: Limits) -> Alert:
    utilization = _dcgm("DCGM_FI_DEV_GPU_UTIL_RATIO")
    return Alert(
        "GpuSaturated",
        Severity.WARNING,
        subject="gpu-saturation",
        dashboard="gpu",
        summary="A GPU has no room for a burst",
        description=(
            "GPU {{ $labels.gpu }} ({{ $labels.model }}) was busy {{ $value | humanizePercentage }} of 5 minutes."
        ),
        expr=f"avg_over_time(gpu:utilization:ratio[5m]) > {limits.gpu_saturated:g}",
        hold="10m",
        fires=Case({utilization: "0.99x100"}, at="20m"),
        silent=Case({utilization: "0.8x100"}, at="20m"),
    )


def _idle_with_work(limits: Limits) -> Alert:
    def series(utilization: int) -> dict[str, str]:
        return {
            _dcgm("DCGM_FI_DEV_GPU_UTIL"): f"{utilization}x100",
            "service:requests_waiting:sum": "5x100",
        }

    return Alert(
        "GpuIdleWithWork",
        Severity.WARNING,
        subject="gpu-idle",
        dashboard="gpu",
        summary="GPUs idle while requests wait",
        description="Even the busiest GPU was busy only {{ $value | humanizePercentage }} of 5 minutes.",
        expr=(
            f"max(avg_over_time(gpu:utilization:ratio[5m])) < {limits.gpu_idle:g}\n"
            "and min_over_time(service:requests_waiting:sum[5m]) > 0"
        ),
        hold="10m",
        fires=Case(series(20), at="20m"),
        silent=Case(series(80), at="20m"),
    )


def _memory_high(limits: Limits) -> Alert:
    def series(used: int) -> dict[str, str]:
        return {
            **INFO,
            _nvml("gpu_memory_used_bytes"): f"{used}e9x100",
            _nvml("gpu_memory_total_bytes"): "80e9x100",
        }

    return Alert(
        "GpuMemoryHigh",
        Severity.WARNING,
        subject="gpu-memory",
        dashboard="gpu",
        summary="A GPU's memory is nearly full",
        description=(
            "{{ $value | humanizePercentage }} of the memory of GPU {{ $labels.gpu }} ({{ $labels.model }}) are in use."
        ),
        expr=f"gpu:memory:ratio > {limits.gpu_memory:g}",
        hold="5m",
        fires=Case(series(79), at="10m"),
        silent=Case(series(70), at="10m"),
    )


def _fatal_xid() -> Alert:
    return Alert(
        "GpuXidFatal",
        Severity.CRITICAL,
        subject="gpu-xid",
        team=Team.PLATFORM,
        dashboard="gpu",
        summary="A GPU is broken until it is reset or replaced",
        description="GPU {{ $labels.gpu }} ({{ $labels.model }}, {{ $labels.uuid }}) reported XID {{ $labels.xid }}.",
        expr=f'gpu:xid_errors:increase5m{{xid=~"{"|".join(FATAL_XIDS)}"}} > 0',
        keep="15m",
        fires=Case({_dcgm("DCGM_EXP_XID_ERRORS_COUNT", ', xid="79"'): "_x8 1x20"}, at="5m"),
        silent=Case({UP: "1x20 0x20 1x40", _dcgm("DCGM_FI_DEV_XID_ERRORS"): "79x20 _x20 79x40"}, at="16m"),
    )


def _xid() -> Alert:
    return Alert(
        "GpuXid",
        Severity.WARNING,
        subject="gpu-xid",
        team=Team.PLATFORM,
        dashboard="gpu",
        summary="A GPU reported an error",
        description="GPU {{ $labels.gpu }} ({{ $labels.model }}, {{ $labels.uuid }}) reported XID {{ $labels.xid }}.",
        expr=f'gpu:xid_errors:increase5m{{xid!~"{"|".join(FATAL_XIDS)}"}} > 0',
        keep="15m",
        fires=Case({UP: "1x60", _dcgm("DCGM_FI_DEV_XID_ERRORS"): "0x30 31x20"}, at="9m"),
        silent=Case({**INFO, _nvml("gpu_xid_errors_total", ', xid="31"'): "4x60"}, at="10m"),
    )


def _ecc() -> Alert:
    return Alert(
        "GpuEccUncorrectable",
        Severity.CRITICAL,
        subject="gpu-ecc",
        team=Team.PLATFORM,
        dashboard="gpu",
        summary="A GPU's memory lost data",
        description=(
            "GPU {{ $labels.gpu }} ({{ $labels.uuid }}) had {{ $value | humanize }} uncorrectable memory errors."
        ),
        expr="gpu:ecc_uncorrectable:increase15m > 0",
        fires=Case({**INFO, _nvml("gpu_ecc_errors_total", ', kind="uncorrected"'): "0x20 1x20"}, at="8m"),
        silent=Case({**INFO, _nvml("gpu_ecc_errors_total", ', kind="corrected"'): "0x20 9x20"}, at="8m"),
    )


def _row_remap() -> Alert:
    return Alert(
        "GpuRowRemapFailed",
        Severity.CRITICAL,
        subject="gpu-row-remap",
        team=Team.PLATFORM,
        dashboard="gpu",
        summary="A GPU has no spare memory rows left",
        description="GPU {{ $labels.gpu }} ({{ $labels.uuid }}) could not replace a broken row: it has to be replaced.",
        expr="gpu:row_remap_failed:bool > 0",
        fires=Case({_dcgm("DCGM_FI_DEV_ROW_REMAP_FAILURE"): "0x8 1x20"}, at="4m"),
        silent=Case({_dcgm("DCGM_FI_DEV_ROW_REMAP_FAILED"): "0x40"}, at="4m"),
    )


def _hot(limits: Limits) -> Alert:
    return Alert(
        "GpuHot",
        Severity.WARNING,
        subject="gpu-temperature",
        team=Team.PLATFORM,
        dashboard="gpu",
        summary="A GPU is hot",
        description="GPU {{ $labels.gpu }} ({{ $labels.model }}) has {{ $value | humanize }} degrees Celsius.",
        expr=f"gpu:temperature:celsius > {limits.gpu_celsius:g}",
        hold="5m",
        fires=Case({_dcgm("DCGM_FI_DEV_GPU_TEMP"): "91x60"}, at="10m"),
        silent=Case({_dcgm("DCGM_FI_DEV_GPU_TEMP_CELSIUS"): "75x60"}, at="10m"),
    )


def _thermal(limits: Limits) -> Alert:
    return Alert(
        "GpuThermalThrottling",
        Severity.WARNING,
        subject="gpu-throttling",
        team=Team.PLATFORM,
        dashboard="gpu",
        summary="A GPU is slowed down by heat",
        description=(
            "GPU {{ $labels.gpu }} ({{ $labels.model }}) was slowed down {{ $value | humanizePercentage }} of 5 "
            "minutes."
        ),
        expr=f"gpu:thermal_throttle:ratio_rate5m > {limits.gpu_throttled:g}",
        hold="5m",
        fires=Case({_dcgm("DCGM_FI_DEV_THERMAL_VIOLATION"): "0+7500000000x80"}, at="14m"),
        silent=Case({_dcgm("DCGM_FI_DEV_GPU_THERMAL_THROTTLE_SECONDS_TOTAL"): "0+0.3x80"}, at="14m"),
    )


def _power() -> Alert:
    return Alert(
        "GpuPowerThrottling",
        Severity.INFO,
        subject="gpu-power",
        team=Team.PLATFORM,
        dashboard="gpu",
        summary="A GPU is held at its power limit",
        description=(
            "GPU {{ $labels.gpu }} ({{ $labels.model }}) was held back {{ $value | humanizePercentage }} of 5 minutes."
        ),
        expr="gpu:power_throttle:ratio_rate5m > 0.5",
        hold="10m",
        fires=Case({_dcgm("DCGM_FI_DEV_GPU_POWER_THROTTLE_SECONDS_TOTAL"): "0+14x100"}, at="20m"),
        silent=Case({_dcgm("DCGM_FI_DEV_GPU_POWER_THROTTLE_SECONDS_TOTAL"): "0+3x100"}, at="20m"),
    )


def _missing() -> Alert:
    memory = _dcgm("DCGM_FI_DEV_FB_CAPACITY_BYTES")
    return Alert(
        "GpuMissing",
        Severity.CRITICAL,
        subject="gpu-missing",
        team=Team.PLATFORM,
        dashboard="gpu",
        summary="A GPU is gone",
        description="{{ $value | humanize }} GPUs are left, fewer than there were within 6 hours.",
        expr=(
            "gpu:present:count < max_over_time(gpu:present:count[6h])\n"
            # Of whom tells of them: dcgm-exporter, or, where there is none, the service.
            'unless on () (up{job="dcgm"} == 0 or up{job=~"api|worker"} == 0 unless on () up{job="dcgm"})'
        ),
        hold="2m",
        fires=Case({memory: "80e9x40 stale"}, at="16m"),
        silent=Case({memory: "80e9x100"}, at="16m"),
    )


def _facts_unavailable() -> Alert:
    def state(name: str) -> str:
        return f'safelight_nvml_state{{instance="api:8000", state="{name}"}}'

    return Alert(
        "GpuFactsUnavailable",
        Severity.WARNING,
        subject="gpu-facts",
        team=Team.PLATFORM,
        dashboard="gpu",
        summary="GPU metrics cannot be had, though there is a GPU",
        description="NVML is {{ $labels.state }} on {{ $labels.instance }}.",
        expr='safelight_nvml_state{state=~"partial|no_permission|hanging|failed"} == 1',
        hold="5m",
        fires=Case({state("hanging"): "1x40", state("no_gpu"): "0x40"}, at="8m"),
        silent=Case({state("hanging"): "0x40", state("no_gpu"): "1x40"}, at="8m"),
    )


def _exporter_stale() -> Alert:
    return Alert(
        "GpuExporterStale",
        Severity.WARNING,
        subject="gpu-exporter",
        team=Team.PLATFORM,
        dashboard="gpu",
        summary="The GPU exporter answers, but tells of no GPU",
        description="{{ $labels.instance }} is up and has no temperature of any GPU.",
        expr=('up{job="dcgm"} == 1\nunless on (instance) (DCGM_FI_DEV_GPU_TEMP_CELSIUS or DCGM_FI_DEV_GPU_TEMP)'),
        hold="3m",
        fires=Case({UP: "1x40"}, at="6m"),
        silent=Case({UP: "1x40", _dcgm("DCGM_FI_DEV_GPU_TEMP"): "60x40"}, at="6m"),
    )
