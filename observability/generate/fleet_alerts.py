"""Alerts about a fleet: who works in it, and what all of it stands on. Without a queue nothing here has data."""

from observability.generate.alert import Alert, Case, Group, Severity, Team

API = 'instance="api:9000"'
WORKERS = f'safelight_workers{{{API}, pool="on_demand"}}'
THERE = "max(sum by (instance) (safelight_workers))"
DESIRED = f"safelight_desired_workers{{{API}}}"
WAITING = "service:requests_waiting:sum"
LIMIT = f"safelight_workers_limit{{{API}}}"


def groups() -> tuple[Group, ...]:
    """All of them."""
    return (
        Group("workers", (_none(), _missing(), _at_maximum(), _dead_letters())),
        Group("dependencies", (_queue(), _database(), _storage())),
    )


def _none() -> Alert:
    return Alert(
        "NoWorkers",
        Severity.CRITICAL,
        subject="workers",
        dashboard="fleet",
        summary="Nobody makes pictures",
        description="No worker has said for a minute that it is there; jobs are accepted and wait.",
        expr=f"{THERE} == 0",
        hold="1m",
        fires=Case({WORKERS: "2x4 0x40"}, at="4m"),
        silent=Case({WORKERS: "2x4 0x2 1x40"}, at="4m"),
    )


def _missing() -> Alert:
    return Alert(
        "WorkersMissing",
        Severity.WARNING,
        subject="workers",
        dashboard="fleet",
        team=Team.PLATFORM,
        summary="There are fewer workers than there should be",
        description="{{ $value | humanize }} workers have been missing for 10 minutes; one takes five to come.",
        expr=f"max(safelight_desired_workers) - {THERE} > 0",
        hold="10m",
        fires=Case({WORKERS: "2x100", DESIRED: "3x100"}, at="14m"),
        silent=Case({WORKERS: "2x20 3x100", DESIRED: "3x100"}, at="14m"),
    )


def _at_maximum() -> Alert:
    return Alert(
        "WorkersAtMaximum",
        Severity.WARNING,
        subject="workers-maximum",
        dashboard="fleet",
        summary="The fleet cannot grow any more",
        description="For 15 minutes work has waited for all {{ $value | humanize }} workers that there may be.",
        expr=(
            "max(safelight_desired_workers) >= max(safelight_workers_limit) > 0\n"
            "and on () min_over_time(service:requests_waiting:sum[5m]) > 0"  # a fixed number is always at its limit
        ),
        hold="15m",
        fires=Case({DESIRED: "4x100", LIMIT: "4x100", WAITING: "2x100"}, at="22m"),
        silent=Case({DESIRED: "4x100", LIMIT: "4x100", WAITING: "0x100"}, at="22m"),
    )


def _dead_letters() -> Alert:
    dead = f'safelight_requests_total{{{API}, outcome="failed", reason="dead_letter", source="user"}}'
    return Alert(
        "DeadLetters",
        Severity.WARNING,
        subject="dead-letters",
        dashboard="fleet",
        summary="Jobs were given up after several workers had failed",
        description="{{ $value | humanize }} jobs of the last 30 minutes are dead letters; all can be asked for again.",
        expr='round(sum(increase(safelight_requests_total{outcome="failed", reason="dead_letter"}[30m]))) > 0',
        fires=Case({dead: "0x10 1x40"}, at="5m"),
        silent=Case({dead: "3x50"}, at="5m"),
    )


def _away(name: str, dependency: str, what: str, consequence: str) -> Alert:
    up = f'safelight_dependency_up{{{API}, dependency="{dependency}"}}'
    return Alert(
        name,
        Severity.CRITICAL,
        subject=f"{dependency}-away",
        dashboard="fleet",
        team=Team.PLATFORM,
        summary=f"{what} cannot be used",
        description=f"No process of the fleet has been able to use it for a minute. {consequence}",
        expr=f'max(safelight_dependency_up{{dependency="{dependency}"}}) == 0',
        hold="1m",
        fires=Case({up: "1x4 0x40"}, at="4m"),
        silent=Case({up: "1x4 0x2 1x40"}, at="4m"),
    )


def _queue() -> Alert:
    return _away("QueueDown", "queue", "The queue in Redis", "Requests are refused; what workers have goes on.")


def _database() -> Alert:
    return _away("DatabaseDown", "database", "The database of jobs", "Requests are refused, and no job can end.")


def _storage() -> Alert:
    return _away("StorageDown", "storage", "The store of pictures", "Requests are refused; workers take nothing more.")
