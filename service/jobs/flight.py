"""What the service remembers of unfinished jobs: each job, and the computation it shares with identical ones."""

import asyncio
from dataclasses import dataclass, field

from observability.events import Priority
from service.core import Job, Params


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
    done: asyncio.Event = field(default_factory=asyncio.Event)
    watchers: set["asyncio.Queue[Snapshot | None]"] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class Flight:
    """One computation in the engine, and the jobs that wait for it. Its id is that of the job that began it."""

    id: str
    key: str
    params: Params
    priority: Priority
    accepted_at: float
    members: dict[str, LiveJob] = field(default_factory=dict)
    has_started: bool = False
    steps_done: int = 0
    crashes: int = 0

    @property
    def order(self) -> tuple[int, float, str]:
        """Sort key of the queue; the engine's policy uses the same."""
        return (self.priority.rank, self.accepted_at, self.id)
