"""The loop of window mode, driven turn by turn with the fake model."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from observability.events import BatchStepped, OutOfMemorySplit, StageFinished, StepsWasted
from observability.labels import BatchField, Priority, Reason, Stage
from service.engine.contract import (
    Batch,
    Cancel,
    Drain,
    Drained,
    Finished,
    Message,
    Picture,
    Raise,
    Started,
    Stepped,
    TaskFailed,
)
from service.engine.fake import FakeModel, colour
from service.engine.faults import Faults, FaultyBatchModel
from service.engine.window_loop import WindowLoop
from service.settings import EngineSettings
from tests.support import build
from tests.support.engine import Inbox, Wire


class Bench(Wire):
    """A loop with its inbox, what it sent, and a hook that runs after every step of a batch."""

    def __init__(self, faults: str = "", max_batch: int = 8, window: float = 0.0) -> None:
        self.inbox = Inbox()
        self.sent: list[Message] = []
        self.batches: list[list[str]] = []
        self.after_step: Callable[[int], None] = lambda _step: None
        self._model = FaultyBatchModel(FakeModel(EngineSettings(model="fake:")), Faults(faults))
        self.info = self._model.info
        self.loop = WindowLoop(self, self.inbox, self.sent.append, lambda _: None, window=window, max_batch=max_batch)

    def generate(self, pictures: Sequence[Picture], on_step: Callable[[float], None]) -> Batch:
        """The fake model's batch, recorded."""
        self.batches.append([picture.task_id for picture in pictures])
        steps = iter(range(1, 1000))

        def step(seconds: float) -> None:
            self.after_step(next(steps))
            on_step(seconds)

        return self._model.generate(pictures, step)

    def run(self, turns: int = 12) -> None:
        """Enough turns for all that waits; the first of them takes the commands."""
        self.loop._receive(timeout=0.0)
        for _ in range(turns):
            if self.loop._waiting:
                self.loop.turn()


def test_a_task_is_started_stepped_and_finished() -> None:
    """One task: one start, a message for every step, its picture with stage times at the end."""
    bench = Bench()
    bench.put(build.submit("a", seed=5))
    bench.run()
    assert bench.of(Started) == [Started(("a",))]
    assert [each.steps_done for each in bench.of(Stepped)] == [{"a": step} for step in (1, 2, 3, 4)]
    (done,) = bench.of(Finished)
    assert np.array_equal(done.pictures[0], colour(Picture("a", 0, build.params(seed=5))))
    assert set(done.timings) == {each.stage for each in bench.of(StageFinished)}
    assert [each.pictures for each in bench.of(BatchStepped)] == [1, 1, 1, 1]


def test_pictures_of_one_request_may_need_several_batches() -> None:
    """Five pictures with two slots: three batches, one start, pictures in order with seeds counting up."""
    bench = Bench(max_batch=2)
    bench.put(build.submit("a", seed=10, num_images=5))
    bench.run()
    assert [len(batch) for batch in bench.batches] == [2, 2, 1]
    assert len(bench.of(Started)) == 1
    (done,) = bench.of(Finished)
    expected = [colour(Picture("a", index, build.params(seed=10, num_images=5))) for index in range(5)]
    assert all(np.array_equal(*pair) for pair in zip(done.pictures, expected, strict=True))
    assert bench.of(Stepped)[-1].steps_done == {"a": 20}


def test_one_failing_request_fails_alone() -> None:
    """A batch that raises is split until only the culprit is left; its mates complete, and lost steps are counted."""
    bench = Bench("fail=poison")
    bench.put(
        *(
            build.submit(name, at, prompt=prompt)
            for at, (name, prompt) in enumerate([("a", "x"), ("b", "poison"), ("c", "y"), ("d", "z")])
        )
    )
    bench.run()
    assert {each.task_id for each in bench.of(Finished)} == {"a", "c", "d"}
    assert [(each.task_id, each.reason) for each in bench.of(TaskFailed)] == [("b", Reason.MODEL_ERROR)]
    assert "poison" not in bench.of(TaskFailed)[0].detail, "prompts do not leak into errors"
    assert bench.batches == [["a", "b", "c", "d"], ["a", "b"], ["a"], ["b"], ["c", "d"]]


def test_a_batch_that_does_not_fit_is_split() -> None:
    """Out of memory at more than two pictures: halves run, nothing fails, an event says so."""
    bench = Bench("oom_above=2")
    bench.put(*(build.submit(name) for name in "abcd"))
    bench.run()
    assert len(bench.of(Finished)) == 4
    assert bench.of(TaskFailed) == []
    assert bench.of(OutOfMemorySplit) == [OutOfMemorySplit(Stage.DENOISE, (64, 64), 2)]


def test_a_picture_that_never_fits_fails_with_its_reason() -> None:
    """Out of memory alone is a failure of its own reason."""
    bench = Bench("oom_above=0")
    bench.put(build.submit("a"))
    bench.run()
    assert [each.reason for each in bench.of(TaskFailed)] == [Reason.OUT_OF_MEMORY]


def test_cancelling_a_waiting_task_means_it_never_runs() -> None:
    """No batch, no message."""
    bench = Bench()
    bench.put(build.submit("a"), Cancel("a", Reason.CLIENT_CANCELLED))
    bench.run()
    assert bench.batches == []
    assert bench.sent == []


