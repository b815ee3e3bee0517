"""How many workers there should be: what is known now, and what was wanted lately, decide. Nothing is done here."""

import math
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

BOUNDS = re.compile(r"(\d{1,4}):(\d{1,4})")
HOURS = re.compile(r"(\d{1,2})-(\d{1,2})=(\d{1,4})")
DAY_HOURS = 24
UP_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Floor:
    """From one hour of the day up to another (UTC; over midnight if that is the earlier), at least so many."""

    since: int
    until: int
    least: int

    def holds(self, hour: float) -> bool:
        """Whether it does at that hour."""
        if self.since <= self.until:
            return self.since <= hour < self.until
        return hour >= self.since or hour < self.until


@dataclass(frozen=True, slots=True)
class Policy:
    """What is aimed at. All times are seconds.

    There are as many workers as make what runs with `occupancy` of what they could, and do what waits within
    `backlog_seconds`; one more than there are while 95 of 100 that wait have not waited less than `wait_seconds`.
    More are wanted at once, but not twice within `up_seconds`; fewer when fewer would have done for `down_seconds`.
    """

    least: int
    most: int
    floors: Sequence[Floor] = ()
    occupancy: float = 0.8
    backlog_seconds: float = 30.0
    wait_seconds: float = 10.0
    up_seconds: float = UP_SECONDS
    down_seconds: float = 300.0

    def bounded(self, workers: int, hour: float) -> int:
        """As near to `workers` as is allowed at that hour of the day."""
        least = max([self.least, *(each.least for each in self.floors if each.holds(hour))])
        return min(max(workers, least), self.most)


def parse(bounds: str, schedule: str | None = None) -> Policy:
    """The policy of `MIN:MAX` and hours such as `8-20=4,20-23=2`. Raises `ValueError`."""
    found = BOUNDS.fullmatch(bounds)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):  # without any, no model would be known
        raise ValueError("must be the least and the most workers, at least one, such as 1:4")
    floors = []
    for text in (schedule or "").split(",") if schedule else ():
        hours = HOURS.fullmatch(text)
        if hours is None or max(int(hours[1]), int(hours[2])) > DAY_HOURS:
            raise ValueError("must be hours of the day (UTC) with the least workers then, such as 8-20=4,20-23=2")
        floors.append(Floor(int(hours[1]), int(hours[2]), int(hours[3])))
    return Policy(int(found[1]), int(found[2]), tuple(floors))


@dataclass(frozen=True, slots=True)
class Load:
    """What is known: workers that are there, the share that they make of what they could, the seconds that one worker
    would take for all that waits, and how long 95 of 100 of those have waited at most.

    Slots would not do for that share: a worker with one picture of eight makes more than an eighth of what it could.
    """

    workers: int
    occupancy: float
    waiting_seconds: float
    waited_p95: float


def wanted(policy: Policy, load: Load) -> int:
    """How many workers this load alone calls for, without bounds."""
    busy = load.workers * load.occupancy / policy.occupancy
    found = math.ceil(busy + load.waiting_seconds / policy.backlog_seconds - 1e-9)
    return max(found, load.workers + 1) if load.waited_p95 > policy.wait_seconds else found


class Autoscaler:
    """Follows a policy over time. `now` is monotonic."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._wanted: deque[tuple[float, int]] = deque()  # within `down_seconds`, and the last one before
        self._desired: int | None = None
        self._raised_at = -math.inf

    def desired(self, load: Load, now: float, hour: float) -> int:
        """How many workers there should be from now on; `hour` is that of the day, in UTC."""
        policy = self.policy
        self._wanted.append((now, policy.bounded(wanted(policy, load), hour)))
        while len(self._wanted) > 1 and self._wanted[1][0] <= now - policy.down_seconds:
            self._wanted.popleft()
        highest = max(count for _, count in self._wanted)
        last = policy.bounded(load.workers if self._desired is None else self._desired, hour)
        if self._wanted[-1][1] > last and now - self._raised_at >= policy.up_seconds:
            last, self._raised_at = self._wanted[-1][1], now
        elif highest < last and self._wanted[0][0] <= now - policy.down_seconds:
            last = highest
        self._desired = last
        return last
