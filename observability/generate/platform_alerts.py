"""Alerts about what the service stands on, and about what asks it for pictures."""

from observability.generate.alert import Alert, Case, Group, Severity, Team
from observability.slo import Limits

PROBE = 'instance="probe:8001"'
DISK = 'instance="node:9100", device="/dev/vda1", mountpoint="/", fstype="ext4"'
SERVICE = 'container_label_com_docker_compose_service="api", id="/docker/1"'


def groups(limits: Limits) -> tuple[Group, ...]:
    """All of them."""
    probe = (_probe_failing(), _probe_silent(limits))
    containers = (_container_restarting(), _container_killed(), _container_throttled(limits), _container_memory(limits))
    host = (_disk(limits), _disk_full(limits), _memory(limits))
    return Group("probe", probe), Group("containers-health", containers), Group("host", host)


def _probe_failing() -> Alert:
    success, last = (f"safelight_probe_{each}{{{PROBE}}}" for each in ("success", "last_run_timestamp_seconds"))
    return Alert(
        "ProbeFailing",
        Severity.CRITICAL,
        subject="probe",
        dashboard="overview",
        summary="The probe gets no right picture",
        description="{{ $labels.instance }} asks for a picture now and then; the last ones were missing or wrong.",
        expr=(
            "safelight_probe_success == 0\nand on (instance) safelight_probe_last_run_timestamp_seconds > 0\n"
            'unless on () max(up{job="api"}) == 0'
        ),
        hold="2m",
        fires=Case({success: "1x4 0x40", last: "0+15x50"}, at="5m"),
        silent=Case({success: "1x4 0x6 1x40", last: "0+15x50"}, at="5m"),
    )


def _probe_silent(limits: Limits) -> Alert:
    last = f"safelight_probe_last_run_timestamp_seconds{{{PROBE}}}"
    return Alert(
        "ProbeSilent",
        Severity.WARNING,
        subject="probe-silent",
        dashboard="alerts",
        team=Team.PLATFORM,
        summary="The probe does not probe",
        description="{{ $labels.instance }} asked for its last picture {{ $value | humanizeDuration }} ago.",
        expr=(
            "time() - (safelight_probe_last_run_timestamp_seconds > 0\n"
            f'or on (instance) process_start_time_seconds{{job="probe"}}) > <{limits.probe_silent}>'
        ),
        hold="1m",
        fires=Case({last: "60x80"}, at="9m"),
        silent=Case({last: "0+15x80"}, at="9m"),
    )


def _container_restarting() -> Alert:
    start = f"container_start_time_seconds{{{SERVICE}}}"
    return Alert(
        "ContainerRestarting",
        Severity.CRITICAL,
        subject="container-restarts",
        dashboard="container",
        team=Team.PLATFORM,
        summary="A container starts again and again",
        description="{{ $labels.container }} was started {{ $value | humanize }} times within 15 minutes.",
        expr="changes(container:start_time:seconds[15m]) >= 3",
        fires=Case({start: "10x8 20x8 30x8 40x40"}, at="10m"),
        silent=Case({start: "10x8 20x60"}, at="10m"),
    )


def _container_killed() -> Alert:
    kills = f"container_oom_events_total{{{SERVICE}}}"
    return Alert(
        "ContainerOomKilled",
        Severity.CRITICAL,
        subject="container-oom",
        dashboard="container",
        team=Team.PLATFORM,
        summary="A container ran out of memory and was killed",
        description="The kernel killed {{ $labels.container }}, which used more memory than it may.",
        expr="container:oom_kills:increase15m > 0",
        fires=Case({kills: "0x8 1x40"}, at="5m"),
        silent=Case({kills: "2x60"}, at="5m"),
    )


