"""A fleet: who works in it, how evenly, how many there should be, and what all of it stands on."""

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
    total,
)
from observability.slo import Objectives

THERE = f"max(sum by (instance) ({metric('workers')}))"
USABLE = {"1": ("yes", GREEN), "0": ("no", RED)}
DEAD = 'outcome="failed", reason="dead_letter"'


def dashboard(found: Objectives) -> Dashboard:
    """For who asks whether there are enough workers, and what is wrong if not."""
    del found
    return Dashboard(
        "fleet",
        "Fleet",
        "Workers, the queue between them and the API, and what all of it stands on. Empty where one process does all.",
        (
            Row("Workers", (*_now(), *_workers())),
            Row("Trouble", _trouble()),
        ),
    )


def _now() -> tuple[Panel, ...]:
    return (
        Panel(
            "Workers",
            "`safelight_workers`: those that have said within 8 s that they are there. None raises an alert.",
            "short",
            (Query(THERE, "there"),),
            Kind.STAT,
            width=4,
            base=RED,
            steps=((1, GREEN),),
            no_data="No fleet",
        ),
        Panel(
            "Missing",
            "`safelight_desired_workers`: how many more there should be. A new one may take minutes to come; ten "
            "raise an alert.",
            "short",
            (Query(f"clamp_min(max({metric('desired_workers')}) - {THERE}, 0)", "missing"),),
            Kind.STAT,
            width=4,
            steps=((1, YELLOW),),
            no_data="No fleet",
        ),
        Panel(
            "Can be used",
            "`safelight_dependency_up`: whether queue, database and store can be used, by who sees it worst.",
            "short",
            (Query(f"min by (dependency) ({metric('dependency_up')})", "{{dependency}}"),),
            Kind.STAT,
            width=8,
            base=RED,
            steps=((1, GREEN),),
            words=USABLE,
            no_data="No fleet",
        ),
        Panel(
            "Price of an hour",
            "`safelight_gpu_dollars_per_hour`: what all workers cost, as set.",
            "currencyUSD",
            (Query(f"sum({metric('gpu_dollars_per_hour')})", "all"),),
            Kind.STAT,
            width=4,
            base=BLUE,
        ),
        Panel(
            "Leaving",
            "`safelight_draining`: processes that take no more work and end.",
            "short",
            (Query(f"sum({metric('draining')})", "leaving"),),
            Kind.STAT,
            width=4,
            steps=((1, YELLOW),),
        ),
    )


def _workers() -> tuple[Panel, ...]:
    return (
        Panel(
            "Workers that are there, and should be",
            "`safelight_workers` by pool, `safelight_desired_workers`, `safelight_workers_limit`: where what is "
            "desired stays at the limit, capacity is used up.",
            "short",
            (
                Query(f"max by (pool) ({metric('workers')})", "{{pool}}"),
                Query(f"max({metric('desired_workers')})", "desired"),
                Query(f"max({metric('workers_limit')})", "limit"),
            ),
            width=12,
        ),
        Panel(
            "Steps by worker",
            "`safelight_steps_total`: how even the work is. Workers pull, so one that does less is slower, or has just "
            "come.",
            "ops",
            (Query(total("steps_total", "instance"), "{{instance}}"),),
            Kind.STACK,
            width=12,
        ),
        Panel(
            "Running by worker",
            "`safelight_requests_running`: requests that have started and not ended.",
            "short",
            (Query(f"sum by (instance) ({metric('requests_running')})", "{{instance}}"),),
            width=12,
        ),
        Panel(
            "Waiting and age of the oldest",
            "`safelight_queue_depth`, `safelight_queue_oldest_age_seconds`: each API tells of the whole queue.",
            "short",
            (
                Query(f"sum(max by (priority) ({metric('queue_depth')}))", "waiting"),
                Query(f"max({metric('queue_oldest_age_seconds')})", "seconds of the oldest"),
            ),
            width=12,
        ),
    )


def _trouble() -> tuple[Panel, ...]:
    return (
        Panel(
            "Dead letters",
            "`safelight_requests_total`: jobs that were given up after several workers had failed. Good: none.",
            "short",
            (Query(f"sum(increase({metric('requests_total', DEAD)}[$__range]))", "given up"),),
            Kind.STAT,
            steps=((1, ORANGE),),
        ),
        Panel(
            "Steps of jobs that went to another worker",
            "`safelight_wasted_steps_total`, reason `moved`: made by a worker that had to leave, or was thought lost.",
            "ops",
            (Query(total("wasted_steps_total", more='reason="moved"'), "moved"),),
        ),
        Panel(
            "Restarts of engines",
            "`safelight_engine_restarts_total`: engines that died; their jobs run again.",
            "short",
            (Query(f"sum by (instance) (increase({metric('engine_restarts_total')}[$__range]))", "{{instance}}"),),
            steps=((1, ORANGE),),
        ),
    )
