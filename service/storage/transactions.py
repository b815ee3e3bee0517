"""What all databases have in common: a transaction, and that they can be away."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError

from service.errors import Unavailable

log = logging.getLogger("safelight.database")

T = TypeVar("T")


def in_transaction(engine: Engine, work: Callable[[Connection], T]) -> T:
    """The result of `work`. Raises `Unavailable` when the database cannot be reached or written."""
    with telling_that_it_is_away(), engine.begin() as connection:
        return work(connection)


@contextmanager
def telling_that_it_is_away() -> Iterator[None]:
    """The errors by which a database is, as `Unavailable`."""
    try:
        yield
    except (OperationalError, InterfaceError, InternalError) as error:
        log.exception("a database transaction failed")
        raise Unavailable("the database cannot be used at the moment", retry_after=5) from error
