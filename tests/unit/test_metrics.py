"""Metrics are made from events alone, under their canonical names."""

import pytest
from prometheus_client import CollectorRegistry

from observability import events
from observability.events import Outcome, Priority, Reason, Source, Stage, WorkClass
from observability.metrics import Metrics
from observability.observer import FanOut
from tests.support.build import Recorder

CANONICAL = {
    "requests",
    "request_duration_seconds",
    "queue_wait_seconds",
    "queue_depth",
    "queue_oldest_age_seconds",
    "batch_size",
    "batch_slots",
    "admission_delay_seconds",
    "estimate_error_ratio",
    "step_duration_seconds",
    "stage_duration_seconds",
    "steps",
    "images",
    "wasted_steps",
    "oom_splits",
    "cache_lookups",
    "engine_last_step_timestamp_seconds",
}


@pytest.fixture
def registry() -> CollectorRegistry:
    """A registry of the test's own."""
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    """The metrics, with a clock that stands at 100 s."""
    return Metrics(registry, clock=lambda: 100.0)


def test_the_canonical_names_are_there(registry: CollectorRegistry, metrics: Metrics) -> None:
    """Each with a help text."""
    families = {family.name.removeprefix("safelight_"): family for family in registry.collect()}
    assert set(families) >= CANONICAL
    assert all(family.documentation for family in families.values())
    assert metrics is not None


def test_a_completed_request_is_counted_and_timed(registry: CollectorRegistry, metrics: Metrics) -> None:
    """A failed one is counted with its reason and leaves the latency alone."""
    finished = events.RequestFinished(
        Outcome.COMPLETED, Reason.NONE, Source.USER, WorkClass.S_STANDARD, seconds=1.5, images=2
    )
    metrics.observe(finished)
    metrics.observe(
        events.RequestFinished(Outcome.FAILED, Reason.MODEL_ERROR, Source.USER, WorkClass.S_STANDARD, 9.0, images=1)
    )

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"safelight_{name}", labels)

    assert value("requests_total", outcome="completed", reason="none", source="user") == 1
    assert value("requests_total", outcome="failed", reason="model_error", source="user") == 1
    assert value("request_duration_seconds_sum", work_class="s_standard", source="user") == 1.5
    assert value("images_total") == 2


def test_the_age_of_the_oldest_request_grows_by_itself(registry: CollectorRegistry, metrics: Metrics) -> None:
    """It is computed when it is looked at; an empty queue has age 0."""
    metrics.observe(events.QueueChanged({Priority.HIGH: 2}, oldest_at=60.0))
    assert registry.get_sample_value("safelight_queue_oldest_age_seconds") == 40.0
    assert registry.get_sample_value("safelight_queue_depth", {"priority": "high"}) == 2
    metrics.observe(events.QueueChanged({Priority.HIGH: 0}, oldest_at=None))
    assert registry.get_sample_value("safelight_queue_oldest_age_seconds") == 0.0


def test_a_step_is_counted_once_a_picture(registry: CollectorRegistry, metrics: Metrics) -> None:
    """The batch-size histogram counts requests, the steps count pictures."""
    members = (("a", 0), ("a", 0), ("b", 7), ("c", 3), ("c", 4))
    metrics.observe(events.BatchStepped(members, rows=10, size=(64, 64), seconds=0.2))
    assert registry.get_sample_value("safelight_batch_size_sum") == 3
    assert registry.get_sample_value("safelight_steps_total") == 5
    assert registry.get_sample_value("safelight_step_duration_seconds_sum") == 0.2


def test_every_kind_of_event_can_be_taken(metrics: Metrics) -> None:
    """None raises."""
    for event in (
        events.RequestRejected(Reason.QUEUE_FULL, Source.USER),
        events.RequestStarted(Priority.LOW, 0.1),
        events.StageFinished(Stage.STORE, 0.1),
        events.StepsWasted(Reason.DISCONNECTED, 4),
        events.OutOfMemorySplit(Stage.DENOISE, (64, 64), 2),
        events.CacheLookedUp(events.Cache.RESPONSE, events.CacheResult.HIT),
        events.EngineReady(events.Batching.CONTINUOUS, 8, 1.0, 0.5),
        events.EngineLost(),
    ):
        metrics.observe(event)
    assert metrics is not None


@pytest.mark.parametrize(
    ("pixels", "steps", "work_class"),
    [
        (128 * 128, 4, WorkClass.S_FEW),
        (512 * 512, 20, WorkClass.S_STANDARD),
        (512 * 513, 8, WorkClass.M_FEW),
        (1024 * 1024, 31, WorkClass.M_MANY),
        (1025 * 1024, 30, WorkClass.L_STANDARD),
    ],
)
def test_work_classes_meet_at_their_edges(pixels: int, steps: int, work_class: WorkClass) -> None:
    """Size and steps each fall in one class."""
    assert WorkClass.of(pixels, steps) is work_class


def test_one_observer_that_fails_does_not_silence_the_others() -> None:
    """The caller does not see the error either."""

    class Broken:
        def observe(self, event: events.Event) -> None:
            raise RuntimeError(event)

    recorder = Recorder()
    FanOut([Broken(), recorder]).observe(events.EngineLost())
    assert recorder.events == [events.EngineLost()]
