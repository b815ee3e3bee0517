"""The composition root of a process that serves the API."""

import asyncio
import fcntl
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import IO

from fastapi import FastAPI
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry
from prometheus_fastapi_instrumentator import Instrumentator
from prometheus_fastapi_instrumentator import metrics as http_metrics

from observability import slo as slo_objectives
from observability.events import DrainStarted, ServiceStarted, ServiceStopped
from observability.exposition import Exposition, MetricsServer, Put
from observability.metrics import HTTP_SECONDS
from observability.process import new_registry, watch_event_loop
from observability.propagation import instrument
from service import dependencies
from service.api import generate, jobs, operations, problems, slo, streams
from service.api.entrance import Entrance
from service.api.state import Services
from service.dependencies import Dependencies, of_stores
from service.engine import loading
from service.engine.fake import SCHEME
from service.errors import StartupError
from service.fleet import Fleet
from service.garbage import forget_garbage
from service.jobs.background import repeat
from service.jobs.backlog import Backlog
from service.jobs.service import JobService
from service.maker import Maker
from service.settings import Settings
from service.source import Alone, Source
from service.storage.cache import ResponseCache
from service.storage.database import Database
from service.storage.images import ImageStore
from service.telemetry import Telemetry

log = logging.getLogger("safelight")

MAX_BODY_BYTES = 1 << 20
MAX_PURGE_SECONDS = 60.0
RECENT_BYTES = 8 << 20  # of pictures


class Service:
    """All parts of one serving process, from start to drain to stop: with an engine of its own, or with a queue."""

    def __init__(self, settings: Settings, on_load_failed: Callable[[str], None]) -> None:
        self._settings = settings
        self._objectives = slo_objectives.load()
        if settings.slo_profile not in self._objectives.profiles:
            known = ", ".join(self._objectives.profiles)
            raise StartupError(f"SAFELIGHT_SLO_PROFILE: there is no {settings.slo_profile!r}, only {known}")
        if settings.queue_url is None:
            if settings.workers is not None:
                raise StartupError("SAFELIGHT_WORKERS: workers need a queue; set SAFELIGHT_QUEUE_URL too")
            check_model(settings)
            self._lock = lock(settings.data_dir)
        self._database = Database(settings.resolved_database_url)
        self._images = ImageStore(settings.resolved_storage_url, RECENT_BYTES)
        self._cache = ResponseCache(ttl=settings.cache_ttl_seconds, max_bytes=settings.cache_max_bytes)
        registry = new_registry()
        self._telemetry = Telemetry(settings, registry)
        self._observer = self._telemetry.observer
        self._source = self._make_source(registry, on_load_failed)
        self._dependencies = Dependencies(
            {**self._source.checks, **of_stores(self._database, self._images)}, self._observer
        )
        self._exposition = Exposition(registry)
        self.metrics_server = serve_metrics(settings, self._exposition, self._source.settable)
        self.app = build_app(registry, self._telemetry.provider, self._lifespan)

    def _make_source(self, registry: CollectorRegistry, on_load_failed: Callable[[str], None]) -> Source:
        settings = self._settings
        if settings.queue_url is not None:
            return Fleet(settings.queue_url, settings, self._database, self._observer)
        parts = (self._database, self._images, self._cache)
        return Alone(Maker(settings, registry, self._observer, *parts, on_load_failed), settings, self._database)

    @asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        await self._start(app)
        watching = asyncio.create_task(watch_event_loop(self._observer))
        seconds = min(MAX_PURGE_SECONDS, self._settings.retention_seconds / 2)
        work = {self._jobs.purge: seconds, self._dependencies.look: dependencies.LOOK_SECONDS}
        tasks = [asyncio.create_task(repeat(each, seconds)) for each, seconds in work.items()]
        try:
            yield
        finally:
            for task in (watching, *tasks):
                task.cancel()
            await self._stop()

    async def _start(self, app: FastAPI) -> None:
        settings = self._settings
        dollars = settings.gpu_dollars_per_hour if settings.queue_url is None else 0.0  # else the workers have the GPUs
        self._observer.observe(ServiceStarted(settings.queue_limit, dollars))
        self._jobs = self._job_service(await self._source.start())
        app.state.services = Services(
            settings,
            self._jobs,
            self._source.runner,
            self._dependencies,
            self._observer,
            None if self.metrics_server else self._exposition,
            self._objectives,
            self._telemetry.indicators,
        )
        forget_garbage()

    def _job_service(self, backlog: Backlog) -> JobService:
        settings = self._settings
        return JobService(
            backlog=backlog,
            database=self._database,
            images=self._images,
            cache=self._cache,
            cache_variants=settings.cache_variants,
            queue_limit=settings.queue_limit,
            retention=settings.retention_seconds,
            revision=self._source.revision,
            missing=lambda: self._dependencies.missing,
            observer=self._observer,
        )

    async def drain(self) -> None:
        """Refuse new work, let running work finish within the setting, leave the rest queued for the next start."""
        seconds = self._settings.drain_seconds
        self._observer.observe(DrainStarted())
        self._jobs.drain()
        if not await self._source.drain(seconds):
            log.warning("running work did not finish in %g s and will run again at the next start", seconds)
        self._jobs.stop()

    async def _stop(self) -> None:
        self._jobs.stop()
        if self.metrics_server is not None:
            await asyncio.to_thread(self.metrics_server.close)
        await self._source.stop()
        await self._database.stop()
        self._observer.observe(ServiceStopped())
        await asyncio.to_thread(self._telemetry.provider.shutdown)


def check_model(settings: Settings) -> None:
    """Raises `StartupError` if there can be no model where the setting says."""
    if not settings.model.startswith(SCHEME):
        loading.check_folder(loading.locate(settings.model))


def serve_metrics(settings: Settings, exposition: Exposition, settable: Mapping[str, Put]) -> MetricsServer | None:
    """On a port of their own, if the setting says so. Raises `StartupError` if that cannot be had."""
    host, port = settings.host, settings.metrics_port
    if port is None:
        return None
    try:
        return MetricsServer(exposition, host, port, settable)
    except OSError as error:
        detail = f"SAFELIGHT_METRICS_PORT: cannot listen on {host}:{port}: {error.strerror}"
        raise StartupError(detail) from error


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
    app.add_middleware(Entrance)
    app.add_middleware(problems.BodyGuard, max_bytes=MAX_BODY_BYTES, paths={generate.PATH})
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
