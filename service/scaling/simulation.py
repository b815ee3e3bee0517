"""A day of a fleet that does not exist, on a virtual clock: a launch, workers that come late and are taken away.

Simulated are requests, a queue, workers and the machines that they come on; how many of them are wanted is decided by
the policy that decides it in production. A worker shares itself among its pictures by the curve of its step times: the
denoising steps are not played one by one, and nothing between the parts takes time.
"""

import math
import random
from bisect import bisect_left
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import simpy

from service.scaling.policy import Autoscaler, Load, Policy

HOUR = 3600.0
DAY = 24 * HOUR
HIT_SECONDS = 0.01
LOOK_SECONDS = 60.0  # between points of the picture

Process = Generator[simpy.Event, Any, None]


@dataclass(frozen=True, slots=True)
class Machine:
    """How fast a worker is: seconds of a denoising step by pictures in it, and of a picture beside its steps."""

    points: tuple[tuple[int, float], ...]
    extra_seconds: float
    slots: int
    name: str

    def step_seconds(self, pictures: int) -> float:
        """Linear between the points, and beyond the last."""
        at = min(max(bisect_left([n for n, _ in self.points], pictures), 1), len(self.points) - 1)
        if len(self.points) == 1:
            return self.points[0][1] * max(1.0, pictures / self.points[0][0])
        (low, low_seconds), (high, high_seconds) = self.points[at - 1], self.points[at]
        return low_seconds + (high_seconds - low_seconds) * (pictures - low) / (high - low)

    def rate(self, steps: float) -> float:
        """Pictures a second, when it never lacks any."""
        return self.slots / (steps * self.step_seconds(self.slots) + self.slots * self.extra_seconds)


