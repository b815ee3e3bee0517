"""The loop of `window` and `sequential` mode: choose a batch, run it to its end, hand out the pictures."""

import time
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue

from observability.events import BatchStepped, OutOfMemorySplit, StageFinished, StepsWasted
from observability.labels import BatchField, Reason, Stage
from service.engine.contract import (
    Aborted,
    Batch,
    BatchModel,
    Command,
    Message,
    Picture,
    is_device_lost,
)
from service.engine.loop import EngineLoop, reason_of
from service.engine.window import Run, choose, passed_over, shared


class WindowLoop(EngineLoop):
    """Runs batches of at most `max_batch` pictures that waited at most `window` seconds for mates."""

    def __init__(
        self,
        model: BatchModel,
        inbox: "SimpleQueue[Command]",
        send: Callable[[Message], None],
        flush: Callable[[bool], None],
        *,
        window: float,
        max_batch: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(inbox, send, flush, clock)
        self._model = model
        self._window = window
        self._max_batch = max_batch
        self._left: dict[str, Reason] = {}  # tasks that left the running batch, whose pictures it still computes
        self._passed_over: Mapping[BatchField, int] = {}  # waiting pictures that the next batch cannot take

    def turn(self) -> None:
        """One turn of the loop: at most one batch."""
        window = 0.0 if self._draining else self._window
        choice = choose(self._waiting, self._clock(), window, self._max_batch)
        if isinstance(choice, Run):
            self._start(choice.pictures)
            if self._max_batch > 1:
                self._passed_over = passed_over(choice.pictures[0], (each.picture for each in self._waiting))
            self._run(choice.pictures)
            self._receive(timeout=0.0)
        else:
            self._rest(choice.until)

    def _forget(self, task_id: str, reason: Reason) -> None:
        self._left[task_id] = reason

    def _run(self, pictures: Sequence[Picture]) -> None:
        """Run one batch; when it raises, run its halves apart, so that only what cannot run fails."""
        pictures = [each for each in pictures if each.task_id in self._tasks]
        if not pictures:
            return
        self._left.clear()
        self._works_on(pictures)
        try:
            batch = self._model.generate(pictures, self._boundary(pictures))
        except Aborted:
            return
        except Exception as error:
            if is_device_lost(error):
                raise  # the process ends, and another begins
            reason = reason_of(error)
            self._undo_steps(pictures, reason)
            if len(pictures) == 1:
                self._fail(pictures[0].task_id, error)
                return
        else:
            self._retire(pictures, batch)
            return
        self._run_apart(pictures, reason)  # out here, the error no longer holds the tensors of the batch that failed

    def _boundary(self, pictures: Sequence[Picture]) -> Callable[[float], None]:
        """What happens between two denoising steps of a batch of `pictures`."""
        step = 0

        def on_step(seconds: float) -> None:
            nonlocal step
            present = [each for each in pictures if each.task_id in self._tasks]
            event = self._event(pictures, step, seconds)
            for each in present:
                self._tasks[each.task_id].stepped(event.seconds_each)
            for each in pictures:
                if each.task_id in self._left:
                    self._observe(StepsWasted(self._left[each.task_id], 1, event.seconds_each))
            self._tell_step(event, (each.task_id for each in present))
            step += 1
            self._receive(timeout=0.0)
            if not any(each.task_id in self._tasks for each in pictures):
                raise Aborted

        return on_step

    def _event(self, pictures: Sequence[Picture], step: int, seconds: float) -> BatchStepped:
        """A batch's first step tells also of those that were passed over."""
        over, self._passed_over = self._passed_over, {}
        ours = shared(pictures[0])
        return BatchStepped(
            members=tuple((each.task_id, step) for each in pictures),
            rows=sum(self._model.info.rows(each.params) for each in pictures),
            size=pictures[0].size,
            seconds=seconds,
            slots=self._max_batch,
            waiting=sum(shared(each.picture) == ours for each in self._waiting),
            passed_over=over,
        )

    def _run_apart(self, pictures: Sequence[Picture], reason: Reason) -> None:
        middle = len(pictures) // 2
        if reason is Reason.OUT_OF_MEMORY:
            self._observe(OutOfMemorySplit(Stage.DENOISE, pictures[0].params.size, middle))
        self._run(pictures[:middle])
        self._run(pictures[middle:])

    def _undo_steps(self, pictures: Sequence[Picture], reason: Reason) -> None:
        """Count as wasted the steps that these pictures have taken; they will start again."""
        steps, seconds = 0, 0.0
        for task_id in {each.task_id for each in pictures} & self._tasks.keys():
            lost, their_seconds = self._tasks[task_id].forget_unfinished()
            steps += lost
            seconds += their_seconds
        if steps:
            self._observe(StepsWasted(reason, steps, seconds))

    def _retire(self, pictures: Sequence[Picture], batch: Batch) -> None:
        for stage, seconds in batch.timings.items():
            self._observe(StageFinished(stage, seconds))
        for picture, pixels, truncated in zip(pictures, batch.pixels, batch.truncated, strict=True):
            task = self._tasks.get(picture.task_id)
            if task is not None:
                task.keep(picture.index, pixels, truncated)
        for task_id in {each.task_id for each in pictures} & self._tasks.keys():
            task = self._tasks[task_id]
            task.add_timings(batch.timings)
            if task.is_complete:
                self._finish(task_id)
