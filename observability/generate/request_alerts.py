"""Alerts about requests: they fail, are slow, wait, are refused."""

from observability.generate.alert import Alert, Case, Group, Severity
from observability.slo import Limits

API_UP = 'up{job="api", instance="api:8000"}'
WAITING = 'safelight_queue_depth{instance="api:8000", priority="normal"}'
OLDEST = 'safelight_queue_oldest_age_seconds{instance="api:8000"}'


def groups(limits: Limits) -> tuple[Group, ...]:
    """All of them."""
    queue = (_queue_long(limits), _queue_old(limits), _queue_full())
    return (
        Group("availability", (_api_down(), _requests_failing(limits), _error_rate(limits), _few_failures(limits))),
        Group("latency", (_p99(limits), *queue, _deadlines(limits), _cache())),
    )


def _ended(outcome: str, reason: str, source: str = "user") -> str:
    return f'safelight_requests_total{{instance="api:8000", outcome="{outcome}", reason="{reason}", source="{source}"}}'


COMPLETED = _ended("completed", "none")
FAILED = _ended("failed", "model_error")


def _api_down() -> Alert:
    return Alert(
        "ApiDown",
        Severity.CRITICAL,
        subject="api",
        dashboard="overview",
        summary="The API is down",
        description="{{ $labels.instance }} has not answered Prometheus for a minute, or is not among the targets.",
        expr='up{job="api"} == 0 or absent(up{job="api"})',
        hold="1m",
        fires=Case({API_UP: "1x4 0x20"}, at="3m"),
        silent=Case({API_UP: "1x4 0x2 1x20"}, at="3m"),
    )


def _requests_failing(limits: Limits) -> Alert:
    return Alert(
        "RequestsFailing",
        Severity.CRITICAL,
        subject="errors",
        dashboard="overview",
        summary="Most requests fail",
        description="{{ $value | humanizePercentage }} of the requests of the last minute were not completed.",
        expr=(
            f"service:requests_bad:ratio_rate1m > {limits.failing_ratio:g}\n"
            f"and service:requests_counted:increase5m >= {limits.failing_requests}"
        ),
        hold="1m",
        fires=Case({COMPLETED: "0+1x40", FAILED: "0+3x40"}, at="5m"),
        silent=Case({COMPLETED: "0+3x40", FAILED: "0+1x40"}, at="5m"),
    )


def _error_rate(limits: Limits) -> Alert:
    return Alert(
        "ErrorRateHigh",
        Severity.WARNING,
        subject="errors",
        dashboard="overview",
        summary="Too many requests fail",
        description="{{ $value | humanizePercentage }} of the requests of the last 5 minutes were not completed.",
        expr=(
            f"service:requests_bad:ratio_rate5m > {limits.error_ratio:g}\n"
            f"and service:requests_counted:increase5m >= {limits.failing_requests}"
        ),
        hold="5m",
        fires=Case({COMPLETED: "0+18x80", FAILED: "0+2x80"}, at="12m"),
        silent=Case({COMPLETED: "0+49x80", FAILED: "0+1x80"}, at="12m"),
    )


def _few_failures(limits: Limits) -> Alert:
    return Alert(
        "FailuresAtLowTraffic",
        Severity.WARNING,
        subject="errors",
        dashboard="overview",
        summary="Requests fail, though there are few",
        description=(
            "{{ $value | humanize }} requests of the last hour were not completed. With so little traffic the error "
            "budgets say nothing."
        ),
        expr=(
            f"service:requests_bad:increase1h >= {limits.failures_an_hour}\n"
            f"and service:requests_counted:increase1h < {limits.low_traffic}"
        ),
        fires=Case({COMPLETED: "0x60", FAILED: "0x20 1x10 2x10 4x20"}, at="50m", every="1m"),
        silent=Case({COMPLETED: "0x60", FAILED: "0x20 1x40"}, at="50m", every="1m"),
    )


def _p99(limits: Limits) -> Alert:
    def durations(slow: int) -> dict[str, str]:
        labels = 'instance="api:8000", source="user", work_class="s_standard"'
        bucket = f"safelight_request_duration_seconds_bucket{{{labels}, le="
        return {
            f'{bucket}"{limits.latency_p99}"}}': f"0+{100 - slow}x80",
            f'{bucket}"120.0"}}': "0+100x80",
            f'{bucket}"+Inf"}}': "0+100x80",
            COMPLETED: "0+100x80",
        }

    return Alert(
        "LatencyP99High",
        Severity.WARNING,
        subject="latency",
        dashboard="requests",
        summary="The slowest requests take very long",
        description="One request in a hundred takes longer than {{ $value | humanizeDuration }}.",
        expr=(
            f'service:request_duration_seconds:quantile_rate5m{{quantile="0.99"}} > {limits.latency_p99:g}\n'
            f"and on () service:requests_counted:increase5m >= {limits.failing_requests}"
        ),
        hold="5m",
        fires=Case(durations(5), at="12m"),
        silent=Case(durations(0), at="12m"),
    )