@dataclass(frozen=True, slots=True)
class Launch:
    """Requests a second: `base`, from `at` on up to `peak` within `rise` seconds, there for `hold`, down in `fall`."""

    base: float
    peak: float
    at: float = 2 * HOUR
    rise: float = 600.0
    hold: float = HOUR
    fall: float = 4 * HOUR

    def rate(self, now: float) -> float:
        """At that moment."""
        since = now - self.at
        if since < 0:
            return self.base
        if since < self.rise:
            share = since / self.rise
        elif since < self.rise + self.hold:
            share = 1.0
        else:
            share = max(0.0, 1 - (since - self.rise - self.hold) / self.fall)
        return self.base + (self.peak - self.base) * share


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is asked, and what makes it. A picture has one of `steps`, each as likely as the others.

    Prices are dollars an hour; interruptions are those of a spot worker's hour.
    """

    machine: Machine
    launch: Launch
    policy: Policy
    steps: tuple[int, ...] = (20,)
    timeout: float = 300.0
    queue_limit: int = 500
    prompts: int = 20_000
    zipf: float = 1.0
    has_cache: bool = True
    spot_share: float = 0.7
    on_demand_price: float = 1.0
    spot_price: float = 0.4
    interruptions: float = 0.05
    provisioning: tuple[float, float] = (120.0, 300.0)
    every: float = 30.0
    seconds: float = DAY
    seed: int = 0

    @property
    def rate(self) -> float:
        """Pictures a second of a worker that never lacks any."""
        return self.machine.rate(sum(self.steps) / len(self.steps))


@dataclass(slots=True)
class Outcome:
    """What came of it. `points` are moments: hours, requests a second, workers that are there, desired, and waiting."""

    latencies: list[float] = field(default_factory=list)
    asked: int = 0
    hits: int = 0
    refused: int = 0
    expired: int = 0
    interrupted: int = 0
    most: int = 0
    on_demand_seconds: float = 0.0
    spot_seconds: float = 0.0
    points: list[tuple[float, float, int, int, int]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Picture:
    prompt: int
    steps: int
    waiters: list[float]  # when each asked for it
    left: float = 0.0  # steps


class _Worker:
    """One that is there. Its process waits for the next picture to be done, and begins anew when one comes."""

    def __init__(self, fleet: "_Fleet", is_spot: bool) -> None:
        self._fleet = fleet
        self.is_spot = is_spot
        self.since = fleet.env.now
        self.pictures: list[_Picture] = []
        self._last = fleet.env.now
        self._changed = fleet.env.event()
        self._work = fleet.env.process(self._run())

    @property
    def has_room(self) -> bool:
        return len(self.pictures) < self._fleet.scenario.machine.slots

    def take(self, picture: _Picture) -> None:
        self._go_on()
        machine = self._fleet.scenario.machine
        picture.left = picture.steps + machine.extra_seconds / machine.step_seconds(1)
        self.pictures.append(picture)
        self._change()

    def leave(self) -> list[_Picture]:
        """End at once; what it had, from the beginning."""
        left, self.pictures = self.pictures, []
        self._work.interrupt()
        return left

    def _change(self) -> None:
        self._changed.succeed()
        self._changed = self._fleet.env.event()

    def _go_on(self) -> None:
        now = self._fleet.env.now
        if self.pictures:
            steps = (now - self._last) / self._fleet.scenario.machine.step_seconds(len(self.pictures))
            for each in self.pictures:
                each.left -= steps
        self._last = now

    def _run(self) -> Process:
        env, machine = self._fleet.env, self._fleet.scenario.machine
        try:
            while True:
                if not self.pictures:
                    yield self._changed
                    continue
                left = max(0.0, min(each.left for each in self.pictures))
                yield env.timeout(left * machine.step_seconds(len(self.pictures))) | self._changed
                self._go_on()
                done = [each for each in self.pictures if each.left <= 1e-6]
                if done:
                    self.pictures = [each for each in self.pictures if each.left > 1e-6]
                    self._fleet.finished(done)
        except simpy.Interrupt:
            return


class _Fleet:
    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.env = simpy.Environment()
        self.outcome = Outcome()
        self._random = random.Random(scenario.seed)
        self._autoscaler = Autoscaler(scenario.policy)
        self._workers: list[_Worker] = []
        self._coming = 0
        self._desired = scenario.policy.bounded(0, 0.0)
        self._waiting: deque[_Picture] = deque()
        self._unfinished: dict[int, _Picture] = {}  # by prompt
        self._known: set[int] = set()
        self._odds = list(accumulate(1 / (rank + 1) ** scenario.zipf for rank in range(scenario.prompts)))

    def run(self) -> Outcome:
        for _ in range(self._desired):
            self._join()
        for process in (self._ask(), self._scale(), self._look(), self._expire()):
            self.env.process(process)
        self.env.run(until=self.scenario.seconds)
        for each in self._workers:
            self._account(each)
        return self.outcome

    # Requests

    def _ask(self) -> Process:
        launch = self.scenario.launch
        highest = max(launch.base, launch.peak)
        while True:
            yield self.env.timeout(self._random.expovariate(highest))
            if self._random.random() * highest < launch.rate(self.env.now):
                self._accept()

    def _accept(self) -> None:
        outcome = self.outcome
        outcome.asked += 1
        prompt = bisect_left(self._odds, self._random.random() * self._odds[-1])
        if self.scenario.has_cache and prompt in self._known:
            outcome.hits += 1
            outcome.latencies.append(HIT_SECONDS)
        elif self.scenario.has_cache and prompt in self._unfinished:
            outcome.hits += 1
            self._unfinished[prompt].waiters.append(self.env.now)
        elif len(self._waiting) >= self.scenario.queue_limit:
            outcome.refused += 1
        else:
            picture = _Picture(prompt, self._steps(), [self.env.now])
            if self.scenario.has_cache:
                self._unfinished[prompt] = picture
            self._waiting.append(picture)
            self._hand_out()

    def _steps(self) -> int:
        steps = self.scenario.steps
        return steps[0] if len(steps) == 1 else self._random.choice(steps)

    def _hand_out(self) -> None:
        while self._waiting:
            free = [each for each in self._workers if each.has_room]
            if not free:
                return
            self._random.choice(free).take(self._waiting.popleft())

    def finished(self, pictures: Sequence[_Picture]) -> None:
        for each in pictures:
            self.outcome.latencies += [self.env.now - at for at in each.waiters]
            if self.scenario.has_cache:
                self._unfinished.pop(each.prompt, None)
                self._known.add(each.prompt)
        self._hand_out()

    def _expire(self) -> Process:
        while True:
            yield self.env.timeout(1.0)
            while self._waiting and self._waiting[0].waiters[0] < self.env.now - self.scenario.timeout:
                late = self._waiting.popleft()
                self._unfinished.pop(late.prompt, None)
                self.outcome.expired += len(late.waiters)

    # Workers

    def _join(self) -> None:
        worker = _Worker(self, self._random.random() < self.scenario.spot_share)
        self._workers.append(worker)
        self.outcome.most = max(self.outcome.most, len(self._workers))
        if worker.is_spot and self.scenario.interruptions:
            self.env.process(self._interrupt(worker))

    def _leave(self, worker: _Worker) -> None:
        self._account(worker)
        self._workers.remove(worker)
        self._waiting.extendleft(reversed(worker.leave()))
        self._hand_out()

    def _account(self, worker: _Worker) -> None:
        lived = self.env.now - worker.since
        if worker.is_spot:
            self.outcome.spot_seconds += lived
        else:
            self.outcome.on_demand_seconds += lived

    def _interrupt(self, worker: _Worker) -> Process:
        yield self.env.timeout(self._random.expovariate(self.scenario.interruptions / HOUR))
        if worker in self._workers:
            self.outcome.interrupted += 1
            self._leave(worker)
            self._meet()

    def _scale(self) -> Process:
        while True:
            yield self.env.timeout(self.scenario.every)
            self._desired = self._autoscaler.desired(self._load(), self.env.now, self.env.now % DAY / HOUR)
            self._meet()

    def _meet(self) -> None:
        """There are, or will be, as many as desired; the newest leave first."""
        while len(self._workers) + self._coming < self._desired:
            self._coming += 1
            self.env.process(self._provision())
        while len(self._workers) > self._desired:
            self._leave(self._workers[-1])

    def _provision(self) -> Process:
        yield self.env.timeout(self._random.uniform(*self.scenario.provisioning))
        self._coming -= 1
        if len(self._workers) < self._desired:
            self._join()
            self._hand_out()

    def _load(self) -> Load:
        machine, count = self.scenario.machine, len(self._workers)
        fastest = machine.slots / machine.step_seconds(machine.slots)
        counts = [len(each.pictures) for each in self._workers if each.pictures]
        made = sum(pictures / machine.step_seconds(pictures) for pictures in counts)
        oldest_first = [self.env.now - each.waiters[0] for each in self._waiting]
        p95 = sorted(oldest_first)[math.ceil(0.95 * len(oldest_first)) - 1] if oldest_first else 0.0
        occupancy = made / (count * fastest) if count else 0.0
        return Load(count, occupancy, len(self._waiting) / self.scenario.rate, p95)

    def _look(self) -> Process:
        while True:
            point = (self.env.now / HOUR, self.scenario.launch.rate(self.env.now))
            self.outcome.points.append((*point, len(self._workers), self._desired, len(self._waiting)))
            yield self.env.timeout(LOOK_SECONDS)


def simulate(scenario: Scenario) -> Outcome:
    """Play it. The same seed gives the same day."""
    return _Fleet(scenario).run()
