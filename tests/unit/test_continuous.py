"""The loop of continuous mode, driven turn by turn with the fake model."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from observability.events import (
    BatchStepped,
    OutOfMemorySplit,
    PictureAdmitted,
    PicturesPaused,
    PicturesResumed,
    StepsWasted,
)
from observability.labels import BatchField, Priority, Reason, Stage
from service.core import Params
from service.engine.contract import (
    Beat,
    Cancel,
    Drain,
    Drained,
    Finished,
    Picture,
    Raise,
    Started,
    Stepped,
    Submit,
    TaskFailed,
    Working,
    is_out_of_memory,
)
from service.engine.fake import FakeRow, colour
from tests.support import build
from tests.support.engine import STEP_SECONDS, Bench


def test_a_request_joins_the_running_batch_at_the_next_step() -> None:
    """Whatever step the others are at, and however many steps it has itself."""
    bench = Bench()
    bench.put(build.submit("a", num_inference_steps=6))
    bench.after_step = lambda step: bench.put(build.submit("b", num_inference_steps=2)) if step == 2 else None
    bench.run()
    alone, shared = [("a", 0)], [("a", 2), ("b", 0)]
    assert bench.batches[0] == alone
    assert bench.batches[2:5] == [shared, [("a", 3), ("b", 1)], [("a", 4)]]
    assert [each.task_id for each in bench.of(Finished)] == ["b", "a"], "nobody waits for the batch to end"
    assert [each.members for each in bench.of(BatchStepped)] == [tuple(batch) for batch in bench.batches]


def test_a_task_is_started_stepped_and_finished() -> None:
    """One start, a message for every step, its picture with the stages' times at the end."""
    bench = Bench()
    bench.put(build.submit("a", seed=5))
    bench.run()
    assert bench.of(Started) == [Started(("a",))]
    assert [each.steps_done for each in bench.of(Stepped)] == [{"a": step} for step in (1, 2, 3, 4)]
    (done,) = bench.of(Finished)
    assert np.array_equal(done.pictures[0], colour(Picture("a", 0, build.params(seed=5))))
    assert done.timings == {Stage.TEXT_ENCODE: 0, Stage.DENOISE: pytest.approx(0.4), Stage.VAE_DECODE: 0}


def test_rows_are_counted_by_guidance() -> None:
    """A picture without guidance is one row, with it two."""
    bench = Bench()
    bench.put(build.submit("a", guidance_scale=1.0), build.submit("b", guidance_scale=2.0))
    bench.run()
    assert {each.rows for each in bench.of(BatchStepped)} == {3}


def test_what_finishes_together_is_decoded_together() -> None:
    """One call of the decoder."""
    bench = Bench()
    bench.put(build.submit("a"), build.submit("b"), build.submit("c", num_inference_steps=9))
    bench.run()
    assert bench.decoded == [["a", "b"], ["c"]]


def test_a_newcomer_does_not_wait_for_the_decoder() -> None:
    """Ones that found a free slot step first, three times; then the finished picture is decoded, whoever comes."""
    bench = Bench()
    bench.put(build.submit("a", num_inference_steps=2))

    def arrive(step: int) -> None:
        if step in (2, 3, 4, 5):
            bench.put(build.submit(f"new{step}"))

    bench.after_step = arrive
    seen: list[int] = []
    decode = bench.decode

    def watched(rows: Sequence[FakeRow]) -> list[np.ndarray]:
        seen.append(len(bench.batches))
        return decode(rows)

    bench.decode = watched  # type: ignore[method-assign]
    bench.run()
    assert seen[0] == 5, "after steps of new2, new3 and new4, although new5 has arrived meanwhile"


