"""Window micro-batching as a pure decision: which waiting pictures run now, or when to look again."""

from collections.abc import Sequence
from dataclasses import dataclass

from observability.events import Priority
from service.engine.contract import Picture


@dataclass(frozen=True, slots=True)
class Waiting:
    """A picture in the queue. `accepted_at` (Unix time) orders it; `arrived_at` (monotonic) starts its window."""

    picture: Picture
    priority: Priority
    accepted_at: float
    arrived_at: float
    alone: bool = False

    @property
    def order(self) -> tuple[int, float, str, int]:
        """Sort key: by priority, then by age, then picture by picture."""
        return (self.priority.rank, self.accepted_at, self.picture.task_id, self.picture.index)

    @property
    def group(self) -> tuple[int, int, int, float, str, str | None]:
        """Pictures with the same value may share a batch."""
        params = self.picture.params
        return (
            params.width,
            params.height,
            params.num_inference_steps,
            params.guidance_scale,
            params.scheduler,
            self.picture.task_id if self.alone else None,
        )


@dataclass(frozen=True, slots=True)
class Run:
    """Start these pictures as one batch now."""

    pictures: tuple[Picture, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing is due before `until` (monotonic seconds); None: not before something arrives."""

    until: float | None


def choose(waiting: Sequence[Waiting], now: float, window: float, max_batch: int) -> Run | Wait:
    """Take the group of the first picture in order, when it is full, due, or has nobody to wait for.

    `now` is monotonic, `window` in seconds. A request that waits alone runs at once: waiting out the window
    would only delay it. Otherwise a group that is not full waits until its oldest picture has waited `window`.
    """
    if not waiting:
        return Wait(until=None)
    ordered = sorted(waiting, key=lambda each: each.order)
    group = [each for each in ordered if each.group == ordered[0].group][:max_batch]
    due = min(each.arrived_at for each in group) + window
    alone = len({each.picture.task_id for each in waiting}) == 1
    if alone or len(group) == max_batch or now >= due:
        return Run(tuple(each.picture for each in group))
    return Wait(until=due)
