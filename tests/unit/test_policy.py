"""The policy of continuous batching: who holds a slot, which size steps next."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observability.labels import Priority
from service.core import Size
from service.engine import policy
from service.engine.contract import Picture
from service.engine.policy import MAX_SKIPS, PROMOTE_SECONDS, Candidate, Lowered, Turn, assign_slots
from tests.support import build

SIZES = ((64, 64), (64, 128), (128, 128), (192, 64), (64, 192), (192, 192))


def candidate(
    task_id: str,
    *,
    at: float = 0.0,
    work: float = 1.0,
    priority: Priority = Priority.NORMAL,
    holds: bool = False,
    alone: bool = False,
    waited: float = 0.0,
    index: int = 0,
    **changes: Any,
) -> Candidate:
    """A picture that arrived at `at`."""
    picture = Picture(task_id, index, build.params(**changes))
    return Candidate(picture, priority, at, work, holds, alone, waited=waited)


def names(candidates: Sequence[Candidate], cap: int = 2, now: float = 0.0) -> list[str]:
    """Whose pictures hold the slots."""
    return [each.picture.task_id for each in assign_slots(candidates, lambda _size: cap, now)]


def test_the_shortest_work_gets_the_slot() -> None:
    """Of two that arrived together; with first come first served the older one."""
    long, short = candidate("long", at=0.0, work=5.0), candidate("short", at=1.0, work=1.0)
    assert names([long, short], cap=1, now=1.0) == ["short"]
    served = assign_slots([long, short], lambda _size: 1, 1.0, policy.first_come_first_served)
    assert [each.picture.task_id for each in served] == ["long"]


def test_waiting_makes_up_for_more_work() -> None:
    """Two seconds of waiting are worth one of work."""
    old, new = candidate("old", at=0.0, work=3.0), candidate("new", at=4.1, work=1.0)
    assert names([old, new], cap=1, now=5.0) == ["old"]


def test_a_holder_keeps_its_slot() -> None:
    """Even when shorter work of the same priority waits."""
    assert names([candidate("holder", work=9.0, holds=True), candidate("short", work=0.1)], cap=1) == ["holder"]


def test_high_priority_pauses_low_and_nothing_else() -> None:
    """The holder that would have been served last gives way."""
    low, lower = (candidate(name, at=at, priority=Priority.LOW, holds=True) for name, at in (("l1", 0.0), ("l2", 1.0)))
    high = candidate("high", at=2.0, priority=Priority.HIGH)
    assert sorted(names([low, lower, high], now=2.0)) == ["high", "l1"]
    normal = candidate("normal", at=2.0)
    assert sorted(names([low, lower, normal], now=2.0)) == ["l1", "l2"]
    holders = [candidate(name, holds=True) for name in "ab"]
    assert sorted(names([*holders, high], now=2.0)) == ["a", "b"]


def test_time_in_a_slot_protects_from_nobody() -> None:
    """A low one that has run for minutes gives way like any other; one that has waited for long keeps what it got."""
    high = candidate("high", at=600.0, priority=Priority.HIGH)
    old = candidate("old", at=0.0, priority=Priority.LOW, holds=True)
    assert names([old, high], cap=1, now=600.0) == ["high"]
    assert names([replace(old, waited=61.0), high], cap=1, now=600.0) == ["old"]


def test_age_alone_pauses_nobody() -> None:
    """However long they have waited: low pauses nothing, normal no normal; but normal pauses low after a minute."""
    waiting = [candidate(str(n), waited=600.0, priority=each) for n, each in enumerate((Priority.LOW, Priority.NORMAL))]
    for held in (Priority.HIGH, Priority.NORMAL):
        holder = candidate("holder", at=590.0, priority=held, holds=True)
        assert names([holder, *waiting], cap=1, now=600.0) == ["holder"]
    low = candidate("holder", at=590.0, priority=Priority.LOW, holds=True)
    assert names([low, candidate("new", at=590.0, waited=10.0)], cap=1, now=600.0) == ["holder"]
    assert names([low, candidate("old", at=530.0, waited=70.0)], cap=1, now=600.0) == ["old"]


def test_who_cannot_pause_does_not_keep_a_higher_one_from_it() -> None:
    """An old low one waits for a free slot; a new high one takes that of another low one."""
    holder, old = (candidate(name, priority=Priority.LOW, holds=name == "holder") for name in ("holder", "old"))
    high = candidate("high", at=600.0, priority=Priority.HIGH)
    assert names([holder, replace(old, waited=600.0), high], cap=1, now=600.0) == ["high"]


def test_a_paused_picture_comes_back_when_a_slot_is_free() -> None:
    """It waits like any other, with less work left."""
    assert names([candidate("paused", work=2.0), candidate("new", work=4.0)], cap=1) == ["paused"]


def test_every_size_has_slots_of_its_own() -> None:
    """A full size does not keep another from running."""
    held = [candidate(name, holds=True) for name in "ab"]
    assert sorted(names([*held, candidate("c"), candidate("wide", width=128)])) == ["a", "b", "wide"]


def test_a_lowered_cap_takes_slots_away() -> None:
    """From those that would be served last."""
    holders = [candidate(name, at=at, holds=True) for at, name in enumerate("abc")]
    assert names(holders, cap=2, now=3.0) == ["a", "b"]


def test_a_suspect_runs_alone() -> None:
    """When its turn has come, all others pause until its task is done; before that it waits."""
    suspect = [candidate("suspect", at=0.0, alone=True, index=index) for index in range(2)]
    running, later = candidate("running", at=5.0, holds=True), candidate("later", at=9.0)
    assert names([running, *suspect, later], now=9.0) == ["suspect", "suspect"]
    assert names([candidate("first", at=-9.0, holds=True), *suspect, later], now=9.0) == ["first", "later"]
    begun = [replace(each, has_started=True) for each in suspect]
    assert names([candidate("first", at=-9.0), *begun], now=9.0) == ["suspect", "suspect"]


# Whatever waits and runs

priorities = st.sampled_from(Priority)
candidates = st.lists(
    st.builds(
        candidate,
        st.text("abcdefgh", min_size=1, max_size=3),
        at=st.floats(0, 200),
        work=st.floats(0.01, 50),
        priority=priorities,
        holds=st.booleans(),
        waited=st.floats(0, 200),
        width=st.sampled_from([64, 128]),
    ),
    max_size=24,
    unique_by=lambda each: each.picture.task_id,
)
caps = st.dictionaries(st.sampled_from([(64, 64), (128, 64)]), st.integers(1, 8))


@given(candidates, caps, st.floats(200, 1000))
def test_every_assignment_is_lawful(waiting: list[Candidate], cap: dict[Size, int], now: float) -> None:
    """No slot twice or over the cap, none idle while somebody waits for it, none held by one that another may pause.

    Nobody is passed in the order of service but by who pauses somebody and is of a higher priority, or has a better
    standing, having been without a slot for longer.
    """
    chosen = assign_slots(waiting, lambda size: cap.get(size, 3), now)
    left = [each for each in waiting if each not in chosen]
    assert len({each.picture for each in chosen}) == len(chosen)
    assert set(chosen) <= set(waiting)
    taken = Counter(each.picture.params.size for each in chosen)
    for size, count in taken.items():
        assert count <= cap.get(size, 3)
    for each in left:
        size = each.picture.params.size
        assert taken[size] == cap.get(size, 3), "a slot is idle while a picture waits for it"
        for holder in (other for other in chosen if other.picture.params.size == size):
            if each.holds_slot:
                continue  # it was paused, or the cap was lowered
            assert not each.may_pause(holder)
            may_pass = holder.priority.rank < each.priority.rank or holder.standing < each.standing
            if not holder.holds_slot and not may_pass:
                assert policy.shortest_first(holder, now) <= policy.shortest_first(each, now)


@given(priorities, priorities, st.floats(0, 1e4), st.floats(0, 1e4), st.floats(0, 1e4), st.floats(0, 1e6), st.data())
def test_nobody_is_passed_by_what_comes_much_later(
    old: Priority, new: Priority, at: float, later: float, since: float, work: float, data: st.DataObject
) -> None:
    """Whatever the work and the priorities: the bound of the module's words holds, for both orders."""
    order = data.draw(st.sampled_from(list(policy.ORDERS.values())))
    bound = (old.rank + 1) * PROMOTE_SECONDS
    first = candidate("old", at=at, work=work, priority=old)
    second = candidate("new", at=at + bound + 0.001 + later, work=0.0, priority=new)
    now = second.arrived_at + since
    assert order(first, now) < order(second, now)


