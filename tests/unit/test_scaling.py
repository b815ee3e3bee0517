"""How many workers are wanted: by load, within bounds, and without going up and down again."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.scaling.policy import Autoscaler, Floor, Load, Policy, parse, wanted

POLICY = Policy(least=1, most=10)
IDLE = Load(workers=1, occupancy=0.0, waiting_seconds=0.0, waited_p95=0.0)
EVERY = 30.0


@pytest.mark.parametrize(
    ("load", "count"),
    [
        (IDLE, 0),
        (Load(4, 0.8, 0.0, 0.0), 4),
        (Load(4, 0.4, 0.0, 0.0), 2),
        (Load(2, 1.0, 0.0, 0.0), 3),
        (Load(0, 0.0, 1.0, 0.0), 1),
        (Load(2, 0.8, 60.0, 5.0), 4),
        (Load(2, 0.8, 1.0, 11.0), 3),
    ],
)
def test_the_load_says_how_many(load: Load, count: int) -> None:
    """For what runs at 80 % occupancy, for what waits within 30 s, and one more while too many wait too long."""
    assert wanted(POLICY, load) == count


def run(policy: Policy, loads: list[Load], hour: float = 12.0) -> list[int]:
    """What is desired, one look after the other; as many workers as that are there at the next."""
    scaler = Autoscaler(policy)
    found: list[int] = []
    for index, load in enumerate(loads):
        there = found[-1] if found else load.workers
        found.append(scaler.desired(replace(load, workers=there), index * EVERY, hour))
    return found


def test_a_step_of_load_goes_up_at_once_and_down_later() -> None:
    """More as soon as they are needed; fewer only when fewer have been enough for five minutes."""
    heavy = Load(1, 1.0, 45.0, 5.0)
    found = run(POLICY, [IDLE] * 3 + [heavy] + [IDLE] * 12)
    assert found[:4] == [1, 1, 1, 3]
    assert found[4:13] == [3] * 9
    assert found[-1] == 1


def test_load_that_comes_and_goes_does_not_flap() -> None:
    """A wave of a minute up and a minute down ends in a number that stays."""
    heavy = Load(1, 1.0, 60.0, 5.0)
    found = run(replace(POLICY, most=5), [heavy, heavy, IDLE, IDLE] * 10)
    assert set(found[4:]) == {5}


def test_it_does_not_run_away_while_new_workers_are_on_their_way() -> None:
    """One that takes minutes to come is not ordered again at every look."""
    scaler = Autoscaler(POLICY)
    waiting = Load(workers=2, occupancy=1.0, waiting_seconds=30.0, waited_p95=60.0)
    assert {scaler.desired(waiting, index * EVERY, 0.0) for index in range(10)} == {4}


def test_hours_have_their_floor() -> None:
    """Also over midnight; within the bounds."""
    policy = parse("1:4", "8-20=3,22-6=2")
    assert [policy.bounded(0, hour) for hour in (7.9, 8.0, 19.9, 20.0, 23.0, 5.0)] == [1, 3, 3, 1, 2, 2]
    assert parse("1:2", "0-24=9").bounded(0, 1.0) == 2
    assert Floor(6, 6, 1).holds(6.0) is False


@pytest.mark.parametrize(
    ("bounds", "schedule"),
    [("4", None), ("4:1", None), ("0:4", None), ("a:b", None), ("1:2", "8-25=1"), ("1:2", "8=1")],
)
def test_what_makes_no_sense_is_refused(bounds: str, schedule: str | None) -> None:
    """With a message that shows what would."""
    with pytest.raises(ValueError, match="such as"):
        parse(bounds, schedule)


loads = st.builds(
    Load,
    workers=st.integers(0, 50),
    occupancy=st.floats(0, 1),
    waiting_seconds=st.floats(0, 1e5),
    waited_p95=st.floats(0, 1e4),
)


@given(st.lists(st.tuples(loads, st.floats(0, 24)), max_size=50))
def test_it_stays_within_bounds(seen: list[tuple[Load, float]]) -> None:
    """Whatever is seen."""
    scaler = Autoscaler(POLICY)
    for index, (load, hour) in enumerate(seen):
        assert 1 <= scaler.desired(load, index * EVERY, hour) <= 10
