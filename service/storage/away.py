"""What all databases have in common: they can be away."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import InterfaceError, InternalError, OperationalError

from service.errors import Unavailable

log = logging.getLogger("safelight.database")


@contextmanager
def telling_that_it_is_away() -> Iterator[None]:
    """The errors by which a database is, as `Unavailable`."""
    try:
        yield
    except (OperationalError, InterfaceError, InternalError) as error:
        log.exception("a database transaction failed")
        raise Unavailable("the database cannot be used at the moment", retry_after=5) from error
