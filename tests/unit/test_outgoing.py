"""What the engine tells leaves in as few pieces as may be, in its order."""

from collections.abc import Sequence

import pytest

from observability.events import BatchStepped
from service.engine.contract import Beat, Finished, Message, Started, Stepped
from service.engine.worker import HOLD_SECONDS, Outgoing
from tests.support import build
from tests.support.engine import Bench


class Post:
    """Keeps what was sent; its clock stands still."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.sent: list[Sequence[Message]] = []
        self.outgoing = Outgoing(self.sent.append, clock=lambda: self.now)


@pytest.fixture
def post() -> Post:
    """One that has nothing to send."""
    return Post()


def step(seconds: float) -> Stepped:
    """A step of one picture."""
    return Stepped(BatchStepped((("a", 0),), 2, (64, 64), seconds, slots=8, waiting=0), {"a": 1}, {"a": seconds})


def test_nothing_is_sent_of_nothing(post: Post) -> None:
    """Not even before a wait."""
    post.outgoing.flush()
    assert post.sent == []


def test_short_steps_leave_together_after_a_while(post: Post) -> None:
    """Counted from the first of them."""
    first, second = step(0.02), step(0.02)
    post.outgoing.put(first)
    post.outgoing.flush(is_last=False)
    post.now += 0.02
    post.outgoing.put(second)
    post.outgoing.flush(is_last=False)
    assert post.sent == []
    post.now += HOLD_SECONDS - 0.02 + 1e-6
    post.outgoing.flush(is_last=False)
    assert post.sent == [[first, second]]


def test_what_somebody_waits_for_leaves_at_once_with_all_before_it(post: Post) -> None:
    """In the order in which it was put."""
    before, urgent = step(0.02), Started(("b",))
    post.outgoing.put(before)
    post.outgoing.put(urgent)
    post.outgoing.flush(is_last=False)
    assert post.sent == [[before, urgent]]


def test_a_long_step_is_told_before_the_next_one(post: Post) -> None:
    """Which may take as long."""
    post.outgoing.put(step(HOLD_SECONDS))
    post.outgoing.flush(is_last=False)
    assert len(post.sent) == 1


def test_nothing_is_kept_while_the_engine_waits(post: Post) -> None:
    """The last flush before that sends it."""
    post.outgoing.put(step(0.02))
    post.outgoing.flush()
    post.outgoing.put(Beat())
    post.outgoing.flush()
    assert len(post.sent) == 2


def test_a_picture_leaves_before_the_model_is_called_again() -> None:
    """And so does the start of the next task."""
    bench = Bench(slots=1)
    sent: list[Sequence[Message]] = []
    outgoing = Outgoing(sent.append, clock=lambda: bench.now)
    bench.loop._send, bench.loop._flush = outgoing.put, outgoing.flush
    bench.put(build.submit("a", num_inference_steps=2), build.submit("b", num_inference_steps=2))
    calls: list[list[type[Message]]] = []
    bench.after_step = lambda _step: calls.append([type(each) for some in sent for each in some])
    while len(calls) < 3:
        bench.loop.turn()
    before_second_task = calls[2]
    assert before_second_task.count(Finished) == 1
    assert before_second_task.count(Started) == 2
