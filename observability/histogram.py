"""A histogram of which a scrape costs little.

prometheus_client's own makes the name, the labels and the bound of every bucket anew at each scrape, twice, and looks
for a value's bucket one by one. Most series of the service are buckets.
"""

import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from threading import Lock

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar, Sample
from prometheus_client.utils import floatToGoString


class Buckets:
    """The values of one combination of labels. May be used from any thread."""

    def __init__(self, name: str, labels: Mapping[str, str], bounds: Sequence[float]) -> None:
        self._name, self._labels, self._bounds = name, dict(labels), bounds
        limits = [floatToGoString(each) for each in (*bounds, float("inf"))]  # type: ignore[no-untyped-call]
        self._of_buckets = [{**labels, "le": limit} for limit in limits]
        self._counts = [0] * len(limits)
        self._exemplars: list[Exemplar | None] = [None] * len(limits)
        self._sum = 0.0
        self._lock = Lock()

    def observe(self, value: float, exemplar: Mapping[str, str] | None = None) -> None:
        """Count `value` in the bucket with the least bound that is not below it, and remember whose it was."""
        bucket = bisect_left(self._bounds, value)
        with self._lock:
            self._counts[bucket] += 1
            self._sum += value
            if exemplar is not None:
                self._exemplars[bucket] = Exemplar(dict(exemplar), value, time.time())

    def samples(self) -> Iterator[Sample]:
        """Every bucket with those below it, the count and the sum, all of one moment."""
        with self._lock:
            counts, exemplars, total = list(accumulate(self._counts)), list(self._exemplars), self._sum
        name = f"{self._name}_bucket"
        for labels, count, exemplar in zip(self._of_buckets, counts, exemplars, strict=True):
            yield Sample(name, labels, count, None, exemplar)
        yield Sample(f"{self._name}_count", self._labels, counts[-1])
        yield Sample(f"{self._name}_sum", self._labels, total)


class Histogram(Collector):
    """Values in buckets, by labels; a bucket's bound is the largest value that it counts."""

    def __init__(
        self, name: str, text: str, labels: Iterable[str], bounds: Sequence[float], registry: CollectorRegistry
    ) -> None:
        self._name, self._text = name, text
        self._labels, self._bounds = tuple(labels), tuple(bounds)
        self._children: dict[tuple[str, ...], Buckets] = {}
        if not self._labels:
            self.labels()
        registry.register(self)

    def labels(self, *values: str) -> Buckets:
        """The buckets of these values of the labels, in their order."""
        child = self._children.get(values)
        if child is None:
            labels = {name: str(value) for name, value in zip(self._labels, values, strict=True)}
            child = self._children.setdefault(values, Buckets(self._name, labels, self._bounds))
        return child

    def observe(self, value: float, exemplar: Mapping[str, str] | None = None) -> None:
        """For one without labels: see `Buckets.observe`."""
        self.labels().observe(value, exemplar)

    def describe(self) -> Iterator[Metric]:
        """What the registry needs to see that a name is taken."""
        yield Metric(self._name, self._text, "histogram")

    def collect(self) -> Iterator[Metric]:
        """All samples of a scrape."""
        metric = Metric(self._name, self._text, "histogram")
        metric.samples = [sample for child in tuple(self._children.values()) for sample in child.samples()]
        yield metric
