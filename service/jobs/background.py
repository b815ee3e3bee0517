"""Work that goes on after the call that began it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from service.errors import Unavailable

log = logging.getLogger("safelight.jobs")

AGAIN_SECONDS = 0.2


class Background:
    """Tasks that are kept alive until they end, whose errors are logged, and that can be waited for."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Begin `work`."""
        task = asyncio.get_running_loop().create_task(_logged(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settle(self, seconds: float) -> bool:
        """Wait at most `seconds` until all of it has ended; return whether it has."""
        deadline = asyncio.get_running_loop().time() + seconds
        while self._tasks and (left := deadline - asyncio.get_running_loop().time()) > 0:
            await asyncio.wait(self._tasks, timeout=left)
        return not self._tasks


async def _logged(work: Coroutine[Any, Any, Any]) -> None:
    try:
        await work
    except Exception:
        log.exception("background work failed")


async def end(task: "asyncio.Task[Any] | asyncio.Future[Any]") -> None:
    """Cancel `task` until it has ended: before Python 3.12 `wait_for`, which redis-py uses, may swallow a cancel."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=AGAIN_SECONDS)


async def repeat(
    work: Callable[[], Awaitable[object]],
    seconds: float,
    until: asyncio.Event | None = None,
    on_unavailable: Callable[[Unavailable], None] = lambda error: None,
) -> None:
    """`work` again and again, with pauses of `seconds`. What it raises is logged and does not end it."""
    while until is None or not until.is_set():
        try:
            await work()
        except Unavailable as error:
            log.warning("trying again in %g s: %s", seconds, error.detail)
            on_unavailable(error)
        except Exception:
            log.exception("trying again in %g s", seconds)
        await asyncio.sleep(seconds)
