"""What a worker has taken from the queue: it takes what it has room for, and keeps it until the table has its end.

Nothing here needs to end well. Killed between any two steps, a worker leaves a computation that the queue gives to
another, and pictures that the table does not know.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import Connection

from observability.labels import Reason
from observability.observer import Observer
from service.core import Job
from service.engine.contract import Ready
from service.errors import Unavailable
from service.jobs import telling
from service.jobs.background import Background, repeat
from service.jobs.board import Board
from service.jobs.ending import anew
from service.queue import ledger
from service.queue.ledger import MAX_ATTEMPTS, MAX_LOST, Run
from service.queue.streams import Claim, QueueAway, Streams
from service.storage.database import Database

log = logging.getLogger("safelight.queue")

KEEP_SECONDS = 2.0
IDLE_SECONDS = 8.0  # not kept for so long, a claim is nobody's
RESCUE_SECONDS = 1.0
CALM_SECONDS = 5.0  # without trouble, in which all others have kept theirs: a pause of theirs, and two slow answers
ARRIVAL_SECONDS = 5.0
AGAIN_SECONDS = 0.5
LEAVE_SECONDS = 3.0
WORTH_ANOTHER_ATTEMPT = {Reason.STORAGE_ERROR, Reason.ENGINE_CRASHED}  # it may be this machine


@dataclass(slots=True, eq=False)
class Held:
    """A claim, and the turn at it that the table gave; `is_wanted` until the last job's end was recorded here."""

    claim: Claim
    run: Run
    is_wanted: bool = True


