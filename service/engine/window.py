"""Window micro-batching as a pure decision: which waiting pictures run now, or when to look again."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from observability.labels import BatchField
from service.engine.contract import Picture
from service.engine.task import Waiting


def order(waiting: Waiting) -> tuple[int, float, str, int]:
    """Sort key: by priority, then by age, then picture by picture."""
    return (waiting.priority.rank, waiting.accepted_at, waiting.picture.task_id, waiting.picture.index)


def shared(picture: Picture) -> dict[BatchField, object]:
    """What pictures of one batch have in common.

    Those without a negative prompt keep to themselves: some pipelines treat none otherwise than an empty one.
    """
    params = picture.params
    return {
        BatchField.SIZE: params.size,
        BatchField.STEPS: params.num_inference_steps,
        BatchField.GUIDANCE: params.guidance_scale,
        BatchField.SCHEDULER: params.scheduler,
        BatchField.NEGATIVE_PROMPT: bool(params.negative_prompt),
    }


def group(waiting: Waiting) -> tuple[object, ...]:
    """Pictures with the same value may share a batch."""
    return (*shared(waiting.picture).values(), waiting.picture.task_id if waiting.alone else None)


def passed_over(chosen: Picture, waiting: Iterable[Picture]) -> Counter[BatchField]:
    """How many cannot share the batch of `chosen`, by the first field that differs."""
    ours = shared(chosen)
    differing = (next((name for name, value in shared(each).items() if value != ours[name]), None) for each in waiting)
    return Counter(name for name in differing if name is not None)


@dataclass(frozen=True, slots=True)
class Run:
    """Start these pictures as one batch now."""

    pictures: tuple[Picture, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing is due before `until` (monotonic seconds); None: not before something arrives."""

    until: float | None


def choose(waiting: Sequence[Waiting], now: float, window: float, max_batch: int) -> Run | Wait:
    """Take the first group, in the order of their first pictures, that is full, due, or has nobody to wait for.

    `now` is monotonic, `window` in seconds. A request that waits alone runs at once: waiting out the window
    would only delay it. Otherwise a group that is not full waits until its oldest picture has waited `window`,
    and meanwhile lets a later group go first that is ready.
    """
    nobody_else = len({each.picture.task_id for each in waiting}) == 1
    groups: dict[object, list[Waiting]] = {}
    for each in sorted(waiting, key=order):
        groups.setdefault(group(each), []).append(each)
    due_times = []
    for mates in groups.values():
        batch = mates[:max_batch]
        due = min(each.arrived_at for each in mates) + window
        if nobody_else or batch[0].alone or len(batch) == max_batch or now >= due:
            return Run(tuple(each.picture for each in batch))
        due_times.append(due)
    return Wait(until=min(due_times, default=None))
