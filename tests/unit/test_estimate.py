"""When a job will be done: the queue, played forward by the profile."""

from dataclasses import replace
from random import Random
from typing import Any

import pytest

from observability.events import BatchStepped, OutOfMemorySplit
from observability.labels import Batching, Priority, Stage
from service.engine.contract import Finished, Ready, Submit
from service.engine.fake import FakeModel
from service.engine.profile import Curve, Point, Profile
from service.jobs.estimate import Estimator, Outlook
from service.jobs.flight import Flight, Flights
from service.settings import EngineSettings
from tests.support import build
from tests.support.engine import STEP_SECONDS, Bench, profile

INFO = FakeModel(EngineSettings(model="fake:")).info


def flight(name: str, *, at: float = 0.0, started: bool = False, steps_done: int = 0, **changes: Any) -> Flight:
    """A computation that entered at `at`."""
    priority, slots = changes.pop("priority", Priority.NORMAL), changes.pop("slots", 0)
    made = Flight(name, name, build.params(**changes), priority, accepted_at=at, entered_at=at)
    made.has_started, made.steps_done, made.slots = started, steps_done, slots
    return made


def estimator(slots: int, batching: Batching = Batching.CONTINUOUS) -> Estimator:
    """One that knows a profile: 0.1 s a step, whatever the batch."""
    made = Estimator()
    made.ready(Ready(INFO, batching, profile(slots), load_seconds=0.0, warmup_seconds=0.0))
    return made


def test_nothing_is_known_before_the_engine_is_ready() -> None:
    """But the places in the queue."""
    forecast = Estimator().forecast([flight("a"), flight("b", at=1.0)], now=2.0)
    assert forecast.seconds == {}
    assert forecast.positions == {"a": 0, "b": 1}


def test_a_lone_request_takes_its_steps() -> None:
    """Those that it has left."""
    forecast = estimator(4).forecast([flight("a", started=True, steps_done=15, num_inference_steps=20)], now=0.0)
    assert forecast.seconds["a"] == pytest.approx(5 * STEP_SECONDS)
    assert forecast.positions == {}


def test_one_picture_alone_is_as_long_as_the_forecast_says() -> None:
    """Guided or not, on one worker or some, though nothing is played."""
    for workers, guidance in ((1, 5.0), (1, 1.0), (3, 5.0)):
        made = estimator(4)
        made.workers = workers
        lone = flight("a", num_inference_steps=20, guidance_scale=guidance)
        expected = made.forecast([lone], now=0.0).seconds["a"]
        assert made.seconds_alone(lone.params, now=0.0) == pytest.approx(expected)
    assert Estimator().seconds_alone(lone.params, now=0.0) is None


def test_what_a_picture_costs_beside_its_steps_is_that_of_its_size() -> None:
    """Four times the pixels: alone, in the forecast, and in the bound."""
    made = Estimator()
    slow = replace(profile(4), extra_seconds=0.5)
    made.ready(Ready(INFO, Batching.CONTINUOUS, slow, load_seconds=0.0, warmup_seconds=0.0))
    large = flight("a", num_inference_steps=4, width=128, height=128)
    expected = 4 * slow.step_seconds((128, 128), 2) + 4 * 0.5
    assert made.forecast([large], now=0.0).seconds["a"] == pytest.approx(expected)
    assert made.seconds_alone(large.params, now=0.0) == pytest.approx(expected)
    assert made.at_most([large], now=0.0) >= expected


def test_those_that_share_steps_do_not_wait_for_one_another() -> None:
    """Four slots: all run at once; with one slot the shortest goes first."""
    flights = [flight(name, num_inference_steps=steps) for name, steps in (("long", 20), ("short", 4))]
    together = estimator(4).forecast(flights, now=0.0).seconds
    assert together == {"short": pytest.approx(0.4), "long": pytest.approx(2.0)}
    apart = estimator(1).forecast(flights, now=0.0)
    assert apart.seconds == {"short": pytest.approx(0.4), "long": pytest.approx(2.4)}
    assert apart.positions == {"short": 0, "long": 1}


def test_a_request_of_many_pictures_takes_slots_as_they_come_free() -> None:
    """Six pictures of four steps with four slots: two rounds."""
    forecast = estimator(4).forecast([flight("a", num_images=6)], now=0.0)
    assert forecast.seconds["a"] == pytest.approx(8 * STEP_SECONDS)


def test_priority_goes_first() -> None:
    """As in the engine."""
    flights = [flight("a", num_inference_steps=4), flight("b", num_inference_steps=50, priority=Priority.HIGH)]
    assert estimator(1).forecast(flights, now=0.0).positions == {"b": 0, "a": 1}


