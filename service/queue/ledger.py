"""Who makes what, by the table: it alone decides whose pictures count. Each function works within a transaction.

The queue may hand one computation to two workers, when the first was thought dead; the table lets only the last of them
end its jobs. Whoever changes a computation or what waits for it locks its row first, and then the jobs'.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, exists, func, insert, select, update

from observability.labels import Priority, Reason
from service.core import Job, JobState
from service.jobs import table
from service.jobs.table import IS_UNFINISHED
from service.storage.schema import flights, jobs

MAX_LOST = 5
MAX_ATTEMPTS = 3

_LOCK = select(flights).where(flights.c.id == bindparam("flight")).with_for_update()
_TURN = update(flights).where(flights.c.id == bindparam("flight"))
_FORGET = delete(flights).where(
    flights.c.id == bindparam("flight"), ~exists().where(jobs.c.flight == bindparam("flight"), IS_UNFINISHED)
)
_WAITING = (
    select(jobs)
    .where(jobs.c.flight.in_(bindparam("names", expanding=True)), IS_UNFINISHED)
    .order_by(jobs.c.created_at, jobs.c.id)
)


@dataclass(frozen=True, slots=True)
class Run:
    """A worker's turn at a computation, the `number`th (from 1); of those before, `lost` ended with their worker and
    `failed` in a way that was not the computation's fault.
    """

    flight: str
    number: int
    lost: int
    failed: int

    @property
    def blob(self) -> str:
        """Where it puts its pictures: no two turns write over each other's."""
        return _blob(self.flight, self.number)


def _blob(flight: str, number: int) -> str:
    return flight if number == 1 else f"{flight}-{number}"


def _locked(connection: Connection, flight: str | None) -> Row[Any] | None:
    """The computation's row, which nobody else changes before the transaction is over; None if there is none."""
    return connection.execute(_LOCK, {"flight": flight}).one_or_none()


def _is_forgotten(connection: Connection, row: Row[Any]) -> bool:
    """Forget a computation, whose row is locked, unless a job waits for it; return whether it is.

    Its earlier turns may have left pictures that no job got: they are recorded, so that they are found to be nobody's.
    The present one's worker does that itself, and has perhaps begun to, before it comes to lock this row.
    """
    if connection.execute(_FORGET, {"flight": row.id}).rowcount == 0:
        return False
    over = row.runs + (row.worker is None)
    table.add_leftovers(connection, [_blob(row.id, number) for number in range(1, over)], row.created_at)
    return True


# For those who bring work


def place(connection: Connection, job: Job) -> Job:
    """Let a new job wait for the computation of an identical one, or begin one."""
    if job.cache_key is not None:
        _one_at_a_time(connection, job.cache_key)
        same = select(flights, jobs.c.state).join(jobs, jobs.c.flight == flights.c.id)
        same = same.limit(1).with_for_update(of=flights)
        found = connection.execute(same.where(jobs.c.cache_key == job.cache_key, IS_UNFINISHED)).one_or_none()
        if found is not None:
            if job.priority.rank < Priority(found.priority).rank:
                raised = update(flights).where(flights.c.id == found.id).values(priority=job.priority.value)
                connection.execute(raised)
            if found.state == JobState.PROCESSING:  # as the new job is from its first moment
                job = job.but(state=JobState.PROCESSING, started_at=job.created_at)
            return job.but(flight=found.id)
    _add(connection, job)
    return job.but(flight=job.id)


