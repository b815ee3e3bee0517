"""Whether what the service needs can be reached: looked at every second, so that a request need not find out."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from observability.events import DependenciesSeen
from observability.labels import Dependency
from observability.observer import Observer
from service.storage.database import Database
from service.storage.images import ImageStore

log = logging.getLogger("safelight")

LOOK_SECONDS = 1.0
CHECK_SECONDS = 2.0

Checks = Mapping[Dependency, Callable[[], Awaitable[object]]]


def of_stores(database: Database, images: ImageStore) -> Checks:
    """Those of database and pictures that are elsewhere."""
    checks: dict[Dependency, Callable[[], Awaitable[object]]] = {}
    if database.is_remote:
        checks[Dependency.DATABASE] = database.check
    if images.is_remote:
        checks[Dependency.STORAGE] = lambda: asyncio.to_thread(images.check)
    return checks


class Dependencies:
    """Each is checked by a call that raises, or takes too long, while it is away."""

    def __init__(self, checks: Checks, observer: Observer) -> None:
        self._checks = checks
        self._observer = observer
        self._pending: dict[Dependency, asyncio.Task[bool]] = {}
        self.missing: tuple[Dependency, ...] = ()

    async def look(self) -> None:
        """Check them all. A check that hangs is waited for again the next time: there is never a second beside it."""
        for each in self._checks.keys() - self._pending.keys():
            self._pending[each] = asyncio.create_task(self._is_there(each))
        if self._pending:
            await asyncio.wait(self._pending.values(), timeout=CHECK_SECONDS)
        there = {each: task.done() and task.result() for each, task in self._pending.items()}
        self._pending = {each: task for each, task in self._pending.items() if not task.done()}
        for each in self._pending.keys() - set(self.missing):
            log.warning("the %s does not answer", each)
        for each in [each for each in self.missing if there[each]]:
            log.warning("the %s can be used again", each)
        self.missing = tuple(each for each, is_there in there.items() if not is_there)
        self._observer.observe(DependenciesSeen(there))

    async def _is_there(self, dependency: Dependency) -> bool:
        try:
            await self._checks[dependency]()
        except Exception as error:  # noqa: BLE001  # each has errors of its own
            if dependency not in self.missing:
                log.warning("the %s cannot be used: %s: %s", dependency, type(error).__name__, error)
            return False
        return True
