"""What the service remembers of unfinished jobs: each job, and the computation it shares with identical ones."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from observability.events import BatchStepped, QueueChanged, StepsWasted
from observability.labels import Priority, Reason
from service.core import Job, JobState, Params
from service.engine.contract import Submit


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A job and where it stands: steps done over all its pictures; place in the queue (0 = next) and seconds left,
    where they are known.
    """

    job: Job
    steps_done: int
    queue_position: int | None
    estimated_time: float | None


@dataclass(slots=True, eq=False)
class LiveJob:
    """An unfinished job. `accepted_at` is monotonic; `closing` is set by whoever ends it, before awaiting anything."""

    job: Job
    accepted_at: float
    flight: "Flight"
    timer: asyncio.TimerHandle | None = None
    closing: bool = False
    waiters: int = 0
    predicted: float | None = None  # seconds from acceptance to completion, as estimated then
    done: asyncio.Event = field(default_factory=asyncio.Event)
    _watchers: set["asyncio.Queue[Snapshot | None]"] = field(default_factory=set)

    def claim(self) -> bool:
        """Whether the caller is the first that ends it."""
        is_first = not self.closing
        self.closing = True
        if is_first and self.timer is not None:
            self.timer.cancel()
        return is_first

    @contextmanager
    def watched(self) -> Iterator["asyncio.Queue[Snapshot | None]"]:
        """A queue of every change from now on; None when the service stops before the job ends."""
        queue: asyncio.Queue[Snapshot | None] = asyncio.Queue()
        self._watchers.add(queue)
        try:
            yield queue
        finally:
            self._watchers.discard(queue)

    @property
    def is_watched(self) -> bool:
        """Whether anybody follows the job."""
        return bool(self._watchers)

    def tell(self, snapshot: Snapshot | None) -> None:
        """Put a change into every watcher's queue."""
        for queue in self._watchers:
            queue.put_nowait(snapshot)


@dataclass(slots=True, eq=False)
class Flight:
    """One computation in the engine, and the jobs that wait for it. Its id is that of the job that began it.

    `accepted_at` is a Unix time, `entered_at` the monotonic one since when this process knows it.
    """

    id: str
    key: str
    params: Params
    priority: Priority
    accepted_at: float
    entered_at: float
    members: dict[str, LiveJob] = field(default_factory=dict)
    has_started: bool = False
    waited: float | None = None  # seconds without a slot, once it has started
    steps_done: int = 0
    batch_seconds: float = 0.0  # its share of the time of its steps
    is_paid: bool = False  # a completed job accounts for them
    left_because: Reason = Reason.NONE  # why the last job left it that did
    slots: int = 0  # pictures that made the last step of their size
    crashes: int = 0
    blob: str = ""  # of its pictures; its id, if not given

    def __post_init__(self) -> None:
        self.blob = self.blob or self.id

    @property
    def order(self) -> tuple[int, float, str]:
        """Sort key of what is handed to an engine anew."""
        return (self.priority.rank, self.accepted_at, self.id)

    def submission(self, now: float) -> Submit:
        """What an engine is handed at monotonic `now`."""
        waited = now - self.entered_at
        return Submit(self.id, self.params, self.priority, self.accepted_at, self.crashes > 0, waited)

    def wasted(self, reason: Reason) -> StepsWasted:
        """Its steps are lost outside of the engine, which tells of its own."""
        return StepsWasted(reason, self.steps_done, self.batch_seconds)

    def start_anew(self) -> None:
        """The engine is lost with all that was done."""
        self.has_started, self.waited, self.steps_done, self.batch_seconds, self.slots = False, None, 0, 0.0, 0

    def paid_by(self, job: Job) -> float:
        """The seconds of batches that this ended job is to account for: all, for the first that completes."""
        if job.state is not JobState.COMPLETED or self.is_paid:
            return 0.0
        self.is_paid = True
        return self.batch_seconds


class Flights:
    """The computations that are unfinished: by id those in the engine, by key those that a request may still join.

    `on_leave` is called when one is in the engine no more.
    """

    def __init__(self, on_leave: Callable[[], None] = lambda: None) -> None:
        self._on_leave = on_leave
        self._by_id: dict[str, Flight] = {}
        self._by_key: dict[str, Flight] = {}

    def __iter__(self) -> Iterator[Flight]:
        return iter(tuple(self._by_id.values()))

    def __contains__(self, flight: Flight) -> bool:
        return flight.id in self._by_id

    def known(self, task_ids: Iterable[str]) -> list[Flight]:
        """Those of the tasks that are still in the engine for somebody."""
        return [self._by_id[each] for each in task_ids if each in self._by_id]

    def joinable(self, key: str) -> Flight | None:
        """The computation that a request with this key can share."""
        return self._by_key.get(key)

    def add(self, flight: Flight) -> None:
        """A computation begins."""
        self._by_id[flight.id] = self._by_key[flight.key] = flight

    def leave_engine(self, flight: Flight) -> None:
        """Its pictures are made; identical requests may still join until they are handed out."""
        if self._by_id.pop(flight.id, None) is not None:
            self._on_leave()

    def remove(self, flight: Flight) -> None:
        """It is over."""
        self.leave_engine(flight)
        if self._by_key.get(flight.key) is flight:
            del self._by_key[flight.key]

    @property
    def pictures(self) -> int:
        """Of those in the engine."""
        return sum(flight.params.num_images for flight in self)

    def hold(self, step: BatchStepped) -> None:
        """The pictures of this step hold the slots of their size, and no others do."""
        slots = Counter(flight_id for flight_id, _ in step.members)
        for flight in self:
            if flight.params.size == step.size:
                flight.slots = slots[flight.id]

    def waiting_jobs(self) -> list[LiveJob]:
        """Jobs whose computation has not started."""
        return [live for flight in self if not flight.has_started for live in flight.members.values()]

    def queue(self, is_whole: bool = True) -> QueueChanged:
        """What waits and what runs, as an event; if the queue is not here, only what runs."""
        waiting = self.waiting_jobs() if is_whole else []
        depths = dict.fromkeys(Priority, 0)
        for live in waiting:
            depths[live.job.priority] += 1
        running = sum(len(flight.members) for flight in self._by_key.values() if flight.has_started)
        return QueueChanged(depths, min((live.accepted_at for live in waiting), default=None), running)