def _one_at_a_time(connection: Connection, what: str) -> None:
    """Whoever does this sees what was done before: SQLite has one writer anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(what, 0))))


def maker_of(connection: Connection, flight: str) -> tuple[str | None, Priority] | None:
    """The worker that has the computation, if one has, and its priority; None if it is over."""
    row = connection.execute(select(flights).where(flights.c.id == flight)).one_or_none()
    return None if row is None else (row.worker, Priority(row.priority))


def end(connection: Connection, job: Job) -> tuple[bool, str | None, bool]:
    """Record the end of a job by someone who does not make it.

    Return whether it was, the worker that makes it, and whether others wait for its computation.
    """
    row = _locked(connection, job.flight)
    is_recorded = bool(table.save_all(connection, [job]))
    return is_recorded, None if row is None else row.worker, row is not None and not _is_forgotten(connection, row)


def waited_for(connection: Connection, before: float) -> list[tuple[str, Priority]]:
    """Every computation that unfinished jobs wait for since `before`: all that the queue has to have.

    A job that came when the computation it was to share was over already gets one of its own.
    """
    _one_at_a_time(connection, "reconciling")
    has_none = jobs.c.flight.is_(None) | ~exists().where(flights.c.id == jobs.c.flight)  # also of times without a queue
    late = select(jobs).where(IS_UNFINISHED, has_none, jobs.c.created_at <= before).with_for_update(skip_locked=True)
    for row in connection.execute(late).all():
        job = table.job_of(row)
        connection.execute(update(jobs).where(jobs.c.id == job.id).values(flight=job.id))
        _add(connection, job)
    query = select(flights.c.id, flights.c.priority).where(flights.c.created_at <= before)
    return [(row.id, Priority(row.priority)) for row in connection.execute(query)]


def _add(connection: Connection, job: Job) -> None:
    """A computation that the job begins."""
    values = {"priority": job.priority.value, "created_at": job.created_at, "runs": 0, "lost": 0, "failed": 0}
    connection.execute(insert(flights).values(id=job.id, **values))


# For workers


def begin(connection: Connection, flight: str, worker: str) -> tuple[Run, list[Job]] | None:
    """Take a turn at the computation: the turn, and the jobs that wait. None if nobody waits any more."""
    row = _locked(connection, flight)
    if row is None:
        return None
    found = waiting(connection, [flight])
    if not found and _is_forgotten(connection, row):
        return None
    is_lost = row.worker is not None and row.worker != worker
    run = Run(flight, row.runs + 1, row.lost + is_lost, row.failed or 0)
    connection.execute(_TURN, {"flight": flight, "runs": run.number, "lost": run.lost, "worker": worker})
    return run, found


def waiting(connection: Connection, names: Sequence[str]) -> list[Job]:
    """The unfinished jobs of computations, oldest first."""
    return [table.job_of(row) for row in connection.execute(_WAITING, {"names": names})]


def holds(connection: Connection, run: Run, worker: str) -> bool:
    """Whether the turn lasts; nobody else takes one before the transaction is over."""
    return _is_held(_locked(connection, run.flight), run, worker)


def _is_held(row: Row[Any] | None, run: Run, worker: str) -> bool:
    return row is not None and (row.worker, row.runs) == (worker, run.number)


def ended(connection: Connection, run: Run, worker: str, done: Sequence[Job]) -> tuple[list[Job], bool]:
    """Record the ends of jobs of a turn, if it is the worker's still; return those that this ended, and whether
    others wait for the computation.
    """
    row = _locked(connection, run.flight)
    if row is None or not _is_held(row, run, worker):
        return [job for job in done if table.stands(connection, job)], False
    return table.save_all(connection, done), not _is_forgotten(connection, row)


def give_back(connection: Connection, run: Run, worker: str, has_failed: bool = False) -> bool:
    """The turn is over without an end; return whether it was the worker's, and somebody waits."""
    row = _locked(connection, run.flight)
    if row is None or not _is_held(row, run, worker) or _is_forgotten(connection, row):
        return False
    left = {"worker": None, "priority": Priority.HIGH.value, "failed": (row.failed or 0) + has_failed}
    connection.execute(update(flights).where(flights.c.id == run.flight).values(**left))
    waits = {"state": JobState.PENDING.value, "started_at": None}
    connection.execute(update(jobs).where(jobs.c.flight == run.flight, IS_UNFINISHED).values(**waits))
    return True


def dead_letter(job: Job, run: Run, now: float) -> Job:
    """The job as a failure, since it has cost too many workers."""
    detail = f"{run.lost} workers were lost while they ran it"
    return job.but(state=JobState.FAILED, reason=Reason.DEAD_LETTER, detail=detail, finished_at=now)
