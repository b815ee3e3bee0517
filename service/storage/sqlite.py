"""SQLite from the event loop: a thread that writes what came meanwhile in one transaction."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, event

from service.errors import Unavailable
from service.storage.away import telling_that_it_is_away

TOGETHER = 64  # pieces of work in one transaction, at most

T = TypeVar("T")
Outcome = tuple[Any, Exception | None]


class File:
    """Work on SQLite, in one thread, so that it never waits for a lock and stays in the order of its calls.

    What comes while a transaction is written shares the next one: most of its time goes into waiting for the disk.
    A piece of work that fails is undone alone: all of its transaction are done once more, each by itself.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="safelight-database")
        self._connection: Connection | None = None  # that the thread keeps: to take it anew costs as much as a query
        self._waiting: deque[tuple[Callable[[Connection], Any], asyncio.Future[Any]]] = deque()

    async def run(self, work: Callable[[Connection], T]) -> T:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        self._waiting.append((work, answer))
        self._thread.submit(self._write, loop)
        return await answer

    def _write(self, loop: asyncio.AbstractEventLoop) -> None:
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), TOGETHER))]
        if not batch:  # an earlier call has done it
            return
        outcomes = self._outcomes([work for work, _ in batch])
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(_answer, [answer for _, answer in batch], outcomes)

    def _outcomes(self, works: Sequence[Callable[[Connection], Any]]) -> list[Outcome]:
        try:
            return self._in_transaction(lambda connection: [(work(connection), None) for work in works])
        except Unavailable as error:
            return [(None, error)] * len(works)
        except Exception as error:  # noqa: BLE001  # whatever it is, it is the answer
            if len(works) == 1:
                return [(None, error)]
        outcomes: list[Outcome] = []
        for work in works:
            outcomes += self._outcomes([work])
            if isinstance(outcomes[-1][1], Unavailable):  # so it is for the others: they need not wait for it too
                return outcomes + outcomes[-1:] * (len(works) - len(outcomes))
        return outcomes

    def _in_transaction(self, work: Callable[[Connection], T]) -> T:
        with telling_that_it_is_away():
            if self._connection is None:
                self._connection = self._engine.connect()
            try:
                with self._connection.begin():
                    return work(self._connection)
            except Exception:
                self._let_go()
                raise

    def _let_go(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def stop(self) -> None:
        self._thread.submit(self._let_go)
        self._thread.shutdown()


def _answer(answers: Sequence[asyncio.Future[Any]], outcomes: Sequence[Outcome]) -> None:
    for answer, (result, error) in zip(answers, outcomes, strict=True):
        if answer.cancelled():
            continue
        if error is None:
            answer.set_result(result)
        else:
            answer.set_exception(error)


def configure(engine: Engine) -> None:
    """Set what its connections are to be like."""
    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "begin", _on_begin)


def _on_connect(connection: Any, _record: object) -> None:
    """WAL, so that readers do not block; FULL, so that an answered job is on disk also after a power cut."""
    connection.isolation_level = None  # transactions begin where `_on_begin` says
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _on_begin(connection: Connection) -> None:
    """As a writer from the first: a reader that comes to write what another has written since fails at once."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")
