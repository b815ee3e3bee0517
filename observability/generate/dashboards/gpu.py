"""GPUs: saturation, memory, power, heat, errors; energy and cost of a picture."""

from observability.generate.dashboards.panel import (
    BLUE,
    GREEN,
    ORANGE,
    RED,
    YELLOW,
    Dashboard,
    Kind,
    Panel,
    Query,
    Row,
)
from observability.slo import Objectives

GPU = "{{gpu}}: {{model}}"
NO_GPU = "Only of a GPU; which GPU metrics can be had stands under Facts."
NO_ERRORS = "Only once there was such an error."
NO_DCGM = "Only from dcgm-exporter, of a data-centre GPU."


def dashboard(found: Objectives) -> Dashboard:
    """For who asks what the GPUs do, and what they cost."""
    return Dashboard(
        "gpu",
        "GPU",
        "Saturation, memory, power, heat and errors of GPUs, whoever tells of them; energy and cost of a picture.",
        (
            Row("Facts", _facts()),
            Row("Saturation", _saturation(found)),
            Row("Power and heat", _power(found)),
            Row("Errors", _errors()),
            Row("Cost", _cost(found)),
        ),
        chooses_instances=False,
    )


def _facts() -> tuple[Panel, ...]:
    return (
        Panel(
            "GPUs",
            "`gpu:present:count`: GPUs of which something is told, by dcgm-exporter or by the service itself (NVML).",
            "short",
            (Query("gpu:present:count", "GPUs"),),
            Kind.STAT,
            width=6,
            base=BLUE,
        ),
        Panel(
            "What is known of GPUs",
            "`safelight_nvml_state`: no GPU, no driver, no permission, a driver that hangs, and all well are five "
            "different things.",
            "short",
            (Query("count by (state) (safelight_nvml_state == 1)", "{{state}}"),),
            Kind.STAT,
            width=6,
            base=BLUE,
            no_data="Unreachable",
        ),
        Panel(
            "Exporter",
            "`up` of dcgm-exporter.",
            "short",
            (Query('up{job="dcgm"}', "{{instance}}"),),
            Kind.STAT,
            width=6,
            base=RED,
            steps=((1, GREEN),),
            words={"1": ("up", GREEN), "0": ("down", RED)},
            no_data="None is listed",
            empty="Only where dcgm-exporter is among the targets.",
        ),
        Panel(
            "Time to ask NVML",
            "`safelight_nvml_read_seconds`: time of the last round of calls; a driver in trouble gets slow.",
            "s",
            (Query("max by (instance) (safelight_nvml_read_seconds)", "{{instance}}"),),
            Kind.STAT,
            width=6,
            steps=((0.5, YELLOW),),
        ),
    )


def _saturation(found: Objectives) -> tuple[Panel, ...]:
    limits, target = found.limits, found.saturation.utilization
    return (
        Panel(
            "Utilization",
            f"`gpu:utilization:ratio`: share of time in which a kernel ran. Good under load: {target.at_least:.0%} "
            f"to {target.at_most:.0%}; "
            f"over {limits.gpu_saturated:.0%} there is no room for a burst, under {limits.gpu_idle:.0%} with work "
            "waiting something is wrong.",
            "percentunit",
            (Query("gpu:utilization:ratio", GPU),),
            base=BLUE,
            steps=((target.at_least, GREEN), (target.at_most, YELLOW), (limits.gpu_saturated, RED)),
            most=1,
            no_data="No GPU",
            empty=NO_GPU,
        ),
        Panel(
            "Memory",
            f"`gpu:memory:ratio`: share of the memory in use. Good: under {found.saturation.memory.at_most:.0%}; "
            f"{limits.gpu_memory:.0%} raise an alert.",
            "percentunit",
            (Query("gpu:memory:ratio", GPU),),
            steps=((found.saturation.memory.at_most, YELLOW), (limits.gpu_memory, RED)),
            most=1,
            no_data="No GPU",
            empty=NO_GPU,
        ),
        Panel(
            "Memory in use",
            "`gpu:memory_used:bytes`, `gpu:memory_total:bytes`.",
            "bytes",
            (Query("gpu:memory_used:bytes", f"{GPU}, used"), Query("gpu:memory_total:bytes", f"{GPU}, all")),
            no_data="No GPU",
            empty=NO_GPU,
        ),
    )