@given(priorities, priorities, st.floats(0, 1e4), st.floats(0, 59), st.floats(0, 1e3), st.floats(0, 1e3))
def test_priorities_are_respected(a: Priority, b: Priority, at: float, age: float, work: float, other: float) -> None:
    """Among pictures that have not waited for a whole minute the higher priority goes first, whatever the work."""
    left = candidate("a", at=at, work=work, priority=a)
    right = candidate("b", at=at + age, work=other, priority=b)
    now = at + 59.5
    if a is not b:
        assert (policy.shortest_first(left, now) < policy.shortest_first(right, now)) == (a.rank < b.rank)


arrivals = st.lists(st.lists(st.tuples(priorities, st.integers(1, 4)), max_size=2), min_size=1, max_size=6)


@given(arrivals, st.sampled_from(Priority), st.integers(1, 20), st.integers(1, 2), st.sampled_from(list(policy.ORDERS)))
@settings(max_examples=30, deadline=None)
def test_a_picture_is_made_however_many_others_come(
    pattern: list[list[tuple[Priority, int]]], priority: Priority, work: int, cap: int, order: str
) -> None:
    """Second after second more work comes than can be done: it is made before all that came after the bound."""
    bound = int((priority.rank + 1) * PROMOTE_SECONDS)
    left = {"it": candidate("it", work=work, priority=priority)}
    came_before, now = 0, 0
    while "it" in left:
        for number, (rank, seconds) in enumerate(pattern[now % len(pattern)]):
            left[f"{now}-{number}"] = candidate(f"{now}-{number}", at=now, work=seconds, priority=rank)
            came_before += seconds if now <= bound else 0
        held = assign_slots(left.values(), lambda _size: cap, now, policy.ORDERS[order])
        assert now <= bound + came_before / cap + work + 4, "it starves"
        for name, each in list(left.items()):
            holds = each in held
            after = replace(each, holds_slot=holds, work=each.work - holds, waited=each.waited + (not holds))
            left[name] = after
            if after.work <= 0:
                del left[name]
        now += 1