def test_other_modes_serve_the_oldest_first() -> None:
    """Where the engine does not look at how long a job is."""
    flights = [flight("old", num_inference_steps=20), flight("new", at=0.1, num_inference_steps=4)]
    assert estimator(1, Batching.WINDOW).forecast(flights, now=0.2).positions == {"old": 0, "new": 1}


def test_sizes_share_the_time() -> None:
    """Two sizes: each step of one is followed by a step of the other, which has twice the pixels."""
    forecast = estimator(1).forecast([flight("a"), flight("b", width=128)], now=0.0)
    assert forecast.seconds["a"] > 4 * STEP_SECONDS


def test_the_estimate_follows_the_steps_that_are_seen() -> None:
    """When steps take twice as long as the profile says, so does the estimate; without steps that is forgotten."""
    estimate = estimator(4)
    for step in range(100):
        event = BatchStepped((("a", 0),), rows=2, size=(64, 64), seconds=2 * STEP_SECONDS, slots=8, waiting=0)
        estimate.observe(event, now=step * 2 * STEP_SECONDS)
    running = flight("a", started=True)
    assert estimate.forecast([running], now=20.0).seconds["a"] == pytest.approx(8 * STEP_SECONDS, rel=0.05)
    assert estimate.forecast([running], now=1000.0).seconds["a"] == pytest.approx(4 * STEP_SECONDS)
    assert estimate.forecast([flight("a")], now=20.0).seconds["a"] == pytest.approx(4 * STEP_SECONDS), "when idle"


def test_one_step_that_was_held_up_says_little() -> None:
    """However long it was held up; and a new engine starts afresh."""
    estimate = estimator(4)
    estimate.observe(BatchStepped((("a", 0),), rows=2, size=(64, 64), seconds=600.0, slots=8, waiting=0), now=0.0)
    running = flight("a", started=True)
    assert estimate.forecast([running], now=0.0).seconds["a"] == pytest.approx(1.4 * 4 * STEP_SECONDS)
    estimate.ready(Ready(INFO, Batching.CONTINUOUS, profile(4), load_seconds=0.0, warmup_seconds=0.0))
    assert estimate.forecast([running], now=0.0).seconds["a"] == pytest.approx(4 * STEP_SECONDS)


def test_slots_that_are_lost_to_memory_count() -> None:
    """Two at a time from now on, and more again later."""
    estimate = estimator(4)
    flights = [flight(name) for name in "abcd"]
    estimate.observe(OutOfMemorySplit(Stage.DENOISE, (64, 64), 2), now=0.0)
    assert max(estimate.forecast(flights, now=0.0).seconds.values()) == pytest.approx(8 * STEP_SECONDS)
    assert max(estimate.forecast(flights, now=60.0).seconds.values()) == pytest.approx(4 * STEP_SECONDS)


def test_a_high_priority_does_not_wait_for_a_low_one() -> None:
    """It takes its slot, and the low one goes on after it."""
    low = flight("low", started=True, slots=1, num_inference_steps=100, priority=Priority.LOW)
    high = flight("high", at=1.0, priority=Priority.HIGH)
    seconds = estimator(1).forecast([low, high], now=1.0).seconds
    assert seconds == {"high": pytest.approx(0.4), "low": pytest.approx(10.4)}


def test_a_long_run_protects_a_low_priority_no_more_than_in_the_engine() -> None:
    """Old by now, but never without a slot: a new high one takes it."""
    low = flight("low", started=True, slots=1, num_inference_steps=100, priority=Priority.LOW)
    low.waited = 0.0
    high = flight("high", at=600.0, priority=Priority.HIGH)
    seconds = estimator(1).forecast([low, high], now=600.0).seconds
    assert seconds == {"high": pytest.approx(0.4), "low": pytest.approx(10.4)}


def test_the_pictures_that_a_job_has_not_begun_wait_like_others() -> None:
    """A short job goes before them, as in the engine."""
    many = flight("many", started=True, slots=1, steps_done=40, num_images=8, num_inference_steps=50)
    seconds = estimator(1).forecast([many, flight("short", at=1.0)], now=1.0).seconds
    assert seconds["short"] == pytest.approx(1.4)
    assert seconds["many"] == pytest.approx(36.4)


