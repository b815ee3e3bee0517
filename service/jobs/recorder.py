"""Transactions that must not be lost because the database is away for a while."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from sqlalchemy import Connection

from service.core import Job
from service.errors import Unavailable
from service.storage.database import Database

AGAIN_SECONDS = 1.0

T = TypeVar("T")
RecordEnds = Callable[[Connection, str, Sequence[Job]], list[Job]]
"""Records the ends of jobs of a computation, by its id, in a transaction; returns the jobs that ended by that."""


class Recorder:
    """Tries again and again, until the service stops."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._stopping = asyncio.Event()

    async def run(self, record: Callable[[Connection], T]) -> T | None:
        """What a transaction returns; None when the service stops before it can be made."""
        while not self._stopping.is_set():
            try:
                return await self._database.run(record)
            except Unavailable:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), AGAIN_SECONDS)
        return None

    def stop(self) -> None:
        """Try no more."""
        self._stopping.set()
