"""The window policy: which waiting pictures share the next batch, and when."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from observability.labels import Priority
from service.engine.contract import Picture
from service.engine.task import Waiting
from service.engine.window import Run, Wait, choose, group, order
from tests.support import build


def waiting(
    task_id: str, *, at: float = 0.0, index: int = 0, priority: Priority = Priority.NORMAL, **changes: Any
) -> Waiting:
    """A picture that was accepted and arrived at `at`."""
    return Waiting(Picture(task_id, index, build.params(**changes)), priority, at, at)


def names(choice: Run | Wait) -> list[str]:
    """The task ids of a batch."""
    assert isinstance(choice, Run)
    return [picture.task_id for picture in choice.pictures]


def test_nothing_waiting_means_waiting_for_an_arrival() -> None:
    """With an empty queue there is no time at which to look again."""
    assert choose([], now=5.0, window=0.5, max_batch=8) == Wait(until=None)


def test_a_lone_request_does_not_wait_out_the_window() -> None:
    """An idle engine starts the only request there is, with all its pictures."""
    queue = [waiting("a", at=5.0), waiting("a", at=5.0, index=1)]
    assert names(choose(queue, now=5.0, window=0.5, max_batch=8)) == ["a", "a"]


def test_a_group_waits_for_its_window() -> None:
    """Two requests wait for mates until the older has waited the whole window."""
    queue = [waiting("a", at=5.0), waiting("b", at=5.2)]
    assert choose(queue, now=5.3, window=0.5, max_batch=8) == Wait(until=5.5)
    assert names(choose(queue, now=5.5, window=0.5, max_batch=8)) == ["a", "b"]


def test_a_full_group_does_not_wait() -> None:
    """A full batch runs at once, and holds no more than it may."""
    queue = [waiting(name, at=5.0) for name in "abc"]
    assert names(choose(queue, now=5.0, window=0.5, max_batch=2)) == ["a", "b"]


def test_the_oldest_group_goes_first_and_only_equals_share() -> None:
    """Other steps, sizes, guidance, scheduler or having a negative prompt never share; prompts and seeds may differ."""
    queue = [
        waiting("steps", at=2.0, num_inference_steps=5),
        waiting("size", at=2.0, width=128),
        waiting("guidance", at=2.0, guidance_scale=5.0),
        waiting("scheduler", at=2.0, scheduler="euler"),
        waiting("negative", at=2.0, negative_prompt="dark"),
        waiting("oldest", at=1.0),
        waiting("mate", at=3.0, prompt="another", seed=9),
    ]
    assert names(choose(queue, now=9.0, window=0.5, max_batch=8)) == ["oldest", "mate"]


def test_a_ready_group_does_not_wait_for_one_that_is_not() -> None:
    """While the oldest group waits for mates, a later one that is full goes first."""
    queue = [waiting("old", at=1.0), *(waiting(name, at=1.1, num_inference_steps=9) for name in "ab")]
    assert names(choose(queue, now=1.2, window=0.5, max_batch=2)) == ["a", "b"]
    assert choose(queue[:2], now=1.2, window=0.5, max_batch=2) == Wait(until=1.5)


def test_high_priority_goes_before_older_normal_ones() -> None:
    """The first picture in order of priority leads the batch; its mates may have any priority."""
    queue = [
        waiting("old", at=1.0, num_inference_steps=9),
        waiting("urgent", at=3.0, priority=Priority.HIGH),
        waiting("mate", at=2.0, priority=Priority.LOW),
    ]
    assert names(choose(queue, now=9.0, window=0.5, max_batch=8)) == ["urgent", "mate"]


def test_a_suspect_of_a_crash_runs_alone() -> None:
    """A task that was in a batch that took the engine down gets no mates, and does not wait for any."""
    suspect = Waiting(Picture("suspect", 0, build.params()), Priority.NORMAL, 1.0, 1.0, alone=True)
    assert names(choose([suspect, waiting("b", at=1.0)], now=1.0, window=0.5, max_batch=8)) == ["suspect"]


pictures = st.builds(
    waiting,
    st.text("abcdef", min_size=1, max_size=2),
    at=st.floats(0, 10),
    index=st.integers(0, 7),
    priority=st.sampled_from(Priority),
    num_inference_steps=st.sampled_from([4, 8]),
)


@given(st.lists(pictures, max_size=20), st.floats(0, 20), st.floats(0, 2), st.integers(1, 8))
def test_every_choice_is_lawful(queue: list[Waiting], now: float, window: float, max_batch: int) -> None:
    """Whatever waits: a batch is not empty, not over its cap, of one group; a wait is short and in the future."""
    choice = choose(queue, now, window, max_batch)
    if isinstance(choice, Run):
        assert 1 <= len(choice.pictures) <= max_batch
        assert len({picture.params.num_inference_steps for picture in choice.pictures}) == 1
        first = min((each for each in queue if each.picture in choice.pictures), key=order)
        for earlier in (each for each in queue if order(each) < order(first)):
            mates = [each for each in queue if group(each) == group(earlier)]
            assert len(mates) < max_batch, "an earlier group that is full goes first"
            assert now < min(each.arrived_at for each in mates) + window, "an earlier group that is due goes first"
    else:
        assert (choice.until is None) == (not queue)
        assert choice.until is None or now < choice.until <= max(each.arrived_at for each in queue) + window