@pytest.mark.parametrize("seed", range(8))
def test_forecasts_come_true(seed: int) -> None:
    """Of random jobs, all there from the start, on an engine whose steps take what the profile says."""
    random = Random(seed)
    bench = Bench(slots=3)
    flights = [
        flight(
            f"t{n}",
            at=bench.now,
            priority=random.choice(list(Priority)),
            num_images=random.randint(1, 5),
            num_inference_steps=random.randint(1, 30),
        )
        for n in range(10)
    ]
    for each in flights:
        bench.put(Submit(each.id, each.params, each.priority, each.accepted_at))
    forecast = estimator(3).forecast(flights, bench.now)
    ended: dict[str, float] = {}
    began = bench.now
    while len(ended) < len(flights):
        bench.loop.turn()
        for done in bench.of(Finished):
            ended.setdefault(done.task_id, bench.now - began)
    errors = [abs(forecast.seconds[name] - seconds) for name, seconds in ended.items()]
    assert max(errors) <= 0.15 * max(ended.values())


def test_the_outlook_of_a_request_that_is_not_accepted_yet() -> None:
    """It comes after what is there; one that can join a computation ends with it."""
    flights = Flights()
    running = flight("a", started=True, slots=1, num_inference_steps=30)
    flights.add(running)
    outlook = Outlook(estimator(1), flights, clock=lambda: 0.0)
    assert outlook.seconds_for(build.params(), Priority.NORMAL, None, enough=0.0) == pytest.approx(3.4)
    assert outlook.seconds_for(build.params(), Priority.NORMAL, "a", enough=0.0) == pytest.approx(3.0)
    assert outlook.of(running) == (None, pytest.approx(3.0))
    flights.leave_engine(running)
    outlook.changed()
    assert outlook.of(running) == (None, 0.0)


def test_what_would_surely_be_in_time_is_not_worked_out() -> None:
    """If the most that it may take is still enough; else the time is told."""
    flights = Flights()
    flights.add(flight("a", started=True, slots=1, num_inference_steps=30))
    outlook = Outlook(estimator(4), flights, clock=lambda: 0.0)
    at_most = (30 + build.params().total_steps + 30) * STEP_SECONDS
    assert outlook.seconds_for(build.params(), Priority.NORMAL, None, enough=at_most + 0.01) is None
    assert outlook.seconds_for(build.params(), Priority.NORMAL, None, enough=at_most - 0.01) == pytest.approx(0.4)


@pytest.mark.parametrize("seed", range(20))
def test_nothing_takes_longer_than_it_may(seed: int) -> None:
    """The bound holds for any mixture of sizes, any curve, and several workers."""
    random = Random(seed)
    flights = [
        flight(
            f"t{n}",
            started=(started := random.random() < 0.3),
            slots=int(started),
            priority=random.choice(list(Priority)),
            num_images=random.randint(1, 5),
            num_inference_steps=random.randint(1, 30),
            width=random.choice([64, 128]),
        )
        for n in range(random.randint(1, 12))
    ]
    slots = random.randint(2, 8)
    curve = Curve((64, 64), (Point(1, 0.1), Point(slots, 0.1 * random.uniform(1.0, 1.5 * slots))))
    caps = {(64, 64): slots, (128, 64): random.randint(1, slots)}
    sloped = Profile((curve,), extra_seconds=0.05, rows_per_guided=2, max_batch=slots, slots=caps)
    one = Estimator()
    one.ready(Ready(INFO, Batching.CONTINUOUS, sloped, load_seconds=0.0, warmup_seconds=0.0))
    one.workers = random.randint(1, 4)
    assert max(one.forecast(flights, 0.0).seconds.values()) <= one.at_most(flights, 0.0) + 1e-9


def test_a_forecast_that_costs_is_made_less_often() -> None:
    """Meanwhile the last one counts, less the time since; who came later stands behind all that were there."""
    now, worked = 0.0, 0.0

    def processor() -> float:
        nonlocal worked
        worked += 0.01
        return worked

    flights = Flights()
    early = flight("early", started=True, slots=1, num_inference_steps=30)
    flights.add(early)
    outlook = Outlook(estimator(1), flights, clock=lambda: now, processor=processor)
    assert outlook.of(early) == (None, pytest.approx(3.0))
    late = flight("late", num_inference_steps=5)
    flights.add(late)
    outlook.changed()
    now = 0.1
    assert outlook.of(late) == (0, pytest.approx(3.4))
    assert outlook.of(early) == (None, pytest.approx(2.9))
    flights.leave_engine(early)
    assert outlook.of(early) == (None, 0.0)
    late.has_started = True
    now = 0.3
    assert outlook.of(late) == (None, pytest.approx(0.5))
