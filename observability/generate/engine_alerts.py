"""Alerts about the engine and the process around it: they stand still, die, waste."""

from observability.generate.alert import Alert, Case, Group, Severity
from observability.slo import Limits

READY = 'safelight_model_ready{instance="api:8000"}'
LAST_STEP = 'safelight_engine_last_step_timestamp_seconds{instance="api:8000"}'
RUNNING = 'safelight_requests_running{instance="api:8000"}'
WAITING = 'safelight_queue_depth{instance="api:8000", priority="normal"}'


def groups(limits: Limits) -> tuple[Group, ...]:
    """All of them."""
    return (
        Group("engine-health", (_stalled(limits), _not_ready(), _restarting(), _drain_stuck(limits))),
        Group("efficiency", (_batches_of_one(), _out_of_memory(), _wasted(limits), _cost(limits))),
        Group("process", (_loop_lag(limits), _telemetry_lost())),
    )


def _stalled(limits: Limits) -> Alert:
    return Alert(
        "EngineStalled",
        Severity.CRITICAL,
        subject="engine",
        dashboard="engine",
        summary="Work waits, and no denoising step is done",
        description=(
            "{{ $labels.instance }} has had work all the while since its last step, "
            "{{ $value | humanizeDuration }} ago."
        ),
        expr=(
            "time() - (max by (instance) (safelight_engine_last_step_timestamp_seconds > 0)\n"
            'or on (instance) process_start_time_seconds{job=~"api|worker"}) '
            f"> <{limits.stalled}>\n"
            f"and on (instance) min_over_time(instance:requests_in_work:sum[{limits.stalled}]) > 0\n"
            f"and on (instance) min_over_time(safelight_model_ready[{limits.stalled}]) == 1"
        ),
        hold="30s",
        fires=Case({READY: "1x40", LAST_STEP: "60x40", RUNNING: "1x40", WAITING: "3x40"}, at="4m"),
        silent=Case({READY: "1x40", LAST_STEP: "0+15x40", RUNNING: "1x40", WAITING: "3x40"}, at="4m"),
    )


def _not_ready() -> Alert:
    return Alert(
        "ServiceNotReady",
        Severity.WARNING,
        subject="engine",
        dashboard="engine",
        summary="The model is not ready",
        description="{{ $labels.instance }} has answered for 10 minutes, but has no warmed model.",
        expr="safelight_model_ready == 0\nunless on (instance) safelight_workers",  # the API of a fleet has none
        hold="10m",
        fires=Case({READY: "1x4 0x60"}, at="13m"),
        silent=Case({READY: "0x30 1x40"}, at="13m"),
    )


def _restarting() -> Alert:
    restarts = 'safelight_engine_restarts_total{instance="api:8000"}'
    return Alert(
        "EngineRestarting",
        Severity.CRITICAL,
        subject="engine-restarts",
        dashboard="engine",
        summary="The engine dies again and again",
        description="The engine of {{ $labels.instance }} was lost {{ $value | humanize }} times in 15 minutes.",
        expr="round(increase(safelight_engine_restarts_total[15m])) >= 2",
        fires=Case({restarts: "0x20 1x10 2x40"}, at="12m"),
        silent=Case({restarts: "0x20 1x50"}, at="12m"),
    )


def _drain_stuck(limits: Limits) -> Alert:
    draining = 'safelight_draining{instance="api:8000"}'
    return Alert(
        "DrainStuck",
        Severity.WARNING,
        subject="drain",
        dashboard="engine",
        summary="A process drains and does not end",
        description="{{ $labels.instance }} was told to stop and is still there.",
        expr="safelight_draining == 1",
        hold=limits.drain,
        fires=Case({draining: "0x4 1x40"}, at="8m"),
        silent=Case({draining: "0x4 1x6 0x40"}, at="8m"),
    )


def _batches_of_one() -> Alert:
    def series(pictures: int) -> dict[str, str]:
        return {
            'safelight_batch_pictures_sum{instance="api:8000"}': f"0+{pictures * 10}x80",
            'safelight_batch_pictures_count{instance="api:8000"}': "0+10x80",
            'safelight_batch_slots{instance="api:8000"}': "8x80",
            WAITING: "5x80",
        }

    return Alert(
        "BatchesOfOne",
        Severity.WARNING,
        subject="batching",
        dashboard="engine",
        summary="Requests wait, and still do not share batches",
        description=(
            "A step of {{ $labels.instance }} makes {{ $value | humanize }} pictures on average while requests wait."
        ),
        expr=(
            "instance:batch_pictures:mean_rate5m < 1.5\n"
            "and on () min_over_time(service:requests_waiting:sum[5m]) > 0\n"
            "and on (instance) safelight_batch_slots > 1"
        ),
        hold="5m",
        fires=Case(series(1), at="12m"),
        silent=Case(series(4), at="12m"),
    )