def test_steps_go_on_beside_the_decoder() -> None:
    """Where the device can do both: a picture is handed out when it is there, and nobody waits for it before."""
    bench = Bench(decode_steps=2)
    bench.put(build.submit("a", num_inference_steps=1), build.submit("b", num_inference_steps=6))
    bench.after_step = lambda step: None if step > 3 else bench.sent.append(Beat())
    bench.run()
    assert bench.batches[1:] == [[("b", step)] for step in range(1, 6)]
    told = [each for each in bench.sent if isinstance(each, Beat | Finished)]
    assert [type(each) for each in told[:5]] == [Beat, Beat, Beat, Finished, Finished], "after two more steps"
    assert not any(each.was_waited_for for each in bench.events)
    (finished, _) = bench.of(Finished)
    assert np.array_equal(finished.pictures[0], colour(Picture("a", 0, build.params(num_inference_steps=1))))
    assert finished.timings[Stage.VAE_DECODE] == pytest.approx(2 * STEP_SECONDS)
    assert {each.task_ids for each in bench.of(Working)} >= {frozenset({"a", "b"})}, "also while it is decoded"


def test_nothing_goes_on_beside_what_is_to_run_alone() -> None:
    """If the device is lost over it, nobody else is blamed."""
    bench = Bench(decode_steps=2)
    bench.put(build.submit("a", num_inference_steps=2))
    bench.put(*(replace(build.submit(name, num_inference_steps=2), alone=True) for name in "bc"))
    bench.put(build.submit("d", num_inference_steps=2))
    bench.run()
    working = [each.task_ids for each in bench.of(Working)]
    assert {each for each in working if each & {"b", "c"}} == {frozenset("b"), frozenset("c")}
    assert frozenset("ad") in working
    assert len(bench.of(Finished)) == 4


def test_at_most_two_calls_of_the_decoder_go_on() -> None:
    """Where it is slower than the steps, those wait for it."""
    bench = Bench(decode_steps=9)
    bench.put(*(build.submit(f"t{n}", num_inference_steps=n + 1) for n in range(5)))
    bench.run()
    assert [each.was_waited_for for each in bench.events] == [True, True, True, False, False]
    assert len(bench.of(Finished)) == 5


def test_a_task_cancelled_while_it_is_decoded_is_not_handed_out() -> None:
    """The device goes on with it, but nobody wants it any more."""
    bench = Bench(decode_steps=2)
    bench.put(build.submit("a", num_inference_steps=1), build.submit("b", num_inference_steps=6))
    bench.after_step = lambda step: bench.put(Cancel("a", Reason.CLIENT_CANCELLED)) if step == 2 else None
    bench.run()
    assert [each.task_id for each in bench.of(Finished)] == ["b"]


def test_admission_waits_for_one_step_at_most() -> None:
    """While a slot is free, a picture's first step begins at the next boundary."""
    bench = Bench()
    bench.put(build.submit("a", num_inference_steps=20))
    bench.after_step = lambda step: bench.put(build.submit(f"b{step}", num_inference_steps=1))
    bench.run(turns=19)
    delays = [each.seconds for each in bench.of(PictureAdmitted)]
    assert len(delays) == 19
    assert max(delays) <= STEP_SECONDS


def test_who_comes_while_prompts_are_encoded_takes_the_same_step() -> None:
    """Encoding may take long beside a step; who has come meanwhile need not wait for both."""
    bench = Bench()
    bench.put(build.submit("a"))
    begin = bench.begin

    def watched(pictures: Sequence[Picture]) -> list[FakeRow]:
        if pictures[0].task_id == "a":
            bench.put(build.submit("b"))
        return begin(pictures)

    bench.begin = watched  # type: ignore[method-assign]
    bench.run()
    assert bench.batches[0] == [("a", 0), ("b", 0)]


def test_newcomers_are_looked_for_between_parts_of_decoding() -> None:
    """Four pictures finish together and each takes as long as a step to decode; one that comes then waits for one."""
    bench = Bench(decode_seconds=STEP_SECONDS)
    bench.put(*(build.submit(name) for name in "abcd"))
    decode = bench.decode

    def watched(rows: Sequence[FakeRow]) -> list[np.ndarray]:
        if not bench.decoded:
            bench.put(replace(build.submit("new", num_inference_steps=1), arrived_at=bench.now + STEP_SECONDS / 2))
        return decode(rows)

    bench.decode = watched  # type: ignore[method-assign]
    bench.run()
    assert all(len(part) == 1 for part in bench.decoded)
    assert len(bench.of(Finished)) == 5
    assert bench.of(PictureAdmitted)[-1].seconds == pytest.approx(STEP_SECONDS / 2)


