"""The backlog of a process that makes its pictures itself."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager

from sqlalchemy import Connection

from observability.labels import CacheResult, Priority, Reason
from service.core import Job, JobState, Params
from service.jobs import table
from service.jobs.board import Board
from service.jobs.ending import anew
from service.jobs.flight import Snapshot
from service.jobs.telling import Recording
from service.storage.database import Database


class LocalBacklog:
    """Everything is on the board; see `Backlog`."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._stopped = asyncio.Event()

    async def recover(self, database: Database, revision: str) -> int:
        """Queue every job that an earlier process left unfinished, for the model of `revision`; return how many."""
        jobs = await database.run(table.unfinished)
        for job in jobs:
            self._board.enter(anew(job, revision))
        return len(jobs)

    @property
    def waiting(self) -> int:
        """See `Backlog`."""
        return self._board.waiting + self._board.outlook.reservations

    def reserved(self, params: Params, priority: Priority) -> AbstractContextManager[None]:
        """See `Backlog`."""
        return self._board.outlook.reserved(params, priority)

    def seconds_for(self, params: Params, priority: Priority, cache_key: str | None, enough: float) -> float | None:
        """See `Backlog`."""
        return self._board.outlook.seconds_for(params, priority, cache_key, enough)

    def seconds_alone(self, params: Params) -> float | None:
        """See `Backlog`."""
        return self._board.outlook.seconds_alone(params)

    def place(self, connection: Connection, job: Job) -> Job:
        """See `Backlog`."""
        return job

    async def enter(self, job: Job, recording: Recording) -> CacheResult:
        """See `Backlog`."""
        return self._board.enter(job, recording)

    async def snapshot(self, job: Job) -> Snapshot:
        """See `Backlog`."""
        return self._board.snapshot(job)

    async def find(self, job_id: str) -> Snapshot | None:
        """See `Backlog`."""
        live = self._board.live(job_id)
        return None if live is None else self._board.snapshot(live.job)

    async def wait(self, job_id: str, seconds: float) -> Snapshot | None:
        """See `Backlog`."""
        live = self._board.live(job_id)
        if live is None:
            return None
        live.waiters += 1
        ends = [asyncio.ensure_future(live.done.wait()), asyncio.ensure_future(self._stopped.wait())]
        try:
            await asyncio.wait(ends, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            live.waiters -= 1
            for each in ends:
                each.cancel()
        return self._board.snapshot(live.job)

    async def follow(self, job_id: str) -> AsyncGenerator[Snapshot]:
        """See `Backlog`."""
        live = self._board.live(job_id)
        if live is None:
            return
        with live.watched() as changes:
            snapshot: Snapshot | None = self._board.snapshot(live.job)
            while snapshot is not None and not self._stopped.is_set():
                yield snapshot
                if snapshot.job.is_finished:
                    return
                snapshot = await changes.get()

    async def is_waited_for(self, job_id: str) -> bool:
        """See `Backlog`."""
        live = self._board.live(job_id)
        return live is not None and (live.waiters > 0 or live.is_watched)

    async def end(self, job_id: str, state: JobState, reason: Reason) -> bool:
        """See `Backlog`."""
        live = self._board.live(job_id)
        return live is not None and await self._board.end(live, state, reason)

    def stop(self) -> None:
        """See `Backlog`."""
        self._stopped.set()
        self._board.stop()
