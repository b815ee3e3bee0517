"""The backlog of a process without an engine: jobs go to a queue, and others make them.

What stands here is a view of the table, at most a second old, from which places and times are estimated; what counts is
the table.
"""

import asyncio
import json
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Set
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy import Connection

from observability.labels import CacheResult, Priority, Reason
from observability.observer import Observer
from service.core import Job, JobState, Params
from service.errors import Unavailable
from service.jobs import table, telling
from service.jobs.background import repeat
from service.jobs.ending import too_late
from service.jobs.estimate import Estimator, Outlook
from service.jobs.flight import Flight, Flights, LiveJob, Snapshot
from service.jobs.telling import Recording
from service.queue import ledger
from service.queue.news import News, of_job, of_worker
from service.queue.roster import PROGRESS, Roster
from service.queue.streams import RETRY_SECONDS, Streams
from service.scaling.policy import Load
from service.storage.database import Database

log = logging.getLogger("safelight.queue")

LOOK_SECONDS = 1.0
RECONCILE_SECONDS = 5.0
SETTLE_SECONDS = 0.1
PRESSING = 3.0  # times the seconds that a computation takes: one that has less left is urgent
UNSURE_SECONDS = 10.0  # between looks at the record of a job of which nothing is heard


class FleetBacklog:
    """See `Backlog`."""

    def __init__(
        self,
        *,
        database: Database,
        streams: Streams,
        redis: Redis,
        news: News,
        roster: Roster,
        estimator: Estimator,
        observer: Observer,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._streams = streams
        self._redis = redis
        self._news = news
        self._roster = roster
        self._estimator = estimator
        self._observer = observer
        self._wall = wall
        self._clock = clock
        self._flights = Flights()
        self._live: dict[str, LiveJob] = {}
        self._outlook = Outlook(estimator, self._flights, clock)
        self._stopped = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._known_ready: object = None
        self._pressed: set[str] = set()  # computations of which the queue has been told that their time is short
        self._unknown: Set[str | bytes] = set()  # computations of which progress is told, and nothing else known

    def start(self) -> None:
        """Look, expire and reconcile from now on."""
        work = {self._look: LOOK_SECONDS, self._reconcile: RECONCILE_SECONDS}
        self._tasks = [asyncio.create_task(repeat(each, seconds)) for each, seconds in work.items()]

    # The view

    async def _look(self) -> None:
        """Bring the view up to date, and end what was not finished in time."""
        if self._roster.ready is not None and self._roster.ready is not self._known_ready:
            self._known_ready = self._roster.ready
            self._estimator.ready(self._roster.ready)
        self._estimator.workers = max(1, len(self._roster.workers))
        before = set(self._live)  # what comes while the table is read may not be in what is read
        unfinished = await self._database.autocommit(table.unfinished)
        now = self._wall()
        here = {job.id: job for job in unfinished if job.expires_at > now}
        for gone in before - here.keys():
            self._leave(gone)
        for job in here.values():
            self._see(job)
        for job in unfinished:
            if job.expires_at <= now:
                await self.end(job.id, JobState.EXPIRED, Reason.DEADLINE)
        progress = await self._told()
        for flight in self._flights:
            told = progress.get(flight.id)
            flight.has_started = told is not None
            flight.steps_done = json.loads(told)["steps"] if told is not None else 0
            flight.slots = flight.params.num_images if flight.has_started else 0
        await self._press(now)
        self._outlook.changed()
        self._observer.observe(replace(self._flights.queue(), running=0))  # its workers tell

    async def _press(self, now: float) -> None:
        """What has hardly the time yet that it takes goes before most that wait, and to workers that stay."""
        waiting = {flight.id: flight for flight in self._flights if not flight.has_started}
        self._pressed &= waiting.keys()
        for name in waiting.keys() - self._pressed:
            flight = waiting[name]
            seconds = self._outlook.seconds_alone(flight.params)
            left = min((live.job.expires_at for live in flight.members.values()), default=math.inf) - now
            if seconds is not None and left < PRESSING * seconds:
                await self._streams.raise_to(name, Priority.HIGH)
                self._pressed.add(name)

    async def _told(self) -> Mapping[str | bytes, str | bytes]:
        """What workers told last, by computation; what is of none any more, since its worker died, is forgotten."""
        try:
            progress = await self._redis.hgetall(PROGRESS)
            unknown = progress.keys() - {flight.id for flight in self._flights}
            if over := unknown & self._unknown:  # for two looks: it is not just new
                await self._redis.hdel(PROGRESS, *over)  # a worker that lives tells again
            self._unknown = unknown
        except RedisError as error:
            raise Unavailable("the queue cannot be reached", retry_after=RETRY_SECONDS) from error
        return progress

    def _see(self, job: Job) -> None:
        live, name = self._live.get(job.id), job.flight or job.id
        if live is not None and live.flight.id == name:
            live.job = job
            return
        self._leave(job.id)  # it has another computation now
        entered = self._clock() - max(0.0, self._wall() - job.created_at)
        flight = self._flights.joinable(name)
        if flight is None:
            flight = Flight(name, name, job.params, job.priority, job.created_at, entered)
            self._flights.add(flight)
        live = LiveJob(job, entered, flight)
        self._live[job.id] = flight.members[job.id] = live

    def _leave(self, job_id: str) -> None:
        live = self._live.pop(job_id, None)
        if live is not None:
            live.flight.members.pop(job_id, None)
            if not live.flight.members:
                self._flights.remove(live.flight)
            self._outlook.changed()

    async def _reconcile(self) -> None:
        """Whatever jobs wait for is in the queue, whoever died between the table and the queue."""
        found = await self._database.run(partial(ledger.waited_for, before=self._wall() - RECONCILE_SECONDS))
        for flight in await self._streams.put_all(found):
            log.warning("computation %s was in the table and not in the queue", flight)

    def load(self) -> Load:
        """What the fleet has to do."""
        waiting = [flight for flight in self._flights if not flight.has_started]
        taken = sum(flight.params.num_images for flight in self._flights if flight.has_started)
        waited = sorted(self._clock() - flight.entered_at for flight in waiting)
        return Load(
            workers=len(self._roster.workers),
            occupancy=self._roster.occupancy(taken),
            waiting_seconds=sum(map(self._estimator.work, waiting)),
            waited_p95=waited[math.ceil(0.95 * len(waited)) - 1] if waited else 0.0,
        )

    # Accepting

    @property
    def waiting(self) -> int:
        """See `Backlog`."""
        return len(self._flights.waiting_jobs()) + self._outlook.reservations

    def reserved(self, params: Params, priority: Priority) -> AbstractContextManager[None]:
        """See `Backlog`."""
        return self._outlook.reserved(params, priority)

    def seconds_for(self, params: Params, priority: Priority, cache_key: str | None, enough: float) -> float | None:
        """See `Backlog`; who shares a computation is settled by the table only."""
        del cache_key
        return self._outlook.seconds_for(params, priority, None, enough)

    def seconds_alone(self, params: Params) -> float | None:
        """See `Backlog`."""
        return self._outlook.seconds_alone(params)

    def place(self, connection: Connection, job: Job) -> Job:
        """See `Backlog`."""
        return ledger.place(connection, job)

    async def enter(self, job: Job, recording: Recording) -> CacheResult:
        """See `Backlog`. Should the queue be away now, the job is reconciled with it later."""
        del recording  # the span is the worker's
        self._see(job)
        self._outlook.changed()
        assert job.flight is not None, "placed"
        joined = job.flight != job.id
        try:
            if not joined:
                await self._streams.put(job.flight, job.priority)
            else:
                await self._join(job)
        except Unavailable as error:
            log.warning("job %s waits in the table: %s", job.id, error.detail)
        return CacheResult.COALESCED if joined else CacheResult.MISS

    async def _join(self, job: Job) -> None:
        assert job.flight is not None, "placed"
        maker = await self._database.autocommit(partial(ledger.maker_of, flight=job.flight))
        if maker is None:
            return
        worker, priority = maker
        if worker is not None:
            await self._news.tell({of_worker(worker): {"joined": job.flight}})
        else:
            await self._streams.raise_to(job.flight, priority)

    # Looking

    async def snapshot(self, job: Job) -> Snapshot:
        """See `Backlog`."""
        if job.is_finished:
            return Snapshot(job, job.params.total_steps if job.state is JobState.COMPLETED else 0, None, None)
        live = self._live.get(job.id)
        position, seconds = (None, None) if live is None else self._outlook.of(live.flight)
        has_started = job.state is JobState.PROCESSING or (live is not None and live.flight.has_started)
        told = await self._progress(job) if has_started else None
        if told is not None:
            return Snapshot(job, told["steps"], None, told["left"] or seconds)
        return Snapshot(job, 0, position, seconds)

    async def _progress(self, job: Job) -> Mapping[str, Any] | None:
        """What its worker told last; None before it has started, and while nothing can be heard."""
        try:
            told = None if job.flight is None else await self._redis.hget(PROGRESS, job.flight)
        except RedisError:
            return None
        return None if told is None else json.loads(told)

    async def find(self, job_id: str) -> Snapshot | None:
        """See `Backlog`: only the record knows."""
        return None

    async def _record(self, job_id: str) -> Job | None:
        return await self._database.autocommit(partial(table.get, job_id=job_id))

    async def wait(self, job_id: str, seconds: float) -> Snapshot | None:
        """See `Backlog`."""
        until = self._clock() + seconds
        async with self._news.on(of_job(job_id)) as inbox:
            while not self._stopped.is_set():
                job = await self._record(job_id)
                left = until - self._clock()
                if job is None or job.is_finished or left <= 0:
                    return None if job is None else await self.snapshot(job)
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(left, UNSURE_SECONDS)):
                        while not _is_decisive(await inbox.get()):
                            pass
        return None

    async def follow(self, job_id: str) -> AsyncGenerator[Snapshot]:
        """See `Backlog`."""
        async with self._news.on(of_job(job_id)) as inbox:
            message: Mapping[str, Any] | None = None
            job = await self._record(job_id)
            while job is not None and not self._stopped.is_set():
                yield await self.snapshot(job) if _is_decisive(message) else self._progressed(job, message)
                if job.is_finished:
                    return
                try:
                    message = await asyncio.wait_for(inbox.get(), UNSURE_SECONDS)
                except TimeoutError:
                    message = None
                if _is_decisive(message):
                    job = await self._record(job_id)
                elif job.state is JobState.PENDING:
                    job = job.but(state=JobState.PROCESSING, started_at=self._wall())

    def _progressed(self, job: Job, message: Mapping[str, Any] | None) -> Snapshot:
        assert message is not None, "not decisive"
        return Snapshot(job, message["steps"], None, message["left"])

    async def is_waited_for(self, job_id: str) -> bool:
        """See `Backlog`."""
        if self._news.listens(of_job(job_id)):
            return True
        await asyncio.sleep(SETTLE_SECONDS)  # Redis may not have heard yet that whoever waited here is gone
        try:
            (processes,) = await self._news.listeners(of_job(job_id))
        except RedisError:
            return True  # perhaps
        return processes > 0

    # Ending

    async def end(self, job_id: str, state: JobState, reason: Reason) -> bool:
        """See `Backlog`."""
        job = await self._record(job_id)
        if job is None or job.is_finished:
            return False
        now = self._wall()
        detail = too_late(job) if state is JobState.EXPIRED else None
        over = job.but(state=state, reason=reason, detail=detail, finished_at=now)
        record = partial(ledger.end, job=over)
        try:
            is_mine, worker, is_wanted = await self._database.run(record)
        except Unavailable:  # perhaps it is recorded, and only the answer was lost
            is_mine, worker, is_wanted = await self._database.run(record)
        if not is_mine:
            return False
        self._observer.observe(telling.finished(over, now - job.created_at))
        self._leave(job_id)
        messages: dict[str, Mapping[str, Any]] = {of_job(job_id): {"ended": True}}
        if worker is not None:
            messages[of_worker(worker)] = {"forget": job_id, "reason": reason.value}
        await self._news.tell(messages)
        if worker is None and not is_wanted and job.flight is not None:
            with suppress(Unavailable):  # whoever takes it finds that nobody wants it
                await self._streams.drop(job.flight)
        return True

    def stop(self) -> None:
        """See `Backlog`."""
        self._stopped.set()
        self._news.wake()
        for task in self._tasks:
            task.cancel()


def _is_decisive(message: Mapping[str, Any] | None) -> bool:
    """Whether the record has to be read: something ended, or may have."""
    return message is None or "steps" not in message
