"""The engine: how full its batches are, how long steps take, what is wasted, why pictures do not share a step."""

from observability.generate.dashboards.panel import (
    BLUE,
    CHOSEN,
    ORANGE,
    RED,
    YELLOW,
    Dashboard,
    Kind,
    Panel,
    Query,
    Row,
    buckets,
    mean,
    metric,
    process,
    quantile,
    quantiles,
    rate,
    total,
)
from observability.slo import Objectives

STEPS = f"({total('steps_total')} > 0)"


def dashboard(found: Objectives) -> Dashboard:
    """For who asks whether the device is well used."""
    return Dashboard(
        "engine",
        "Engine",
        "Batches, steps, admission, waste; the process around them.",
        (
            Row("Batches", _batches()),
            Row("Steps", _steps()),
            Row("Admission", _admission()),
            Row("Waste and trouble", _waste(found)),
            Row("Model and process", (*_process(found), *_life())),
        ),
    )


def _batches() -> tuple[Panel, ...]:
    return (
        Panel(
            "Pictures in a step",
            "`safelight_batch_pictures`, `safelight_batch_size`: pictures, and requests, that share a step on average.",
            "short",
            (Query(mean("batch_pictures"), "pictures"), Query(mean("batch_size"), "requests")),
            no_data="No work",
        ),
        Panel(
            "Batch sizes",
            "`safelight_batch_size`: how many steps were shared by how many requests.",
            "short",
            buckets("batch_size"),
            Kind.HEATMAP,
        ),
        Panel(
            "Share of slots that is taken",
            "`safelight_batch_occupancy_ratio`: at each step. Low with an empty queue is spare capacity, low with a "
            "queue is not.",
            "percentunit",
            (Query(mean("batch_occupancy_ratio", "instance"), "{{instance}}"),),
            most=1,
            no_data="No work",
        ),
        Panel(
            "Slots",
            "`safelight_batch_slots`, `safelight_batch_slots_in_force`: pictures that may share a step, by the "
            "profile and as memory allows now.",
            "short",
            (
                Query(f"sum by (instance) ({metric('batch_slots')})", "{{instance}}"),
                Query(f"sum by (instance) ({metric('batch_slots_in_force')})", "{{instance}}, in force"),
            ),
        ),
        Panel(
            "Free slots while work waits",
            "`safelight_free_slot_seconds_total`: slots that stood empty though pictures waited that could have had "
            "them. Good: near 0.",
            "short",
            (Query(total("free_slot_seconds_total", "instance"), "{{instance}}"),),
            steps=((1, YELLOW),),
        ),
        Panel(
            "Why pictures did not share a step",
            "`safelight_pictures_passed_over_total`: the first thing in which they differ. In continuous mode only "
            "the size matters.",
            "ops",
            (Query(total("pictures_passed_over_total", "field"), "{{field}}"),),
            Kind.STACK,
        ),
    )


def _steps() -> tuple[Panel, ...]:
    return (
        Panel(
            "Time of a step",
            "`safelight_step_duration_seconds`: one denoising step, to where the device has ended it.",
            "s",
            quantiles("step_duration_seconds"),
            no_data="No work",
        ),
        Panel(
            "Times of steps",
            "`safelight_step_duration_seconds`: how many steps took how long; bands are batch sizes or picture sizes.",
            "s",
            buckets("step_duration_seconds"),
            Kind.HEATMAP,
        ),
        Panel(
            "Steps",
            "`safelight_steps_total`: denoising steps, counted once a picture.",
            "ops",
            (Query(total("steps_total", "instance"), "{{instance}}"),),
        ),
        Panel(
            "Since the last step",
            "`safelight_engine_last_step_timestamp_seconds`: with work waiting, it should be no longer than a step.",
            "s",
            (
                Query(
                    f"time() - max by (instance) ({metric('engine_last_step_timestamp_seconds')} > 0)", "{{instance}}"
                ),
            ),
            no_data="No step yet",
        ),
        Panel(
            "Pixels",
            "`safelight_image_pixels_total`: pixels of finished pictures.",
            "short",
            (Query(total("image_pixels_total"), "pixels a second"),),
        ),
        Panel(
            "Batch time of a picture",
            "`safelight_image_batch_seconds_total`: its share of the time of the steps that it was in: what it costs "
            "the device.",
            "s",
            (Query(f"{total('image_batch_seconds_total')} / ({total('images_total')} > 0)", "a picture"),),
            no_data="No pictures",
        ),
    )