def _out_of_memory() -> Alert:
    splits = 'safelight_oom_splits_total{instance="api:8000"}'
    return Alert(
        "OutOfMemorySplits",
        Severity.WARNING,
        subject="engine-memory",
        dashboard="engine",
        summary="Batches do not fit into memory",
        description="{{ $labels.instance }} split {{ $value | humanize }} batches within 10 minutes.",
        expr="round(increase(safelight_oom_splits_total[10m])) > 0",
        fires=Case({splits: "0x10 1x40"}, at="5m"),
        silent=Case({splits: "3x50"}, at="5m"),
    )


def _wasted(limits: Limits) -> Alert:
    steps = 'safelight_steps_total{instance="api:8000"}'
    wasted = 'safelight_wasted_steps_total{instance="api:8000", reason="client_cancelled"}'
    return Alert(
        "StepsWasted",
        Severity.WARNING,
        subject="waste",
        dashboard="engine",
        summary="Much work is thrown away",
        description="{{ $value | humanizePercentage }} of the denoising steps of 30 minutes were for nothing.",
        expr=(
            f"service:wasted_steps:ratio_rate30m > {limits.wasted_steps:g}\n"
            "and sum(increase(safelight_steps_total[30m])) >= 500"
        ),
        hold="15m",
        fires=Case({steps: "0+100x60", wasted: "0+40x60"}, at="50m", every="1m"),
        silent=Case({steps: "0+100x60", wasted: "0+10x60"}, at="50m", every="1m"),
    )


def _cost(limits: Limits) -> Alert:
    def series(images: int) -> dict[str, str]:
        return {
            'safelight_gpu_dollars_per_hour{instance="api:8000"}': "2x120",
            'safelight_images_total{instance="api:8000"}': f"0+{images}x120",
        }

    return Alert(
        "CostOverBudget",
        Severity.INFO,
        subject="cost",
        dashboard="gpu",
        summary="Pictures cost more than they should",
        description='1,000 pictures cost {{ $value | printf "%.2f" }} dollars over the last hour, idle time included.',
        expr=f"service:cost_per_1000_images:dollars_1h > {limits.cost_per_1000_images:g}",
        hold="15m",
        fires=Case(series(3), at="90m", every="1m"),
        silent=Case(series(30), at="90m", every="1m"),
    )


def _loop_lag(limits: Limits) -> Alert:
    def series(late: int) -> dict[str, str]:
        bucket = 'safelight_event_loop_lag_seconds_bucket{instance="api:8000", le='
        return {
            f'{bucket}"{limits.loop_lag}"}}': f"0+{15 - late}x80",
            f'{bucket}"1.0"}}': "0+15x80",
            f'{bucket}"+Inf"}}': "0+15x80",
        }

    return Alert(
        "EventLoopLagging",
        Severity.WARNING,
        subject="event-loop",
        dashboard="engine",
        summary="The API's event loop is late",
        description=(
            "One turn in a hundred of {{ $labels.instance }} is {{ $value | humanizeDuration }} late: answers wait."
        ),
        expr=f"instance:event_loop_lag_seconds:p99_rate5m > {limits.loop_lag:g}",
        hold="5m",
        fires=Case(series(3), at="12m"),
        silent=Case(series(0), at="12m"),
    )


def _telemetry_lost() -> Alert:
    dropped = 'safelight_spans_dropped_total{instance="api:8000", reason="export_failed"}'
    return Alert(
        "TelemetryLost",
        Severity.INFO,
        subject="telemetry",
        dashboard="alerts",
        summary="Events or spans are dropped",
        description=(
            "{{ $labels.instance }} lost {{ $value | humanize }} events or spans within 15 minutes; requests go on."
        ),
        expr=(
            "round(sum by (instance) (increase(safelight_events_dropped_total[15m])\n"
            "or increase(safelight_spans_dropped_total[15m]))) > 0"
        ),
        hold="5m",
        fires=Case({dropped: "0x10 0+5x60"}, at="15m"),
        silent=Case({dropped: "40x80"}, at="15m"),
    )
