"""The one error tree of the service.

Every class carries the HTTP status it is answered with and a short `title`; `field` names the part of the
request that is to blame and `retry_after` (seconds) is set where trying again later can help.
"""

from typing import ClassVar


class SafelightError(Exception):
    """Base of every error that the service raises on purpose."""

    status_code: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str, *, field: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field
        self.retry_after = retry_after


class InvalidRequest(SafelightError):
    """A field has a value that this model or service does not allow."""

    status_code = 422
    title = "Invalid request"


class NotFound(SafelightError):
    """There is no such job or picture, or it has been deleted."""

    status_code = 404
    title = "Not found"


class Conflict(SafelightError):
    """The request does not fit the state of the job or an earlier use of its idempotency key."""

    status_code = 409
    title = "Conflict"


class QueueFull(SafelightError):
    """The bounded queue has no room."""

    status_code = 429
    title = "Queue full"


class Unavailable(SafelightError):
    """The service takes no work now: it is loading its model or draining."""

    status_code = 503
    title = "Service unavailable"


class DeadlineUnreachable(Unavailable):
    """Even alone the job could not finish in the time that it was given."""

    title = "Deadline cannot be met"


class Overloaded(DeadlineUnreachable):
    """By what the engine has to do already, the job could not finish in the time that it was given."""


class StartupError(SafelightError):
    """The process cannot start; the detail is one line that names the setting to mend."""

    title = "Cannot start"
