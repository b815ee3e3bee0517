"""The engine loop: receive commands, choose a batch, run it, hand out the pictures."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from queue import Empty, SimpleQueue

from observability.events import BatchStepped, OutOfMemorySplit, Reason, StageFinished, StepsWasted
from service.engine.contract import (
    Aborted,
    Batch,
    Beat,
    Cancel,
    Command,
    Drain,
    Drained,
    Finished,
    Happened,
    Message,
    BatchModel,
    Picture,
    Started,
    Stepped,
    Submit,
    TaskFailed,
)
from service.engine.policy import Run, Waiting, choose
from service.engine.task import Task

log = logging.getLogger("safelight.engine")

BEAT_SECONDS = 1.0


class EngineLoop:
    """Owns the waiting and running tasks of one model; runs in one thread.

    Commands are read from `inbox`; messages leave through `send`. A task leaves `_tasks` when it is
    finished, failed or cancelled, so that nothing is reported of it afterwards.
    """

    def __init__(
        self,
        model: BatchModel,
        inbox: "SimpleQueue[Command]",
        send: Callable[[Message], None],
        *,
        window: float,
        max_batch: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._inbox = inbox
        self._send = send
        self._window = window
        self._max_batch = max_batch
        self._clock = clock
        self._waiting: list[Waiting] = []
        self._tasks: dict[str, Task] = {}
        self._draining = self._drained = False
        self._left: dict[str, Reason] = {}  # tasks that left the running batch, whose pictures it still computes

    def run(self) -> None:
        """Serve for ever."""
        while True:
            self.turn()

    def turn(self) -> None:
        """One turn of the loop: at most one batch."""
        window = 0.0 if self._draining else self._window
        choice = choose(self._waiting, self._clock(), window, self._max_batch)
        if isinstance(choice, Run):
            self._start(choice.pictures)
            self._run(choice.pictures)
            self._receive(timeout=0.0)
        else:
            if self._draining and not self._waiting and not self._drained:
                self._drained = True
                self._send(Drained())
            until = self._clock() + BEAT_SECONDS
            self._receive(timeout=min(until, choice.until or until) - self._clock())
            self._send(Beat())

    def _receive(self, timeout: float) -> None:
        """Take every command that is there, waiting at most `timeout` seconds for the first."""
        try:
            command = self._inbox.get(timeout=timeout) if timeout > 0 else self._inbox.get_nowait()
            while True:
                self._obey(command)
                command = self._inbox.get_nowait()
        except Empty:
            return

    def _obey(self, command: Command) -> None:
        match command:
            case Submit() if self._draining:
                log.debug("draining: %s stays queued", command.task_id)
            case Submit() if command.task_id in self._tasks:
                self._raise_priority(command)
            case Submit():
                self._enqueue(command)
            case Cancel():
                self._cancel(command)
            case Drain():
                self._drain()

    def _enqueue(self, command: Submit) -> None:
        now = self._clock()
        self._tasks[command.task_id] = Task(command.params)
        self._waiting += (
            Waiting(
                Picture(command.task_id, index, command.params),
                command.priority,
                command.accepted_at,
                now,
                command.alone,
            )
            for index in range(command.params.num_images)
        )

    def _raise_priority(self, command: Submit) -> None:
        self._waiting = [
            replace(each, priority=min(each.priority, command.priority, key=lambda priority: priority.rank))
            if each.picture.task_id == command.task_id
            else each
            for each in self._waiting
        ]

    def _cancel(self, command: Cancel) -> None:
        self._waiting = [each for each in self._waiting if each.picture.task_id != command.task_id]
        task = self._tasks.pop(command.task_id, None)
        if task is not None and task.has_started:
            self._left[command.task_id] = command.reason
            self._send(Happened(StepsWasted(command.reason, task.steps_done)))

    def _drain(self) -> None:
        self._draining = True
        self._waiting = [each for each in self._waiting if self._tasks[each.picture.task_id].has_started]

    def _start(self, pictures: Sequence[Picture]) -> None:
        chosen = set(pictures)
        self._waiting = [each for each in self._waiting if each.picture not in chosen]
        fresh = [
            task_id
            for task_id in dict.fromkeys(each.task_id for each in pictures)
            if not self._tasks[task_id].has_started
        ]
        for task_id in fresh:
            self._tasks[task_id].has_started = True
        if fresh:
            self._send(Started(tuple(fresh)))

    def _run(self, pictures: Sequence[Picture]) -> None:
        """Run one batch; when it raises, run its halves apart, so that only what cannot run fails."""
        pictures = [each for each in pictures if each.task_id in self._tasks]
        if not pictures:
            return
        self._left.clear()
        try:
            batch = self._model.generate(pictures, self._boundary(pictures))
        except Aborted:
            return
        except Exception as error:  # noqa: BLE001  # whatever a model raises; the failing picture reports it
            self._isolate(pictures, error)
        else:
            self._retire(pictures, batch)

    def _boundary(self, pictures: Sequence[Picture]) -> Callable[[float], None]:
        """What happens between two denoising steps of a batch of `pictures`."""

        def on_step(seconds: float) -> None:
            present = [each for each in pictures if each.task_id in self._tasks]
            for each in present:
                self._tasks[each.task_id].steps_done += 1
            for each in pictures:
                if each.task_id in self._left:
                    self._send(Happened(StepsWasted(self._left[each.task_id], 1)))
            done = {each.task_id: self._tasks[each.task_id].steps_done for each in present}
            self._send(Happened(BatchStepped(len(done), len(pictures), seconds)))
            self._send(Stepped(done))
            self._receive(timeout=0.0)
            if not any(each.task_id in self._tasks for each in pictures):
                raise Aborted

        return on_step

    def _isolate(self, pictures: Sequence[Picture], error: Exception) -> None:
        reason = Reason.OUT_OF_MEMORY if is_out_of_memory(error) else Reason.MODEL_ERROR
        self._undo_steps(pictures, reason)
        if len(pictures) == 1:
            log.warning("a picture failed: %s", type(error).__name__, exc_info=error)
            self._fail(pictures[0].task_id, reason, f"{type(error).__name__} in the model")
            return
        if reason is Reason.OUT_OF_MEMORY:
            self._send(Happened(OutOfMemorySplit()))
        middle = len(pictures) // 2
        self._run(pictures[:middle])
        self._run(pictures[middle:])

    def _undo_steps(self, pictures: Sequence[Picture], reason: Reason) -> None:
        """Count as wasted the steps that these pictures have taken; they will start again."""
        wasted = 0
        for task_id in {each.task_id for each in pictures} & self._tasks.keys():
            task = self._tasks[task_id]
            wasted += task.forget_unfinished()
        if wasted:
            self._send(Happened(StepsWasted(reason, wasted)))

    def _fail(self, task_id: str, reason: Reason, detail: str) -> None:
        self._waiting = [each for each in self._waiting if each.picture.task_id != task_id]
        if self._tasks.pop(task_id, None) is not None:
            self._send(TaskFailed(task_id, reason, detail))

    def _retire(self, pictures: Sequence[Picture], batch: Batch) -> None:
        for stage, seconds in batch.timings.items():
            self._send(Happened(StageFinished(stage, seconds)))
        for picture, pixels, truncated in zip(pictures, batch.pixels, batch.truncated, strict=True):
            task = self._tasks.get(picture.task_id)
            if task is not None:
                task.keep(picture.index, pixels, truncated)
        for task_id in {each.task_id for each in pictures} & self._tasks.keys():
            task = self._tasks[task_id]
            task.add_timings(batch.timings)
            if task.is_complete:
                del self._tasks[task_id]
                self._send(Finished(task_id, task.ordered_pictures, dict(task.timings), task.prompt_truncated))


def is_out_of_memory(error: Exception) -> bool:
    """Whether `error` says that the device's memory is exhausted; by name, so that torch need not be imported."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
