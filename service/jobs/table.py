"""The jobs table: the record of every job. Each function works within the caller's transaction."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, exists, insert, select, tuple_, update

from observability.labels import Priority, Reason, Source, Stage
from service.core import ImageFormat, Job, JobState, Params
from service.errors import Conflict
from service.storage.schema import blobs, idempotency, jobs, responses

IDEMPOTENCY_SECONDS = 86_400.0

IS_UNFINISHED = jobs.c.finished_at.is_(None)

# What every job needs is built once: to build a statement costs as much as to execute it.
_ADD = insert(jobs)
_GET = select(jobs).where(jobs.c.id == bindparam("job"))
_SAVE = update(jobs).where(jobs.c.id == bindparam("job"), IS_UNFINISHED)
_BLOB = {"id": "blob", "bytes": "size", "created_at": "now"}
_ADD_BLOB = insert(blobs).from_select(
    list(_BLOB),
    select(*(bindparam(name, type_=blobs.c[column].type) for column, name in _BLOB.items())).where(
        ~exists().where(blobs.c.id == bindparam("blob"))
    ),
)


def add(connection: Connection, job: Job) -> None:
    """Insert a new job."""
    connection.execute(_ADD, {"id": job.id, **_columns(job)})


def save(connection: Connection, job: Job) -> bool:
    """Write the job's present state over its record, unless that is terminal: a terminal state is final.

    Return whether it was written.
    """
    return connection.execute(_SAVE, {"job": job.id, **_columns(job)}).rowcount > 0


def mark(connection: Connection, changed: Sequence[Job]) -> None:
    """Record whether unfinished jobs have started, each by itself."""
    for job in changed:
        now = {"state": job.state.value, "started_at": job.started_at, "timings": json.dumps(dict(job.timings))}
        connection.execute(_SAVE, {"job": job.id, **now})


def stands(connection: Connection, job: Job) -> bool:
    """Whether the record has this very end, perhaps from a transaction whose answer was lost."""
    is_same = (jobs.c.id == job.id, jobs.c.state == job.state.value, jobs.c.finished_at == job.finished_at)
    return connection.execute(select(jobs.c.id).where(*is_same)).first() is not None


def save_all(connection: Connection, ends: Sequence[Job]) -> list[Job]:
    """`save` each; return those that were written, now or before."""
    return [job for job in ends if save(connection, job) or stands(connection, job)]


def save_ends(connection: Connection, flight: str, jobs: Sequence[Job]) -> list[Job]:
    """See `recorder.RecordEnds`: of jobs that no other process can end."""
    return save_all(connection, jobs)


def free_keys(connection: Connection, job_id: str) -> None:
    """Make the idempotency keys of a job stand for nothing, so that they can be used again."""
    connection.execute(delete(idempotency).where(idempotency.c.job_id == job_id))


def add_blob(connection: Connection, blob: str, size: int, now: float) -> None:
    """Record a blob of `size` bytes, unless it is, so that jobs and cached responses can point at it."""
    connection.execute(_ADD_BLOB, {"blob": blob, "size": size, "now": now})


def add_leftovers(connection: Connection, names: Iterable[str], now: float) -> None:
    """Record blobs that nothing points at, so that their files are deleted, as those of all such are."""
    for blob in names:
        add_blob(connection, blob, 0, now)


def get(connection: Connection, job_id: str) -> Job | None:
    """The job, or None."""
    row = connection.execute(_GET, {"job": job_id}).one_or_none()
    return None if row is None else job_of(row)


def unfinished(connection: Connection) -> list[Job]:
    """Every job that has not reached a terminal state, oldest first."""
    query = select(jobs).where(IS_UNFINISHED).order_by(jobs.c.created_at, jobs.c.id)
    return [job_of(row) for row in connection.execute(query)]


def page(
    connection: Connection,
    states: Sequence[JobState],
    reasons: Sequence[Reason],
    limit: int,
    before: tuple[float, str] | None,
    since: float,
) -> list[Job]:
    """At most `limit` jobs, newest first, older than `before` (creation time and id), of `states` and `reasons` if any
    are given.

    Jobs that finished at or before `since` are left out: they are due to be deleted.
    """
    query = select(jobs).order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit)
    query = query.where(jobs.c.finished_at.is_(None) | (jobs.c.finished_at > since))
    if states:
        query = query.where(jobs.c.state.in_([state.value for state in states]))
    if reasons:
        query = query.where(jobs.c.reason.in_([reason.value for reason in reasons]))
    if before is not None:
        query = query.where(tuple_(jobs.c.created_at, jobs.c.id) < before)
    return [job_of(row) for row in connection.execute(query)]


def find_by_key(connection: Connection, key: str, fingerprint: str, now: float) -> Job | None:
    """The job that an idempotency key stands for, or None when the key is new or a day old.

    Raises `Conflict` when the key was used with another body.
    """
    row = connection.execute(select(idempotency).where(idempotency.c.key == key)).one_or_none()
    if row is None:
        return None
    if row.created_at <= now - IDEMPOTENCY_SECONDS:
        connection.execute(delete(idempotency).where(idempotency.c.key == key))
        return None
    if row.fingerprint != fingerprint:
        raise Conflict("this Idempotency-Key was used with another body", field="Idempotency-Key")
    return get(connection, row.job_id)


def bind_key(connection: Connection, key: str, fingerprint: str, job_id: str, now: float) -> None:
    """Make an idempotency key stand for a job. Raises `IntegrityError` when the key was taken meanwhile."""
    connection.execute(insert(idempotency).values(key=key, fingerprint=fingerprint, job_id=job_id, created_at=now))


def delete_finished(connection: Connection, before: float, now: float) -> int:
    """Delete jobs that finished at or before `before` (Unix time) and old idempotency keys; return how many jobs."""
    connection.execute(delete(idempotency).where(idempotency.c.created_at <= now - IDEMPOTENCY_SECONDS))
    return connection.execute(delete(jobs).where(jobs.c.finished_at <= before)).rowcount


def delete_unused_blobs(connection: Connection) -> list[str]:
    """Delete the records of blobs that nothing points at; return their ids, whose files are to be removed."""
    used = select(jobs.c.blob).where(jobs.c.blob.is_not(None)).union(select(responses.c.blob))
    return list(connection.execute(delete(blobs).where(blobs.c.id.not_in(used)).returning(blobs.c.id)).scalars())


def _columns(job: Job) -> dict[str, Any]:
    return {
        "state": job.state.value,
        "priority": job.priority.value,
        "source": job.source.value,
        "created_at": job.created_at,
        "expires_at": job.expires_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "params": job.params.as_json(),
        "revision": job.revision,
        "cache_key": job.cache_key,
        "reason": job.reason.value,
        "detail": job.detail,
        "blob": job.blob,
        "cached": job.cached,
        "prompt_truncated": job.prompt_truncated,
        "timings": json.dumps(dict(job.timings)),
        "traceparent": job.traceparent,
        "flight": job.flight,
    }


def job_of(row: Row[Any]) -> Job:
    params = json.loads(row.params)
    return Job(
        id=row.id,
        params=Params(**{**params, "output_format": ImageFormat(params["output_format"])}),
        revision=row.revision,
        created_at=row.created_at,
        expires_at=row.expires_at,
        state=JobState(row.state),
        priority=Priority(row.priority),
        source=Source(row.source),
        cache_key=row.cache_key,
        started_at=row.started_at,
        finished_at=row.finished_at,
        reason=Reason(row.reason),
        detail=row.detail,
        blob=row.blob,
        cached=row.cached,
        prompt_truncated=row.prompt_truncated,
        timings={Stage(stage): seconds for stage, seconds in json.loads(row.timings).items()},
        traceparent=row.traceparent,
        flight=row.flight,
    )
