"""Works out now and then how many workers a fleet should have, tells of it, and has them if they are to be here."""

import asyncio
import logging
import time
from collections.abc import Callable

from observability.events import WorkersWanted
from observability.observer import Observer
from service.scaling.local import LocalWorkers
from service.scaling.policy import Autoscaler, Load, Policy

log = logging.getLogger("safelight.workers")

HOUR = 3600.0


class Scaler:
    """`load` is what the fleet has to do; without `local`, others start workers, as the metric says.

    It is looked at every `seconds`.
    """

    def __init__(
        self,
        policy: Policy,
        load: Callable[[], Load],
        observer: Observer,
        seconds: float,
        local: LocalWorkers | None,
    ) -> None:
        self._autoscaler = Autoscaler(policy)
        self._load = load
        self._observer = observer
        self._seconds = seconds
        self._local = local
        self._stopped = asyncio.Event()

    async def go_on(self) -> None:
        """Every so many seconds, until it is stopped."""
        if self._local is not None:
            self._local.set(self._autoscaler.policy.bounded(0, _hour()))
        while not self._stopped.is_set():
            try:
                await asyncio.wait_for(self._stopped.wait(), self._seconds)
            except TimeoutError:
                self._try_to_decide()

    def _try_to_decide(self) -> None:
        try:
            self.decide()
        except Exception:
            log.exception("how many workers there should be could not be worked out")

    def decide(self) -> None:
        """Look at what there is to do, once."""
        policy = self._autoscaler.policy
        desired = self._autoscaler.desired(self._load(), time.monotonic(), _hour())
        self._observer.observe(WorkersWanted(desired, policy.most))
        if self._local is not None:
            self._local.set(desired)

    async def stop(self) -> None:
        """The workers that are here leave, and hand over what they have."""
        self._stopped.set()
        if self._local is not None:
            await self._local.stop()


def _hour() -> float:
    return time.time() % (24 * HOUR) / HOUR