def test_a_request_takes_slots_as_they_come_free() -> None:
    """Five pictures beside another request with three slots: all run, in order, started once."""
    bench = Bench(slots=3)
    bench.put(build.submit("a", num_inference_steps=2), build.submit("b", num_images=5, num_inference_steps=3))
    bench.run()
    assert max(len(batch) for batch in bench.batches) == 3
    assert bench.of(Started) == [Started(("a", "b"))]
    done = next(each for each in bench.of(Finished) if each.task_id == "b")
    wanted = [colour(Picture("b", index, build.params(num_images=5))) for index in range(5)]
    assert all(np.array_equal(*pair) for pair in zip(done.pictures, wanted, strict=True))
    assert bench.of(Stepped)[-1].steps_done == {"b": 15}


def test_sizes_take_turns() -> None:
    """Rows of one step share a size; both sizes go on."""
    bench = Bench()
    bench.put(build.submit("a", num_inference_steps=5), build.submit("b", num_inference_steps=5, width=128))
    bench.run()
    assert all(len(batch) == 1 for batch in bench.batches)
    assert {name for batch in bench.batches[:4] for name, _ in batch} == {"a", "b"}
    assert len(bench.of(Finished)) == 2


def test_a_cancelled_task_frees_its_slot_at_the_next_step() -> None:
    """The waiting task takes it, no more steps are made for it, and those it took are counted as wasted."""
    bench = Bench(slots=1)
    bench.put(build.submit("a", 1.0, num_inference_steps=50), build.submit("b", 2.0, num_inference_steps=60))
    bench.after_step = lambda step: bench.put(Cancel("a", Reason.DISCONNECTED)) if step == 2 else None
    bench.run(turns=5)
    assert bench.batches == [[("a", 0)], [("a", 1)], [("b", 0)], [("b", 1)], [("b", 2)]]
    (wasted,) = bench.of(StepsWasted)
    assert (wasted.reason, wasted.steps) == (Reason.DISCONNECTED, 2)
    assert wasted.seconds == pytest.approx(2 * STEP_SECONDS)


def test_cancelling_a_waiting_task_means_it_never_runs() -> None:
    """No batch, no message."""
    bench = Bench()
    bench.put(build.submit("a"), Cancel("a", Reason.CLIENT_CANCELLED))
    bench.run()
    assert bench.batches == []
    assert bench.sent == [Beat()]


def test_high_priority_pauses_a_low_one_which_goes_on_later() -> None:
    """From the step it had; a normal one waits."""
    bench = Bench(slots=1)
    bench.put(build.submit("low", priority=Priority.LOW, num_inference_steps=6))

    def arrive(step: int) -> None:
        if step == 2:
            bench.put(build.submit("normal", num_inference_steps=8))
            bench.put(build.submit("high", priority=Priority.HIGH, num_inference_steps=2))

    bench.after_step = arrive
    bench.run()
    order = [batch[0] for batch in bench.batches]
    assert order[:5] == [("low", 0), ("low", 1), ("high", 0), ("high", 1), ("normal", 0)]
    assert order[-4:] == [("low", step) for step in (2, 3, 4, 5)]
    assert (len(bench.of(PicturesPaused)), len(bench.of(PicturesResumed))) == (1, 1)


def test_a_running_task_can_be_raised() -> None:
    """It is not paused any more; one that is not known is passed over."""
    bench = Bench(slots=1)
    bench.put(build.submit("low", priority=Priority.LOW, num_inference_steps=4))

    def arrive(step: int) -> None:
        if step == 1:
            bench.put(Raise("low", Priority.HIGH), Raise("nobody", Priority.HIGH))
            bench.put(build.submit("high", priority=Priority.HIGH))

    bench.after_step = arrive
    bench.run()
    assert [each.task_id for each in bench.of(Finished)] == ["low", "high"]
    assert bench.of(PicturesPaused) == []


