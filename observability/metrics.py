"""Every metric of the service, declared once, and the observer that fills them from events."""

import time
from collections.abc import Callable
from functools import singledispatchmethod
from itertools import product

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.registry import Collector

from observability import events
from observability.events import Event, Priority, Source, Stage, WorkClass

REQUEST_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 120.0, 300.0, 600.0)
WAIT_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
STAGE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
STEP_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0)
ERROR_RATIOS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0)
BATCH_SIZES = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 12.0, 16.0, 24.0, 32.0)


class Metrics:
    """The Prometheus metrics of one process, in a registry of their own."""

    def __init__(self, registry: CollectorRegistry, clock: Callable[[], float] = time.monotonic) -> None:
        def histogram(name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"safelight_{name}", text, labels, buckets=buckets, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"safelight_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"safelight_{name}", text, labels, registry=registry)

        self.requests = counter("requests_total", "Requests that ended, by outcome.", "outcome", "reason", "source")
        self.request_seconds = histogram(
            "request_duration_seconds",
            "Time from acceptance to completion of completed requests.",
            ("work_class", "source"),
            REQUEST_SECONDS,
        )
        self.queue_wait = histogram(
            "queue_wait_seconds", "Time from acceptance to the first batch.", ("priority",), WAIT_SECONDS
        )
        self.queue_depth = gauge("queue_depth", "Requests waiting for their first batch.", "priority")
        self.queue_age = gauge("queue_oldest_age_seconds", "Time the oldest waiting request has waited; 0 when none.")
        self.batch_size = histogram("batch_size", "Requests in the batch, at each denoising step.", (), BATCH_SIZES)
        self.batch_pictures = histogram("batch_pictures", "Pictures in the batch, at each step.", (), BATCH_SIZES)
        self.batch_slots = gauge("batch_slots", "Pictures that the engine can hold in one batch.")
        self.step_seconds = histogram("step_duration_seconds", "Time of one denoising step.", (), STEP_SECONDS)
        self.stage_seconds = histogram(
            "stage_duration_seconds", "Time of one stage of a batch or a request.", ("stage",), STAGE_SECONDS
        )
        self.admission_delay = histogram(
            "admission_delay_seconds",
            "Time from a picture's arrival, or a slot becoming free for it, to its first denoising step.",
            (),
            WAIT_SECONDS,
        )
        self.paused = counter("pictures_paused_total", "Pictures that lost their slots to more urgent ones.")
        self.resumed = counter("pictures_resumed_total", "Paused pictures that got a slot again.")
        self.steps = counter("steps_total", "Denoising steps, counted once a picture.")
        self.wasted_steps = counter("wasted_steps_total", "Steps whose result was thrown away.", "reason")
        self.images = counter("images_total", "Pictures delivered by completed requests that were not cache hits.")
        self.oom_splits = counter("oom_splits_total", "Batches split because they did not fit into memory.")
        self.estimate_error = histogram(
            "estimate_error_ratio",
            "Error of the estimated time of a completed request, over the time that it took.",
            (),
            ERROR_RATIOS,
        )
        self.batching = gauge("batching_mode", "1 for the way in which requests share batches.", "mode")
        self.cache_lookups = counter("cache_lookups_total", "Cache look-ups by result.", "cache", "result")
        self.last_step = gauge("engine_last_step_timestamp_seconds", "Unix time of the last denoising step; 0: none.")
        self.model_ready = gauge("model_ready", "1 while a warmed model is loaded.")
        self.model_load = gauge("model_load_seconds", "Time that loading the model took.")
        self.engine_restarts = counter("engine_restarts_total", "Times the engine process was lost and started anew.")
        self._clock = clock
        self._oldest_at: float | None = None
        self.queue_age.set_function(self._age_of_oldest)
        self._touch_label_values()

    def _touch_label_values(self) -> None:
        """Make every series of a small enum exist from the start, so that rates see the first increase."""
        for priority in Priority:
            self.queue_depth.labels(priority)
            self.queue_wait.labels(priority)
        for stage in Stage:
            self.stage_seconds.labels(stage)
        for work_class, source in product(WorkClass, Source):
            self.request_seconds.labels(work_class, source)
        for result in events.CacheResult:
            self.cache_lookups.labels(events.Cache.RESPONSE, result)
        for result in (events.CacheResult.HIT, events.CacheResult.MISS):
            self.cache_lookups.labels(events.Cache.PROMPT_EMBEDDING, result)
        for mode in events.Batching:
            self.batching.labels(mode)
        for source in Source:
            self.requests.labels(events.Outcome.COMPLETED, events.Reason.NONE, source)

    def _age_of_oldest(self) -> float:
        return 0.0 if self._oldest_at is None else self._clock() - self._oldest_at

    @singledispatchmethod
    def observe(self, event: Event) -> None:
        """Take one event; a kind without a metric is passed over."""

    @observe.register
    def _(self, event: events.RequestRejected) -> None:
        self.requests.labels(events.Outcome.REJECTED, event.reason, event.source).inc()

    @observe.register
    def _(self, event: events.RequestFinished) -> None:
        self.requests.labels(event.outcome, event.reason, event.source).inc()
        if event.outcome is events.Outcome.COMPLETED:
            self.request_seconds.labels(event.work_class, event.source).observe(event.seconds)
            self.images.inc(event.images)

    @observe.register
    def _(self, event: events.RequestStarted) -> None:
        self.queue_wait.labels(event.priority).observe(event.queue_wait)
        self.stage_seconds.labels(Stage.QUEUE_WAIT).observe(event.queue_wait)

    @observe.register
    def _(self, event: events.StageFinished) -> None:
        self.stage_seconds.labels(event.stage).observe(event.seconds)

    @observe.register
    def _(self, event: events.BatchStepped) -> None:
        self.batch_size.observe(event.requests)
        self.batch_pictures.observe(event.pictures)
        self.step_seconds.observe(event.seconds)
        self.steps.inc(event.pictures)
        self.last_step.set_to_current_time()

    @observe.register
    def _(self, event: events.PictureAdmitted) -> None:
        self.admission_delay.observe(event.seconds)

    @observe.register
    def _(self, event: events.PicturesPaused) -> None:
        self.paused.inc(event.pictures)

    @observe.register
    def _(self, event: events.PicturesResumed) -> None:
        self.resumed.inc(event.pictures)

    @observe.register
    def _(self, event: events.EstimateChecked) -> None:
        self.estimate_error.observe(abs(event.actual - event.predicted) / max(event.actual, 1e-9))

    @observe.register
    def _(self, event: events.StepsWasted) -> None:
        self.wasted_steps.labels(event.reason).inc(event.steps)

    @observe.register
    def _(self, event: events.OutOfMemorySplit) -> None:
        self.oom_splits.inc()

    @observe.register
    def _(self, event: events.CacheLookedUp) -> None:
        self.cache_lookups.labels(event.cache, event.result).inc()

    @observe.register
    def _(self, event: events.QueueChanged) -> None:
        for priority, depth in event.depths.items():
            self.queue_depth.labels(priority).set(depth)
        self._oldest_at = event.oldest_at

    @observe.register
    def _(self, event: events.EngineReady) -> None:
        self.batch_slots.set(event.slots)
        for mode in events.Batching:
            self.batching.labels(mode).set(mode is event.batching)
        self.model_load.set(event.load_seconds)
        self.model_ready.set(1)

    @observe.register
    def _(self, event: events.EngineLost) -> None:
        self.engine_restarts.inc()
        self.model_ready.set(0)


def new_registry() -> CollectorRegistry:
    """A registry with the standard process, platform and garbage-collector metrics in it."""
    from prometheus_client import GCCollector, PlatformCollector, ProcessCollector, disable_created_metrics

    disable_created_metrics()  # type: ignore[no-untyped-call]  # the library lacks the annotation
    registry = CollectorRegistry()
    collectors: tuple[type[Collector], ...] = (ProcessCollector, PlatformCollector, GCCollector)
    for collector in collectors:
        collector(registry=registry)  # type: ignore[call-arg]  # the base class does not declare the argument
    return registry
