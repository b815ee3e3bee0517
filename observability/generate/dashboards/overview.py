"""Overview: are the promises kept, what is asked and answered, what changed."""

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
    metric,
    process,
    quantiles,
    total,
)
from observability.slo import Objectives

USERS = 'source="user"'
YES_NO = {"1": ("yes", GREEN), "0": ("no", RED)}


def dashboard(found: Objectives) -> Dashboard:
    """The page to start from."""
    return Dashboard(
        "overview",
        "Overview",
        "Objectives and their budgets; requests, errors, durations; what changed.",
        (
            Row("Now", (*_state(), *_now(found))),
            Row("Objectives", _objectives(found)),
            Row("Requests", _red(found)),
            Row("What changed", _changes()),
        ),
    )


def _state() -> tuple[Panel, ...]:
    return (
        Panel(
            "Reachable",
            "`up`: share of the API's processes that answer Prometheus. All should.",
            "percentunit",
            (Query('avg(up{job=~"api|worker", instance=~"$instance"})', "up"),),
            Kind.STAT,
            width=4,
            base=RED,
            steps=((1, GREEN),),
            no_data="Unreachable",
        ),
        Panel(
            "Model ready",
            "`safelight_model_ready`: whether a warmed model is loaded, in the process that has the least.",
            "short",
            (Query(f"min({metric('model_ready')} unless on (instance) safelight_workers)", "ready"),),
            Kind.STAT,
            width=4,
            base=RED,
            steps=((1, GREEN),),
            words=YES_NO,
            no_data="Unreachable",
        ),
    )


def _now(found: Objectives) -> tuple[Panel, ...]:
    limits = found.limits
    return (
        Panel(
            "Requests not completed",
            "`service:requests_bad:ratio_rate5m`: share of users' requests that failed, expired or were refused for "
            f"our sake. Good: under 1 %; {limits.error_ratio:.0%} raises an alert.",
            "percentunit",
            (Query("service:requests_bad:ratio_rate5m", "not completed"),),
            Kind.STAT,
            width=4,
            steps=((0.01, YELLOW), (limits.error_ratio, RED)),
            no_data="No requests",
        ),
        Panel(
            "p99 of duration",
            "`service:request_duration_seconds:quantile_rate5m`: 99 of 100 completed requests take no longer. "
            f"{limits.latency_p99:g} s raise an alert.",
            "s",
            (Query('service:request_duration_seconds:quantile_rate5m{quantile="0.99"}', "p99"),),
            Kind.STAT,
            width=4,
            steps=((limits.latency_p99 / 2, YELLOW), (limits.latency_p99, RED)),
            no_data="No requests",
        ),
        Panel(
            "Waiting",
            "`safelight_queue_depth`: requests that wait for a first step. Good: under 10 a process; "
            f"{limits.queue_depth} raise an alert.",
            "short",
            (Query(f"sum(max by (priority) ({metric('queue_depth')}))", "waiting"),),
            Kind.STAT,
            width=4,
            steps=((10, YELLOW), (limits.queue_depth, RED)),
        ),
        Panel(
            "Alerts",
            "`ALERTS`: firing alerts that ask for someone. Good: none.",
            "short",
            (Query('count(ALERTS{alertstate="firing", severity=~"critical|warning"}) or vector(0)', "firing"),),
            Kind.STAT,
            width=4,
            steps=((1, ORANGE),),
        ),
    )


