"""The service level objectives, as data, and how well one process has kept them since it started."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from prometheus_client.core import Metric
from pydantic import BaseModel, ConfigDict, Field, model_validator

from observability.declared import PREFIX
from observability.labels import ENDINGS, Outcome, Priority, Reason, Source, WorkClass
from observability.metrics import REQUEST_SECONDS, WAIT_SECONDS

FILE = Path(__file__).with_name("slo.yaml")

# Cancelled requests are neither: their clients did not want them any more. Nor are those refused because even
# alone they would take longer than their clients gave.
GOOD = ((Outcome.COMPLETED, Reason.NONE),)
BAD = tuple(
    (outcome, reason)
    for outcome in (Outcome.FAILED, Outcome.EXPIRED, Outcome.REJECTED)
    for reason in ENDINGS[outcome]
    if (outcome, reason) != (Outcome.REJECTED, Reason.DEADLINE)
)

Share = Annotated[float, Field(gt=0, lt=1)]
Duration = Annotated[str, Field(pattern=r"^\d+[smhd]$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BurnRate(_Strict):
    """Alert when the budget goes `factor` times too fast over both windows."""

    factor: float = Field(gt=0)
    long: Duration
    short: Duration
    severity: Literal["critical", "warning"]


class Range(_Strict):
    """Where a ratio should be."""

    at_least: float = Field(0.0, alias="from", ge=0, le=1)
    at_most: float = Field(alias="to", ge=0, le=1)


class Saturation(_Strict):
    """Targets of a GPU."""

    utilization: Range
    memory: Range


class Limits(_Strict):
    """Thresholds of the alerts that are not about objectives; what each is for stands in the file."""

    failing_ratio: Share
    error_ratio: Share
    failing_requests: int = Field(gt=0)
    failures_an_hour: int = Field(gt=0)
    low_traffic: int = Field(gt=0)
    latency_p99: float = Field(gt=0)
    queue_depth: int = Field(gt=0)
    queue_age: Duration
    deadline_refusals: Share
    stalled: Duration
    drain: Duration
    wasted_steps: Share
    loop_lag: float = Field(gt=0)
    cost_per_1000_images: float = Field(gt=0)
    probe_silent: Duration
    gpu_saturated: Share
    gpu_idle: Share
    gpu_memory: Share
    gpu_celsius: int = Field(gt=0)
    gpu_throttled: Share
    container_memory: Share
    container_throttled: Share
    disk_free: Share
    disk_full: Share
    host_memory_free: Share
    scrape: float = Field(gt=0)


class Links(_Strict):
    """Where dashboards and runbooks are found, without a slash at the end."""

    dashboards: str = Field(pattern=r"^https?://.*[^/]$")
    runbooks: str = Field(pattern=r"^https?://.*[^/]$")


class Availability(_Strict):
    """Of all requests, those that are completed."""

    kind: Literal["availability"]
    description: str
    objective: Share

    def counts(self, samples: "Samples") -> "Counts":
        """Good and all requests of users so far."""
        good, bad = (samples.sum("requests_total", _of_users(each)) for each in (GOOD, BAD))
        return Counts(good, good + bad)


class _Timed(_Strict):
    """Of all events in a histogram, those in the buckets up to `threshold` seconds."""

    description: str
    objective: Share
    threshold: float

    def _counts(self, samples: "Samples", histogram: str, labels: Sequence[dict[str, str]]) -> "Counts":
        upto = [{**each, "le": str(self.threshold)} for each in labels]
        return Counts(samples.sum(f"{histogram}_bucket", upto), samples.sum(f"{histogram}_count", labels))

    def _check_edge(self, buckets: Sequence[float]) -> Self:
        if self.threshold not in buckets:
            raise ValueError(
                f"the threshold {self.threshold:g} is no edge of the buckets {', '.join(map(str, buckets))}"
            )
        return self


class Latency(_Timed):
    """Of completed requests of these classes, those that were fast enough."""

    kind: Literal["latency"]
    work_classes: tuple[WorkClass, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def check(self) -> Self:
        """A histogram knows nothing between its edges."""
        return self._check_edge(REQUEST_SECONDS)

    def counts(self, samples: "Samples") -> "Counts":
        """Good and all requests of users so far."""
        labels = [{"work_class": each.value, "source": Source.USER.value} for each in self.work_classes]
        return self._counts(samples, "request_duration_seconds", labels)


class QueueWait(_Timed):
    """Of started requests of these priorities, those that started soon enough."""

    kind: Literal["queue_wait"]
    priorities: tuple[Priority, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def check(self) -> Self:
        """A histogram knows nothing between its edges."""
        return self._check_edge(WAIT_SECONDS)

    def counts(self, samples: "Samples") -> "Counts":
        """Good and all requests so far."""
        return self._counts(samples, "queue_wait_seconds", [{"priority": each.value} for each in self.priorities])


Objective = Annotated[Availability | Latency | QueueWait, Field(discriminator="kind")]


class Objectives(_Strict):
    """The whole file."""

    window_days: int = Field(gt=0)
    minimum_events: int = Field(gt=0)
    burn_rates: tuple[BurnRate, ...] = Field(min_length=1)
    saturation: Saturation
    limits: Limits
    links: Links
    profiles: Mapping[str, Mapping[str, Objective]] = Field(min_length=1)

    @model_validator(mode="after")
    def check_burn_rates(self) -> Self:
        """Even if everything fails, a budget cannot be spent faster than at 1 / (1 - objective)."""
        fastest = max(each.factor for each in self.burn_rates)
        for profile, objectives in self.profiles.items():
            for name, objective in objectives.items():
                if fastest * (1 - objective.objective) > 1:
                    raise ValueError(f"{profile}.{name}: a burn rate of {fastest:g} can never be reached")
        return self


class Samples:
    """The values of some metrics at one moment."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._values = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
        }

    def sum(self, name: str, labels: Sequence[dict[str, str]]) -> float:
        """The values of `name` with each of these labels together; one that is not there is 0."""
        return sum(self._values.get((PREFIX + name, frozenset(each.items())), 0.0) for each in labels)


@dataclass(frozen=True, slots=True)
class Counts:
    """Events that were as promised, of so many."""

    good: float
    total: float

    @property
    def attainment(self) -> float | None:
        """Their share; None without any."""
        return self.good / self.total if self.total else None

    def budget_left(self, objective: float) -> float | None:
        """The share of allowed failures that is not used up; below 0 when there were more."""
        return None if self.attainment is None else 1 - (1 - self.attainment) / (1 - objective)


def load(path: Path = FILE) -> Objectives:
    """The objectives of a file. Raises pydantic's `ValidationError`, which names what is wrong with it."""
    return Objectives.model_validate(yaml.safe_load(path.read_text()))


def _of_users(endings: Sequence[tuple[Outcome, Reason]]) -> list[dict[str, str]]:
    return [
        {"outcome": outcome.value, "reason": reason.value, "source": Source.USER.value} for outcome, reason in endings
    ]
