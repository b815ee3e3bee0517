"""How the service reaches a database server."""

import psycopg
import pytest
from sqlalchemy import Connection, text

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
