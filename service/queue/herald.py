"""What a worker tells the fleet: that it is there, how far its jobs are, and at once that one has ended."""

import asyncio
import json
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import singledispatchmethod

from redis.asyncio import Redis
from redis.exceptions import RedisError

from observability.events import Event, RequestFinished, RequestStarted
from observability.labels import Pool
from service.engine.contract import Ready
from service.jobs.board import Board
from service.queue.news import Message, News, of_job
from service.queue.roster import LIVES_SECONDS, PROGRESS, Attendance, Presence

log = logging.getLogger("safelight.queue")

TELL_SECONDS = 0.2  # at most five times a second
ENDED: Message = {"ended": True}


class Herald:
    """An observer; `ready` is None as long as the engine cannot work."""

    def __init__(self, redis: Redis, news: News, worker: str, pool: Pool, ready: Callable[[], Ready | None]) -> None:
        self._redis = redis
        self._attendance = Attendance(redis)
        self._news = news
        self._worker = worker
        self._pool = pool
        self._ready = ready
        self._told: dict[str, int] = {}  # steps, by computation
        self._urgent: dict[str, Message] = {}
        self._wake = asyncio.Event()
        self._leaving = False
        self._task: asyncio.Task[None] | None = None

    @singledispatchmethod
    def observe(self, event: Event) -> None:
        """Take one event; most are nobody else's business."""

    @observe.register
    def _(self, event: RequestStarted) -> None:
        self._urgent[of_job(event.request.id)] = {"steps": 0, "left": None}
        self._wake.set()

    @observe.register
    def _(self, event: RequestFinished) -> None:
        self._urgent[of_job(event.request.id)] = ENDED
        self._wake.set()

    def start(self, board: Board) -> None:
        """Tell of what is on `board` from now on."""
        self._task = asyncio.get_running_loop().create_task(self._go_on(board))

    async def _go_on(self, board: Board) -> None:
        loop = asyncio.get_running_loop()
        present_at = progress_at = -LIVES_SECONDS
        while not self._leaving:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), TELL_SECONDS)
            self._wake.clear()
            urgent, self._urgent = self._urgent, {}
            try:
                if urgent:
                    await self._news.tell(urgent)
                if loop.time() - progress_at >= TELL_SECONDS:
                    progress_at = loop.time()
                    await self._tell_progress(board)
                if loop.time() - present_at >= LIVES_SECONDS / 4:
                    present_at = loop.time()
                    await self._tell_presence()
            except RedisError as error:
                log.debug("nothing can be told: %s", error)
            except Exception:
                log.exception("the fleet could not be told")

    async def _tell_presence(self) -> None:
        if (ready := self._ready()) is not None:
            await self._attendance.tell(self._worker, self._pool, Presence.of(ready))

    async def _tell_progress(self, board: Board) -> None:
        """Of computations that went on since, in the hash for those who look and to those who watch."""
        flights = {each.id: each for each in board.flights if each.has_started}
        over = self._told.keys() - flights.keys()
        news = {name: each for name, each in flights.items() if self._told.get(name) != each.steps_done}
        self._told = {name: each.steps_done for name, each in flights.items()}
        if not (over or news):
            return
        messages = {name: {"steps": each.steps_done, "left": board.outlook.of(each)[1]} for name, each in news.items()}
        async with self._redis.pipeline(transaction=False) as pipe:
            if over:
                pipe.hdel(PROGRESS, *over)
            for name, message in messages.items():
                pipe.hset(PROGRESS, name, json.dumps(message))
            await pipe.execute()
        members = {of_job(job): messages[name] for name, each in news.items() for job in each.members}
        watched = await self._news.listeners(*members) if members else []
        wanted = {channel: each for (channel, each), count in zip(members.items(), watched, strict=True) if count}
        if wanted:
            await self._news.tell(wanted)

    async def stop(self) -> None:
        """Tell what has ended, and that this worker is here no more."""
        self._leaving = True
        self._wake.set()
        if self._task is not None:
            await self._task
        await self._news.tell(self._urgent)
        with suppress(RedisError):
            await self._attendance.leave(self._worker, self._pool)
            if self._told:
                await self._redis.hdel(PROGRESS, *self._told)
