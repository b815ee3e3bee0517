"""Metrics are made from events alone, under their canonical names."""

import re
from typing import get_args

import pytest
from prometheus_client import CollectorRegistry

from observability import events, labels
from observability.labels import Consumer, Outcome, Priority, Reason, Source, Stage, WorkClass
from observability.metering import Metrics
from observability.observer import FanOut
from tests.support import build

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
    "queue_limit",
    "requests_running",
    "batch_occupancy_ratio",
    "free_slot_seconds",
    "pictures_passed_over",
    "wasted_seconds",
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
    metrics.observe(build.finished(request=build.request(images=2), paid_seconds=0.4))
    metrics.observe(build.finished(cached=True))
    metrics.observe(build.finished(outcome=Outcome.FAILED, reason=Reason.MODEL_ERROR, seconds=9.0))

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"safelight_{name}", labels)

    assert value("requests_total", outcome="completed", reason="none", source="user") == 2
    assert value("requests_total", outcome="failed", reason="model_error", source="user") == 1
    assert value("request_duration_seconds_sum", work_class="s_standard", source="user") == 3.0
    assert value("images_total") == 2
    assert value("image_pixels_total") == 8192
    assert value("image_batch_seconds_total") == 0.4


def test_the_age_of_the_oldest_request_grows_by_itself(registry: CollectorRegistry, metrics: Metrics) -> None:
    """It is computed when it is looked at; an empty queue has age 0."""
    metrics.observe(events.QueueChanged({Priority.HIGH: 2}, oldest_at=60.0, running=3))
    assert registry.get_sample_value("safelight_queue_oldest_age_seconds") == 40.0
    assert registry.get_sample_value("safelight_queue_depth", {"priority": "high"}) == 2
    assert registry.get_sample_value("safelight_requests_running") == 3
    metrics.observe(events.QueueChanged({Priority.HIGH: 0}, oldest_at=None, running=0))
    assert registry.get_sample_value("safelight_queue_oldest_age_seconds") == 0.0


def test_a_step_is_counted_once_a_picture(registry: CollectorRegistry, metrics: Metrics) -> None:
    """The batch-size histogram counts requests, the steps count pictures."""
    members = (("a", 0), ("a", 0), ("b", 7), ("c", 3), ("c", 4))
    metrics.observe(build.step(*members, waiting=2))
    assert registry.get_sample_value("safelight_batch_size_sum") == 3
    assert registry.get_sample_value("safelight_steps_total") == 5
    assert registry.get_sample_value("safelight_step_duration_seconds_sum") == 0.2
    assert registry.get_sample_value("safelight_batch_occupancy_ratio_sum") == 5 / 8
    assert registry.get_sample_value("safelight_free_slot_seconds_total") == pytest.approx(2 * 0.2)


def test_a_full_batch_leaves_no_slot_free(registry: CollectorRegistry, metrics: Metrics) -> None:
    """Pictures that wait beside it are no sign of trouble."""
    metrics.observe(build.step(("a", 0), slots=1, waiting=9))
    assert registry.get_sample_value("safelight_free_slot_seconds_total") == 0.0


def test_pictures_that_could_not_join_are_counted_by_what_kept_them_apart(
    registry: CollectorRegistry, metrics: Metrics
) -> None:
    """The first field that differs is the label."""
    over = {labels.BatchField.STEPS: 3}
    metrics.observe(build.step(("a", 0), waiting=3, passed_over=over))
    assert registry.get_sample_value("safelight_pictures_passed_over_total", {"field": "steps"}) == 3
    assert registry.get_sample_value("safelight_pictures_passed_over_total", {"field": "size"}) == 0


def test_declared_series_are_bounded_by_their_enums(registry: CollectorRegistry, metrics: Metrics) -> None:
    """What exists from the start is at most what was declared."""
    counted = {
        family.name: sum(not sample.name.endswith("_created") for sample in family.samples)
        for family in registry.collect()
        if family.name != "safelight_model"
    }
    declared = {each.name.removesuffix("_total"): each.most_series for each in metrics.declared}
    assert set(counted) == set(declared)
    assert all(counted[name] <= most for name, most in declared.items())


