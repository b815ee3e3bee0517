"""How the service reaches a database server."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Connection, event, text

from service.errors import Unavailable
from service.storage.database import Database

END_ALL = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND state IS NOT NULL"


def end_connections(url: str) -> None:
    """As a restart of the server does."""
    with psycopg.connect(url.replace("postgresql+psycopg", "postgresql"), autocommit=True) as connection:
        connection.execute(END_ALL)


@pytest.mark.parametrize("how", ["run", "autocommit"])
async def test_a_connection_that_died_while_it_was_kept_is_replaced(postgresql: str, how: str) -> None:
    """Without a word to whoever asks next."""
    database = Database(postgresql)
    try:
        ask = getattr(database, how)
        assert await ask(lambda connection: connection.execute(text("SELECT 1")).scalar_one()) == 1
        end_connections(postgresql)
        assert await ask(lambda connection: connection.execute(text("SELECT 2")).scalar_one()) == 2
    finally:
        await database.stop()


async def test_a_connection_that_dies_in_the_middle_is_tried_once_more(postgresql: str) -> None:
    """Nothing was committed; the second time nobody disturbs, or the database cannot be used."""
    database = Database(postgresql)
    calls = 0

    def work(connection: Connection, disturbances: int) -> int:
        nonlocal calls
        calls += 1
        connection.execute(text("SELECT 1"))
        if calls <= disturbances:
            end_connections(postgresql)
        return int(connection.execute(text("SELECT 3")).scalar_one())

    try:
        assert await database.run(lambda connection: work(connection, 1)) == 3
        assert calls == 2
        with pytest.raises(Unavailable):
            await database.run(lambda connection: work(connection, 9))
        assert calls == 4
    finally:
        await database.stop()


@pytest.fixture
async def file(tmp_path: Path) -> AsyncIterator[Database]:
    """SQLite with a table of words, no two alike."""
    database = Database(f"sqlite:///{tmp_path / 'test.db'}")
    await database.run(lambda connection: connection.execute(text("CREATE TABLE words (word TEXT PRIMARY KEY)")))
    yield database
    await database.stop()


def write(word: str) -> Callable[[Connection], str]:
    """Work that adds a word and returns it."""

    def work(connection: Connection) -> str:
        connection.execute(text("INSERT INTO words VALUES (:word)"), {"word": word})
        return word

    return work


def words(connection: Connection) -> list[str]:
    """All of them."""
    return list(connection.execute(text("SELECT word FROM words ORDER BY word")).scalars())


async def test_work_that_comes_together_is_committed_together(file: Database) -> None:
    """Each gets its own result; the disk is waited for for the first, and for all that came meanwhile."""
    commits = 0

    def committed(_connection: Connection) -> None:
        nonlocal commits
        commits += 1

    event.listen(file.engine, "commit", committed)
    names = [f"{number:02}" for number in range(20)]
    assert await asyncio.gather(*(file.run(write(name)) for name in names)) == names
    assert commits <= 3
    assert await file.run(words) == names


async def test_what_fails_is_undone_alone(file: Database) -> None:
    """Its own error is its answer; those before and after it are there."""
    works = [write("a"), write("b"), write("a"), write("c")]
    outcomes = await asyncio.gather(*map(file.run, works), return_exceptions=True)
    assert [outcome if isinstance(outcome, str) else type(outcome).__name__ for outcome in outcomes] == [
        "a",
        "b",
        "IntegrityError",
        "c",
    ]
    assert await file.run(words) == ["a", "b", "c"]


async def test_what_undoes_all_is_undone_alone(file: Database) -> None:
    """A piece of work makes SQLite give the whole transaction up; the others are done once more."""

    def give_up(connection: Connection) -> None:
        connection.execute(text("ROLLBACK"))
        raise LookupError

    first = asyncio.create_task(file.run(write("first")))
    works = [write("a"), give_up, write("b")]
    outcomes = await asyncio.gather(first, *map(file.run, works), return_exceptions=True)
    assert [outcome if isinstance(outcome, str) else type(outcome).__name__ for outcome in outcomes] == [
        "first",
        "a",
        "LookupError",
        "b",
    ]
    assert await file.run(words) == ["a", "b", "first"]


async def test_when_the_file_cannot_be_written_all_are_told_at_once(file: Database) -> None:
    """Not each after a wait of its own; and it goes on when it can be written again."""
    begun = 0

    def count(_connection: Connection) -> None:
        nonlocal begun
        begun += 1

    await file.run(lambda connection: connection.execute(text("PRAGMA busy_timeout=0")))
    with file.engine.begin():  # another writer
        event.listen(file.engine, "begin", count, insert=True)
        outcomes = await asyncio.gather(*(file.run(write(str(number))) for number in range(20)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Unavailable] * 20
    assert begun <= 3
    assert await file.run(write("d")) == "d"


async def test_a_caller_that_leaves_does_not_stop_its_work(file: Database) -> None:
    """It was handed over."""
    task = asyncio.create_task(file.run(write("left")))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await file.run(words) == ["left"]