def _power(found: Objectives) -> tuple[Panel, ...]:
    return (
        Panel(
            "Power",
            "`gpu:power:watts`.",
            "watt",
            (Query("gpu:power:watts", GPU),),
            no_data="No GPU",
            empty=NO_GPU,
        ),
        Panel(
            "Temperature",
            f"`gpu:temperature:celsius`. {found.limits.gpu_celsius} degrees raise an alert.",
            "celsius",
            (Query("gpu:temperature:celsius", GPU),),
            steps=((found.limits.gpu_celsius, RED),),
            no_data="No GPU",
            empty=NO_GPU,
        ),
        Panel(
            "Clock",
            "`gpu:sm_clock:hertz`: it falls when a GPU is hot or short of power.",
            "hertz",
            (Query("gpu:sm_clock:hertz", GPU),),
            no_data="No GPU",
            empty=NO_GPU,
        ),
        Panel(
            "Slowed down",
            "`gpu:thermal_throttle:ratio_rate5m`, `gpu:power_throttle:ratio_rate5m`: share of time in which heat, or "
            "too little power, "
            "held the clocks down. Good: no heat; a power limit at full load is ordinary.",
            "percentunit",
            (
                Query("gpu:thermal_throttle:ratio_rate5m", f"{GPU}, heat"),
                Query("gpu:power_throttle:ratio_rate5m", f"{GPU}, power"),
            ),
            width=24,
            steps=((found.limits.gpu_throttled, ORANGE),),
            most=1,
            no_data="No GPU",
            empty=NO_GPU,
        ),
    )


def _errors() -> tuple[Panel, ...]:
    return (
        Panel(
            "XID errors",
            "`gpu:xid_errors:increase5m`: errors that the driver reports, by number. Good: none.",
            "short",
            (Query("gpu:xid_errors:increase5m", "{{gpu}}: XID {{xid}}"),),
            no_data="None",
            empty=NO_ERRORS,
            steps=((1, RED),),
        ),
        Panel(
            "Uncorrectable memory errors",
            "`gpu:ecc_uncorrectable:increase15m`. Good: none.",
            "short",
            (Query("gpu:ecc_uncorrectable:increase15m", GPU),),
            no_data="No GPU with ECC",
            empty=NO_GPU,
            steps=((1, RED),),
        ),
        Panel(
            "Broken rows without a spare",
            "`gpu:row_remap_failed:bool`. 1: the GPU has to be replaced.",
            "short",
            (Query("gpu:row_remap_failed:bool", GPU),),
            no_data="Not told",
            empty=NO_DCGM,
            steps=((1, RED),),
        ),
    )


def _cost(found: Objectives) -> tuple[Panel, ...]:
    return (
        Panel(
            "Cost of 1,000 pictures, idle time included",
            "`service:cost_per_1000_images:dollars_1h`: all GPUs' price of an hour over its pictures. "
            f"{found.limits.cost_per_1000_images:g} dollars raise an alert.",
            "currencyUSD",
            (Query("service:cost_per_1000_images:dollars_1h", "all time"),),
            steps=((found.limits.cost_per_1000_images, RED),),
            no_data="No pictures",
        ),
        Panel(
            "Cost of 1,000 pictures, batch time alone",
            "`service:batch_cost_per_1000_images:dollars_1h`: what they cost if nothing idled: the difference is "
            "spare capacity.",
            "currencyUSD",
            (Query("service:batch_cost_per_1000_images:dollars_1h", "batch time"),),
            no_data="No pictures",
        ),
        Panel(
            "Energy of a picture",
            "`service:energy_per_image:joules_5m`: energy of all GPUs over the pictures made.",
            "joule",
            (Query("service:energy_per_image:joules_5m", "energy"),),
            no_data="No GPU",
            empty=NO_GPU,
        ),
        Panel(
            "Price of an hour",
            "`safelight_gpu_dollars_per_hour`: as set; 0: not set.",
            "currencyUSD",
            (Query("sum(safelight_gpu_dollars_per_hour)", "all"),),
            Kind.STAT,
            base=BLUE,
            width=24,
        ),
    )