def _container_throttled(limits: Limits) -> Alert:
    def series(throttled: int) -> dict[str, str]:
        return {
            f"container_cpu_cfs_periods_total{{{SERVICE}}}": "0+100x100",
            f"container_cpu_cfs_throttled_periods_total{{{SERVICE}}}": f"0+{throttled}x100",
        }

    return Alert(
        "ContainerCpuThrottled",
        Severity.WARNING,
        subject="container-cpu",
        dashboard="container",
        team=Team.PLATFORM,
        summary="A container gets less processor time than it wants",
        description="{{ $labels.container }} was held back in {{ $value | humanizePercentage }} of its time slices.",
        expr=f"container:cpu_throttled:ratio_rate5m > {limits.container_throttled:g}",
        hold="10m",
        fires=Case(series(60), at="20m"),
        silent=Case(series(10), at="20m"),
    )


def _container_memory(limits: Limits) -> Alert:
    def series(used: float) -> dict[str, str]:
        return {
            f"container_memory_working_set_bytes{{{SERVICE}}}": f"{used}e8x60",
            f"container_spec_memory_limit_bytes{{{SERVICE}}}": "10e8x60",
        }

    return Alert(
        "ContainerMemoryHigh",
        Severity.WARNING,
        subject="container-memory",
        dashboard="container",
        team=Team.PLATFORM,
        summary="A container is near its memory limit",
        description="{{ $labels.container }} uses {{ $value | humanizePercentage }} of the memory that it may.",
        expr=f"container:memory:ratio > {limits.container_memory:g}",
        hold="5m",
        fires=Case(series(9.6), at="10m"),
        silent=Case(series(7), at="10m"),
    )


def _free_disk() -> str:
    real = 'fstype!~"tmpfs|ramfs|overlay|squashfs|iso9660|autofs"'
    return f"node_filesystem_avail_bytes{{{real}}} / node_filesystem_size_bytes{{{real}}}"


def _disk_series(free: int) -> dict[str, str]:
    return {
        f"node_filesystem_avail_bytes{{{DISK}}}": f"{free}e9x60",
        f"node_filesystem_size_bytes{{{DISK}}}": "100e9x60",
    }


def _disk(limits: Limits) -> Alert:
    return Alert(
        "DiskNearlyFull",
        Severity.WARNING,
        subject="disk",
        dashboard="container",
        team=Team.PLATFORM,
        summary="A disk is nearly full",
        description="{{ $value | humanizePercentage }} of {{ $labels.mountpoint }} on {{ $labels.instance }} are free.",
        expr=f"{_free_disk()} < {limits.disk_free:g}",
        hold="5m",
        fires=Case(_disk_series(7), at="10m"),
        silent=Case(_disk_series(30), at="10m"),
    )


def _disk_full(limits: Limits) -> Alert:
    return Alert(
        "DiskFull",
        Severity.CRITICAL,
        subject="disk",
        dashboard="container",
        team=Team.PLATFORM,
        summary="A disk is full, or will be in a moment",
        description="{{ $value | humanizePercentage }} of {{ $labels.mountpoint }} on {{ $labels.instance }} are free.",
        expr=f"{_free_disk()} < {limits.disk_full:g}",
        hold="1m",
        fires=Case(_disk_series(1), at="5m"),
        silent=Case(_disk_series(7), at="5m"),
    )


def _memory(limits: Limits) -> Alert:
    def series(free: int) -> dict[str, str]:
        return {
            'node_memory_MemAvailable_bytes{instance="node:9100"}': f"{free}e9x60",
            'node_memory_MemTotal_bytes{instance="node:9100"}': "100e9x60",
        }

    return Alert(
        "HostMemoryLow",
        Severity.WARNING,
        subject="host-memory",
        dashboard="container",
        team=Team.PLATFORM,
        summary="A host is short of memory",
        description="{{ $value | humanizePercentage }} of the memory of {{ $labels.instance }} are left.",
        expr=f"node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes < {limits.host_memory_free:g}",
        hold="5m",
        fires=Case(series(3), at="10m"),
        silent=Case(series(30), at="10m"),
    )
