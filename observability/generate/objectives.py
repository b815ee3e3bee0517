"""From the objectives: shares of events that were not as promised, and alerts when a budget goes too fast."""

from collections.abc import Iterator, Mapping, Sequence

from observability.declared import PREFIX
from observability.generate.alert import Alert, Case, Group, Recording, Severity, Team
from observability.generate.rules import Scenario, matchers, merged
from observability.generate.selectors import BAD_REQUESTS, COUNTED_REQUESTS, any_of, selector, summed
from observability.generate.timing import seconds
from observability.labels import Source, WorkClass
from observability.slo import Availability, BurnRate, Latency, Objective, Objectives, QueueWait

BASE = "5m"
INTERVAL = "1m"  # of their evaluation
WINDOWS = ("30m", "1h", "2h", "6h", "1d", "3d")
HOLDS = {"critical": "2m", "warning": "15m"}
FAMILIES = {"availability": "Availability", "latency": "Latency", "queue_wait": "QueueWait"}


def groups(objectives: Objectives, profile: str) -> tuple[Group, ...]:
    """The rules of one profile."""
    named = objectives.profiles[profile]
    recordings = (
        *(rule for name, each in named.items() for rule in _events(name, each)),
        *_ratios(objectives.window_days),
    )
    alerts = tuple(
        _alert(name, each, rate, objectives) for name, each in named.items() for rate in objectives.burn_rates
    )
    return Group("objectives", recordings, interval=INTERVAL), Group("budgets", alerts)


def _events(name: str, objective: Objective) -> Iterator[Recording]:
    labels = {"slo": name}
    yield Recording("slo:objective:ratio", f"vector({objective.objective:g})", labels)
    yield Recording(f"slo:events:rate{BASE}", _rate(_all(objective)), labels)
    yield Recording(f"slo:errors:rate{BASE}", _errors(objective), labels)


def _ratios(days: int) -> Iterator[Recording]:
    """Of all objectives: shares of errors, and what they leave of the budgets."""
    yield Recording(f"slo:errors:ratio_rate{BASE}", f"slo:errors:rate{BASE} / (slo:events:rate{BASE} > 0)")
    for window in (*WINDOWS, f"{days}d"):
        # The ratio of two means: as exact as that of two counts, and cheap over a month.
        errors, events = (f"avg_over_time(slo:{each}:rate{BASE}[{window}])" for each in ("errors", "events"))
        yield Recording(f"slo:errors:ratio_rate{window}", f"{errors} / ({events} > 0)")
    yield Recording("slo:budget_left:ratio", f"1 - slo:errors:ratio_rate{days}d / (1 - slo:objective:ratio)")
    yield Recording("slo:budget_burn:rate1h", "slo:errors:ratio_rate1h / (1 - slo:objective:ratio)")


def _rate(selectors: Sequence[str]) -> str:
    return summed("rate", selectors, BASE)


def _all(objective: Objective) -> Sequence[str]:
    match objective:
        case Availability():
            return COUNTED_REQUESTS
        case Latency(work_classes=classes):
            return [_durations("count", classes)]
        case QueueWait(priorities=priorities):
            return [selector("queue_wait_seconds_count", priority=any_of(priorities))]


def _errors(objective: Objective) -> str:
    match objective:
        case Availability():
            return _rate(BAD_REQUESTS)
        case Latency(work_classes=classes, threshold=threshold):
            fast = _durations("bucket", classes, le=str(threshold))
            return f"{_rate(_all(objective))} - {_rate([fast])}"
        case QueueWait(priorities=priorities, threshold=threshold):
            fast = selector("queue_wait_seconds_bucket", priority=any_of(priorities), le=str(threshold))
            return f"{_rate(_all(objective))} - {_rate([fast])}"


def _durations(part: str, classes: Sequence[WorkClass], **more: str) -> str:
    return selector(f"request_duration_seconds_{part}", source=Source.USER.value, work_class=any_of(classes), **more)


