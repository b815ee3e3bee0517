"""A process of a fleet that is killed at a given moment: `python -m tests.support.doomed MOMENT worker`.

It is itself that does it, at the very line, with the signal that cannot be caught. `never` is a moment too.
"""

import inspect
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from service import app
from service.jobs.board import Board
from service.jobs.delivery import Delivery
from service.queue import claims, ledger
from service.queue.claims import Claims
from service.queue.remote import FleetBacklog
from service.queue.streams import Streams
from service.storage.images import ImageStore


def die() -> None:
    """`kill -9`."""
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner: Any, name: str) -> None:
    """Die when this is called."""
    setattr(owner, name, lambda *_arguments, **_named: die())


def after(owner: Any, name: str, is_due: Callable[[Any], bool] = lambda _result: True) -> None:
    """Die when this returns, if what it returns says so."""
    original = getattr(owner, name)

    async def later(*arguments: Any, **named: Any) -> Any:
        result = await original(*arguments, **named)
        if is_due(result):
            die()
        return result

    def at_once(*arguments: Any, **named: Any) -> Any:
        result = original(*arguments, **named)
        if is_due(result):
            die()
        return result

    setattr(owner, name, later if inspect.iscoroutinefunction(original) else at_once)


def half_stored() -> None:
    """Die with the first of several pictures written."""
    put = ImageStore.put

    def some(self: ImageStore, blob: str, pictures: Any, output_format: Any) -> None:
        put(self, blob, pictures[:1], output_format)
        die()

    ImageStore.put = some  # type: ignore[method-assign]


MOMENTS: dict[str, Callable[[], None]] = {
    "never": lambda: None,
    # of a worker, in their order
    "taken": partial(after, Streams, "take", bool),
    "turn not committed": partial(after, ledger, "begin", bool),
    "turn committed": partial(before, Claims, "_enter"),
    "entered": partial(after, Claims, "_enter"),
    "started": partial(after, Board, "started"),
    "stepped": partial(after, Board, "stepped"),
    "made": partial(before, Delivery, "deliver"),
    "half stored": half_stored,
    "stored": partial(after, Delivery, "deliver"),
    "end not committed": partial(after, Delivery, "record"),
    "end committed": partial(before, Claims, "over"),
    "not acknowledged": partial(before, Streams, "done"),
    "acknowledged": partial(after, Streams, "done"),
    # of the API
    "accepted": partial(before, FleetBacklog, "enter"),
    "queued": partial(after, Streams, "put", bool),
}

if __name__ == "__main__":
    from service.__main__ import main

    MOMENTS[sys.argv.pop(1)]()
    claims.KEEP_SECONDS, claims.IDLE_SECONDS, claims.RESCUE_SECONDS = (
        float(each) for each in os.environ.get("CLAIM_SECONDS", "2 8 1").split()
    )
    claims.CALM_SECONDS = claims.IDLE_SECONDS / 2
    app.MAX_PURGE_SECONDS = float(os.environ.get("PURGE_SECONDS", "60"))
    main()