def test_out_of_memory_splits_the_group_and_loses_nothing() -> None:
    """The halves make the same step; the cap is lowered, and raised again after a minute; no step is made twice."""
    bench = Bench("oom_above=2")
    bench.put(*(build.submit(name, num_inference_steps=5) for name in "abcd"))
    bench.run()
    assert [sorted(batch) for batch in bench.batches[:2]] == [[("a", 0), ("b", 0)], [("c", 0), ("d", 0)]]
    assert len(bench.of(Finished)) == 4
    steps = [step for batch in bench.batches for step in batch]
    assert len(steps) == len(set(steps)) == 20
    assert bench.of(OutOfMemorySplit) == [OutOfMemorySplit(Stage.DENOISE, (64, 64), 2)]
    assert bench.of(StepsWasted) == []
    bench.now += 60
    bench.put(*(build.submit(name) for name in "efgh"))
    bench.run()
    assert len(bench.of(OutOfMemorySplit)) == 2, "four slots are tried again"
    assert len(bench.of(Finished)) == 8


def test_a_picture_that_never_fits_fails_with_its_reason() -> None:
    """Out of memory alone is a failure of its own reason."""
    bench = Bench("oom_above=0")
    bench.put(build.submit("a"))
    bench.run()
    assert [each.reason for each in bench.of(TaskFailed)] == [Reason.OUT_OF_MEMORY]


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (MemoryError(), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GiB)"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_exhausted_memory_is_known_by_its_words(error: Exception, is_memory: bool) -> None:
    """Only some libraries have an exception of their own for it."""
    assert is_out_of_memory(error) is is_memory


def test_an_engine_whose_device_is_lost_ends() -> None:
    """No call would succeed any more; in another process they may. Nobody is told that its picture failed."""

    class AcceleratorError(RuntimeError):
        """As PyTorch names it."""

    def denoise(_rows: Sequence[FakeRow]) -> list[Exception | None]:
        raise AcceleratorError("CUDA error: an illegal memory access was encountered")

    bench = Bench()
    bench.put(build.submit("a"), build.submit("b"))
    bench.denoise = denoise  # type: ignore[method-assign]
    with pytest.raises(AcceleratorError):
        bench.run()
    assert bench.of(TaskFailed) == []


def test_one_failing_request_fails_alone() -> None:
    """Its mates go on from the step they had."""
    bench = Bench("fail=poison")
    bench.put(*(build.submit(name, prompt=prompt) for name, prompt in (("a", "x"), ("b", "poison"), ("c", "y"))))
    bench.run()
    assert {each.task_id for each in bench.of(Finished)} == {"a", "c"}
    assert [(each.task_id, each.reason) for each in bench.of(TaskFailed)] == [("b", Reason.MODEL_ERROR)]
    assert "poison" not in bench.of(TaskFailed)[0].detail, "prompts do not leak into errors"
    steps = [step for batch in bench.batches for step in batch]
    assert len(steps) == len(set(steps)) == 8


def test_a_row_that_raises_in_a_step_of_many_fails_alone() -> None:
    """The step counts for the others."""
    bench = Bench()
    denoise = bench.denoise

    def spoiled(rows: Sequence[FakeRow]) -> list[Exception | None]:
        denoise(rows)
        return [ValueError("no") if row.picture.task_id == "b" else None for row in rows]

    bench.denoise = spoiled  # type: ignore[method-assign]
    bench.put(build.submit("a"), build.submit("b"))
    bench.run()
    assert [each.task_id for each in bench.of(Finished)] == ["a"]
    (wasted,) = bench.of(StepsWasted)
    assert (wasted.reason, wasted.steps) == (Reason.MODEL_ERROR, 1)
    assert wasted.seconds == pytest.approx(STEP_SECONDS / 2)
    assert len(bench.batches) == 4


