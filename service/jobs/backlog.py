"""What the API asks of accepted jobs that have not ended: on the board of its own process, or in a fleet."""

from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager
from typing import Protocol

from sqlalchemy import Connection

from observability.labels import CacheResult, Priority, Reason
from service.core import Job, JobState, Params
from service.jobs.flight import Snapshot
from service.jobs.telling import Recording


class Backlog(Protocol):
    """Two keep it: `local.LocalBacklog` and `queue.remote.FleetBacklog`."""

    @property
    def waiting(self) -> int:
        """Jobs that wait for their first step, and those that are being recorded."""

    def reserved(self, params: Params, priority: Priority) -> AbstractContextManager[None]:
        """Meanwhile a job is counted in that is being recorded."""

    def seconds_for(self, params: Params, priority: Priority, cache_key: str | None, enough: float) -> float | None:
        """How long a job that were accepted now would take, if that is known and may be more than `enough`."""

    def seconds_alone(self, params: Params) -> float | None:
        """How long it would take if nothing else were there."""

    def place(self, connection: Connection, job: Job) -> Job:
        """A new job as it is to be recorded, within the transaction that does that."""

    async def enter(self, job: Job, recording: Recording) -> CacheResult:
        """Queue a recorded job; return whether it joined an identical computation."""

    async def snapshot(self, job: Job) -> Snapshot:
        """The job, as its record has it, and where it stands now."""

    async def find(self, job_id: str) -> Snapshot | None:
        """The job if it is known without its record."""

    async def wait(self, job_id: str, seconds: float) -> Snapshot | None:
        """The job when it has ended, or after `seconds`, or when the service stops; None: see its record."""

    def follow(self, job_id: str) -> AsyncGenerator[Snapshot]:
        """The job at every change up to its end, or the service's; nothing if it is not known to be unfinished."""

    async def is_waited_for(self, job_id: str) -> bool:
        """Whether anybody waits for it or follows it."""

    async def end(self, job_id: str, state: JobState, reason: Reason) -> bool:
        """End a job without pictures; return whether this call did it, or it had ended before."""

    def stop(self) -> None:
        """Let go of everybody who waits or follows."""
