"""Transactions that must not be lost because the database is away for a while."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from sqlalchemy import Connection

from service.errors import Unavailable
from service.storage.database import Database

AGAIN_SECONDS = 1.0


class Recorder:
    """Tries again and again, until the service stops."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._stopping = asyncio.Event()

    async def run(self, record: Callable[[Connection], None]) -> bool:
        """Run a transaction; False when the service stops before that can be done."""
        while not self._stopping.is_set():
            try:
                await self._database.run(record)
            except Unavailable:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), AGAIN_SECONDS)
            else:
                return True
        return False

    def stop(self) -> None:
        """Try no more."""
        self._stopping.set()
