"""When a job will be done: the queue, played forward by the profile."""

from typing import Any

import pytest

from observability.events import Batching, BatchStepped, Priority
from service.engine.contract import Ready
from service.engine.fake import FakeModel
from service.jobs.estimate import Estimator, Outlook
from service.jobs.flight import Flight, Flights
from service.settings import EngineSettings
from tests.support import build
from tests.support.engine import STEP_SECONDS, profile

INFO = FakeModel(EngineSettings(model="fake:")).info


def flight(name: str, *, at: float = 0.0, started: bool = False, steps_done: int = 0, **changes: Any) -> Flight:
    """A computation that entered at `at`."""
    priority = changes.pop("priority", Priority.NORMAL)
    made = Flight(name, name, build.params(**changes), priority, accepted_at=at, entered_at=at)
    made.has_started, made.steps_done = started, steps_done
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
        event = BatchStepped((("a", 0),), rows=2, size=(64, 64), seconds=2 * STEP_SECONDS)
        estimate.stepped(event, now=step * 2 * STEP_SECONDS)
    assert estimate.forecast([flight("a")], now=20.0).seconds["a"] == pytest.approx(8 * STEP_SECONDS, rel=0.05)
    assert estimate.forecast([flight("a")], now=1000.0).seconds["a"] == pytest.approx(4 * STEP_SECONDS)


def test_the_outlook_of_a_request_that_is_not_accepted_yet() -> None:
    """It comes after what is there; one that can join a computation ends with it."""
    flights = Flights()
    running = flight("a", started=True, num_inference_steps=30)
    flights.add(running)
    outlook = Outlook(estimator(1), flights, clock=lambda: 0.0)
    assert outlook.seconds_for(build.params(), Priority.NORMAL, None) == pytest.approx(3.4)
    assert outlook.seconds_for(build.params(), Priority.NORMAL, "a") == pytest.approx(3.0)
    assert outlook.of(running) == (None, pytest.approx(3.0))
    flights.leave_engine(running)
    outlook.changed()
    assert outlook.of(running) == (None, 0.0)
