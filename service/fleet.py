"""What a process that serves the API without an engine has of its fleet: the queue, and who works on it."""

import asyncio
import secrets
from collections.abc import Mapping

from redis.asyncio import Redis

from observability.exposition import LOG_LEVEL, Put
from observability.labels import Dependency, Pool
from observability.observer import Observer
from service.dependencies import Checks
from service.errors import StartupError, Unavailable
from service.jobs.background import repeat
from service.jobs.backlog import Backlog
from service.jobs.estimate import Estimator
from service.jobs.service import RETRY_SECONDS
from service.queue.news import News
from service.queue.remote import FleetBacklog
from service.queue.roster import LOOK_SECONDS, Roster
from service.queue.streams import PREFIX, REPLY_SECONDS, Streams
from service.scaling.local import LocalWorkers
from service.scaling.policy import Policy
from service.scaling.scaler import Scaler
from service.settings import Settings
from service.storage.database import Database

CHECKED = f"{PREFIX}:checked"


def connected(url: str, pool: Pool = Pool.ON_DEMAND) -> tuple[Redis, Streams, News, str]:
    """Redis, the queue and the news of it, and a name for this process. Raises `StartupError` for what is no URL."""
    name = secrets.token_hex(8)
    try:
        redis = Redis.from_url(
            url, decode_responses=True, socket_timeout=REPLY_SECONDS, socket_connect_timeout=REPLY_SECONDS
        )
        return redis, Streams(url, name, pool), News(url), name
    except ValueError as error:
        raise StartupError(f"SAFELIGHT_QUEUE_URL: {error}") from error


class Fleet:
    """See the module's words, and `source.Source`."""

    settable: Mapping[str, Put] = LOG_LEVEL

    def __init__(self, url: str, settings: Settings, database: Database, observer: Observer) -> None:
        self._redis, self._streams, self._news, _ = connected(url)
        self.runner = Roster(self._redis, observer)
        self._backlog = FleetBacklog(
            database=database,
            streams=self._streams,
            redis=self._redis,
            news=self._news,
            roster=self.runner,
            estimator=Estimator(),
            observer=observer,
        )
        self._scaler = None if settings.policy is None else self._make_scaler(settings.policy, settings, observer)

    def _make_scaler(self, policy: Policy, settings: Settings, observer: Observer) -> Scaler:
        port = settings.metrics_port
        local = LocalWorkers(settings, port + 1 if port else None) if settings.workers_local else None
        return Scaler(policy, self._backlog.load, observer, settings.scale_seconds, local)

    @property
    def checks(self) -> Checks:
        """The queue also has to take changes."""
        return {Dependency.QUEUE: lambda: self._redis.set(CHECKED, "1", ex=60)}

    def revision(self) -> str:
        """Of the workers' model. Raises `Unavailable` while none is known."""
        if self.runner.ready is None:
            raise Unavailable(self.runner.what_is_missing, retry_after=RETRY_SECONDS)
        return self.runner.ready.info.revision

    async def start(self) -> Backlog:
        """Look who is there, and at what they do, from now on."""
        self._news.start()
        await self.runner.look()
        self._looking = asyncio.create_task(repeat(self.runner.look, LOOK_SECONDS))
        self._backlog.start()
        if self._scaler is not None:
            self._scaling = asyncio.create_task(self._scaler.go_on())
        return self._backlog

    async def drain(self, seconds: float) -> bool:
        """Workers of this machine leave with it."""
        del seconds  # they have their own
        if self._scaler is not None:
            await self._scaler.stop()
        return True

    async def stop(self) -> None:
        """Let go of everything."""
        self._looking.cancel()
        if self._scaler is not None:
            await self._scaler.stop()
        self._backlog.stop()
        await self._news.stop()
        await self._streams.close()
        await self._redis.aclose()
