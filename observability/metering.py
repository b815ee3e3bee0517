"""The observer that fills the metrics."""

import time
from collections.abc import Callable, Iterator
from functools import singledispatchmethod
from typing import Protocol

from prometheus_client import CollectorRegistry, Info
from prometheus_client.core import Metric

from observability import events
from observability.declared import PREFIX, Declarations
from observability.events import Event
from observability.labels import FAILURES, Batching, Cache, Outcome, Source, Stage
from observability.metrics import EngineMetrics, RequestMetrics, ServiceMetrics


class Exemplars(Protocol):
    """Finds the trace of a request, or of one of the requests of a flight; without either, of the code that runs now.

    None when it will not be exported for what is known of it: the seconds of a part of it, and whether it failed.
    """

    def __call__(self, request: str | None, seconds: float = 0.0, is_error: bool = False) -> dict[str, str] | None:
        """Its ids."""


def no_exemplars(request: str | None, seconds: float = 0.0, is_error: bool = False) -> None:
    """For metrics without traces."""


class Metrics:
    """The observer that makes metrics of events, in a registry of its own."""

    def __init__(
        self,
        registry: CollectorRegistry,
        exemplar: Exemplars = no_exemplars,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        make = Declarations(registry)
        self._requests = RequestMetrics(make)
        self._engine = EngineMetrics(make)
        self._service = ServiceMetrics(make)
        self.declared = tuple(make.declared)
        self._model = Info(f"{PREFIX}model", "The loaded model.", registry=registry)
        self._exemplar = exemplar
        self._clock = clock
        self._oldest_at: float | None = None
        self._requests.oldest_age.set_function(self._age_of_oldest)

    def indicators(self) -> Iterator[Metric]:
        """What objectives are read from."""
        for each in (self._requests.ended, self._requests.seconds, self._requests.wait):
            yield from each.collect()

    def _age_of_oldest(self) -> float:
        oldest_at = self._oldest_at  # once: this is the scrape's thread
        return 0.0 if oldest_at is None else self._clock() - oldest_at

    @singledispatchmethod
    def observe(self, event: Event) -> None:
        """Take one event; a kind without a metric is passed over."""

    @observe.register
    def _(self, event: events.ServiceStarted) -> None:
        self._requests.limit.set(event.queue_limit)
        self._service.dollars.set(event.gpu_dollars_per_hour)

    @observe.register
    def _(self, event: events.LoopLagged) -> None:
        self._service.lag.observe(event.seconds)

    @observe.register
    def _(self, event: events.ClientRetried) -> None:
        self._requests.retries.inc()

    @observe.register
    def _(self, event: events.RequestRejected) -> None:
        exemplar = self._exemplar(None)
        self._requests.ended.labels(Outcome.REJECTED, event.reason, event.source).inc(exemplar=exemplar)

    @observe.register
    def _(self, event: events.RequestFinished) -> None:
        requests, asked = self._requests, event.request
        exemplar = self._exemplar(asked.id, event.seconds, event.outcome in FAILURES)
        requests.ended.labels(event.outcome, event.reason, asked.source).inc(exemplar=exemplar)
        if event.outcome is not Outcome.COMPLETED:
            return
        requests.seconds.labels(asked.work_class, asked.source).observe(event.seconds, exemplar)
        requests.batch_seconds.inc(event.paid_seconds)
        if not event.cached:
            requests.images.inc(asked.images)
            requests.pixels.inc(asked.pixels)

    @observe.register
    def _(self, event: events.RequestStarted) -> None:
        asked, seconds = event.request, event.queue_wait
        exemplar = self._exemplar(asked.id, seconds)
        if asked.source is Source.USER:  # what an objective is made of
            self._requests.wait.labels(asked.priority).observe(seconds, exemplar)
        self._engine.stage_seconds.labels(Stage.QUEUE_WAIT).observe(seconds, exemplar)

    @observe.register
    def _(self, event: events.StageFinished) -> None:
        exemplar = None if event.flight is None else self._exemplar(event.flight, event.seconds)
        self._engine.stage_seconds.labels(event.stage).observe(event.seconds, exemplar)

    @observe.register
    def _(self, event: events.BatchStepped) -> None:
        engine = self._engine
        engine.batch_size.observe(event.requests)
        engine.batch_pictures.observe(event.pictures)
        engine.occupancy.observe(event.pictures / event.slots)
        engine.slots_now.set(event.slots)
        engine.starved.inc(event.seconds * min(event.waiting, max(0, event.slots - event.pictures)))
        engine.step_seconds.observe(event.seconds, self._exemplar(event.members[0][0], event.seconds))
        engine.steps.inc(event.pictures)
        engine.last_step.set_to_current_time()
        engine.peak.set(event.peak_bytes or 0)
        engine.predicted.set(event.predicted_bytes or 0)
        for field, pictures in event.passed_over.items():
            engine.passed_over.labels(field).inc(pictures)

    @observe.register
    def _(self, event: events.PictureAdmitted) -> None:
        self._engine.delay.observe(event.seconds, self._exemplar(event.flight, event.seconds))
        self._engine.delay_steps.observe(event.steps)

    @observe.register
    def _(self, event: events.PicturesPaused) -> None:
        self._engine.paused.inc(event.pictures)

    @observe.register
    def _(self, event: events.PicturesResumed) -> None:
        self._engine.resumed.inc(event.pictures)

    @observe.register
    def _(self, event: events.EstimateChecked) -> None:
        self._requests.estimate_error.observe(abs(event.actual - event.predicted) / max(event.actual, 1e-9))

    @observe.register
    def _(self, event: events.StepsWasted) -> None:
        self._engine.wasted_steps.labels(event.reason).inc(event.steps)
        self._engine.wasted_seconds.labels(event.reason).inc(event.seconds)

    @observe.register
    def _(self, event: events.OutOfMemorySplit) -> None:
        self._engine.splits.inc()

    @observe.register
    def _(self, event: events.CacheLookedUp) -> None:
        self._service.lookups.labels(event.cache, event.result).inc(event.lookups)
        self._service.saved.inc(event.seconds_saved)

    @observe.register
    def _(self, event: events.CacheResized) -> None:
        self._service.cache_bytes.labels(event.cache).set(event.bytes)

    @observe.register
    def _(self, event: events.QueueChanged) -> None:
        for priority, depth in event.depths.items():
            self._requests.depth.labels(priority).set(depth)
        self._requests.running.set(event.running)
        self._oldest_at = event.oldest_at

    @observe.register
    def _(self, event: events.WorkersSeen) -> None:
        for pool, count in event.counts.items():
            self._service.workers.labels(pool).set(count)

    @observe.register
    def _(self, event: events.WorkersWanted) -> None:
        self._service.desired_workers.set(event.count)
        self._service.workers_limit.set(event.most)

    @observe.register
    def _(self, event: events.DependenciesSeen) -> None:
        for dependency, is_there in event.are_there.items():
            self._service.dependencies.labels(dependency).set(is_there)

    @observe.register
    def _(self, _event: events.DrainStarted) -> None:
        self._service.draining.set(1)

    @observe.register
    def _(self, event: events.EngineReady) -> None:
        service = self._service
        self._engine.slots.set(event.slots)
        for mode in Batching:
            service.batching.labels(mode).set(mode is event.batching)
        service.load_seconds.set(event.load_seconds)
        service.warmup_seconds.set(event.warmup_seconds)
        service.ready.set(1)
        service.cache_bytes.labels(Cache.PROMPT_EMBEDDING).set(0)
        self._model.info(dict(event.model))

    @observe.register
    def _(self, event: events.EngineLost) -> None:
        self._service.restarts.inc()
        self._service.ready.set(0)
