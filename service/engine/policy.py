"""The scheduling of continuous batching as pure functions: who holds a slot, and which size takes the next step.

In the order of service a picture is passed only by pictures that arrived less than `(rank + 1) * PROMOTE_SECONDS` after
it (rank 2 is low priority), so nothing starves. Of `n` sizes that have rows, each takes a step at least once in
`MAX_SKIPS + n`.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from observability.labels import Priority
from service.core import Size
from service.engine.contract import Picture

PROMOTE_SECONDS = 60.0
AGEING = 0.5  # seconds of work that a second of waiting makes up for
PAUSE_GAP = 2  # ranks: as of high over low
MAX_SKIPS = 8
SHARES = {Priority.HIGH: 16.0, Priority.NORMAL: 4.0, Priority.LOW: 1.0}
RAISE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """An unfinished picture. `arrived_at` is monotonic; `work` is the seconds of denoising that its task has left.

    Of the time since it arrived, it was without a slot for `waited` seconds. A suspect of a crash runs `alone`, from
    when its task `has_started` until the task is done.
    """

    picture: Picture
    priority: Priority
    arrived_at: float
    work: float
    holds_slot: bool = False
    alone: bool = False
    has_started: bool = False
    waited: float = 0.0

    def rank(self, now: float) -> int:
        """The priority's rank, one better for each `PROMOTE_SECONDS` since arrival; below zero in the end."""
        return self.priority.rank - int((now - self.arrived_at) / PROMOTE_SECONDS)

    @property
    def standing(self) -> int:
        """The priority's rank, one better for each `PROMOTE_SECONDS` without a slot."""
        return self.priority.rank - int(self.waited / PROMOTE_SECONDS)

    def may_pause(self, holder: "Candidate") -> bool:
        """Whether it takes the slot of `holder`, of a lower priority. Time in a slot protects from nobody.

        Low priority is paused by high unless it has waited, or was paused, a minute longer; by normal after that has
        waited a minute longer.
        """
        is_higher = self.priority.rank < holder.priority.rank
        return is_higher and holder.standing - self.standing >= PAUSE_GAP


Order = Callable[[Candidate, float], tuple[float, ...]]


def shortest_first(candidate: Candidate, now: float) -> tuple[float, ...]:
    """Within a rank: the least work left first, less what the time since arrival makes up for."""
    return (candidate.rank(now), candidate.work + AGEING * candidate.arrived_at, candidate.arrived_at)


def first_come_first_served(candidate: Candidate, now: float) -> tuple[float, ...]:
    """Within a rank: the oldest first."""
    return (candidate.rank(now), candidate.arrived_at)


ORDERS: Mapping[str, Order] = {"shortest_first": shortest_first, "first_come": first_come_first_served}


def assign_slots(
    candidates: Iterable[Candidate], cap: Callable[[Size], int], now: float, order: Order = shortest_first
) -> list[Candidate]:
    """Who holds the slots until the next step, at most `cap` of a size, in the order of service.

    A holder keeps its slot, unless the cap was lowered or one that may pause it wants it; that one may come later in
    the order than others that may not.
    """
    ordered = sorted(candidates, key=lambda each: (*order(each, now), each.picture.task_id, each.picture.index))
    groups: dict[Size, list[Candidate]] = {}
    for each in _without_mates_of_suspects(ordered):
        groups.setdefault(each.picture.size, []).append(each)
    return [each for size, group in groups.items() for each in _fill(group, cap(size))]


def _without_mates_of_suspects(ordered: Sequence[Candidate]) -> list[Candidate]:
    """A suspect whose turn has come has the engine to itself until its task is done; all others pause."""
    suspect = next((each for each in ordered if each.alone and each.has_started), None)
    if suspect is None and ordered and ordered[0].alone:
        suspect = ordered[0]
    if suspect is None:
        return [each for each in ordered if not each.alone]
    return [each for each in ordered if each.picture.task_id == suspect.picture.task_id]


def _fill(ordered: Sequence[Candidate], cap: int) -> list[Candidate]:
    """The holders among candidates of one size."""
    chosen = [each for each in ordered if each.holds_slot][:cap]
    for each in ordered:
        if each.holds_slot:
            continue
        if len(chosen) == cap:
            lower = [other for other in reversed(chosen) if each.may_pause(other)]
            if not lower:
                continue
            chosen.remove(max(lower, key=lambda other: other.standing))
        chosen.append(each)
    return chosen


@dataclass(frozen=True, slots=True)
class Turn:
    """How a size with rows has fared: weighted seconds it has had, and steps of others since its own last one."""

    used: float = 0.0
    skipped: int = 0


def next_size(turns: Mapping[Size, Turn], fresh: Collection[Size] = ()) -> Size:
    """The size that takes the next step: one passed over too often, else one with a newcomer (`fresh`), unless another
    was passed over for each of the sizes since its own step, else the one that has had the least.
    """
    overdue = {size: turn for size, turn in turns.items() if turn.skipped >= MAX_SKIPS}
    if overdue:
        return max(overdue, key=lambda size: overdue[size].skipped)
    newcomers_first = all(turn.skipped < len(turns) for turn in turns.values())
    return min(turns, key=lambda size: (newcomers_first and size not in fresh, turns[size].used))


def entered(turns: Mapping[Size, Turn], sizes: Iterable[Size]) -> dict[Size, Turn]:
    """The turns of the `sizes` that have rows now. A new one starts level with the one that has had the least."""
    least = min((turn.used for turn in turns.values()), default=0.0)
    return {size: turns.get(size, Turn(used=least)) for size in sizes}


def charged(turns: Mapping[Size, Turn], size: Size, seconds: float, holders: Iterable[Priority]) -> dict[Size, Turn]:
    """The turns after a step of `seconds` for rows of these priorities: more and more urgent rows, a larger share."""
    weight = sum(SHARES[each] for each in holders)
    after = {other: replace(turn, skipped=turn.skipped + 1) for other, turn in turns.items()}
    after[size] = Turn(used=turns[size].used + seconds / weight)
    return after


@dataclass(frozen=True, slots=True)
class Lowered:
    """A cap after memory ran out at `at` (monotonic); it doubles every `RAISE_SECONDS`."""

    to: int
    at: float

    def allows(self, now: float) -> int:
        """Slots that may be tried at `now`."""
        return self.to << min(30, int((now - self.at) / RAISE_SECONDS))


def lowered(before: Lowered | None, to: int, now: float) -> Lowered:
    """The cap after memory ran out with more than `to` at a time; never above what it was `before`."""
    return Lowered(to if before is None else min(to, before.allows(now)), now)
