"""The one way in which the event loop reaches the database."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, make_url, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from service.errors import StartupError
from service.storage import sqlite
from service.storage.away import telling_that_it_is_away
from service.storage.schema import prepare
from service.storage.server import Server

T = TypeVar("T")

# That PostgreSQL is away shows soon: seconds, milliseconds, milliseconds.
SOON = {"connect_timeout": 2, "tcp_user_timeout": 5000, "options": "-c statement_timeout=30000"}


class Database:
    """SQLAlchemy engines, and the one way in which the event loop reaches them.

    A server is asked from the loop itself. SQLite gets a thread.
    """

    def __init__(self, url: str) -> None:
        try:
            parsed = make_url(url)
            is_sqlite = parsed.get_backend_name() == "sqlite"
            if is_sqlite and parsed.database:
                Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
            options: dict[str, Any] = {} if is_sqlite else {"connect_args": SOON}
            self._engine = create_engine(url, hide_parameters=True, **options)  # parameters have prompts
            if is_sqlite:
                sqlite.configure(self._engine)
            prepare(self._engine)
        except (ArgumentError, SQLAlchemyError, ImportError, OSError) as error:
            first_line = str(error).splitlines()[0]
            raise StartupError(f"SAFELIGHT_DATABASE_URL: the database cannot be opened: {first_line}") from error
        self._file = sqlite.File(self._engine) if is_sqlite else None
        self._server = None if is_sqlite else Server(url, options)

    @property
    def is_remote(self) -> bool:
        """Whether it is a server."""
        return self._server is not None

    async def check(self) -> None:
        """Look whether it answers. Raises `Unavailable`."""
        await self.autocommit(lambda connection: connection.execute(text("SELECT 1")))

    @property
    def engine(self) -> Engine:
        """The SQLAlchemy engine, for use in the calling thread."""
        return self._engine

    async def run(self, work: Callable[[Connection], T]) -> T:
        """The result of `work` in one transaction, which goes on to its end if the caller is cancelled.

        Raises `Unavailable` when the database cannot be reached or written.
        """
        if self._server is not None:
            return await self._server.run(work, in_transaction=True)
        assert self._file is not None, "one or the other"
        return await self._file.run(work)

    async def autocommit(self, work: Callable[[Connection], T]) -> T:
        """The same where each statement is a transaction of its own, for single queries and for what may be done twice:
        two round trips less. In SQLite all is one transaction.
        """
        if self._server is not None:
            return await self._server.run(work, in_transaction=False)
        return await self.run(work)

    def run_here(self, work: Callable[[Connection], T]) -> T:
        """`run` in the calling thread."""
        with telling_that_it_is_away(), self._engine.begin() as connection:
            return work(connection)

    async def stop(self) -> None:
        """Wait for running transactions and close every connection."""
        if self._server is not None:
            await self._server.stop()
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """The same for who used it in the calling thread only."""
        if self._file is not None:
            self._file.stop()
        self._engine.dispose()
