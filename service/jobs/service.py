"""What the API asks of jobs: accept, look up, wait, cancel; and deletion when their time is over."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from functools import partial

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from observability.events import CacheLookedUp, CacheResized, RequestRejected
from observability.labels import Cache, CacheResult, Reason, Source
from observability.observer import Observer
from service.core import Job, JobState
from service.errors import Conflict, DeadlineUnreachable, NotFound, Overloaded, QueueFull, SafelightError, Unavailable
from service.jobs import table, telling
from service.jobs.backlog import Backlog
from service.jobs.flight import Snapshot
from service.jobs.order import Order, answered
from service.jobs.telling import Recording
from service.storage.cache import ResponseCache
from service.storage.database import Database
from service.storage.images import ImageStore

log = logging.getLogger("safelight.jobs")

REASONS = {QueueFull: Reason.QUEUE_FULL, Overloaded: Reason.OVERLOADED, DeadlineUnreachable: Reason.DEADLINE}
RETRY_SECONDS = 5


class JobService:
    """See the module's words. `revision` is that of the model that will run the jobs, `missing` what it would need and
    cannot be used now.
    """

    def __init__(
        self,
        *,
        backlog: Backlog,
        database: Database,
        images: ImageStore,
        cache: ResponseCache,
        cache_variants: int,
        queue_limit: int,
        retention: float,
        revision: Callable[[], str],
        missing: Callable[[], Sequence[str]] = tuple,
        observer: Observer,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backlog = backlog
        self._database = database
        self._images = images
        self._cache = cache
        self._cache_variants = cache_variants
        self._queue_limit = queue_limit
        self._retention = retention
        self._revision = revision
        self._missing = missing
        self._observer = observer
        self._wall = wall
        self._clock = clock
        self.is_draining = False

    # Accepting

    async def accept(self, order: Order) -> tuple[Snapshot, bool]:
        """Record the order as a job and queue it; return the job, and whether it is new.

        Raises `Conflict` for an idempotency key used with another body, `QueueFull`, `DeadlineUnreachable`, and
        `Unavailable` while the service drains or something that it needs is away; then nothing was recorded.
        """
        try:
            if self.is_draining:
                raise Unavailable("the service is shutting down", retry_after=RETRY_SECONDS)
            if missing := self._missing():
                detail = f"the {' and the '.join(missing)} cannot be used at the moment"
                raise Unavailable(detail, retry_after=RETRY_SECONDS)
            return await self._accept(order)
        except (QueueFull, DeadlineUnreachable) as error:
            self.reject(order.source, REASONS[type(error)])
            raise
        except Unavailable:
            self.reject(order.source, Reason.DRAINING if self.is_draining else Reason.STORAGE_ERROR)
            raise

    def reject(self, source: Source, reason: Reason) -> None:
        """Tell the observer that a well-formed request was refused."""
        self._observer.observe(RequestRejected(reason, source))

    async def _accept(self, order: Order) -> tuple[Snapshot, bool]:
        revision = self._revision()
        cache_key = order.params.cache_key(revision) if order.use_cache else None
        refusal = self._refusal(order, cache_key)
        record = partial(self._record, order=order, revision=revision, cache_key=cache_key, refusal=refusal)
        began = self._clock()
        with self._backlog.reserved(order.params, order.priority):
            try:
                recorded = await self._database.run(record)
            except IntegrityError:  # at that very moment another took the key or deleted the cached pictures
                recorded = await self._database.run(record)
        if isinstance(recorded, SafelightError):
            raise recorded
        job, is_new, lookup_seconds = recorded
        if not is_new:
            return await self._backlog.snapshot(job), False
        recording = Recording(self._clock() - began, lookup_seconds)
        if job.is_finished:
            result = CacheResult.HIT
            self._observer.observe(telling.accepted(job, job.id, recording, result))
            self._observer.observe(telling.finished(job, seconds=0.0))
        else:
            result = await self._backlog.enter(job, recording)
        if order.use_cache and (order.seed_given or self._cache_variants):
            saved = 0.0 if result is CacheResult.MISS else self._backlog.seconds_alone(job.params) or 0.0
            self._observer.observe(CacheLookedUp(Cache.RESPONSE, result, seconds_saved=saved))
        return await self._backlog.snapshot(job), True

    def _refusal(self, order: Order, cache_key: str | None) -> QueueFull | DeadlineUnreachable | None:
        """Why the engine could not do the order now, if so."""
        if self._backlog.waiting >= self._queue_limit:
            return QueueFull(f"{self._queue_limit} requests are waiting already", retry_after=RETRY_SECONDS)
        seconds = self._backlog.seconds_for(order.params, order.priority, cache_key, order.timeout)
        if seconds is None or seconds <= order.timeout:
            return None
        alone = self._backlog.seconds_alone(order.params) or 0.0
        kind, even = (DeadlineUnreachable, "even alone ") if alone > order.timeout else (Overloaded, "")
        return kind(
            f"{even}it would take about {max(alone, seconds):.1f} s, and timeout_s is {order.timeout:g}",
            retry_after=max(1, math.ceil(seconds - order.timeout)),
        )

    def _record(
        self,
        connection: Connection,
        order: Order,
        revision: str,
        cache_key: str | None,
        refusal: QueueFull | DeadlineUnreachable | None,
    ) -> tuple[Job, bool, float | None] | SafelightError:
        """In one transaction: the job of the idempotency key, or a new one, completed at once by a cache hit.

        Return it, whether it is new, and the seconds of the look-up, if one was made; or why it is refused: an error
        would undo what others write in the same transaction.
        """
        now = self._wall()
        if order.idempotency_key is not None:
            try:
                known = table.find_by_key(connection, order.idempotency_key, order.fingerprint, now)
            except Conflict as error:
                return error
            if known is not None:
                return known, False, None
        hit, lookup_seconds = None, None
        if cache_key is not None:
            began = self._clock()
            if order.seed_given:
                hit = self._cache.find(connection, cache_key, now)
            else:
                prompt_key = order.params.prompt_key(revision)
                hit = self._cache.find_variant(connection, prompt_key, self._cache_variants, now)
            lookup_seconds = self._clock() - began
        if hit is None and refusal is not None:
            return refusal
        job = order.job(revision, cache_key, now)
        job = self._backlog.place(connection, job) if hit is None else answered(job, hit)
        table.add(connection, job)
        if order.idempotency_key is not None:
            table.bind_key(connection, order.idempotency_key, order.fingerprint, job.id, now)
        return job, True, lookup_seconds

    # Looking

    async def get(self, job_id: str) -> Snapshot:
        """The job and where it stands. Raises `NotFound` for an unknown one and one whose time is over."""
        found = await self._backlog.find(job_id)
        if found is not None:
            return found
        job = await self._database.autocommit(partial(table.get, job_id=job_id))
        if job is None or (job.finished_at is not None and job.finished_at <= self._wall() - self._retention):
            raise NotFound(f"there is no job {job_id[:64]!r}; finished jobs are kept for {self._retention:g} s")
        return await self._backlog.snapshot(job)

    async def page(
        self, states: Sequence[JobState], reasons: Sequence[Reason], limit: int, before: tuple[float, str] | None
    ) -> list[Snapshot]:
        """At most `limit` jobs of `states` and `reasons` (all, when empty), newest first, older than `before` (time and
        id).
        """
        since = self._wall() - self._retention
        query = partial(table.page, states=states, reasons=reasons, limit=limit, before=before, since=since)
        return [await self._backlog.snapshot(job) for job in await self._database.autocommit(query)]

    async def image(self, job_id: str, index: int) -> tuple[bytes, Job]:
        """The bytes of picture `index` of a completed job. Raises `NotFound`, and `Unavailable` without the store."""
        job = (await self.get(job_id)).job
        return await self.picture(job, index), job

    async def picture(self, job: Job, index: int) -> bytes:
        """The same of a job that is at hand."""
        place = (_blob(job, index), index, job.params.output_format)
        data = self._images.recent(*place)
        if data is not None:
            return data
        try:
            return await asyncio.to_thread(self._images.get, *place)
        except FileNotFoundError as error:
            raise NotFound(f"picture {index} of job {job.id!r} has been deleted") from error

    async def image_url(self, job_id: str, index: int) -> str | None:
        """Where the store itself gives picture `index` to whoever asks within a few minutes; None if it does not."""
        job = (await self.get(job_id)).job
        return await asyncio.to_thread(self._images.url, _blob(job, index), index, job.params.output_format)

    async def wait(self, job_id: str, seconds: float) -> Snapshot:
        """The job once it has ended, or as it is after `seconds`, or when the service stops."""
        return await self._backlog.wait(job_id, seconds) or await self.get(job_id)

    async def follow(self, job_id: str) -> AsyncGenerator[Snapshot]:
        """The job as it is, then at every change, up to its end or the service's. Raises `NotFound`."""
        is_known = False
        async with aclosing(self._backlog.follow(job_id)) as changes:
            async for snapshot in changes:
                is_known = True
                yield snapshot
        if not is_known:
            yield await self.get(job_id)

    # Ending

    async def cancel(self, job_id: str, reason: Reason = Reason.CLIENT_CANCELLED) -> Snapshot:
        """End an unfinished job; its pictures leave the batch at the next step.

        Raises `NotFound`, and `Conflict` for a job that had ended already.
        """
        if not await self._backlog.end(job_id, JobState.CANCELLED, reason):
            snapshot = await self.get(job_id)
            raise Conflict(f"the job is {snapshot.job.state} already")
        return await self.get(job_id)

    async def abandon(self, job_id: str) -> None:
        """The client that waited for its new job is gone: cancel it, unless somebody else waits for it.

        Its idempotency key can be used again, so that a retry gets a job that runs.
        """
        if await self._backlog.is_waited_for(job_id):
            return
        if await self._backlog.end(job_id, JobState.CANCELLED, Reason.DISCONNECTED):
            await self._database.run(partial(table.free_keys, job_id=job_id))

    async def purge(self) -> int:
        """Delete what is past its time: jobs, cached responses, and pictures that nothing points at; count jobs."""
        now = self._wall()

        def delete(connection: Connection) -> tuple[int, int, list[str]]:
            deleted = table.delete_finished(connection, now - self._retention, now)
            return deleted, self._cache.evict(connection, now), table.delete_unused_blobs(connection)

        deleted, cached_bytes, blobs = await self._database.run(delete)
        self._observer.observe(CacheResized(Cache.RESPONSE, cached_bytes))
        for index, blob in enumerate(blobs):
            try:
                await asyncio.to_thread(self._images.delete, blob)
            except Unavailable:
                await self._database.run(partial(table.add_leftovers, names=blobs[index:], now=now))
                raise
        return deleted

    def drain(self) -> None:
        """Refuse new work from now on."""
        self.is_draining = True

    def stop(self) -> None:
        """Answer everyone who still waits with the job as it is."""
        self._backlog.stop()


def _blob(job: Job, index: int) -> str:
    if job.blob is None or not 0 <= index < job.params.num_images:
        raise NotFound(f"job {job.id!r} has no picture {index}")
    return job.blob