def test_every_metric_is_made_from_some_event(registry: CollectorRegistry, metrics: Metrics) -> None:
    """Each kind of event can be taken, and no metric stays as it was."""
    over = {labels.BatchField.STEPS: 1}
    taken = (
        build.finished(request=build.request(images=2), paid_seconds=0.4),
        build.step(("a", 0), waiting=1, peak_bytes=5, predicted_bytes=6, passed_over=over),
        events.QueueChanged({Priority.HIGH: 2}, oldest_at=60.0, running=3),
        events.DrainStarted(),
        events.ServiceStopped(),
        events.RequestRejected(Reason.QUEUE_FULL, Source.USER),
        events.RequestAccepted(build.request(), "a"),
        events.RequestStarted(build.request(), 0.1),
        events.RequestLeft("a"),
        events.StageFinished(Stage.STORE, 0.1),
        events.ServiceStarted(100, 1.5),
        events.LoopLagged(0.01),
        events.ClientRetried(),
        events.PictureAdmitted(0.1, 1, "a"),
        events.PicturesPaused(1),
        events.PicturesResumed(1),
        events.StepsWasted(Reason.DISCONNECTED, 4, 0.5),
        events.OutOfMemorySplit(Stage.DENOISE, (64, 64), 2),
        events.CacheLookedUp(labels.Cache.RESPONSE, labels.CacheResult.HIT, seconds_saved=1.0),
        events.CacheResized(labels.Cache.RESPONSE, 1000),
        events.EstimateChecked(1.0, 2.0),
        events.WorkersSeen({labels.Pool.SPOT: 2}),
        events.WorkersWanted(3, 4),
        events.DependenciesSeen({labels.Dependency.QUEUE: True}),
        events.EngineReady(labels.Batching.CONTINUOUS, 8, 1.0, 0.5, {"name": "tiny"}),
    )
    assert {*map(type, taken), events.EngineLost} == set(get_args(events.Event))
    for event in taken:
        metrics.observe(event)

    def moved() -> set[str]:
        samples = [sample for family in registry.collect() for sample in family.samples]
        return {re.sub("_(count|bucket|sum)$", "", sample.name) for sample in samples if sample.value}

    still = {each.name for each in metrics.declared} - moved()
    metrics.observe(events.EngineLost())
    assert still - moved() == set()


def test_observations_carry_the_ids_of_their_traces(registry: CollectorRegistry) -> None:
    """As exemplars, of those that the traces know and will export."""

    def exemplar(request: str | None, seconds: float = 0.0, is_error: bool = False) -> dict[str, str] | None:
        return {"trace_id": str(request)} if seconds >= 1.0 or is_error or request is None else None

    metrics = Metrics(registry, exemplar)
    metrics.observe(events.RequestStarted(build.request("quick"), 0.5))
    metrics.observe(events.RequestStarted(build.request("slow"), 2.0))
    metrics.observe(build.finished("good"))
    metrics.observe(build.finished("late", Outcome.EXPIRED, reason=Reason.DEADLINE, seconds=0.0))
    metrics.observe(events.RequestRejected(Reason.QUEUE_FULL, Source.USER))
    found = {
        (sample.name.removeprefix("safelight_"), sample.exemplar.labels["trace_id"])
        for family in registry.collect()
        for sample in family.samples
        if sample.exemplar is not None
    }
    assert found == {
        ("queue_wait_seconds_bucket", "slow"),
        ("stage_duration_seconds_bucket", "slow"),
        ("request_duration_seconds_bucket", "good"),
        ("requests_total", "good"),
        ("requests_total", "late"),
        ("requests_total", "None"),
    }


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

    recorder = build.Recorder()
    errors: list[Consumer] = []
    observers = {Consumer.LOGS: Broken(), Consumer.TRACES: recorder}
    FanOut(observers, errors.append).observe(events.EngineLost())
    assert recorder.events == [events.EngineLost()]
    assert errors == [Consumer.LOGS]
