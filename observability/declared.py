"""How metrics are declared: name, help, labels whose values come from enums, buckets; and what a declaration costs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import product
from math import prod

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.metrics import MetricWrapperBase

from observability.histogram import Histogram

PREFIX = "safelight_"

Labels = Mapping[str, type[StrEnum]]
NO_LABELS: Labels = {}
Series = Iterable[tuple[StrEnum, ...]]


@dataclass(frozen=True, slots=True)
class Declared:
    """One metric, under the name that it has in queries; `kind` is Prometheus' own word for it."""

    name: str
    kind: str
    text: str
    labels: Labels
    buckets: tuple[float, ...] = ()
    series: int | None = None  # combinations of label values, unless that is all

    @property
    def most_series(self) -> int:
        """Series that it can have at most: of a histogram, every bucket, the last, the sum and the count."""
        each = len(self.buckets) + 3 if self.buckets else 1
        combinations = prod(len(values) for values in self.labels.values()) if self.series is None else self.series
        return each * combinations


class Declarations:
    """Makes metrics in `registry` and remembers what was declared.

    Every series exists from the start, so that a rate sees its first increase; unless told otherwise, those are all
    combinations of the labels' values.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.declared: list[Declared] = []
        self._registry = registry

    def counter(self, name: str, text: str, labels: Labels = NO_LABELS, series: Series | None = None) -> Counter:
        """A counter; `name` ends in `_total`. `series` are the label values that there are."""
        made = Counter(PREFIX + name, text, list(labels), registry=self._registry)
        known = None if series is None else list(series)
        declared = Declared(PREFIX + name, "counter", text, labels, series=None if known is None else len(known))
        self._remember(made, declared, known)
        return made

    def gauge(self, name: str, text: str, labels: Labels = NO_LABELS, first: Series | None = None) -> Gauge:
        """A gauge. If `first` is given, only that exists from the start."""
        made = Gauge(PREFIX + name, text, list(labels), registry=self._registry)
        self._remember(made, Declared(PREFIX + name, "gauge", text, labels), first)
        return made

    def histogram(
        self,
        name: str,
        text: str,
        buckets: Sequence[float],
        labels: Labels = NO_LABELS,
        first: Series | None = None,
    ) -> Histogram:
        """A histogram; a bucket's bound is the largest value that it counts. Only `first` exist from the start."""
        made = Histogram(PREFIX + name, text, labels, buckets, self._registry)
        self._remember(made, Declared(PREFIX + name, "histogram", text, labels, tuple(buckets)), first)
        return made

    def _remember(self, made: MetricWrapperBase | Histogram, declared: Declared, series: Series | None = None) -> None:
        self.declared.append(declared)
        if declared.labels:
            for values in product(*declared.labels.values()) if series is None else series:
                made.labels(*values)