def _queue_long(limits: Limits) -> Alert:
    return Alert(
        "QueueLong",
        Severity.WARNING,
        subject="queue",
        dashboard="requests",
        summary="Many requests wait",
        description="{{ $value | humanize }} requests wait for their first step.",
        expr=(
            f"sum(max by (priority) (safelight_queue_depth)) > {limits.queue_depth}\n"
            "or sum(max by (priority) (safelight_queue_depth)) > 0.8 * max(safelight_queue_limit)"
        ),
        hold="2m",
        fires=Case({WAITING: f"{limits.queue_depth + 1}x40"}, at="4m"),
        silent=Case({WAITING: f"{limits.queue_depth}x40"}, at="4m"),
    )


def _queue_old(limits: Limits) -> Alert:
    return Alert(
        "QueueOldestOld",
        Severity.WARNING,
        subject="queue-age",
        dashboard="requests",
        summary="Someone has waited very long",
        description=("The oldest request has waited {{ $value | humanizeDuration }} for a first step."),
        expr=f"max(safelight_queue_oldest_age_seconds) > <{limits.queue_age}>",
        hold="1m",
        fires=Case({OLDEST: "0+15x40"}, at="6m"),
        silent=Case({OLDEST: "0+15x6 0+15x6 0+15x6 0+15x6"}, at="6m"),
    )


def _queue_full() -> Alert:
    return Alert(
        "QueueFull",
        Severity.WARNING,
        subject="queue-full",
        dashboard="requests",
        summary="Requests are refused because the queue is full",
        description="{{ $value | humanize }} requests were refused within the last minute.",
        expr=(
            'round(sum(increase(safelight_requests_total{outcome="rejected", reason="queue_full", '
            'source="user"}[1m]))) > 0'
        ),
        hold="2m",
        fires=Case({_ended("rejected", "queue_full"): "0x10 0+1x40"}, at="8m"),
        silent=Case({_ended("rejected", "queue_full"): "7x50"}, at="8m"),
    )


def _deadlines(limits: Limits) -> Alert:
    refused = _ended("rejected", "overloaded")
    return Alert(
        "DeadlineRefusals",
        Severity.WARNING,
        subject="deadlines",
        dashboard="requests",
        summary="Many requests are refused since they could not end in time",
        description="{{ $value | humanizePercentage }} of the requests of the last 15 minutes were refused at once.",
        expr=(
            f"service:requests_deadline_refused:ratio_rate15m > {limits.deadline_refusals:g}\n"
            f'and sum(increase(safelight_requests_total{{source="user"}}[5m])) >= {limits.failing_requests}'
        ),
        hold="5m",
        fires=Case({COMPLETED: "0+4x100", refused: "0+1x100"}, at="20m"),
        silent=Case({COMPLETED: "0+49x100", refused: "0+1x100"}, at="20m"),
    )


def _cache() -> Alert:
    def series(later: str) -> dict[str, str]:
        lookups = 'safelight_cache_lookups_total{instance="api:8000", cache="response", result='
        return {f'{lookups}"hit"}}': f"0+10x120 {later}", f'{lookups}"miss"}}': "0+10x240"}

    return Alert(
        "CacheHitsCollapsed",
        Severity.INFO,
        subject="cache",
        dashboard="requests",
        summary="The cache answers far less than it used to",
        description=(
            "{{ $value | humanizePercentage }} of the look-ups of 30 minutes were hits, less than half of a day's "
            "share."
        ),
        expr=(
            "service:cache_hits:ratio_rate30m < 0.5 * service:cache_hits:ratio_rate1d\n"
            "and service:cache_hits:ratio_rate1d > 0.1\n"
            'and sum(increase(safelight_cache_lookups_total{cache="response"}[30m])) >= 50'
        ),
        hold="15m",
        fires=Case(series("1210x120"), at="170m", every="1m"),
        silent=Case(series("1210+10x120"), at="170m", every="1m"),
    )
