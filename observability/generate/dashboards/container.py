"""Containers and the host below them."""

from observability.generate.dashboards.panel import ORANGE, RED, YELLOW, Dashboard, Panel, Query, Row
from observability.slo import Objectives

NAME = "{{container}}"
NO_CADVISOR = "Only where cAdvisor runs, which needs a container engine."
REAL = 'fstype!~"tmpfs|ramfs|overlay|squashfs|iso9660|autofs"'


def dashboard(found: Objectives) -> Dashboard:
    """For who asks whether something below the service is short."""
    return Dashboard(
        "container",
        "Containers and host",
        "Processor, memory, network and restarts of each container; disk, memory and processor of the host.",
        (Row("Containers", (*_shares(found), *_traffic())), Row("Host", _host(found))),
        chooses_instances=False,
    )


def _shares(found: Objectives) -> tuple[Panel, ...]:
    limit = found.limits.container_memory
    return (
        Panel(
            "Processor time",
            "`container:cpu_usage:rate5m`: cores in use.",
            "short",
            (Query("container:cpu_usage:rate5m", NAME),),
            no_data="No cAdvisor",
            empty=NO_CADVISOR,
        ),
        Panel(
            "Held back",
            "`container:cpu_throttled:ratio_rate5m`: share of time slices in which a container was held back at its "
            f"limit. Good: 0; {found.limits.container_throttled:.0%} raise an alert.",
            "percentunit",
            (Query("container:cpu_throttled:ratio_rate5m", NAME),),
            steps=((0.05, YELLOW), (found.limits.container_throttled, RED)),
            most=1,
            no_data="No limits",
            empty=NO_CADVISOR,
        ),
        Panel(
            "Memory",
            "`container:memory_working_set:bytes`: what cannot be given back.",
            "bytes",
            (Query("container:memory_working_set:bytes", NAME),),
            no_data="No cAdvisor",
            empty=NO_CADVISOR,
        ),
        Panel(
            "Memory of what is allowed",
            f"`container:memory:ratio`: at 1 the kernel kills the container; {limit:.0%} raise an alert.",
            "percentunit",
            (Query("container:memory:ratio", NAME),),
            steps=((limit, RED),),
            most=1,
            no_data="No limits",
            empty=NO_CADVISOR,
        ),
    )


def _traffic() -> tuple[Panel, ...]:
    return (
        Panel(
            "Network",
            "`container:network_received:bytes_rate5m`, `container:network_sent:bytes_rate5m`.",
            "Bps",
            (
                Query("container:network_received:bytes_rate5m", f"{NAME}, in"),
                Query("container:network_sent:bytes_rate5m", f"{NAME}, out"),
            ),
            no_data="No cAdvisor",
            empty=NO_CADVISOR,
        ),
        Panel(
            "Restarts and kills",
            "`container:start_time:seconds`, `container:oom_kills:increase15m`: starts, and kills for want of "
            "memory, in 15 minutes. Good: none.",
            "short",
            (
                Query("changes(container:start_time:seconds[15m])", f"{NAME}, restarts"),
                Query("container:oom_kills:increase15m", f"{NAME}, killed"),
            ),
            steps=((1, ORANGE),),
            no_data="No cAdvisor",
            empty=NO_CADVISOR,
        ),
    )


def _host(found: Objectives) -> tuple[Panel, ...]:
    limits = found.limits
    return (
        Panel(
            "Free disk",
            f"`node_filesystem_avail_bytes`: share of each disk that is free. {limits.disk_free:.0%} raise an alert.",
            "percentunit",
            (
                Query(
                    f"min by (instance, mountpoint) (node_filesystem_avail_bytes{{{REAL}}} / "
                    f"node_filesystem_size_bytes{{{REAL}}})",
                    "{{instance}} {{mountpoint}}",
                ),
            ),
            base=RED,
            steps=((limits.disk_free, YELLOW), (2 * limits.disk_free, "green")),
            most=1,
            no_data="No node exporter",
        ),
        Panel(
            "Free memory",
            f"`node_memory_MemAvailable_bytes`: share of memory that is left. {limits.host_memory_free:.0%} raise an "
            "alert.",
            "percentunit",
            (Query("node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes", "{{instance}}"),),
            base=RED,
            steps=((limits.host_memory_free, YELLOW), (4 * limits.host_memory_free, "green")),
            most=1,
            no_data="No node exporter",
        ),
        Panel(
            "Processor",
            "`node_cpu_seconds_total`: share of processor time in use.",
            "percentunit",
            (
                Query(
                    '1 - avg by (instance) (rate(node_cpu_seconds_total{mode="idle"}[$__rate_interval]))',
                    "{{instance}}",
                ),
            ),
            most=1,
            no_data="No node exporter",
        ),
    )
