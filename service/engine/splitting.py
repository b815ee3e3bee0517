"""What a loop does when a call of the model raises: halves are tried apart, down to the one item that cannot run."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from observability.labels import Stage
from service.core import Size
from service.engine import policy
from service.engine.contract import is_device_lost, is_out_of_memory
from service.engine.policy import Lowered
from service.engine.task import Sized

T = TypeVar("T", bound=Sized)
U = TypeVar("U")


class Splitter:
    """Remembers what did not fit into memory lately. `on_split` is told the stage, the size and what may fit."""

    def __init__(self, clock: Callable[[], float], on_split: Callable[[Stage, Size, int], None]) -> None:
        self._clock = clock
        self._on_split = on_split
        self._lowered: dict[tuple[Stage, Size], Lowered] = {}

    def at_most(self, pictures: int, stage: Stage, size: Size, now: float) -> int:
        """So many pictures, or fewer where memory ran out lately."""
        lowered = self._lowered.get((stage, size))
        return pictures if lowered is None else min(pictures, lowered.allows(now))

    def apart(
        self, items: Sequence[T], call: Callable[[Sequence[T]], Sequence[U]], stage: Stage
    ) -> Iterator[tuple[T, U | Exception]]:
        """What `call` gives for each item of one size, or why it fails for this one even alone.

        Where memory ran out lately, fewer at a time to begin with. Raises only what the device does not survive.
        """
        at_most = self.at_most(len(items), stage, items[0].size, self._clock())
        if at_most < len(items):
            for first in range(0, len(items), at_most):
                yield from self.apart(items[first : first + at_most], call, stage)
            return
        middle = len(items) // 2
        try:
            results = call(items)
        except Exception as error:
            if is_device_lost(error):
                raise  # the process ends, and another begins
            if not middle:
                yield items[0], error
                return
            if is_out_of_memory(error):
                self._lower(stage, items[0].size, middle)
        else:
            yield from zip(items, results, strict=True)
            return
        for half in (items[:middle], items[middle:]):  # out here, the error no longer holds the failed call's tensors
            yield from self.apart(half, call, stage)

    def _lower(self, stage: Stage, size: Size, pictures: int) -> None:
        now = self._clock()
        self._lowered[stage, size] = lowered = policy.lowered(self._lowered.get((stage, size)), pictures, now)
        self._on_split(stage, size, lowered.to)
