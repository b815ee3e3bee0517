"""What the routes work with, handed to them by the composition root."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from observability.exposition import Exposition
from observability.observer import Observer
from observability.slo import Objectives, Samples
from service.core import ModelInfo
from service.dependencies import Dependencies
from service.engine.contract import Ready
from service.errors import Unavailable
from service.jobs.runner import Runner
from service.jobs.service import RETRY_SECONDS, JobService
from service.queue.roster import Roster
from service.settings import Settings


@dataclass(frozen=True, slots=True)
class Services:
    """The parts behind the routes."""

    settings: Settings
    jobs: JobService
    runner: Runner | Roster
    dependencies: Dependencies
    observer: Observer
    exposition: Exposition | None  # None when it has a port of its own
    objectives: Objectives
    indicators: Callable[[], Samples]

    def model(self) -> ModelInfo:
        """The loaded model. Raises `Unavailable` while there is none yet."""
        return self.ready().info

    def ready(self) -> Ready:
        """What the engine told when it was ready. Raises `Unavailable` while it has not yet been."""
        if self.runner.ready is None:
            raise Unavailable(self.runner.what_is_missing, retry_after=RETRY_SECONDS)
        return self.runner.ready


async def _services(connection: HTTPConnection) -> Services:  # or each request would take a thread for it
    services: Services = connection.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(_services)]
