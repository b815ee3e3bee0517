"""The loop of `continuous` mode: at every step boundary pictures join, pause and leave the running batch."""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from queue import SimpleQueue
from typing import Generic

from observability.events import (
    BatchStepped,
    OutOfMemorySplit,
    PictureAdmitted,
    PicturesPaused,
    PicturesResumed,
    StageFinished,
    StepsWasted,
)
from observability.labels import BatchField, Priority, Reason, Stage
from service.core import Size
from service.engine import policy
from service.engine.contract import Command, Decoded, Message, Picture, R, StepModel, Submit
from service.engine.loop import EngineLoop
from service.engine.policy import Candidate, Order, Turn
from service.engine.profile import Profile
from service.engine.splitting import Splitter
from service.engine.task import Begun, Decoding, Waiting

SETTLED_SECONDS = 1.0  # ageing and raised caps are looked at so often
MAX_DEFERRALS = 3
MAX_DECODING = 2  # calls of the decoder that go on beside steps
LOOK_SECONDS = 0.001  # between looks whether they are over, when there is nothing else to do
REMEMBERED_STEPS = 65  # so that the metric tells more than 64 from 64


class ContinuousLoop(EngineLoop, Generic[R]):
    """Drives a model step by step. `profile` says how many slots a size has and what a step costs."""

    def __init__(
        self,
        model: StepModel[R],
        inbox: "SimpleQueue[Command]",
        send: Callable[[Message], None],
        flush: Callable[[bool], None],
        *,
        profile: Profile,
        order: Order = policy.shortest_first,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(inbox, send, flush, clock)
        self._model = model
        self._profile = profile
        self._order = order
        self._begun: dict[Picture, Begun[R]] = {}
        self._done: list[Begun[R]] = []  # have all their steps and wait to be decoded
        self._decoding: list[Decoding[R]] = []
        self._deferrals = 0  # steps that went before decoding, one after the other
        self._settled_until = 0.0  # monotonic; until then the slots stay as they are, unless something happens
        self._turns: dict[Size, Turn] = {}
        self._splitter = Splitter(clock, self._on_split)
        self._busy: Counter[Size] = Counter()  # slots that were taken during the last step of a size
        self._passed_over = 0  # pictures with a slot whose size is not that of the next step
        self._step_ends: deque[float] = deque(maxlen=REMEMBERED_STEPS)  # monotonic

    def turn(self) -> None:
        """One turn of the loop: at most one denoising step of one size."""
        self._collect()
        self._retire(newcomers=self._join())
        batch = self._choose()
        if batch:
            self._denoise(batch)
        elif self._decoding:
            self._receive(timeout=LOOK_SECONDS)
        elif not self._waiting and not self._done:
            self._rest()

    # Admit

    def _join(self) -> bool:
        """Take commands and admit, and once more for those that came while prompts were encoded; as `_admit`."""
        self._receive(timeout=0.0)
        found_free_slots = self._admit()
        self._receive(timeout=0.0)
        return self._admit() or found_free_slots

    def _admit(self) -> bool:
        """Give out the slots; return whether pictures joined that found one free, and so should not wait longer."""
        now = self._clock()
        if now < self._settled_until:
            return False
        self._settled_until = now + SETTLED_SECONDS
        slots = policy.assign_slots(self._candidates(now), lambda size: self._cap(size, now), now, self._order)
        holders = {each.picture for each in slots}
        self._pause_and_resume(holders, now)
        newcomers = [each for each in slots if each.picture not in self._begun]
        return bool(newcomers) and self._begin(newcomers, now)

    def _candidates(self, now: float) -> Iterator[Candidate]:
        for each in self._waiting:
            yield self._candidate(each, False, now - each.since)
        for begun in self._begun.values():
            yield self._candidate(begun.waiting, begun.holds_slot, begun.without_slot(now))

    def _candidate(self, waiting: Waiting, holds: bool, waited: float) -> Candidate:
        task = self._tasks[waiting.picture.task_id]
        work = (task.params.total_steps - task.steps_done) * task.step_cost
        started = task.has_started
        return Candidate(waiting.picture, waiting.priority, waiting.since, work, holds, waiting.alone, started, waited)

    def _cap(self, size: Size, now: float) -> int:
        return self._splitter.at_most(self._profile.cap(size), Stage.DENOISE, size, now)

    def _pause_and_resume(self, holders: set[Picture], now: float) -> None:
        changed = [each for each in self._begun.values() if each.holds_slot != (each.picture in holders)]
        resumed = sum(not each.holds_slot for each in changed)
        for each in changed:
            each.pause_or_resume(now)
        if resumed:
            self._observe(PicturesResumed(resumed))
        if len(changed) > resumed:
            self._observe(PicturesPaused(len(changed) - resumed))

    def _begin(self, newcomers: Sequence[Candidate], now: float) -> bool:
        """Encode the prompts and draw the first latents of pictures that got a slot."""
        if any(each.alone for each in newcomers):
            self._settle()
        waiting = {each.picture: each for each in self._waiting}
        self._start(waiting.keys() & {each.picture for each in newcomers})
        free = Counter(
            {size: self._cap(size, now) - self._busy[size] for size in {each.picture.size for each in newcomers}}
        )
        found_free_slots = False
        for picture, row in self._splitter.apart([each.picture for each in newcomers], self._encode, Stage.TEXT_ENCODE):
            if isinstance(row, Exception):
                self._fail(picture.task_id, row)
            elif picture.task_id in self._tasks:
                free[picture.size] -= 1
                was_free = free[picture.size] >= 0
                found_free_slots |= was_free and not waiting[picture].alone  # before a suspect all is to be handed out
                self._begun[picture] = Begun(waiting[picture], row, was_free, now)
        ended = self._clock()
        for task_id in {each.picture.task_id for each in newcomers} & self._tasks.keys():
            self._tasks[task_id].encoded(now, ended)
        self._observe(StageFinished(Stage.TEXT_ENCODE, ended - now, newcomers[0].picture.task_id))
        return found_free_slots

    def _encode(self, pictures: Sequence[Picture]) -> Sequence[R]:
        self._works_on(pictures)
        return self._model.begin(pictures)

    # Choose

    def _choose(self) -> list[Begun[R]]:
        """The pictures that take the next step together."""
        batches: dict[Size, list[Begun[R]]] = {}
        for each in self._begun.values():
            if each.holds_slot:
                batches.setdefault(each.size, []).append(each)
        self._turns = policy.entered(self._turns, batches)
        self._busy = Counter({size: len(batch) for size, batch in batches.items()})
        if not batches:
            return []
        rows = [each for batch in batches.values() for each in batch]
        highest = min(each.waiting.priority.rank for each in rows)
        fresh = {each.size for each in rows if each.is_fresh and each.waiting.priority.rank == highest}
        batch = batches[policy.next_size(self._turns, fresh)]
        self._passed_over = sum(map(len, batches.values())) - len(batch)
        return batch

    # Denoise

    def _denoise(self, batch: Sequence[Begun[R]]) -> None:
        """One step for all of `batch`; what raises even alone fails, the others go on from the step they had."""
        now = self._clock()
        for each in batch:
            if each.free_since is not None:
                steps = sum(ended > each.free_since for ended in self._step_ends)
                self._observe(PictureAdmitted(now - each.free_since, steps, each.picture.task_id))
                each.free_since = None
        for each, error in self._splitter.apart(batch, self._step, Stage.DENOISE):
            if error is not None:
                self._fail(each.picture.task_id, error)
            elif each.row.step == each.row.total_steps and self._begun.pop(each.picture, None) is not None:
                self._tasks[each.picture.task_id].denoised_at = self._clock()
                self._done.append(each)
                self._settled_until = 0.0

    def _step(self, batch: Sequence[Begun[R]]) -> Sequence[Exception | None]:
        if any(each.waiting.alone for each in batch):
            self._settle()
        members = tuple((each.picture.task_id, each.row.step) for each in batch)
        self._works_on(each.picture for each in batch)
        self._model.peak_bytes()  # what came before is not the step's
        began = self._clock()
        errors = self._model.denoise([each.row for each in batch])
        ended = self._clock()
        self._step_ends.append(ended)
        seconds = ended - began
        size = batch[0].size
        self._turns = policy.charged(self._turns, size, seconds, [each.waiting.priority for each in batch])
        rows = sum(self._model.info.rows(each.picture.params) for each in batch)
        passed_over, self._passed_over = self._passed_over, 0
        event = BatchStepped(
            members,
            rows,
            size,
            seconds,
            slots=self._cap(size, began),
            waiting=0 if any(each.waiting.alone for each in batch) else self._without_slot(size),
            peak_bytes=self._model.peak_bytes(),
            predicted_bytes=self._profile.peak_bytes(size, rows),
            passed_over={BatchField.SIZE: passed_over} if passed_over else {},
        )
        self._report(event)
        return errors

    def _without_slot(self, size: Size) -> int:
        """Pictures of this size that would take a slot if there were one, beside others."""
        paused = (each.waiting for each in self._begun.values() if not each.holds_slot)
        return sum(each.picture.size == size and not each.alone for each in (*self._waiting, *paused))

    def _report(self, event: BatchStepped) -> None:
        """Tell how far the tasks of a batch are after one more step."""
        present = [task_id for task_id, _ in event.members if task_id in self._tasks]
        for task_id in present:
            self._tasks[task_id].stepped(event.seconds_each)
        gone = event.pictures - len(present)  # another picture of theirs has failed, in another part of a split step
        if gone:
            self._observe(StepsWasted(Reason.MODEL_ERROR, gone, gone * event.seconds_each))
        self._tell_step(event, present)

    # Retire

    def _retire(self, newcomers: bool) -> None:
        """Decode what has all its steps, in parts that take about a step, so that newcomers need not wait for long.

        Of newcomers that found a free slot, the first step goes before that, but not for many steps in a row.
        """
        may_wait = self._deferrals < MAX_DEFERRALS and not self._model.decodes_beside
        while self._done:
            if newcomers and may_wait:
                self._deferrals += 1
                return
            self._start_decoding(self._part())
            self._collect()
            newcomers = self._join() or newcomers
        self._deferrals = 0

    def _part(self) -> list[Begun[R]]:
        """Take finished rows of one size, as many as are decoded together."""
        size = self._done[0].size
        most = self._profile.max_batch if self._model.decodes_beside else self._profile.decoded_together(size)
        part = [each for each in self._done if each.size == size][:most]
        self._done = [each for each in self._done if each not in part]
        return part

    def _decode(self, batch: Sequence[Begun[R]]) -> Sequence[Decoded]:
        self._works_on(each.picture for each in batch)
        return self._model.decode([each.row for each in batch])

    def _start_decoding(self, batch: Sequence[Begun[R]]) -> None:
        is_alone = any(each.waiting.alone for each in batch)
        self._settle(leaving=0 if is_alone else MAX_DECODING - 1)
        decoding: Decoding[R] = Decoding(self._clock(), batch[0].picture.task_id)
        self._decoding.append(decoding)
        for each, decoded in self._splitter.apart(batch, self._decode, Stage.VAE_DECODE):
            if isinstance(decoded, Exception):
                self._fail(each.picture.task_id, decoded)
            elif (task := self._tasks.get(each.picture.task_id)) is not None:
                decoding.parts.append((each, task, decoded))
        if is_alone:
            self._settle()

    def _settle(self, leaving: int = 0) -> None:
        """Wait until at most `leaving` calls of the decoder go on; none may beside one that is to run alone."""
        while len(self._decoding) > leaving:
            self._hand_out(self._decoding.pop(0))

    def _collect(self) -> None:
        """Hand out what has been decoded, in order."""
        while self._decoding and self._decoding[0].is_over:
            self._hand_out(self._decoding.pop(0))

    def _hand_out(self, decoding: Decoding[R]) -> None:
        """Wait for the pictures, and give them to those of their tasks that are still there."""
        for each, task, decoded in decoding.parts:
            task.keep(each.picture.index, decoded.pixels(), each.row.truncated)
        ended = self._clock()
        self._observe(StageFinished(Stage.VAE_DECODE, ended - decoding.began, decoding.first))
        for task_id, task in {each.picture.task_id: task for each, task, _ in decoding.parts}.items():
            if task.is_complete and self._tasks.get(task_id) is task:
                task.decoded(ended)
                self._observe(StageFinished(Stage.DENOISE, task.timings[Stage.DENOISE], task_id))
                self._finish(task_id)
        self._flush(False)

    def _works_on(self, pictures: Iterable[Picture]) -> None:
        """What is being decoded meanwhile may take the device down too."""
        super()._works_on([*pictures, *(each.picture for decoding in self._decoding for each, _, _ in decoding.parts)])

    # What goes wrong

    def _on_split(self, stage: Stage, size: Size, pictures: int) -> None:
        """A call ran out of memory; such calls take fewer pictures for a while."""
        self._settled_until = 0.0
        self._observe(OutOfMemorySplit(stage, size, pictures))

    def _fail(self, task_id: str, error: Exception) -> None:
        super()._fail(task_id, error)
        self._forget(task_id, Reason.MODEL_ERROR)

    # Commands

    def _obey(self, command: Command) -> None:
        super()._obey(command)
        self._settled_until = 0.0

    def _enqueue(self, command: Submit) -> None:
        super()._enqueue(command)
        rows = self._model.info.rows(command.params)
        self._tasks[command.task_id].step_cost = self._profile.picture_step_seconds(command.params.size, rows)

    def _raise_priority(self, task_id: str, priority: Priority) -> None:
        super()._raise_priority(task_id, priority)
        for each in self._begun.values():
            if each.picture.task_id == task_id and priority.rank < each.waiting.priority.rank:
                each.waiting = replace(each.waiting, priority=priority)

    def _forget(self, task_id: str, reason: Reason) -> None:
        self._settled_until = 0.0
        self._begun = {picture: each for picture, each in self._begun.items() if picture.task_id != task_id}
        self._done = [each for each in self._done if each.picture.task_id != task_id]
