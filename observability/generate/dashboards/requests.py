"""Requests: where their time goes, by class, and why some are refused."""

from observability.generate.dashboards.panel import (
    BLUE,
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
    quantile,
    total,
)
from observability.generate.timing import seconds
from observability.slo import Objectives

USERS = 'source="user"'


def dashboard(found: Objectives) -> Dashboard:
    """For who asks why a request took as long as it did."""
    return Dashboard(
        "requests",
        "Requests",
        "Where the time of requests goes, by class of work; what waits, what is refused, what the cache saves.",
        (
            Row("Where time goes", _time()),
            Row("By class of work", _classes()),
            Row("Waiting", _waiting(found)),
            Row("Refused, called off, tried again", _refused()),
            Row("Cache", _cache()),
            Row("HTTP", _http()),
        ),
    )


def _time() -> tuple[Panel, ...]:
    return (
        Panel(
            "Stages of a request",
            "`safelight_stage_duration_seconds`: mean time of each stage. Denoising should be nearly all of it.",
            "s",
            (Query(mean("stage_duration_seconds", "stage"), "{{stage}}"),),
            Kind.STACK,
            width=12,
            no_data="No requests",
        ),
        Panel(
            "Duration",
            "`safelight_request_duration_seconds`: how many took how long, from acceptance to completion.",
            "s",
            buckets("request_duration_seconds", USERS),
            Kind.HEATMAP,
            width=12,
        ),
        Panel(
            "Slowest stages",
            "`safelight_stage_duration_seconds`: 95 of 100 times a stage takes no longer.",
            "s",
            (Query(quantile(0.95, "stage_duration_seconds", "stage"), "{{stage}}"),),
            width=12,
            no_data="No requests",
        ),
        Panel(
            "Error of the estimated time",
            "`safelight_estimate_error_ratio`: mean distance between what was told at the start and what it took, as "
            "a share.",
            "percentunit",
            (Query(mean("estimate_error_ratio"), "error"),),
            width=12,
            steps=((0.5, YELLOW),),
            no_data="No requests",
        ),
    )


def _classes() -> tuple[Panel, ...]:
    return (
        Panel(
            "Requests by class",
            "`safelight_request_duration_seconds`: size (s, m, l) and steps (few: 8, standard: 30, many) of "
            "completed requests.",
            "reqps",
            (Query(f"{total('request_duration_seconds_count', 'work_class', USERS)} > 0", "{{work_class}}"),),
            Kind.STACK,
            width=12,
            no_data="No requests",
        ),
        Panel(
            "p95 of duration by class",
            "`safelight_request_duration_seconds`: 95 of 100 requests of a class take no longer.",
            "s",
            (Query(f"{quantile(0.95, 'request_duration_seconds', 'work_class', USERS)} > 0", "{{work_class}}"),),
            width=12,
            no_data="No requests",
        ),
    )


def _waiting(found: Objectives) -> tuple[Panel, ...]:
    return (
        Panel(
            "Waiting by priority",
            "`safelight_queue_depth`: requests that wait for a first step.",
            "short",
            (
                Query(f"max by (priority) ({metric('queue_depth')})", "{{priority}}"),
                Query(f"max({metric('queue_limit')})", "limit"),
            ),
            steps=((found.limits.queue_depth, RED),),
        ),
        Panel(
            "Wait by priority",
            "`safelight_queue_wait_seconds`: 95 of 100 requests wait no longer for their first step.",
            "s",
            (Query(quantile(0.95, "queue_wait_seconds", "priority"), "{{priority}}"),),
            no_data="No requests",
        ),
        Panel(
            "Age of the oldest",
            "`safelight_queue_oldest_age_seconds`: how long the one that waits longest has waited.",
            "s",
            (Query(f"max({metric('queue_oldest_age_seconds')})", "oldest"),),
            steps=((seconds(found.limits.queue_age), RED),),
        ),
        Panel(
            "Waits",
            "`safelight_queue_wait_seconds`: how many waited how long.",
            "s",
            buckets("queue_wait_seconds"),
            Kind.HEATMAP,
            width=16,
        ),
        Panel(
            "Running",
            "`safelight_requests_running`: requests that have started and not ended.",
            "short",
            (Query(f"sum by (instance) ({metric('requests_running')})", "{{instance}}"),),
        ),
    )


def _refused() -> tuple[Panel, ...]:
    return (
        Panel(
            "Refused",
            "`safelight_requests_total`: requests that were not accepted, by reason. Deadlines that could not be met "
            "even "
            "alone are the client's; the rest is ours.",
            "reqps",
            (Query(total("requests_total", "reason", f'{USERS}, outcome="rejected"'), "{{reason}}"),),
            Kind.STACK,
        ),
        Panel(
            "Called off",
            "`safelight_requests_total`: requests that their clients cancelled or left.",
            "reqps",
            (Query(total("requests_total", "reason", f'{USERS}, outcome="cancelled"'), "{{reason}}"),),
            Kind.STACK,
        ),
        Panel(
            "Tried again",
            "`safelight_client_retries_total`: requests that said they were another try: clients see errors.",
            "reqps",
            (Query(total("client_retries_total"), "retries"),),
        ),
    )


def _cache() -> tuple[Panel, ...]:
    return (
        Panel(
            "Look-ups of answers",
            "`safelight_cache_lookups_total`: answers from the cache, answers shared with a request in flight, and "
            "misses.",
            "ops",
            (Query(total("cache_lookups_total", "result", 'cache="response"'), "{{result}}"),),
            Kind.STACK,
        ),
        Panel(
            "Look-ups of prompts",
            "`safelight_cache_lookups_total`: prompts whose embedding was still there.",
            "ops",
            (Query(total("cache_lookups_total", "result", 'cache="prompt_embedding"'), "{{result}}"),),
            Kind.STACK,
        ),
        Panel(
            "Time saved",
            "`safelight_cache_saved_seconds_total`: seconds of waiting a second that cached and shared answers "
            "saved, roughly.",
            "short",
            (Query(total("cache_saved_seconds_total"), "saved"),),
        ),
        Panel(
            "Bytes held",
            "`safelight_cache_bytes`: what the caches hold.",
            "bytes",
            (Query(f"sum by (cache) ({metric('cache_bytes')})", "{{cache}}"),),
            Kind.STAT,
            width=24,
            base=BLUE,
        ),
    )


def _http() -> tuple[Panel, ...]:
    of = 'job=~"$job", instance=~"$instance"'
    return (
        Panel(
            "Answers by route",
            "`http_requests_total`: answers of every route. A job that is made after its answer is not told of here.",
            "reqps",
            (Query(f"sum by (handler) (rate(http_requests_total{{{of}}}[$__rate_interval])) > 0", "{{handler}}"),),
            Kind.STACK,
            width=12,
        ),
        Panel(
            "Answers by status",
            "`http_requests_total`: 429 and 503 ask clients to come again, 422 says that they are wrong, 500 that we "
            "are.",
            "reqps",
            (Query(f"sum by (status) (rate(http_requests_total{{{of}}}[$__rate_interval])) > 0", "{{status}}"),),
            Kind.STACK,
            width=12,
        ),
    )