class Claims:
    """See the module's words. `ready` is what the engine said of itself, None while it cannot work; `is_alive` whether
    it was heard of lately.
    """

    def __init__(
        self,
        *,
        worker: str,
        streams: Streams,
        database: Database,
        observer: Observer,
        ready: Callable[[], Ready | None],
        is_alive: Callable[[], bool],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._worker = worker
        self._streams = streams
        self._database = database
        self._observer = observer
        self._ready = ready
        self._is_alive = is_alive
        self._wall = wall
        self._held: dict[str, Held] = {}
        self._begun: set[Claim] = set()  # taken, and not yet given a turn
        self._room = asyncio.Event()
        self._leaving = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._background = Background()
        self._kept_at = wall()
        self._failed_at = time.monotonic()  # what happened before is not known

    def start(self, board: Board) -> None:
        """Take what comes from now on, and put it on `board`."""
        self._board = board
        self._taking = asyncio.create_task(repeat(self._take, AGAIN_SECONDS, self._leaving, self._failed))
        work = {self._keep: KEEP_SECONDS, self._look_after_all: KEEP_SECONDS, self._rescue: RESCUE_SECONDS}
        keeping = [repeat(each, seconds, on_unavailable=self._failed) for each, seconds in work.items()]
        self._tasks = [self._taking, *map(asyncio.create_task, keeping)]

    def _failed(self, error: Unavailable) -> None:
        """Without the queue others may not have been able to keep theirs either."""
        if isinstance(error, QueueAway):
            self._failed_at = time.monotonic()

    # Taking

    def look(self) -> None:
        """There may be room in the engine."""
        self._room.set()

    async def _take(self) -> None:
        """One by one: how many pictures a computation has, and so how much room is left, is not known before."""
        seen = await self._streams.newest()
        while not self._leaving.is_set():
            self._room.clear()
            await self._begin_all()
            if not self._has_room():
                await self._wait(self._room.wait(), AGAIN_SECONDS)
                continue
            claims = await self._streams.take(1)
            self._begun.update(claims)
            if not claims:
                await self._wait(self._streams.arrival(seen, ARRIVAL_SECONDS), 2 * ARRIVAL_SECONDS)
                seen = await self._streams.newest()

    def _has_room(self) -> bool:
        ready = self._ready()
        return ready is not None and self._board.flights.pictures < ready.profile.cap(ready.info.default_size)

    async def _begin_all(self) -> None:
        """Also those whose turn could not be taken before."""
        for claim in list(self._begun):
            if not self._leaving.is_set():
                await self._begin(claim)

    async def _wait(self, work: Coroutine[Any, Any, object], seconds: float) -> None:
        """For `work`, but no longer than `seconds` or until this worker has to leave."""
        task, leaving = asyncio.ensure_future(work), asyncio.ensure_future(self._leaving.wait())
        done, _ = await asyncio.wait({task, leaving}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for each in {task, leaving} - done:
            each.cancel()
        if task in done:
            task.result()  # raises what it did

    async def _begin(self, claim: Claim) -> None:
        """What cannot be begun, for another reason than that the table is away, is not kept."""
        try:
            found = await self._database.run(partial(ledger.begin, flight=claim.flight, worker=self._worker))
        except Unavailable:
            raise
        except Exception:
            self._begun.discard(claim)
            raise
        self._begun.discard(claim)
        if found is None:
            await self._streams.done(claim)
            return
        run, jobs = found
        self._held[claim.flight] = Held(claim, run)
        try:
            if run.lost >= MAX_LOST:
                await self._give_up(run, jobs)
                return
            for job in jobs:
                if self._board.live(job.id) is None:  # it may have been this worker's all the time
                    self._enter(run, job)
        except BaseException:
            self._held.pop(claim.flight, None)
            raise

    def _enter(self, run: Run, job: Job) -> None:
        """Under this worker's model, which may not be that of the time when it was recorded."""
        ready = self._ready()
        self._board.enter(anew(job, job.revision if ready is None else ready.info.revision), blob=run.blob)

    async def _give_up(self, run: Run, jobs: Sequence[Job]) -> None:
        now = self._wall()
        dead = [ledger.dead_letter(job, run, now) for job in jobs]
        for job in await self._database.run(partial(self.record_ends, flight=run.flight, jobs=dead)):
            self._observer.observe(telling.finished(job, now - job.created_at))
        self.over(run.flight)

    async def look_after(self, flights: Iterable[str] | None = None) -> None:
        """See in the table who waits for these computations of this worker, or all: others may have come to share one,
        and others may have ended jobs.
        """
        held = {name: self._held[name] for name in (self._held if flights is None else flights) if name in self._held}
        known = {live.job.id for each in self._board.flights.known(held) for live in each.members.values()}
        jobs = await self._database.autocommit(partial(ledger.waiting, names=list(held))) if held else []
        for job_id in known - {job.id for job in jobs}:
            self._board.forget(job_id, Reason.MOVED)
        for job in jobs:
            assert job.flight is not None, "waits for one of these"
            mine = self._held.get(job.flight)
            # one that is over just now is given back for the sake of those who came too late for it
            if mine is held[job.flight] and self._board.flights.joinable(job.flight) and not self._board.live(job.id):
                self._enter(mine.run, job)

    # Keeping

    async def _keep(self) -> None:
        """What a worker has whose engine hangs is for others."""
        if self._wall() - self._kept_at > CALM_SECONDS:
            self._failed_at = time.monotonic()  # this process stood still, and perhaps its machine with all others
        if not self._is_alive():
            return
        held = {each.claim: each for each in self._held.values()}
        lost = await self._streams.keep([*held, *self._begun])
        self._kept_at = self._wall()
        self._begun -= lost
        for each in [held[claim] for claim in lost & held.keys()]:
            if not await self._database.run(partial(ledger.holds, run=each.run, worker=self._worker)):
                self._let_go(each)

    async def _look_after_all(self) -> None:
        if self._is_alive():
            await self.look_after()

    def _let_go(self, held: Held) -> None:
        name = held.run.flight
        if self._held.get(name) is held:
            log.warning("another worker has %s now", name)
            del self._held[name]
            self._forget(name)

    def _forget(self, flight: str) -> None:
        for each in self._board.flights.known([flight]):
            for live in list(each.members.values()):
                self._board.forget(live.job.id, Reason.MOVED)

    async def _rescue(self) -> None:
        has_kept = self._wall() - self._kept_at < CALM_SECONDS
        if not has_kept or time.monotonic() - self._failed_at < CALM_SECONDS:
            await self._streams.newest()  # is the trouble over?
            return
        if count := await self._streams.rescue(IDLE_SECONDS):
            log.warning("%d computations of a lost worker go to others", count)

    # Ending

    def record_ends(self, connection: Connection, flight: str, jobs: Sequence[Job]) -> list[Job]:
        """See `recorder.RecordEnds`: if this worker's turn lasts."""
        held = self._held.get(flight)
        if held is None:
            return []
        written, held.is_wanted = ledger.ended(connection, held.run, self._worker, jobs)
        return written

    def judge(self, flight: str, reason: Reason, detail: str) -> tuple[Reason, str] | None:
        """How a failure ends the jobs of a computation; None if another attempt is made at it, perhaps elsewhere."""
        held = self._held.get(flight)
        if held is None or reason not in WORTH_ANOTHER_ATTEMPT:
            return reason, detail
        if held.run.failed + 1 >= MAX_ATTEMPTS:
            return Reason.DEAD_LETTER, f"failed {MAX_ATTEMPTS} times, the last time because {detail}"
        self._background.spawn(self._return(self._held.pop(flight), has_failed=True))
        return None

    def over(self, flight: str) -> None:
        """Nobody waits for the computation here any more."""
        held = self._held.pop(flight, None)
        if held is not None:
            self._background.spawn(self._return(held) if held.is_wanted else self._be_done(held))

    async def _be_done(self, held: Held) -> None:
        with suppress(Unavailable):  # else it goes to another, who finds that it is over
            await self._streams.done(held.claim)

    async def hand_back(self, within: float) -> int:
        """Take no more, and let others do what takes more than `within` seconds yet; return how much that is."""
        self._leaving.set()
        await asyncio.wait([self._taking], timeout=LEAVE_SECONDS)  # a turn that is being taken is taken
        untouched = list(self._begun)
        self._begun.clear()
        for claim in untouched:
            with suppress(Unavailable):
                await self._streams.give_back(claim)
        count = len(untouched)
        for flight in list(self._held):
            lasting = [each for each in self._board.flights.known([flight]) if not self._is_soon_done(each, within)]
            if lasting:
                if (held := self._held.pop(flight, None)) is not None:
                    await self._return(held)
                self._forget(flight)
                count += 1
        return count

    def _is_soon_done(self, flight: object, within: float) -> bool:
        left = self._board.outlook.of(flight)[1]  # type: ignore[arg-type]
        return left is not None and left <= within

    async def _return(self, held: Held, has_failed: bool = False) -> None:
        """Let another have it, if somebody waits."""
        leave = partial(ledger.give_back, run=held.run, worker=self._worker, has_failed=has_failed)
        with suppress(Unavailable):  # else it is found to be kept by nobody
            if await self._database.run(leave):
                await self._streams.give_back(held.claim)
            else:
                await self._be_done(held)

    async def stop(self, seconds: float) -> None:
        """Be done with what is over, for at most `seconds`."""
        for task in self._tasks:
            task.cancel()
        await self._background.settle(seconds)
