"""The unfinished jobs in memory, and the one place where a job's state changes.

It runs on the event loop's thread alone. A job is ended by `_close`: whoever sets `closing` first, before
anything is awaited, decides how it ends.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial

from sqlalchemy import Connection

from observability.events import RequestLeft, StageFinished
from observability.labels import CacheResult, Reason, Stage
from observability.observer import Observer
from service.core import Job, JobState
from service.engine.contract import Cancel, Command, Finished, Raise, Stepped
from service.errors import Unavailable
from service.jobs import table, telling
from service.jobs.background import Background
from service.jobs.delivery import Delivery
from service.jobs.ending import completed, tell, too_late, unrecorded
from service.jobs.estimate import Estimator, Outlook
from service.jobs.flight import Flight, Flights, LiveJob, Snapshot
from service.jobs.recorder import RecordEnds, Recorder
from service.jobs.telling import Recording
from service.storage.database import Database

log = logging.getLogger("safelight.jobs")

MAX_CRASHES = 2
SAVE_SECONDS = 1.0  # after which it is recorded that a job has started: many have ended by then
NOT_NOW = Recording()  # of a job that an earlier process recorded
Judge = Callable[[str, Reason, str], tuple[Reason, str] | None]
"""How a failure ends the jobs of a computation, by its id: reason and detail; None if others are to make them."""


class Board:
    """Every unfinished job, or a worker's share of them. `wall` gives Unix time, `clock` monotonic time, in seconds."""

    def __init__(
        self,
        *,
        database: Database,
        delivery: Delivery,
        estimator: Estimator,
        send: Callable[[Command], None],
        observer: Observer,
        record_ends: RecordEnds = table.save_ends,
        judge: Judge = lambda flight, reason, detail: (reason, detail),
        on_over: Callable[[str], None] = lambda flight: None,
        on_room: Callable[[], None] = lambda: None,
        is_whole: bool = True,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._delivery = delivery
        self._send = send
        self._observer = observer
        self._record_ends = record_ends
        self._judge = judge
        self._on_over = on_over
        self._is_whole = is_whole
        self._wall = wall
        self._clock = clock
        self._live: dict[str, LiveJob] = {}
        self._flights = Flights(on_room)
        self._background = Background()
        self._recorder = Recorder(database)
        self._unsaved: dict[str, Job] = {}
        self._saving: asyncio.TimerHandle | None = None
        self._working: frozenset[str] = frozenset()
        self.outlook = Outlook(estimator, self._flights, clock)

    # Entering

    def enter(self, job: Job, recording: Recording = NOT_NOW, blob: str = "") -> CacheResult:
        """Queue a recorded job; return whether it joined an identical computation that was in flight already.

        The pictures of a new computation go into `blob`, by default that of its id.
        """
        key = job.flight or job.cache_key or job.id
        flight = self._flights.joinable(key)
        result = CacheResult.MISS if flight is None else CacheResult.COALESCED
        if flight is None:
            name = job.flight or job.id
            flight = Flight(name, key, job.params, job.priority, job.created_at, self._clock(), blob=blob)
            self._flights.add(flight)
        age = max(0.0, self._wall() - job.created_at)  # of one that an earlier process recorded; else the recording
        live = LiveJob(job, self._clock() - age, flight)
        flight.members[job.id] = self._live[job.id] = live
        self._observer.observe(telling.accepted(job, flight.id, recording, result))
        delay = max(0.0, job.expires_at - self._wall())
        live.timer = asyncio.get_running_loop().call_later(delay, self._expire, live)
        if flight.has_started:
            self._mark_processing(live)
        if result is CacheResult.MISS:
            self._send(flight.submission(self._clock()))
        elif job.priority.rank < flight.priority.rank:
            flight.priority = job.priority
            self._send(Raise(flight.id, flight.priority))
        self._queue_changed()
        left = self.outlook.of(flight)[1]
        live.predicted = None if left is None else age + left
        return result

    def resubmit(self) -> None:
        """Hand every flight that has not started to a new engine."""
        for flight in sorted(self._flights, key=lambda each: each.order):
            if not flight.has_started:
                self._send(flight.submission(self._clock()))

    # What the engine says; a task that nobody waits for any more is passed over

    def started(self, task_ids: Iterable[str]) -> None:
        """These tasks entered a batch."""
        for flight in self._flights.known(task_ids):
            flight.has_started, flight.waited = True, self._clock() - flight.entered_at
            for live in flight.members.values():
                self._mark_processing(live)
        self._queue_changed()

    def working(self, task_ids: frozenset[str]) -> None:
        """The model is called for these tasks from now on."""
        self._working = task_ids

    def stepped(self, message: Stepped) -> None:
        """A denoising step was made by the pictures of one size that hold slots."""
        self.outlook.changed()
        self._flights.hold(message.event)
        for flight in self._flights.known(message.steps_done):
            flight.steps_done, flight.batch_seconds = message.steps_done[flight.id], message.batch_seconds[flight.id]
            for live in flight.members.values():
                self._publish(live)

    def finished(self, message: Finished) -> None:
        """All pictures of a task are there: encode and store them, then complete its jobs."""
        for flight in self._flights.known([message.task_id]):
            self._flights.leave_engine(flight)
            flight.steps_done, flight.batch_seconds = flight.params.total_steps, message.batch_seconds
            self._background.spawn(self._deliver(flight, message))

    def failed(self, task_id: str, reason: Reason, detail: str) -> None:
        """A task's pictures could not be made."""
        for flight in self._flights.known([task_id]):
            self._flights.remove(flight)
            self._fail(flight, reason, detail)

    def engine_lost(self) -> None:
        """The engine died: all that had started runs anew; over whom it died runs alone, and fails the second time."""
        working, self._working = self._working, frozenset()
        for flight in [each for each in self._flights if each.has_started]:
            flight.crashes += flight.id in working
            self._waste(flight, Reason.ENGINE_CRASHED)
            flight.start_anew()
            if flight.crashes >= MAX_CRASHES:
                self._flights.remove(flight)
                self._fail(flight, Reason.ENGINE_CRASHED, "the engine ended twice while it ran this job")
                continue
            for live in flight.members.values():
                live.job = live.job.but(state=JobState.PENDING, started_at=None)
                self._save_and_publish(live)
        self._queue_changed()

    def _mark_processing(self, live: LiveJob) -> None:
        if live.closing:
            return
        live.job = live.job.but(state=JobState.PROCESSING, started_at=self._wall())
        if Stage.QUEUE_WAIT not in live.job.timings:  # it is there when the job starts again after a crash
            waited = self._clock() - live.accepted_at
            live.job = live.job.but(timings={Stage.QUEUE_WAIT: waited})
            self._observer.observe(telling.started(live.job, waited))
        self._save_and_publish(live)

    async def _deliver(self, flight: Flight, message: Finished) -> None:
        try:
            delivered = await self._delivery.deliver(flight.blob, flight.params, message.pictures)
        except Exception:
            log.exception("job %s: its pictures could not be stored", flight.id)
            self._flights.remove(flight)
            self._waste(flight, Reason.STORAGE_ERROR)
            self._fail(flight, Reason.STORAGE_ERROR, "the pictures could not be stored")
            with suppress(Unavailable):  # the store is away
                await self._delivery.discard(flight.blob)
            return
        for stage, seconds in delivered.timings.items():
            self._observer.observe(StageFinished(stage, seconds, flight.id))
        self._flights.remove(flight)
        ending = {
            live: completed(live.job, flight.blob, message, delivered, self._wall())
            for live in flight.members.values()
            if live.claim()
        }
        if not ending:
            self._waste(flight, flight.left_because)
        size, end, truncated = delivered.size, self._recording(flight, ending), message.prompt_truncated
        record = partial(self._delivery.record, blob=flight.blob, size=size, end=end, truncated=truncated)
        await self._close(flight, ending, record)

    def _fail(self, flight: Flight, reason: Reason, detail: str) -> None:
        end, lives = self._judge(flight.id, reason, detail), list(flight.members.values())
        if end is not None:
            self._background.spawn(self._end_all(flight, lives, JobState.FAILED, *end))
            return
        for live in lives:
            self.forget(live.job.id, Reason.MOVED)

    # Ending

    def live(self, job_id: str) -> LiveJob | None:
        """The unfinished job, or None."""
        return self._live.get(job_id)

    async def end(self, live: LiveJob, state: JobState, reason: Reason, detail: str | None = None) -> bool:
        """End a job without pictures; return whether this call did it, or it had ended otherwise before."""
        is_mine = await self._end_all(live.flight, [live], state, reason, detail)
        if not is_mine:
            await live.done.wait()
        return is_mine

    async def _end_all(
        self, flight: Flight, lives: Iterable[LiveJob], state: JobState, reason: Reason, detail: str | None
    ) -> bool:
        """In one transaction, so that the computation is over for all of them at once; whether one was left to end."""
        ending = {}
        for live in [each for each in lives if each.claim()]:
            self._detach(live, reason)
            ending[live] = live.job.but(state=state, reason=reason, detail=detail, finished_at=self._wall())
        if ending:
            await self._close(flight, ending, self._recording(flight, ending))
        return bool(ending)

    def forget(self, job_id: str, reason: Reason) -> None:
        """Somebody else has ended the job, or is to make it."""
        live = self._live.get(job_id)
        if live is not None and live.claim():
            self._detach(live, reason)
            self._let_go(live)
            self._over(live.flight)

    def _expire(self, live: LiveJob) -> None:
        self._background.spawn(self.end(live, JobState.EXPIRED, Reason.DEADLINE, too_late(live.job)))

    def _detach(self, live: LiveJob, reason: Reason) -> None:
        """Take a job out of its flight; when nobody else waits for it, take the flight out of the engine."""
        flight = live.flight
        flight.members.pop(live.job.id, None)
        if flight.members:
            return
        flight.left_because = reason
        if flight in self._flights:
            self._flights.remove(flight)
            self._send(Cancel(flight.id, reason))

    def _waste(self, flight: Flight, reason: Reason) -> None:
        if flight.steps_done:
            self._observer.observe(flight.wasted(reason))

    def _recording(self, flight: Flight, ending: Mapping[LiveJob, Job]) -> Callable[[Connection], list[Job]]:
        jobs = list(ending.values())
        return lambda connection: self._record_ends(connection, flight.id, jobs)

    async def _close(
        self, flight: Flight, ending: Mapping[LiveJob, Job], record: Callable[[Connection], list[Job]]
    ) -> None:
        """Record the ends of claimed jobs, then tell everybody. If the service stops before that can be done, the
        record says unfinished and the next start runs them again.
        """
        try:
            recorded = await self._recorder.run(record)
        except Exception:
            log.exception("the end of %d jobs could not be recorded; they fail", len(ending))
            if any(job.state is JobState.COMPLETED for job in ending.values()):
                self._waste(flight, Reason.STORAGE_ERROR)
            ending = {live: unrecorded(job) for live, job in ending.items()}
            recorded = await self._recorder.run(self._recording(flight, ending))
        if recorded is None:
            return
        ended = {job.id for job in recorded}
        for live, job in ending.items():
            if job.id in ended:
                live.job = job
                tell(self._observer, live, self._clock())
            self._let_go(live)
        self._over(flight)

    def _let_go(self, live: LiveJob) -> None:
        """The job is no business of this process any more; it may not have ended here."""
        self._live.pop(live.job.id, None)
        self._unsaved.pop(live.job.id, None)
        live.flight.members.pop(live.job.id, None)
        live.done.set()
        live.tell(Snapshot(live.job, live.flight.steps_done, None, None) if live.job.is_finished else None)
        if not live.job.is_finished:
            self._observer.observe(RequestLeft(live.job.id))

    def _over(self, flight: Flight) -> None:
        if not flight.members:
            self._on_over(flight.id)
        self._queue_changed()

    # Looking

    def snapshot(self, job: Job) -> Snapshot:
        """The job and where it stands now."""
        live = self._live.get(job.id)
        if live is None or live.done.is_set():
            steps = job.params.total_steps if job.state is JobState.COMPLETED else 0
            return Snapshot(job, steps, None, None)
        return Snapshot(live.job, live.flight.steps_done, *self.outlook.of(live.flight))

    @property
    def flights(self) -> Flights:
        """What is in the engine, or waits for it."""
        return self._flights

    @property
    def waiting(self) -> int:
        """Jobs whose computation has not started."""
        return len(self._flights.waiting_jobs())

    def _publish(self, live: LiveJob) -> None:
        if live.is_watched:
            live.tell(self.snapshot(live.job))

    def _save_and_publish(self, live: LiveJob) -> None:
        self._publish(live)
        self._unsaved[live.job.id] = live.job
        if self._saving is None:
            self._save_soon()

    def _save_soon(self) -> None:
        loop = asyncio.get_running_loop()
        self._saving = loop.call_later(SAVE_SECONDS, lambda: self._background.spawn(self._save()))

    async def _save(self) -> None:
        """If the database is away, the record is behind for a while."""
        jobs, self._unsaved = self._unsaved, {}
        try:
            if jobs:
                await self._database.autocommit(partial(table.mark, changed=list(jobs.values())))
        except Unavailable:
            self._unsaved = {name: job for name, job in jobs.items() if name in self._live} | self._unsaved
        finally:
            self._saving = None
            if self._unsaved:
                self._save_soon()

    def _queue_changed(self) -> None:
        self.outlook.changed()
        self._observer.observe(self._flights.queue(self._is_whole))

    # Stopping

    async def settle(self, seconds: float) -> bool:
        """Wait at most `seconds` until every job that is being ended has ended; return whether all have."""
        return await self._background.settle(seconds)

    def stop(self) -> None:
        """Let go of everyone who watches a job that stays unfinished; stop trying to record ends."""
        self._recorder.stop()
        if self._saving is not None:
            self._saving.cancel()
        for live in self._live.values():
            if live.timer is not None:
                live.timer.cancel()
            live.tell(None)
