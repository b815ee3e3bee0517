"""The composition root of a worker: an engine that takes its work from a queue, and says how it is."""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI

from observability.events import DrainStarted, ServiceStarted, ServiceStopped
from observability.exposition import Exposition, MetricsServer
from observability.labels import Consumer, Dependency, Reason
from observability.process import new_registry, watch_event_loop
from service import dependencies
from service.api import workers
from service.api.schemas import Status
from service.app import check_model
from service.dependencies import Dependencies, of_stores
from service.engine.contract import Ready
from service.errors import StartupError
from service.fleet import connected
from service.garbage import forget_garbage
from service.jobs.background import repeat
from service.maker import STOP_SECONDS, Maker
from service.notice import noticed
from service.queue.claims import Claims
from service.queue.herald import Herald
from service.queue.news import of_worker
from service.settings import Settings
from service.storage.cache import ResponseCache
from service.storage.database import Database
from service.storage.images import ImageStore
from service.telemetry import Telemetry

log = logging.getLogger("safelight")

SOON_SECONDS = 2.0  # what a worker that has to leave finishes yet


class Worker:
    """All parts of one worker, from start to drain to stop."""

    metrics_server: MetricsServer | None = None  # the application has no other purpose

    def __init__(self, settings: Settings, on_load_failed: Callable[[str], None]) -> None:
        if settings.queue_url is None:
            raise StartupError("SAFELIGHT_QUEUE_URL: a worker needs a queue, such as redis://localhost:6379")
        check_model(settings)
        self._settings = settings
        self._redis, self._streams, self._news, self._name = connected(settings.queue_url, settings.pool)
        self._database = Database(settings.resolved_database_url)
        images = ImageStore(settings.resolved_storage_url)
        cache = ResponseCache(ttl=settings.cache_ttl_seconds, max_bytes=settings.cache_max_bytes)
        registry = new_registry()
        self._herald = Herald(self._redis, self._news, self._name, settings.pool, self._ready)
        self._telemetry = Telemetry(settings, registry, {Consumer.FLEET: self._herald})
        self._observer = self._telemetry.observer
        checks = {Dependency.QUEUE: self._redis.ping, **of_stores(self._database, images)}
        self._dependencies = Dependencies(checks, self._observer)
        self._maker = Maker(settings, registry, self._observer, self._database, images, cache, on_load_failed)
        self._claims = Claims(
            worker=self._name,
            streams=self._streams,
            database=self._database,
            observer=self._observer,
            ready=lambda: None if self._dependencies.missing else self._ready(),
            is_alive=lambda: self._maker.runner.is_alive,
        )
        self._is_draining = False
        self.app = FastAPI(title="Safelight worker", lifespan=self._lifespan)
        self.app.include_router(workers.router(Exposition(registry), self._state, lambda: self._dependencies.missing))

    def _ready(self) -> Ready | None:
        """What the engine said when it came up, as long as it takes work."""
        runner = self._maker.runner
        return runner.ready if runner.is_ready and runner.is_alive and not self._is_draining else None

    def _state(self) -> Status:
        if not self._maker.runner.is_alive:
            return "stalled"
        if self._is_draining:
            return "draining"
        if self._dependencies.missing:
            return "unavailable"
        return "ok" if self._maker.runner.is_ready else "loading"

    @asynccontextmanager
    async def _lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        claims, settings = self._claims, self._settings
        self._observer.observe(ServiceStarted(0, settings.gpu_dollars_per_hour))
        log.info("this is worker %s", self._name)
        board = self._maker.start(claims.record_ends, claims.judge, claims.over, claims.look, is_whole=False)
        self._news.start()
        claims.start(board)
        self._herald.start(board)
        looking = repeat(self._dependencies.look, dependencies.LOOK_SECONDS)
        tasks = list(map(asyncio.create_task, (watch_event_loop(self._observer), self._listen(), looking)))
        if settings.spot_notice:
            tasks.append(asyncio.create_task(self._leave_at_notice(settings.spot_notice)))
        forget_garbage()
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await self._stop()

    async def _listen(self) -> None:
        """Hear of jobs that have ended elsewhere, and of those that come to share a computation."""
        async with self._news.on(of_worker(self._name)) as inbox:
            while True:
                message = await inbox.get()
                try:
                    if message is None:
                        await self._claims.look_after()
                    elif "forget" in message:
                        self._maker.board.forget(message["forget"], Reason(message["reason"]))
                    elif "joined" in message:
                        await self._claims.look_after([message["joined"]])
                except Exception:
                    log.exception("a message is not understood: %s", message)

    async def _leave_at_notice(self, where: str) -> None:
        await noticed(where)
        os.kill(os.getpid(), signal.SIGTERM)  # the server's own way to stop

    async def drain(self) -> None:
        """Take no more; finish what is nearly done, and let other workers do the rest."""
        self._is_draining = True
        self._observer.observe(DrainStarted())
        count = await self._claims.hand_back(SOON_SECONDS)
        log.info("%d computations go to other workers", count)
        if not await self._maker.drain(self._settings.drain_seconds):
            log.warning("what did not finish in %g s goes to other workers", self._settings.drain_seconds)
        await self._claims.hand_back(-1.0)  # also what had not started

    async def _stop(self) -> None:
        """Also of a worker whose model could not be loaded, and of one that was told twice to stop."""
        await self._claims.hand_back(-1.0)
        self._maker.board.stop()
        await self._claims.stop(STOP_SECONDS)
        await self._maker.stop()
        await self._herald.stop()
        await self._news.stop()
        await self._streams.close()
        await self._redis.aclose()
        await self._database.stop()
        self._observer.observe(ServiceStopped())
        await asyncio.to_thread(self._telemetry.provider.shutdown)
