"""The database: its tables, and the one way in which the event loop reaches it."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    inspect,
    make_url,
    text,
)
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, InternalError, OperationalError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from service.errors import StartupError, Unavailable

log = logging.getLogger("safelight.database")

T = TypeVar("T")

# That PostgreSQL is away shows soon: seconds, milliseconds, milliseconds.
SOON = {"connect_timeout": 2, "tcp_user_timeout": 5000, "options": "-c statement_timeout=30000"}
CONNECTIONS = 8  # to a server, at most
TOGETHER = 64  # pieces of work in one transaction of SQLite, at most
PREPARING = 7_245_331  # of an advisory lock: any number that nobody else takes

metadata = MetaData()

# A blob is the folder of one computation's pictures. Jobs and cached responses point at it; it is deleted when
# none does, and the foreign keys refuse a pointer to one that has just been deleted.
blobs = Table(
    "blobs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("bytes", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
)
jobs = Table(
    "jobs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("priority", String(16), nullable=False),
    Column("source", String(16), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("started_at", Float),
    Column("finished_at", Float, index=True),
    Column("params", Text, nullable=False),
    Column("revision", String(64), nullable=False),
    Column("cache_key", String(64)),
    Column("reason", String(32), nullable=False),
    Column("detail", Text),
    Column("blob", ForeignKey("blobs.id"), index=True),
    Column("cached", Boolean, nullable=False),
    Column("prompt_truncated", Boolean, nullable=False),
    Column("timings", Text, nullable=False),
    Column("traceparent", String(64)),
    Column("flight", String(64)),
    Index("jobs_by_age", "created_at", "id"),
    Index("jobs_by_state", "state", "created_at"),
    Index("jobs_by_flight", "flight"),
    Index("jobs_by_cache_key", "cache_key"),
)
# In a fleet, a computation that unfinished jobs wait for: the worker that has it, how many have had it, and of those
# how many were lost over it, and how many failed without its being to blame.
flights = Table(
    "flights",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("priority", String(16), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("worker", String(64)),
    Column("runs", Integer, nullable=False),
    Column("lost", Integer, nullable=False),
    Column("failed", Integer),
)
idempotency = Table(
    "idempotency_keys",
    metadata,
    Column("key", String(255), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("job_id", ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("created_at", Float, nullable=False),
)
responses = Table(
    "cached_responses",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("prompt_key", String(64), nullable=False, index=True),
    Column("seed", String(24), nullable=False),
    Column("prompt_truncated", Boolean, nullable=False),
    Column("blob", ForeignKey("blobs.id"), nullable=False, index=True),
    Column("created_at", Float, nullable=False),
    Column("used_at", Float, nullable=False, index=True),
)


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
                event.listen(self._engine, "connect", _configure_sqlite)
                event.listen(self._engine, "begin", _begin_sqlite)
            _prepare(self._engine)
        except (ArgumentError, SQLAlchemyError, ImportError, OSError) as error:
            first_line = str(error).splitlines()[0]
            raise StartupError(f"SAFELIGHT_DATABASE_URL: the database cannot be opened: {first_line}") from error
        self._file = _File(self._engine) if is_sqlite else None
        self._server = None if is_sqlite else _Server(url, options)

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
        return _in_transaction(self._engine, work)

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


class _File:
    """Work on SQLite, in one thread, so that it never waits for a lock and stays in the order of its calls.

    What comes while a transaction is written shares the next one: most of its time goes into waiting for the disk.
    A piece of work that fails is undone alone.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="safelight-database")
        self._waiting: deque[tuple[Callable[[Connection], Any], asyncio.Future[Any]]] = deque()

    async def run(self, work: Callable[[Connection], T]) -> T:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        self._waiting.append((work, answer))
        self._thread.submit(self._write, loop)
        return await asyncio.shield(answer)

    def _write(self, loop: asyncio.AbstractEventLoop) -> None:
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), TOGETHER))]
        if not batch:  # an earlier call has done it
            return
        works = [work for work, _ in batch]
        try:
            outcomes = _in_transaction(self._engine, partial(_each, works=works))
        except Exception as error:  # noqa: BLE001  # whatever it is, it is the answer
            outcomes = [(None, error)] * len(batch)
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(_answer, [answer for _, answer in batch], outcomes)

    def stop(self) -> None:
        self._thread.shutdown()


Outcome = tuple[Any, Exception | None]


def _in_transaction(engine: Engine, work: Callable[[Connection], T]) -> T:
    with _telling_that_it_is_away(), engine.begin() as connection:
        return work(connection)


def _each(connection: Connection, works: Sequence[Callable[[Connection], Any]]) -> list[Outcome]:
    if len(works) == 1:
        return [(works[0](connection), None)]
    return [_alone(connection, work) for work in works]


def _alone(connection: Connection, work: Callable[[Connection], Any]) -> Outcome:
    try:
        with _telling_that_it_is_away(), connection.begin_nested():
            return work(connection), None
    except Exception as error:
        if not connection.connection.dbapi_connection.in_transaction:  # type: ignore[union-attr]  # sqlite3's
            raise  # SQLite has undone the others too
        return None, error


def _answer(answers: Sequence[asyncio.Future[Any]], outcomes: Sequence[Outcome]) -> None:
    for answer, (result, error) in zip(answers, outcomes, strict=True):
        if answer.cancelled():
            continue
        if error is None:
            answer.set_result(result)
        else:
            answer.set_exception(error)


class _Server:
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
            with _telling_that_it_is_away():
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


@contextmanager
def _telling_that_it_is_away() -> Iterator[None]:
    try:
        yield
    except (OperationalError, InterfaceError, InternalError) as error:
        log.exception("a database transaction failed")
        raise Unavailable("the database cannot be used at the moment", retry_after=5) from error


def _prepare(engine: Engine) -> None:
    """Create what is missing: tables, and what an earlier version did not have: columns, all nullable, and indexes.

    Processes that start at the same time do it one after the other.
    """
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text(f"SELECT pg_advisory_xact_lock({PREPARING})"))
        metadata.create_all(connection)
        found = inspect(connection)
        for table in metadata.sorted_tables:
            known = {column["name"] for column in found.get_columns(table.name)}
            for column in table.columns:
                if column.name not in known:
                    kind = column.type.compile(engine.dialect)
                    connection.execute(text(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {kind}"))
            for index in table.indexes:
                index.create(connection, checkfirst=True)


def _configure_sqlite(connection: Any, _record: object) -> None:
    """WAL, so that readers do not block; FULL, so that an answered job is on disk also after a power cut."""
    connection.isolation_level = None  # transactions begin where `_begin_sqlite` says
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    """As a writer from the first: a reader that comes to write what another has written since fails at once."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")
