"""Where a process that serves the API gets its pictures from."""

import logging
from collections.abc import Mapping
from typing import Protocol

from observability.exposition import Put
from service.dependencies import Checks
from service.engine import loading
from service.jobs.backlog import Backlog
from service.jobs.local import LocalBacklog
from service.jobs.runner import Runner
from service.maker import Maker
from service.queue.roster import Roster
from service.settings import Settings
from service.storage.database import Database

log = logging.getLogger("safelight")


class Source(Protocol):
    """An engine of its own (`Alone`), or the workers of a fleet (`fleet.Fleet`)."""

    @property
    def runner(self) -> Runner | Roster:
        """Whether it works, and with which model."""

    @property
    def settable(self) -> Mapping[str, Put]:
        """What can be set while it runs."""

    @property
    def checks(self) -> Checks:
        """What of its own may be away."""

    def revision(self) -> str:
        """Of its model. Raises `Unavailable` while none is known."""

    async def start(self) -> Backlog:
        """Take jobs from now on, and those that were left unfinished."""

    async def drain(self, seconds: float) -> bool:
        """Let running work finish and be stored within `seconds`; return whether it was."""

    async def stop(self) -> None:
        """End whatever runs."""


class Alone:
    """A process that makes its pictures itself; see `Source`."""

    def __init__(self, maker: Maker, settings: Settings, database: Database) -> None:
        self._maker = maker
        self._database = database
        self._revision = loading.revision(loading.locate(settings.model))
        self.runner = maker.runner
        self.checks: Checks = {}
        self.settable = maker.settable()

    def revision(self) -> str:
        """See `Source`."""
        return self._revision

    async def start(self) -> Backlog:
        """See `Source`."""
        backlog = LocalBacklog(self._maker.start())
        recovered = await backlog.recover(self._database, self._revision)
        if recovered:
            log.info("%d unfinished jobs of an earlier run are queued again", recovered)
        return backlog

    async def drain(self, seconds: float) -> bool:
        """See `Source`."""
        return await self._maker.drain(seconds)

    async def stop(self) -> None:
        """See `Source`."""
        await self._maker.stop()