@given(
    st.lists(
        st.tuples(
            st.sets(st.sampled_from(SIZES), min_size=1),
            st.sets(st.sampled_from(SIZES)),
            st.floats(0.001, 10),
            st.lists(priorities, min_size=1, max_size=8),
        ),
        min_size=1,
        max_size=80,
    )
)
def test_no_size_starves(turns: list[tuple[set[Size], set[Size], float, list[Priority]]]) -> None:
    """However unequal the shares: a size that has rows is passed over at most `MAX_SKIPS + n - 1` times in a row."""
    state: dict[Size, Turn] = {}
    skipped: Counter[Size] = Counter()
    for sizes, fresh, seconds, holders in turns:
        state = policy.entered(state, sizes)
        chosen = policy.next_size(state, fresh)
        assert chosen in sizes
        state = policy.charged(state, chosen, seconds, holders)
        for size in SIZES:
            skipped[size] = skipped[size] + 1 if size in sizes and size != chosen else 0
        assert max(skipped.values()) <= MAX_SKIPS + len(SIZES) - 1


def test_a_size_with_a_newcomer_goes_next() -> None:
    """Unless another was passed over too often."""
    state = {SIZES[0]: Turn(used=1.0), SIZES[1]: Turn(used=5.0), SIZES[2]: Turn(used=9.0)}
    assert policy.next_size(state) == SIZES[0]
    assert policy.next_size(state, fresh={SIZES[2]}) == SIZES[2]
    assert policy.next_size(state | {SIZES[1]: Turn(used=5.0, skipped=MAX_SKIPS)}, fresh={SIZES[2]}) == SIZES[1]


def test_newcomers_of_one_size_do_not_hold_up_another() -> None:
    """With one at every step, a size still has a third of the steps."""
    steps: Counter[Size] = Counter()
    state: dict[Size, Turn] = {}
    for _ in range(300):
        state = policy.entered(state, SIZES[:2])
        size = policy.next_size(state, fresh={SIZES[0]})
        steps[size] += 1
        state = policy.charged(state, size, 0.1, [Priority.LOW if size == SIZES[0] else Priority.HIGH])
    assert steps[SIZES[1]] >= 100


def test_time_is_shared_by_rows_and_priority() -> None:
    """Sizes with the same step time, two rows against one, and all of normal priority: two steps against one."""
    state: dict[Size, Turn] = {}
    steps: Counter[Size] = Counter()
    for _ in range(300):
        state = policy.entered(state, SIZES[:2])
        size = policy.next_size(state)
        steps[size] += 1
        state = policy.charged(state, size, 0.1, [Priority.NORMAL] * (2 if size == SIZES[0] else 1))
    assert steps[SIZES[0]] / steps[SIZES[1]] == pytest.approx(2, rel=0.05)


def test_a_size_that_comes_late_does_not_claim_the_past() -> None:
    """It starts level with the others."""
    state = policy.charged(policy.entered({}, SIZES[:1]), SIZES[0], 100.0, [Priority.NORMAL])
    state = policy.entered(state, SIZES[:2])
    assert state[SIZES[1]].used == state[SIZES[0]].used


def test_a_lowered_cap_recovers() -> None:
    """It doubles every minute."""
    lowered = Lowered(to=2, at=100.0)
    assert [lowered.allows(now) for now in (100.0, 159.0, 160.0, 220.0)] == [2, 2, 4, 8]
    assert lowered.allows(1e9) > 1000
    assert policy.lowered(None, 4, 0.0) == Lowered(4, 0.0)
    assert policy.lowered(Lowered(1, 0.0), 2, 1.0) == Lowered(1, 1.0), "a later half that fits more does not raise it"