def test_memory_that_runs_out_in_the_decoder_leaves_the_slots_alone() -> None:
    """From then on fewer pictures are decoded at a time, as few as fitted."""
    bench = Bench()
    decode = bench.decode

    def narrow(rows: Sequence[FakeRow]) -> list[np.ndarray]:
        if len(rows) > 2:
            raise MemoryError
        return decode(rows)

    bench.decode = narrow  # type: ignore[method-assign]
    for names in ("abcdefgh", "ijklmnop"):
        bench.put(*(build.submit(name) for name in names))
        bench.run()
    assert {len(batch) for batch in bench.batches} == {8}
    assert [len(batch) for batch in bench.decoded] == [2] * 8
    splits = bench.of(OutOfMemorySplit)
    assert [(each.stage, each.pictures) for each in splits] == [(Stage.VAE_DECODE, n) for n in (4, 2)]
    assert len(bench.of(Finished)) == 16


def test_the_engine_tells_for_whom_it_calls_the_model() -> None:
    """Whenever that changes, before the call, so that a crash is not laid on those who only wait or pause."""
    bench = Bench(slots=1)
    bench.put(build.submit("low", priority=Priority.LOW, num_inference_steps=3))
    bench.after_step = lambda step: bench.put(build.submit("h", priority=Priority.HIGH)) if step == 1 else None
    bench.run()
    assert [set(each.task_ids) for each in bench.of(Working)] == [{"low"}, {"h"}, {"low"}]


def test_a_suspect_of_a_crash_has_the_engine_to_itself_until_it_is_done() -> None:
    """With all its pictures, whatever arrives meanwhile; those that ran go on after it."""
    bench = Bench(slots=2)
    bench.put(build.submit("runs", 1.0, num_inference_steps=9))

    def arrive(step: int) -> None:
        if step == 1:
            params = build.params(num_images=3, num_inference_steps=2)
            bench.put(Submit("suspect", params, Priority.NORMAL, 2.0, alone=True))
        if step == 2:
            bench.put(build.submit("high", priority=Priority.HIGH), build.submit("wide", width=128))

    bench.after_step = arrive
    bench.run()
    turns = [{name for name, _ in batch} for batch in bench.batches]
    assert turns[:5] == [{"runs"}, *[{"suspect"}] * 4]
    assert all("suspect" not in names for names in turns[5:])
    assert len(bench.of(Finished)) == 4


@pytest.mark.parametrize("stage", ["begin", "decode"])
def test_a_picture_that_cannot_be_encoded_or_decoded_fails_alone(stage: str) -> None:
    """The others of the same call are tried again without it."""
    bench = Bench()
    whole = getattr(bench, stage)

    def spoiled(items: Sequence[FakeRow | Picture]) -> object:
        if any((item.picture if isinstance(item, FakeRow) else item).task_id == "b" for item in items):
            raise ValueError("no")
        return whole(items)

    setattr(bench, stage, spoiled)
    bench.put(*(build.submit(name) for name in "abc"))
    bench.run()
    assert sorted(each.task_id for each in bench.of(Finished)) == ["a", "c"]
    assert [each.task_id for each in bench.of(TaskFailed)] == ["b"]


def test_draining_finishes_what_has_started_and_nothing_else() -> None:
    """A task with pictures left goes on to its end; a waiting one stays; then `Drained` is the last word."""
    bench = Bench(slots=2)
    bench.put(build.submit("a", 1.0, num_images=3), build.submit("b", 2.0, num_inference_steps=70))
    bench.after_step = lambda step: bench.put(Drain(), build.submit("late")) if step == 1 else None
    bench.run()
    assert [each.task_id for each in bench.of(Finished)] == ["a"]
    assert [type(each).__name__ for each in bench.sent[-3:]] == ["Finished", "Drained", "Beat"]
    bench.loop.turn()
    assert len(bench.of(Drained)) == 1


