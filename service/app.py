"""The composition root: the only place that names concrete adapters and exporters."""

import asyncio
import fcntl
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import IO

from fastapi import FastAPI
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry
from prometheus_fastapi_instrumentator import Instrumentator
from prometheus_fastapi_instrumentator import metrics as http_metrics

from observability import logs
from observability import slo as slo_objectives
from observability.events import DrainStarted, ServiceStarted, ServiceStopped
from observability.exposition import Exposition, MetricsServer, Put
from observability.labels import Consumer
from observability.logs import RequestLog
from observability.metering import Metrics
from observability.metrics import HTTP_SECONDS
from observability.nvml import Nvml, NvmlCollector, XidWatch
from observability.observer import FanOut, Observer
from observability.own import OwnMetrics
from observability.process import new_registry, register_engine_process, watch_event_loop
from observability.propagation import instrument, new_provider
from observability.sampling import Outbox, Policy, TailSampling
from observability.slo import Samples
from observability.tracing import Tracing
from service.api import generate, jobs, operations, problems, slo, streams
from service.api.state import Services
from service.engine import loading
from service.engine.fake import SCHEME
from service.engine.policy import ORDERS
from service.engine.process import ProcessEngine
from service.errors import StartupError
from service.garbage import forget_garbage
from service.jobs.board import Board
from service.jobs.delivery import Delivery
from service.jobs.estimate import Estimator
from service.jobs.runner import Runner
from service.jobs.service import JobService
from service.settings import FAULTS_ALLOWED, Settings
from service.storage.cache import ResponseCache
from service.storage.database import Database
from service.storage.images import ImageStore

log = logging.getLogger("safelight")

MAX_BODY_BYTES = 1 << 20
MAX_PURGE_SECONDS = 60.0
STOP_SECONDS = 3.0


