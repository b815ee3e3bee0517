"""Who makes what, by the table: it alone decides whose pictures count. Each function works within a transaction.

The queue may hand one computation to two workers, when the first was thought dead; the table lets only the last of them
end its jobs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, case, delete, exists, insert, select, update

from observability.labels import Priority, Reason
from service.core import Job, JobState
from service.jobs import table
from service.jobs.table import IS_UNFINISHED
from service.storage.database import flights, jobs

MAX_LOST = 5


@dataclass(frozen=True, slots=True)
class Run:
    """A worker's turn at a computation, the `number`th (from 1), of which `lost` ended with their worker."""

    flight: str
    number: int
    lost: int

    @property
    def blob(self) -> str:
        """Where it puts its pictures: no two turns write over each other's."""
        return _blob(self.flight, self.number)

    @property
    def earlier_blobs(self) -> list[str]:
        """Where others may have put some that nobody was told of."""
        return [_blob(self.flight, number) for number in range(1, self.number)]


def _blob(flight: str, number: int) -> str:
    return flight if number == 1 else f"{flight}-{number}"


# For those who bring work


def place(connection: Connection, job: Job) -> Job:
    """Let a new job wait for the computation of an identical one, or begin one."""
    same = select(jobs.c.flight).where(jobs.c.cache_key == job.cache_key, jobs.c.flight.is_not(None), IS_UNFINISHED)
    found = connection.execute(same.limit(1)).scalar_one_or_none() if job.cache_key is not None else None
    if found is not None and connection.execute(select(flights.c.id).where(flights.c.id == found)).first():
        return job.but(flight=found)
    _add(connection, job)
    return job.but(flight=job.id)


def worker_of(connection: Connection, flight: str | None) -> str | None:
    """The worker that has the computation, if one has."""
    return connection.execute(select(flights.c.worker).where(flights.c.id == flight)).scalar_one_or_none()


def end(connection: Connection, job: Job) -> tuple[bool, str | None, bool]:
    """Record the end of a job by someone who does not make it.

    Return whether it was, the worker that makes it, and whether others wait for its computation.
    """
    worker = worker_of(connection, job.flight)
    is_recorded = table.save(connection, job)
    return is_recorded, worker, job.flight is not None and is_wanted(connection, job.flight)


def is_wanted(connection: Connection, flight: str) -> bool:
    """Whether a job waits for the computation; one that nobody wants is forgotten."""
    if connection.execute(select(jobs.c.id).where(jobs.c.flight == flight, IS_UNFINISHED).limit(1)).first():
        return True
    connection.execute(delete(flights).where(flights.c.id == flight))
    return False


def waited_for(connection: Connection, before: float) -> list[tuple[str, Priority]]:
    """Every computation that unfinished jobs wait for since `before`: all that the queue has to have.

    A job that came when the computation it was to share was over already gets one of its own.
    """
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
    values = {"priority": job.priority.value, "created_at": job.created_at, "worker": None, "runs": 0, "lost": 0}
    connection.execute(insert(flights).values(id=job.id, **values))


# For workers


def begin(connection: Connection, flight: str, worker: str) -> tuple[Run, list[Job]] | None:
    """Take a turn at the computation: the turn, and the jobs that wait. None if nobody waits any more."""
    if not is_wanted(connection, flight):
        return None
    turn = (
        update(flights)
        .where(flights.c.id == flight)
        .values(
            runs=flights.c.runs + 1,
            lost=flights.c.lost + case((flights.c.worker != worker, 1), else_=0),
            worker=worker,
        )
        .returning(flights.c.runs, flights.c.lost)
    )
    row = connection.execute(turn).one_or_none()
    if row is None:
        return None
    return Run(flight, row.runs, row.lost), waiting(connection, flight)


def waiting(connection: Connection, flight: str) -> list[Job]:
    """The unfinished jobs of a computation, oldest first."""
    query = select(jobs).where(jobs.c.flight == flight, IS_UNFINISHED).order_by(jobs.c.created_at, jobs.c.id)
    return [table.job_of(row) for row in connection.execute(query)]


def holds(connection: Connection, run: Run, worker: str) -> bool:
    """Whether the turn lasts; nobody else takes one before the transaction is over."""
    row = connection.execute(select(flights).where(flights.c.id == run.flight).with_for_update()).one_or_none()
    return row is not None and (row.worker, row.runs) == (worker, run.number)


def ended(connection: Connection, run: Run, worker: str, done: Sequence[Job]) -> list[Job]:
    """Record the ends of jobs of a turn, if it is the worker's still; return those that this ended."""
    if not holds(connection, run, worker):
        return []
    written = table.save_all(connection, done)
    is_wanted(connection, run.flight)
    return written


def give_back(connection: Connection, run: Run, worker: str) -> None:
    """The turn is over without an end, and without anybody's fault."""
    mine = (flights.c.id == run.flight, flights.c.worker == worker, flights.c.runs == run.number)
    changed = connection.execute(update(flights).where(*mine).values(worker=None, priority=Priority.HIGH.value))
    if changed.rowcount:
        waits = {"state": JobState.PENDING.value, "started_at": None}
        connection.execute(update(jobs).where(jobs.c.flight == run.flight, IS_UNFINISHED).values(**waits))


def dead_letter(job: Job, run: Run, now: float) -> Job:
    """The job as a failure, since it has cost too many workers."""
    detail = f"{run.lost} workers were lost while they ran it"
    return job.but(state=JobState.FAILED, reason=Reason.DEAD_LETTER, detail=detail, finished_at=now)