def _admission() -> tuple[Panel, ...]:
    return (
        Panel(
            "Delay of admission",
            "`safelight_admission_delay_seconds`: from the arrival of a picture, or a slot free for it, to its first "
            "step. "
            "Good: the time of a step.",
            "s",
            quantiles("admission_delay_seconds"),
            no_data="No requests",
        ),
        Panel(
            "Steps until admission",
            "`safelight_admission_delay_steps`: steps that end meanwhile. Good: at most 1.",
            "short",
            (Query(quantile(0.99, "admission_delay_steps"), "p99"), Query(mean("admission_delay_steps"), "mean")),
            steps=((2, YELLOW),),
            no_data="No requests",
        ),
        Panel(
            "Paused and resumed",
            "`safelight_pictures_paused_total`, `safelight_pictures_resumed_total`: pictures that gave way to more "
            "urgent ones.",
            "ops",
            (Query(total("pictures_paused_total"), "paused"), Query(total("pictures_resumed_total"), "resumed")),
        ),
    )


def _waste(found: Objectives) -> tuple[Panel, ...]:
    limit = found.limits.wasted_steps
    return (
        Panel(
            "Steps for nothing",
            f"`safelight_wasted_steps_total`: share of steps whose result was thrown away. {limit:.0%} raise an alert.",
            "percentunit",
            (Query(f"{total('wasted_steps_total', 'reason')} / on () group_left () {STEPS}", "{{reason}}"),),
            Kind.STACK,
            steps=((limit, RED),),
            no_data="No work",
        ),
        Panel(
            "Time for nothing",
            "`safelight_wasted_seconds_total`: seconds of batch time a second that were thrown away.",
            "short",
            (Query(total("wasted_seconds_total", "reason"), "{{reason}}"),),
            Kind.STACK,
        ),
        Panel(
            "Out of memory",
            "`safelight_oom_splits_total`: batches that did not fit and were split. Good: none.",
            "short",
            (Query(f"sum by (instance) (increase({metric('oom_splits_total')}[$__rate_interval]))", "{{instance}}"),),
            steps=((1, ORANGE),),
        ),
        Panel(
            "Memory at the peak of a step",
            "`safelight_step_peak_memory_bytes`, `safelight_step_predicted_memory_bytes`: as measured, and as the "
            "profile predicts; 0: not known.",
            "bytes",
            (
                Query(f"max by (instance) ({metric('step_peak_memory_bytes')})", "{{instance}}, measured"),
                Query(f"max by (instance) ({metric('step_predicted_memory_bytes')})", "{{instance}}, predicted"),
            ),
        ),
        Panel(
            "Engines lost",
            "`safelight_engine_restarts_total`: engine processes that died and were started anew. Good: none.",
            "short",
            (
                Query(
                    f"sum by (instance) (increase({metric('engine_restarts_total')}[$__rate_interval]))", "{{instance}}"
                ),
            ),
            steps=((1, RED),),
        ),
        Panel(
            "How requests share batches",
            "`safelight_batching_mode`: continuous, or window for a pipeline that is not known.",
            "short",
            (Query(f"count by (mode) ({metric('batching_mode')} == 1)", "{{mode}}"),),
            Kind.STAT,
            base=BLUE,
        ),
    )


def _process(found: Objectives) -> tuple[Panel, ...]:
    return (
        Panel(
            "Lateness of the event loop",
            f"`safelight_event_loop_lag_seconds`: how late the API comes to what is due. {found.limits.loop_lag:g} s "
            "raise an alert.",
            "s",
            (Query(quantile(0.99, "event_loop_lag_seconds", "instance"), "{{instance}}, p99"),),
            steps=((found.limits.loop_lag, RED),),
        ),
        Panel(
            "Processor time",
            "`process_cpu_seconds_total`, `safelight_engine_process_cpu_seconds_total`: cores that the API and the "
            "engine use.",
            "short",
            (
                Query(
                    f"sum by (instance) (rate(process_cpu_seconds_total{{{CHOSEN}}}[$__rate_interval])"
                    " and on (instance) safelight_model_ready)",
                    "{{instance}}, API",
                ),
                Query(f"sum by (instance) ({rate('engine_process_cpu_seconds_total')})", "{{instance}}, engine"),
            ),
        ),
        Panel(
            "Memory",
            "`process_resident_memory_bytes`, `safelight_engine_process_resident_memory_bytes`: of the API and the "
            "engine.",
            "bytes",
            (
                Query(f"sum by (instance) {process('process_resident_memory_bytes')}", "{{instance}}, API"),
                Query(f"sum by (instance) ({metric('engine_process_resident_memory_bytes')})", "{{instance}}, engine"),
            ),
        ),
    )


def _life() -> tuple[Panel, ...]:
    return (
        Panel(
            "Loading the model",
            "`safelight_model_load_seconds`, `safelight_model_warmup_seconds`: what a start takes.",
            "s",
            (
                Query(f"max({metric('model_load_seconds')})", "load"),
                Query(f"max({metric('model_warmup_seconds')})", "warm and profile"),
            ),
            Kind.STAT,
            base=BLUE,
            width=12,
        ),
        Panel(
            "Draining",
            "`safelight_draining`: processes that take no more work and are about to end.",
            "short",
            (Query(f"sum({metric('draining')})", "draining"),),
            Kind.STAT,
            base=BLUE,
            width=12,
        ),
    )