def test_a_cancelled_task_leaves_at_the_next_step_and_its_mate_finishes() -> None:
    """After the cancel no message names the task; the steps it took and still costs count as wasted."""
    bench = Bench()
    bench.after_step = lambda step: bench.put(Cancel("a", Reason.DISCONNECTED)) if step == 2 else None
    bench.put(build.submit("a"), build.submit("b"))
    bench.run()
    assert [each.steps_done for each in bench.of(Stepped)] == [{"a": 1, "b": 1}, {"a": 2, "b": 2}, {"b": 3}, {"b": 4}]
    assert [each.task_id for each in bench.of(Finished)] == ["b"]
    assert {each.reason for each in bench.of(StepsWasted)} == {Reason.DISCONNECTED}
    assert sum(each.steps for each in bench.of(StepsWasted)) == 4


def test_a_batch_that_nobody_waits_for_is_aborted() -> None:
    """When every task of a batch is cancelled, the model stops at that step."""
    bench = Bench()
    bench.after_step = lambda step: bench.put(Cancel("a", Reason.CLIENT_CANCELLED)) if step == 2 else None
    bench.put(build.submit("a", num_inference_steps=50))
    bench.run()
    assert len(bench.of(Stepped)) == 2
    assert bench.of(Finished) == []


def test_draining_finishes_what_has_started_and_nothing_else() -> None:
    """A task with pictures left goes on to its end; a waiting one stays; then `Drained` is the last word."""
    bench = Bench(max_batch=2)
    bench.after_step = lambda step: bench.put(Drain(), build.submit("late")) if step == 1 else None
    bench.put(build.submit("a", 1.0, num_images=3), build.submit("b", 2.0, num_inference_steps=7))
    bench.run()
    assert [each.task_id for each in bench.of(Finished)] == ["a"]
    bench.loop.turn()
    bench.loop.turn()
    assert [type(each).__name__ for each in bench.sent[-3:]] == ["Drained", "Beat", "Beat"]
    assert len(bench.of(Drained)) == 1


def test_draining_does_not_wait_out_a_window() -> None:
    """Started tasks whose other pictures wait for mates run on at once; `Drained` comes after their end."""
    bench = Bench(max_batch=2, window=3600.0)
    bench.after_step = lambda step: bench.put(Drain()) if step == 1 else None
    bench.put(build.submit("a", 1.0, num_images=3))
    bench.run()
    bench.loop.turn()
    assert len(bench.of(Finished)) == 1
    assert bench.sent.index(Drained()) > bench.sent.index(bench.of(Finished)[0])


def test_a_waiting_task_can_be_raised() -> None:
    """It moves up; one that is not known is passed over."""
    bench = Bench(max_batch=1)
    bench.put(build.submit("a", 1.0), build.submit("b", 2.0))
    bench.put(Raise("b", Priority.HIGH), Raise("nobody", Priority.HIGH))
    bench.run()
    assert bench.batches == [["b"], ["a"]]


@pytest.mark.parametrize("max_batch", [1, 3, 8])
def test_a_picture_does_not_depend_on_its_batch(max_batch: int) -> None:
    """The same tasks give the same pictures whatever shares their batches."""
    bench = Bench(max_batch=max_batch)
    bench.put(*(build.submit(str(seed), seed=seed, num_images=2) for seed in range(5)))
    bench.run()
    for done in bench.of(Finished):
        wanted = [colour(Picture("", index, build.params(seed=int(done.task_id)))) for index in range(2)]
        assert all(np.array_equal(*pair) for pair in zip(done.pictures, wanted, strict=True))


def test_the_time_of_every_step_is_paid_for_or_wasted() -> None:
    """Whatever fails, is cancelled or does not fit: nothing is counted twice or forgotten."""
    bench = Bench("fail=poison&oom_above=2", max_batch=4)
    bench.put(
        build.submit("a", num_images=3),
        build.submit("b", prompt="poison"),
        build.submit("c"),
        build.submit("d", num_inference_steps=9),
        build.submit("e", num_inference_steps=9),
    )
    cancels = iter([Cancel("e", Reason.DISCONNECTED)])
    bench.after_step = lambda step: bench.put(*cancels) if step == 6 else None
    bench.run(turns=20)
    steps = sum(each.seconds for each in bench.of(BatchStepped))
    paid = sum(each.batch_seconds for each in bench.of(Finished))
    wasted = sum(each.seconds for each in bench.of(StepsWasted))
    assert {each.task_id for each in bench.of(Finished)} == {"a", "c", "d"}
    assert wasted > 0
    assert paid + wasted == pytest.approx(steps)


def test_a_batch_tells_once_who_could_not_join() -> None:
    """By the first field that differs; those that could have joined had there been room wait."""
    bench = Bench(max_batch=2)
    bench.put(
        *(build.submit(name, 1.0) for name in "abc"),
        build.submit("longer", 2.0, num_inference_steps=5),
        build.submit("larger", 3.0, width=128, num_inference_steps=5),
    )
    bench.run()
    first, second = bench.of(BatchStepped)[:2]
    assert (first.pictures, first.slots, first.waiting) == (2, 2, 1)
    assert first.passed_over == {BatchField.SIZE: 1, BatchField.STEPS: 1}
    assert second.passed_over == {}