class Life(RuleBasedStateMachine):
    """Anything may happen at any step boundary: what is accepted ends once, and is denoised step by step."""

    decode_steps = 0
    decode_seconds = 0.0

    def __init__(self) -> None:
        super().__init__()
        faults, decoding = "fail=poison&oom_above=3", (self.decode_seconds, self.decode_steps)
        self.bench = Bench(faults, 4, *decoding, s128x64=2)
        self.accepted: set[str] = set()
        self.cancelled: set[str] = set()

    @rule(
        steps=st.integers(1, 6),
        images=st.integers(1, 5),
        width=st.sampled_from([64, 128]),
        priority=st.sampled_from(Priority),
        prompt=st.sampled_from(["x", "x", "x", "poison"]),
        alone=st.sampled_from([False, False, False, True]),
    )
    def submit(self, steps: int, images: int, width: int, priority: Priority, prompt: str, alone: bool) -> None:
        """A task arrives."""
        params = build.params(num_inference_steps=steps, num_images=images, width=width, prompt=prompt)
        self._submit(params, priority, alone)

    def _submit(self, params: Params, priority: Priority, alone: bool) -> None:
        task_id = f"t{len(self.accepted)}"
        self.accepted.add(task_id)
        self.bench.put(Submit(task_id, params, priority, self.bench.now, alone))

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """Any task, ended or not."""
        if self.accepted:
            self._cancel(data.draw(st.sampled_from(sorted(self.accepted))))

    def _cancel(self, task_id: str) -> None:
        self.bench.put(Cancel(task_id, Reason.CLIENT_CANCELLED))
        if task_id not in self.ended:
            self.cancelled.add(task_id)

    @rule(data=st.data())
    def urge(self, data: st.DataObject) -> None:
        """A task that has not ended becomes urgent."""
        alive = sorted(self.accepted - self.ended - self.cancelled)
        if alive:
            self.bench.put(Raise(data.draw(st.sampled_from(alive)), Priority.HIGH))

    @rule(seconds=st.sampled_from([0.0, 30.0, 61.0]))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.bench.now += seconds

    @rule(turns=st.integers(1, 4))
    def turn(self, turns: int) -> None:
        """Some steps are made."""
        for _ in range(turns):
            if self.bench.loop._tasks or not self.bench.inbox.empty():
                self.bench.loop.turn()

    @property
    def ended(self) -> set[str]:
        """Tasks that were finished or failed."""
        return {each.task_id for each in self.bench.of(Finished) + self.bench.of(TaskFailed)}

    @invariant()
    def is_consistent(self) -> None:
        """No slot over the cap, every picture in one place, every end told once, no step twice."""
        loop = self.bench.loop
        held = [each.params.size for each in self.bench.holders]
        assert held.count((64, 64)) <= 4
        assert held.count((128, 64)) <= 2
        waiting = [each.picture for each in loop._waiting]
        decoding = [each.picture for decoding in loop._decoding for each, _, _ in decoding.parts]
        wanted = [each for each in decoding if each.task_id in loop._tasks]
        places = [*waiting, *loop._begun, *(each.picture for each in loop._done), *wanted]
        assert len(places) == len(set(places))
        assert {each.task_id for each in places} <= loop._tasks.keys()
        ends = [each.task_id for each in self.bench.of(Finished) + self.bench.of(TaskFailed)]
        assert len(ends) == len(set(ends))
        assert not loop._tasks.keys() & set(ends)

    def teardown(self) -> None:
        """In the end everything accepted has ended or was cancelled."""
        self.bench.run()
        assert not self.bench.loop._tasks
        assert self.ended | self.cancelled == self.accepted
        failed = {each.task_id for each in self.bench.of(TaskFailed)}
        poisoned = {each.task_id for each in self.bench.of(TaskFailed) if each.reason is Reason.MODEL_ERROR}
        assert failed == poisoned, "memory that runs out fails nobody"


TestLife = Life.TestCase
TestLife.settings = hypothesis_settings(max_examples=60, stateful_step_count=40, deadline=None)


class LifeBeside(Life):
    """The same where pictures are decoded beside steps."""

    decode_steps = 2


