"""A database server from the event loop: a bounded number of transactions at a time."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, InternalError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from service.storage.away import telling_that_it_is_away

log = logging.getLogger("safelight.database")

T = TypeVar("T")

CONNECTIONS = 8  # at most


class Server:
    """Transactions on a database server, a bounded number at a time, each with a connection that is kept."""

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self._engine = create_async_engine(url, hide_parameters=True, pool_size=CONNECTIONS, **options)
        self._autocommit = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        self._places = asyncio.Semaphore(CONNECTIONS)
        self._running: set[asyncio.Task[Any]] = set()

    async def run(self, work: Callable[[Connection], T], in_transaction: bool) -> T:
        engine = self._engine if in_transaction else self._autocommit
        task = asyncio.create_task(self._run(engine, work))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def _run(self, engine: AsyncEngine, work: Callable[[Connection], T]) -> T:
        async with self._places:
            with telling_that_it_is_away():
                try:
                    return await self._try(engine, work)
                except Stale:  # so are all others that were kept, and the next one is new
                    log.info("a connection to the database was lost; trying again with a new one")
                    return await self._try(engine, work)

    async def _try(self, engine: AsyncEngine, work: Callable[[Connection], T]) -> T:
        try:
            return await _once(engine, work)
        except InternalError:  # this server takes no changes any more; another may
            await self._engine.dispose()
            raise

    async def stop(self) -> None:
        if self._running:
            await asyncio.wait(self._running)
        await self._engine.dispose()


class Stale(OperationalError):
    """A connection was lost before it was asked to commit, perhaps while it was kept."""


async def _once(engine: AsyncEngine, work: Callable[[Connection], T]) -> T:
    async with engine.connect() as connection:
        try:
            result = await connection.run_sync(work)
        except DBAPIError as error:
            if error.connection_invalidated:
                raise Stale(error.statement, error.params, error.orig or error, hide_parameters=True) from error
            raise
        await connection.commit()
        return result
