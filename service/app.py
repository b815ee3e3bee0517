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
from observability.exposition import LOG_LEVEL, Exposition, MetricsServer, Put
from observability.metrics import HTTP_SECONDS
from observability.process import new_registry, watch_event_loop
from observability.propagation import instrument
from service.api import generate, jobs, operations, problems, slo, streams
from service.api.state import Services
from service.engine import loading
from service.engine.fake import SCHEME
from service.errors import StartupError
from service.fleet import Fleet
from service.garbage import forget_garbage
from service.jobs.backlog import Backlog
from service.jobs.local import LocalBacklog
from service.jobs.runner import Runner
from service.jobs.service import JobService
from service.maker import Maker
from service.queue.roster import Roster
from service.settings import Settings
from service.storage.cache import ResponseCache
from service.storage.database import Database
from service.storage.images import ImageStore
from service.telemetry import Telemetry

log = logging.getLogger("safelight")

MAX_BODY_BYTES = 1 << 20
MAX_PURGE_SECONDS = 60.0


class Service:
    """All parts of one serving process, from start to drain to stop: with an engine of its own, or with a queue."""

    def __init__(self, settings: Settings, on_load_failed: Callable[[str], None]) -> None:
        self._settings = settings
        self._objectives = slo_objectives.load()
        if settings.slo_profile not in self._objectives.profiles:
            known = ", ".join(self._objectives.profiles)
            raise StartupError(f"SAFELIGHT_SLO_PROFILE: there is no {settings.slo_profile!r}, only {known}")
        if settings.queue_url is None:
            check_model(settings)
            self._lock = lock(settings.data_dir)
        self._database = Database(settings.resolved_database_url)
        self._images = ImageStore(settings.resolved_storage_url)
        self._cache = ResponseCache(ttl=settings.cache_ttl_seconds, max_bytes=settings.cache_max_bytes)
        registry = new_registry()
        self._telemetry = Telemetry(settings, registry)
        self._observer = self._telemetry.observer
        self._maker: Maker | None = None
        self._fleet: Fleet | None = None
        if settings.queue_url is None:
            parts = (self._database, self._images, self._cache)
            self._maker = Maker(settings, registry, self._observer, *parts, on_load_failed)
        else:
            self._fleet = Fleet(settings.queue_url, self._database, self._observer)
        self._exposition = Exposition(registry)
        settable = LOG_LEVEL if self._maker is None else self._maker.settable()
        self.metrics_server = serve_metrics(settings, self._exposition, settable)
        self.app = build_app(registry, self._telemetry.provider, self._lifespan)

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
        if self._maker is not None:
            backlog = LocalBacklog(self._maker.start())
            own = loading.revision(loading.locate(settings.model))
            self._jobs = self._job_service(backlog, lambda: own)
            recovered = await backlog.recover(self._database, own)
            if recovered:
                log.info("%d unfinished jobs of an earlier run are queued again", recovered)
        else:
            assert self._fleet is not None, "one of the two"
            self._jobs = self._job_service(self._fleet.backlog, self._fleet.revision)
            await self._fleet.start()
        app.state.services = Services(
            settings,
            self._jobs,
            self._runner,
            self._observer,
            None if self.metrics_server else self._exposition,
            self._objectives,
            self._telemetry.indicators,
        )
        forget_garbage()

    def _job_service(self, backlog: Backlog, revision: Callable[[], str]) -> JobService:
        settings = self._settings
        return JobService(
            backlog=backlog,
            database=self._database,
            images=self._images,
            cache=self._cache,
            cache_variants=settings.cache_variants,
            queue_limit=settings.queue_limit,
            retention=settings.retention_seconds,
            revision=revision,
            observer=self._observer,
        )

    @property
    def _runner(self) -> Runner | Roster:
        if self._maker is not None:
            return self._maker.runner
        assert self._fleet is not None, "one of the two"
        return self._fleet.roster

    async def drain(self) -> None:
        """Refuse new work, let running work finish within the setting, leave the rest queued for the next start."""
        seconds = self._settings.drain_seconds
        self._observer.observe(DrainStarted())
        self._jobs.drain()
        if self._maker is not None and not await self._maker.drain(seconds):
            log.warning("running work did not finish in %g s and will run again at the next start", seconds)
        self._jobs.stop()

    async def _stop(self) -> None:
        self._jobs.stop()
        if self.metrics_server is not None:
            await asyncio.to_thread(self.metrics_server.close)
        if self._maker is not None:
            await self._maker.stop()
        if self._fleet is not None:
            await self._fleet.stop()
        await asyncio.to_thread(self._database.close)
        self._observer.observe(ServiceStopped())
        await asyncio.to_thread(self._telemetry.provider.shutdown)

    async def _purge_now_and_then(self) -> None:
        while True:
            try:
                await self._jobs.purge()
            except Exception:
                log.exception("old jobs could not be deleted; trying again later")
            await asyncio.sleep(min(MAX_PURGE_SECONDS, self._settings.retention_seconds / 2))


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