def _alert(name: str, objective: Objective, rate: BurnRate, objectives: Objectives) -> Alert:
    of = f'{{slo="{name}"}}'
    limit = f"{rate.factor:g} * {1 - objective.objective:.4g}"
    return Alert(
        name=f"{FAMILIES[objective.kind]}BudgetBurn",
        severity=Severity(rate.severity),
        subject=name,
        team=Team.SERVICE,
        dashboard="overview",
        summary=f"The error budget of {name} goes {rate.factor:g} times too fast",
        description=(
            f"{objective.description} {{{{ $value | humanizePercentage }}}} of the last {rate.long} were not so; "
            f"{objective.objective:.4g} of all should be. At this rate the budget of {objectives.window_days} days "
            f"is spent in {_spent(objectives.window_days / rate.factor)}."
        ),
        expr=(
            f"slo:errors:ratio_rate{rate.long}{of} > {limit}\n"
            f"and slo:errors:ratio_rate{rate.short}{of} > {limit}\n"
            # A sum of what there is: a mean would make many events of few where history is short.
            f"and sum_over_time(slo:events:rate{BASE}{of}[{rate.long}]) * <{INTERVAL}> >= {objectives.minimum_events}"
        ),
        hold=HOLDS[rate.severity],
        labels={"slo": name, "window": rate.long},
        fires=_case(objective, rate, 1.3),
        silent=_case(objective, rate, 0.7),
    )


def _spent(days: float) -> str:
    return f"{days:.3g} days" if days >= 2 else f"{days * 24:.3g} hours"


def _case(objective: Objective, rate: BurnRate, share: float) -> Case:
    """A thousand events for each value, of which errors burn the budget at `share` of the rate of the alert."""
    errors = min(1.0, share * rate.factor * (1 - objective.objective))
    bad = round(1000 * errors)
    # Long enough for the shorter window, the hold, and a little more; a mean over less than its window is no other.
    minutes = seconds(rate.short) // 60 + seconds(HOLDS[rate.severity]) // 60 + 10
    every = "1m" if rate.severity == "critical" else "2m"  # what takes hours is looked at less often
    return Case(_events_of(objective, 1000 - bad, bad), at=f"{minutes}m", every=every)


def _events_of(objective: Objective, good: int, bad: int) -> dict[str, str]:
    """So many for each value; and others that do not count."""
    match objective:
        case Availability():
            return {
                _series("requests_total", outcome="completed", reason="none", source="user"): f"0+{good}x2000",
                _series("requests_total", outcome="failed", reason="model_error", source="user"): f"0+{bad}x2000",
                _series("requests_total", outcome="rejected", reason="deadline", source="user"): "0+5000x2000",
                _series("requests_total", outcome="failed", reason="model_error", source="probe"): "0+5000x2000",
            }
        case Latency(work_classes=classes, threshold=threshold):
            labels = {"work_class": classes[0].value, "source": "user"}
            return _histogram("request_duration_seconds", labels, threshold, good, good + bad)
        case QueueWait(priorities=priorities, threshold=threshold):
            return _histogram("queue_wait_seconds", {"priority": priorities[0].value}, threshold, good, good + bad)


def _histogram(metric: str, labels: Mapping[str, str], threshold: float, good: int, every: int) -> dict[str, str]:
    return {
        _series(f"{metric}_bucket", **labels, le=str(threshold)): f"0+{good}x2000",
        _series(f"{metric}_bucket", **labels, le="+Inf"): f"0+{every}x2000",
        _series(f"{metric}_count", **labels): f"0+{every}x2000",
    }


def _series(metric: str, **labels: str) -> str:
    found = ", ".join(f'{name}="{value}"' for name, value in labels.items())
    return f"{PREFIX}{metric}{{{found}}}"


def scenarios(objectives: Objectives, profile: str, alerts: Sequence[Alert]) -> Iterator[Scenario]:
    """Of each burn rate two, for all objectives at once: a little faster than it, and a little slower."""
    for rate in objectives.burn_rates:
        found = [each for each in alerts if each.labels["window"] == rate.long]
        for is_firing in (True, False):
            word = "faster" if is_firing else "slower"
            yield merged(f"errors that burn the budget {word} than {rate.factor:g} times", found, is_firing)
    # Few events, all of them errors, and no history.
    young = {
        name: values
        for each in objectives.profiles[profile].values()
        for name, values in _events_of(each, 0, 1).items()
    }
    yield Scenario("a few errors at the start", Case(young, "12m", "1m"), {matchers(each): False for each in alerts})
