"""What the engine's loops have in common: commands in, messages out, the tasks between."""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import replace
from queue import Empty, SimpleQueue

from observability import logs
from observability.events import BatchStepped, Event, StepsWasted
from observability.labels import Priority, Reason
from service.engine.contract import (
    Beat,
    Cancel,
    Command,
    Drain,
    Drained,
    Finished,
    Happened,
    LogLevel,
    Message,
    Picture,
    Raise,
    Started,
    Stepped,
    Submit,
    TaskFailed,
    Working,
    is_out_of_memory,
)
from service.engine.task import Task, Waiting

log = logging.getLogger("safelight.engine")

BEAT_SECONDS = 1.0


class EngineLoop(ABC):
    """Owns the waiting and running tasks of one model; runs in one thread.

    Commands are read from `inbox`; messages go to `send`, and leave with `flush`, which is called before every call of
    the model and whenever commands are taken: with True before a wait. A task leaves `_tasks` when it is finished,
    failed or cancelled, so that nothing is reported of it afterwards.
    """

    def __init__(
        self,
        inbox: "SimpleQueue[Command]",
        send: Callable[[Message], None],
        flush: Callable[[bool], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inbox = inbox
        self._send = send
        self._flush = flush
        self._clock = clock
        self._waiting: list[Waiting] = []
        self._tasks: dict[str, Task] = {}
        self._draining = self._drained = False
        self._working: frozenset[str] = frozenset()  # as last told

    def run(self) -> None:
        """Serve for ever."""
        while True:
            self.turn()

    @abstractmethod
    def turn(self) -> None:
        """One turn of the loop: take commands, and run what is due."""

    @abstractmethod
    def _forget(self, task_id: str, reason: Reason) -> None:
        """The task left while it ran: give up its place in the batch."""

    def _rest(self, until: float | None = None) -> None:
        """Wait for commands, at most until the next beat or `until`; with nothing left to do, a drain is over."""
        if self._draining and not self._tasks and not self._drained:
            self._drained = True
            self._send(Drained())
        beat = self._clock() + BEAT_SECONDS
        self._receive(timeout=min(beat, until or beat) - self._clock())
        self._send(Beat())

    def _receive(self, timeout: float) -> None:
        """Take every command that is there, waiting at most `timeout` seconds for the first."""
        self._flush(timeout > 0)
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
            case Submit():
                self._enqueue(command)
            case Raise():
                self._raise_priority(command.task_id, command.priority)
            case Cancel():
                self._cancel(command)
            case Drain():
                self._drain()
            case LogLevel():
                logs.set_level(command.level)

    def _enqueue(self, command: Submit) -> None:
        arrived_at = self._clock() if command.arrived_at is None else command.arrived_at
        self._tasks[command.task_id] = Task(command.params)
        self._waiting += (
            Waiting(
                Picture(command.task_id, index, command.params),
                command.priority,
                command.accepted_at,
                arrived_at,
                command.alone,
                command.waited,
            )
            for index in range(command.params.num_images)
        )

    def _raise_priority(self, task_id: str, priority: Priority) -> None:
        self._waiting = [
            replace(each, priority=min(each.priority, priority, key=lambda either: either.rank))
            if each.picture.task_id == task_id
            else each
            for each in self._waiting
        ]

    def _cancel(self, command: Cancel) -> None:
        task = self._remove(command.task_id)
        if task is not None and task.has_started:
            self._forget(command.task_id, command.reason)
            self._observe(StepsWasted(command.reason, task.steps_done, task.batch_seconds))

    def _drain(self) -> None:
        """Keep what has started, with all its pictures, and drop the rest."""
        self._draining = True
        self._tasks = {task_id: task for task_id, task in self._tasks.items() if task.has_started}
        self._waiting = [each for each in self._waiting if each.picture.task_id in self._tasks]

    def _start(self, pictures: Iterable[Picture]) -> None:
        """These pictures leave the queue; tell whose task starts by it."""
        chosen = set(pictures)
        self._waiting = [each for each in self._waiting if each.picture not in chosen]
        fresh = sorted({each.task_id for each in chosen if not self._tasks[each.task_id].has_started})
        for task_id in fresh:
            self._tasks[task_id].has_started = True
        if fresh:
            self._send(Started(tuple(fresh)))

    def _works_on(self, pictures: Iterable[Picture]) -> None:
        """Tell for whom the model is called next, if that has changed."""
        working = frozenset(each.task_id for each in pictures)
        if working != self._working:
            self._working = working
            self._send(Working(working))
        self._flush(False)

    def _finish(self, task_id: str) -> None:
        """All pictures of the task are there: hand them out."""
        task = self._tasks.pop(task_id)
        timings = dict(task.timings)
        self._send(Finished(task_id, task.ordered_pictures, timings, task.prompt_truncated, task.batch_seconds))

    def _tell_step(self, event: BatchStepped, task_ids: Iterable[str]) -> None:
        """A step is done; tell how far the tasks are that made it and are still wanted."""
        present = {task_id: self._tasks[task_id] for task_id in task_ids if task_id in self._tasks}
        steps_done = {task_id: task.steps_done for task_id, task in present.items()}
        seconds = {task_id: task.batch_seconds for task_id, task in present.items()}
        self._send(Stepped(event, steps_done, seconds))

    def _fail(self, task_id: str, error: Exception) -> None:
        """One of the task's pictures cannot be made even alone."""
        log.warning("a picture of job %s failed: %s", task_id, type(error).__name__, exc_info=error)
        task = self._remove(task_id)
        if task is not None:
            if task.steps_done:
                self._observe(StepsWasted(reason_of(error), task.steps_done, task.batch_seconds))
            self._send(TaskFailed(task_id, reason_of(error), f"{type(error).__name__} in the model"))

    def _remove(self, task_id: str) -> Task | None:
        self._waiting = [each for each in self._waiting if each.picture.task_id != task_id]
        return self._tasks.pop(task_id, None)

    def _observe(self, event: Event) -> None:
        self._send(Happened(event))


def reason_of(error: Exception) -> Reason:
    """The label of a failure in the model."""
    return Reason.OUT_OF_MEMORY if is_out_of_memory(error) else Reason.MODEL_ERROR
