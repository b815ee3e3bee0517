"""Recording rules about the service: what its dashboards and alerts have in common."""

from observability.generate.alert import Group, Recording
from observability.generate.selectors import BAD_REQUESTS, COUNTED_REQUESTS, summed

USERS = 'source="user"'
QUANTILES = ("0.5", "0.95", "0.99")


def _ratio(window: str) -> Recording:
    return Recording(
        f"service:requests_bad:ratio_rate{window}",
        f"{summed('rate', BAD_REQUESTS, window)}\n/ ({summed('rate', COUNTED_REQUESTS, window)} > 0)",
    )


def _quantiles(histogram: str, where: str = "") -> tuple[Recording, ...]:
    return tuple(
        Recording(
            f"service:{histogram}:quantile_rate5m",
            f"histogram_quantile({each}, sum by (le) (rate(safelight_{histogram}_bucket{where}[5m])))",
            {"quantile": each},
        )
        for each in QUANTILES
    )


def _mean(level: str, metric: str) -> str:
    by = f"sum by ({level})" if level else "sum"
    return f"{by} (rate(safelight_{metric}_sum[5m]))\n/ ({by} (rate(safelight_{metric}_count[5m])) > 0)"


def groups() -> tuple[Group, ...]:
    """All of them."""
    requests = (
        Recording("service:requests:rate5m", f"sum by (outcome) (rate(safelight_requests_total{{{USERS}}}[5m]))"),
        Recording("service:requests_counted:increase5m", summed("increase", COUNTED_REQUESTS, "5m")),
        Recording("service:requests_counted:increase1h", summed("increase", COUNTED_REQUESTS, "1h")),
        Recording("service:requests_bad:increase1h", summed("increase", BAD_REQUESTS, "1h")),
        _ratio("1m"),
        _ratio("5m"),
        *_quantiles("request_duration_seconds", f"{{{USERS}}}"),
        *_quantiles("queue_wait_seconds"),
        Recording(
            "service:requests_deadline_refused:ratio_rate15m",
            f'sum(rate(safelight_requests_total{{{USERS}, outcome="rejected", reason=~"deadline|overloaded"}}[15m]))\n'
            f"/ (sum(rate(safelight_requests_total{{{USERS}}}[15m])) > 0)",
        ),
    )
    engine = (
        # Each API of a fleet tells of the whole queue.
        Recording("service:requests_waiting:sum", "sum(max by (priority) (safelight_queue_depth))"),
        Recording(
            "instance:requests_in_work:sum",
            "sum by (instance) (safelight_queue_depth) + on (instance) sum by (instance) (safelight_requests_running)",
        ),
        Recording("instance:batch_pictures:mean_rate5m", _mean("instance", "batch_pictures")),
        Recording("instance:batch_occupancy:mean_rate5m", _mean("instance", "batch_occupancy_ratio")),
        Recording("instance:step_duration_seconds:mean_rate5m", _mean("instance", "step_duration_seconds")),
        Recording("service:admission_delay_seconds:mean_rate5m", _mean("", "admission_delay_seconds")),
        Recording("service:steps:rate5m", "sum(rate(safelight_steps_total[5m]))"),
        Recording("service:images:rate5m", "sum(rate(safelight_images_total[5m]))"),
        Recording(
            "service:wasted_steps:ratio_rate30m",
            "sum(rate(safelight_wasted_steps_total[30m])) / (sum(rate(safelight_steps_total[30m])) > 0)",
        ),
        *(
            Recording(
                f"service:cache_hits:ratio_rate{window}",
                f'sum(rate(safelight_cache_lookups_total{{cache="response", result!="miss"}}[{window}]))\n'
                f'/ (sum(rate(safelight_cache_lookups_total{{cache="response"}}[{window}])) > 0)',
            )
            for window in ("30m", "1d")
        ),
        Recording(
            "instance:event_loop_lag_seconds:p99_rate5m",
            "histogram_quantile(0.99, sum by (instance, le) (rate(safelight_event_loop_lag_seconds_bucket[5m])))",
        ),
    )
    return Group("requests", requests), Group("engine", engine), Group("cost", _cost())


def _cost() -> tuple[Recording, ...]:
    return (
        Recording("service:gpu_dollars_per_hour:sum", "sum(safelight_gpu_dollars_per_hour)"),
        Recording(
            "service:cost_per_1000_images:dollars_1h",
            # A mean of rates: a rate over the hour would take what came before the first scrape for idle time.
            "1000 * sum(avg_over_time(safelight_gpu_dollars_per_hour[1h]))\n"
            "/ (sum(avg_over_time(service:images:rate5m[1h])) * 3600 > 0)",
        ),
        Recording(
            "service:batch_cost_per_1000_images:dollars_1h",
            "1000 / 3600 * avg(safelight_gpu_dollars_per_hour) * sum(rate(safelight_image_batch_seconds_total[1h]))\n"
            "/ (sum(rate(safelight_images_total[1h])) > 0)",
        ),
    )