class Service:
    """All parts of one serving process, from start to drain to stop."""

    def __init__(self, settings: Settings, on_load_failed: Callable[[str], None]) -> None:
        if not settings.model.startswith(SCHEME):
            loading.check_folder(loading.locate(settings.model))
        self._settings = settings
        self._objectives = slo_objectives.load()
        if settings.slo_profile not in self._objectives.profiles:
            known = ", ".join(self._objectives.profiles)
            raise StartupError(f"SAFELIGHT_SLO_PROFILE: there is no {settings.slo_profile!r}, only {known}")
        self._on_load_failed = on_load_failed
        self._lock = lock(settings.data_dir)
        self._database = Database(settings.resolved_database_url)
        self._images = ImageStore(settings.resolved_storage_url)
        registry = new_registry()
        self._observe(registry)
        self._engine = ProcessEngine(settings.for_engine())
        register_engine_process(registry, lambda: self._engine.pid)
        self._xids = XidWatch()
        registry.register(NvmlCollector(Nvml(self._xids, self._pids), self._xids))
        self._exposition = Exposition(registry)
        self.metrics_server = self._serve_metrics()
        if settings.faults is not None:
            log.warning("SAFELIGHT_FAULTS is set: requests may fail on purpose")
        self.app = build_app(registry, self._provider, self._lifespan)

    def _observe(self, registry: CollectorRegistry) -> None:
        """Traces, metrics and logs, made from the same events. Traces come last: the others ask them for ids."""
        settings, own = self._settings, OwnMetrics(registry)
        policy, sampling = None, None
        if settings.otlp_endpoint is not None:
            policy = Policy(settings.trace_ratio, settings.trace_slow_seconds)
            exporter = OTLPSpanExporter(f"{settings.otlp_endpoint}/v1/traces")
            outbox = Outbox(exporter, own.spans_exported, own.spans_lost)
            sampling = TailSampling(policy, outbox, own.spans_lost)
        self._provider = new_provider([] if sampling is None else [sampling])
        take = None if sampling is None else sampling.take
        tracing = Tracing(self._provider, policy, settings.record_prompts, take)
        self._metrics = Metrics(registry, tracing.exemplar)
        consumers: dict[Consumer, Observer] = {
            Consumer.LOGS: RequestLog(tracing.context_of, settings.record_prompts),
            Consumer.METRICS: self._metrics,
            Consumer.TRACES: tracing,
        }
        self._observer = FanOut(consumers, own.event_dropped)

    def _pids(self) -> set[int]:
        """The service's processes."""
        engine = self._engine.pid
        return {os.getpid()} if engine is None else {os.getpid(), engine}

    def _serve_metrics(self) -> MetricsServer | None:
        host, port = self._settings.host, self._settings.metrics_port
        if port is None:
            return None
        try:
            return MetricsServer(self._exposition, host, port, self._settable())
        except OSError as error:
            detail = f"SAFELIGHT_METRICS_PORT: cannot listen on {host}:{port}: {error.strerror}"
            raise StartupError(detail) from error

    def _settable(self) -> dict[str, Put]:
        """What can be set while the service runs; faults only if a setting allows them."""
        faults = {"faults": self._engine.put_faults} if self._settings.faults == FAULTS_ALLOWED else {}
        return {"log-level": self._set_log_level, **faults}

    def _set_log_level(self, level: str) -> None:
        logs.set_level(level)
        self._engine.set_log_level(level)

    @asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        await self._start(app)
        watching = asyncio.create_task(watch_event_loop(self._observer))
        purging = asyncio.create_task(self._purge_now_and_then())
        try:
            yield
        finally:
            watching.cancel()
            purging.cancel()
            await self._stop()

    async def _start(self, app: FastAPI) -> None:
        settings = self._settings
        self._observer.observe(ServiceStarted(settings.queue_limit, settings.gpu_dollars_per_hour))
        self._xids.start()
        estimator = Estimator(ORDERS[settings.order])
        cache = ResponseCache(ttl=settings.cache_ttl_seconds, max_bytes=settings.cache_max_bytes)
        self._delivery = Delivery(self._images, cache)
        self._runner = Runner(
            engine=self._engine,
            batching=settings.batching,
            estimator=estimator,
            observer=self._observer,
            heartbeat_timeout=settings.heartbeat_timeout_seconds,
            on_load_failed=self._on_load_failed,
        )
        self._board = Board(
            database=self._database,
            delivery=self._delivery,
            estimator=estimator,
            send=self._runner.send,
            observer=self._observer,
        )
        self._jobs = JobService(
            board=self._board,
            database=self._database,
            images=self._images,
            cache=cache,
            cache_variants=settings.cache_variants,
            queue_limit=settings.queue_limit,
            retention=settings.retention_seconds,
            revision=loading.revision(loading.locate(settings.model)),
            observer=self._observer,
        )
        exposition = None if self.metrics_server else self._exposition
        app.state.services = Services(
            settings,
            self._jobs,
            self._runner,
            self._observer,
            exposition,
            self._objectives,
            lambda: Samples(self._metrics.indicators()),
        )
        self._runner.start(self._board)
        recovered = await self._jobs.recover()
        if recovered:
            log.info("%d unfinished jobs of an earlier run are queued again", recovered)
        forget_garbage()

    async def drain(self) -> None:
        """Refuse new work, let running work finish within the setting, leave the rest queued for the next start."""
        seconds = self._settings.drain_seconds
        began = time.monotonic()
        self._observer.observe(DrainStarted())
        self._jobs.drain()
        finished = await self._runner.drain(seconds)
        stored = await self._board.settle(seconds - (time.monotonic() - began))
        if not (finished and stored):
            log.warning("running work did not finish in %g s and will run again at the next start", seconds)
        self._jobs.stop()

    async def _stop(self) -> None:
        self._jobs.stop()
        self._xids.stop()
        if self.metrics_server is not None:
            await asyncio.to_thread(self.metrics_server.close)
        await asyncio.to_thread(self._runner.stop)
        if not await self._board.settle(STOP_SECONDS):
            log.error("pictures are still being written after %g s; leaving without them", STOP_SECONDS)
            os._exit(1)  # an orderly exit would wait for the threads that write
        await asyncio.to_thread(self._delivery.close)
        await asyncio.to_thread(self._database.close)
        self._observer.observe(ServiceStopped())
        await asyncio.to_thread(self._provider.shutdown)

    async def _purge_now_and_then(self) -> None:
        while True:
            try:
                await self._jobs.purge()
            except Exception:
                log.exception("old jobs could not be deleted; trying again later")
            await asyncio.sleep(min(MAX_PURGE_SECONDS, self._settings.retention_seconds / 2))


def lock(data_dir: Path) -> IO[bytes]:
    """Keep the data folder to this process for as long as the returned file is open."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        file = (data_dir / "lock").open("wb")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise StartupError(f"SAFELIGHT_DATA_DIR: another process serves from {str(data_dir)!r}") from error
    except OSError as error:
        raise StartupError(f"SAFELIGHT_DATA_DIR: {str(data_dir)!r} cannot be used: {error.strerror}") from error
    return file


def build_app(
    registry: CollectorRegistry,
    provider: TracerProvider,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]],
) -> FastAPI:
    """The ASGI application: routes, problem documents, generic HTTP metrics and spans."""
    app = FastAPI(
        title="Safelight",
        summary="Generates pictures from prompts, and lets you watch each one develop.",
        version="0.1.0",
        lifespan=lifespan,
    )
    for router in (generate.router, jobs.router, streams.router, operations.router, slo.router):
        app.include_router(router)
    problems.install(app)
    app.add_middleware(problems.BodyGuard, max_bytes=MAX_BODY_BYTES, paths={"/generate"})
    Instrumentator(
        should_group_status_codes=False,
        excluded_handlers=["^/metrics$", "^/health"],
        registry=registry,
    ).add(
        http_metrics.latency(buckets=HTTP_SECONDS, registry=registry),
        http_metrics.requests(registry=registry),
    ).instrument(app)
    app.add_middleware(problems.MethodGuard)  # last, and so before all others: a method is a label of metrics
    instrument(app, provider)
    return app