TestLifeBeside = LifeBeside.TestCase
TestLifeBeside.settings = TestLife.settings


class LifeMidway(Life):
    """The same where some come and go in the middle of a turn: while the model encodes, makes a step or decodes."""

    decode_seconds = STEP_SECONDS

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.due: list[tuple[int, Callable[[], None]]] = []  # at which call of the model, and what happens then
        for name in ("begin", "denoise", "decode"):
            setattr(self.bench, name, partial(self._call, getattr(self.bench, name)))

    def _call(self, whole: Callable[[object], object], items: object) -> object:
        self.calls += 1
        now = [happen for at, happen in self.due if at <= self.calls]
        self.due = [each for each in self.due if each[0] > self.calls]
        for happen in now:
            happen()
        return whole(items)

    @rule(calls=st.integers(1, 4), data=st.data())
    def cancel_midway(self, calls: int, data: st.DataObject) -> None:
        """Any task, ended by then or not."""
        if self.accepted:
            task_id = data.draw(st.sampled_from(sorted(self.accepted)))
            self.due.append((self.calls + calls, partial(self._cancel, task_id)))

    @rule(calls=st.integers(1, 4), images=st.integers(1, 5), alone=st.booleans())
    def submit_midway(self, calls: int, images: int, alone: bool) -> None:
        """A task arrives."""
        params = build.params(num_inference_steps=2, num_images=images)
        self.due.append((self.calls + calls, partial(self._submit, params, Priority.NORMAL, alone)))


TestLifeMidway = LifeMidway.TestCase
TestLifeMidway.settings = TestLife.settings


def test_the_time_of_every_step_is_paid_for_or_wasted() -> None:
    """Whatever fails, is cancelled or does not fit: nothing is counted twice or forgotten."""
    bench = Bench("fail=poison&oom_above=2")
    bench.put(
        build.submit("a", num_images=3, num_inference_steps=5),
        build.submit("b", prompt="poison", num_images=3, num_inference_steps=3),
        build.submit("c", num_inference_steps=9),
    )
    bench.after_step = lambda step: bench.put(Cancel("c", Reason.DISCONNECTED)) if step == 6 else None
    bench.run()
    steps = sum(each.seconds for each in bench.of(BatchStepped))
    paid = sum(each.batch_seconds for each in bench.of(Finished))
    wasted = sum(each.seconds for each in bench.of(StepsWasted))
    assert paid > 0
    assert wasted > 0
    assert paid + wasted == pytest.approx(steps)


def test_a_step_tells_its_slots_and_who_waits_for_one() -> None:
    """Those of another size are passed over; they are no reason to call a slot free in vain."""
    bench = Bench(slots=2)
    names = "abc"
    bench.put(*(build.submit(name) for name in names), build.submit("wide", width=128))
    bench.run()
    first = next(each for each in bench.of(BatchStepped) if each.size == (64, 64))
    assert (first.pictures, first.slots, first.waiting) == (2, 2, 1)
    assert first.passed_over == {BatchField.SIZE: 1}
    last = bench.of(BatchStepped)[-1]
    assert (last.waiting, last.passed_over) == (0, {})


def test_a_suspect_that_runs_alone_leaves_no_slot_free_in_vain() -> None:
    """Nobody else could have taken it."""
    bench = Bench()
    bench.put(replace(build.submit("suspect"), alone=True), build.submit("b"))
    bench.run()
    alone = [each for each in bench.of(BatchStepped) if each.members[0][0] == "suspect"]
    assert alone
    assert all((each.pictures, each.waiting) == (1, 0) for each in alone)


def test_admission_is_told_in_steps_too() -> None:
    """One that comes during a step has waited for its end; one that finds the engine idle for none."""
    bench = Bench()
    bench.put(build.submit("a"))

    def arrive(step: int) -> None:
        if step == 2:
            bench.put(replace(build.submit("b"), arrived_at=bench.now - STEP_SECONDS / 2))

    bench.after_step = arrive
    bench.run()
    assert [each.steps for each in bench.of(PictureAdmitted)] == [0, 1]
