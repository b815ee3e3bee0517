"""What makes pictures in a process: an engine, the board of its jobs, and what is known of its GPUs."""

import asyncio
import logging
import os
import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry

from observability import logs
from observability.exposition import Put
from observability.nvml import Nvml, NvmlCollector, XidWatch, visible
from observability.observer import Observer
from observability.process import register_engine_process
from service.engine.policy import ORDERS
from service.engine.process import ProcessEngine
from service.jobs import table
from service.jobs.board import Board, Judge
from service.jobs.delivery import Delivery
from service.jobs.estimate import Estimator
from service.jobs.recorder import RecordEnds
from service.jobs.runner import Runner
from service.settings import FAULTS_ALLOWED, Settings
from service.storage.cache import ResponseCache
from service.storage.database import Database
from service.storage.images import ImageStore

log = logging.getLogger("safelight")

STOP_SECONDS = 3.0


class Maker:
    """See the module's words. The parts are there from the beginning, and work from `start` on."""

    def __init__(
        self,
        settings: Settings,
        registry: CollectorRegistry,
        observer: Observer,
        database: Database,
        images: ImageStore,
        cache: ResponseCache,
        on_load_failed: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._engine = ProcessEngine(settings.for_engine())
        gpus = visible(os.environ)
        self._xids = XidWatch(gpus)
        register_engine_process(registry, lambda: self._engine.pid)
        registry.register(NvmlCollector(Nvml(self._xids, self._pids, gpus), self._xids))
        self._observer = observer
        self._database = database
        self._estimator = Estimator(ORDERS[settings.order])
        self.delivery = Delivery(images, cache)
        self.runner = Runner(
            engine=self._engine,
            batching=settings.batching,
            estimator=self._estimator,
            observer=observer,
            heartbeat_timeout=settings.heartbeat_timeout_seconds,
            on_load_failed=on_load_failed,
        )
        if settings.faults is not None:
            log.warning("SAFELIGHT_FAULTS is set: requests may fail on purpose")

    def _pids(self) -> set[int]:
        """The service's processes."""
        engine = self._engine.pid
        return {os.getpid()} if engine is None else {os.getpid(), engine}

    def settable(self) -> dict[str, Put]:
        """What can be set while the service runs; faults only if a setting allows them."""
        faults = {"faults": self._engine.put_faults} if self._settings.faults == FAULTS_ALLOWED else {}
        return {"log-level": self._set_log_level, **faults}

    def _set_log_level(self, level: str) -> None:
        logs.set_level(level)
        self._engine.set_log_level(level)

    def start(
        self,
        record_ends: RecordEnds = table.save_ends,
        judge: Judge = lambda flight, reason, detail: (reason, detail),
        on_over: Callable[[str], None] = lambda flight: None,
        on_room: Callable[[], None] = lambda: None,
        is_whole: bool = True,
    ) -> Board:
        """Load the model; the board takes jobs from now on."""
        self._xids.start()
        self.board = Board(
            database=self._database,
            delivery=self.delivery,
            estimator=self._estimator,
            send=self.runner.send,
            observer=self._observer,
            record_ends=record_ends,
            judge=judge,
            on_over=on_over,
            on_room=on_room,
            is_whole=is_whole,
        )
        self.runner.start(self.board)
        return self.board

    async def drain(self, seconds: float) -> bool:
        """Let running work finish and be stored within `seconds`; return whether it was."""
        began = time.monotonic()
        finished = await self.runner.drain(seconds)
        stored = await self.board.settle(seconds - (time.monotonic() - began))
        return finished and stored

    async def stop(self) -> None:
        """End the engine, and what is being stored."""
        self._xids.stop()
        await asyncio.to_thread(self.runner.stop)
        if not await self.board.settle(STOP_SECONDS):
            log.error("pictures are still being written after %g s; leaving without them", STOP_SECONDS)
            os._exit(1)  # an orderly exit would wait for the threads that write
        await asyncio.to_thread(self.delivery.close)