def _objectives(found: Objectives) -> tuple[Panel, ...]:
    fastest = max(each.factor for each in found.burn_rates)
    return (
        Panel(
            "Error budget left",
            f"`slo:budget_left:ratio`: of the failures allowed in {found.window_days} days, the share that is left. "
            "Below 0 the "
            "objective is missed.",
            "percentunit",
            (Query("slo:budget_left:ratio", "{{slo}}"),),
            Kind.STAT,
            width=12,
            base=RED,
            steps=((0, ORANGE), (0.25, YELLOW), (0.5, GREEN)),
            most=1,
            no_data="No requests yet",
        ),
        Panel(
            "Kept",
            f"`slo:errors:ratio_rate{found.window_days}d`: share of events in {found.window_days} days that were as "
            "promised.",
            "percentunit",
            (Query(f"1 - slo:errors:ratio_rate{found.window_days}d", "{{slo}}"),),
            Kind.STAT,
            width=12,
            base=BLUE,
            no_data="No requests yet",
        ),
        Panel(
            "Speed at which budgets are spent",
            "`slo:budget_burn:rate1h`: 1 spends the whole budget within the objective's window. "
            f"Good: below 1; {fastest:g} pages someone.",
            "short",
            (Query("slo:budget_burn:rate1h", "{{slo}}"),),
            width=12,
            steps=((1, YELLOW), (fastest, RED)),
            no_data="No requests in the last hour",
        ),
        Panel(
            "Right pictures for the probe",
            "`safelight_probe_success`: what a synthetic user sees, who looks at the picture that he gets.",
            "short",
            (Query("safelight_probe_success", "{{instance}}"),),
            Kind.STATES,
            width=12,
            base=RED,
            steps=((1, GREEN),),
            words=YES_NO,
            no_data="No probe",
        ),
    )


def _red(found: Objectives) -> tuple[Panel, ...]:
    limits = found.limits
    return (
        Panel(
            "Requests",
            "`safelight_requests_total`: users' requests that ended, by outcome.",
            "reqps",
            (Query(total("requests_total", "outcome", USERS), "{{outcome}}"),),
            Kind.STACK,
        ),
        Panel(
            "Why they were not completed",
            "`safelight_requests_total`: failed, expired and refused requests by reason. Good: none.",
            "reqps",
            (
                Query(
                    total("requests_total", "outcome, reason", f'{USERS}, outcome=~"failed|expired|rejected"'),
                    "{{outcome}}: {{reason}}",
                ),
            ),
            Kind.STACK,
        ),
        Panel(
            "Duration",
            "`safelight_request_duration_seconds`: from acceptance to completion; a point leads to a trace.",
            "s",
            quantiles("request_duration_seconds", USERS),
            steps=((limits.latency_p99, RED),),
            no_data="No requests",
        ),
        Panel(
            "Pictures",
            "`safelight_images_total`: pictures made, without those from the cache.",
            "ops",
            (Query(total("images_total"), "pictures"),),
        ),
        Panel(
            "Waiting and running",
            "`safelight_queue_depth`, `safelight_requests_running`: where waiting grows while running stays, "
            "capacity is used up.",
            "short",
            (
                Query(f"sum(max by (priority) ({metric('queue_depth')}))", "waiting"),
                Query(f"sum({metric('requests_running')})", "running"),
            ),
        ),
        Panel(
            "Share of slots that is taken",
            "`instance:batch_occupancy:mean_rate5m`: how full batches are while there is work. Near 1, requests have "
            "to wait.",
            "percentunit",
            (Query('instance:batch_occupancy:mean_rate5m{instance=~"$instance"}', "{{instance}}"),),
            most=1,
            no_data="No work",
        ),
    )


def _changes() -> tuple[Panel, ...]:
    return (
        Panel(
            "Model",
            "`safelight_model_info`: what each process serves, and how.",
            "short",
            (Query(metric("model_info"), "{{instance}}"),),
            Kind.TABLE,
            width=12,
        ),
        Panel(
            "Started",
            "`process_start_time_seconds`: when each process began.",
            "dateTimeFromNow",
            (Query(f"{process('process_start_time_seconds')} * 1000", "{{instance}}"),),
            Kind.STAT,
            width=6,
            base=BLUE,
        ),
        Panel(
            "Engines lost",
            "`safelight_engine_restarts_total`: engine processes that died and were started anew. Good: none.",
            "short",
            (Query(f"sum(increase({metric('engine_restarts_total')}[$__range]))", "lost"),),
            Kind.STAT,
            width=6,
            steps=((1, ORANGE),),
        ),
    )
