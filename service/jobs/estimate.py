"""When each computation will be done: the queue, played forward by the engine's profile."""

import math
import time
from bisect import insort
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from operator import itemgetter

from observability.events import BatchStepped, Event, OutOfMemorySplit
from observability.labels import Batching, Priority, Stage
from service.core import Params, Size
from service.engine.contract import Picture, Ready
from service.engine.policy import Candidate, Lowered, Order, first_come_first_served, shortest_first
from service.jobs.flight import Flight, Flights

WEIGHT = 0.1
MAX_RATIO = 5.0  # one step that was held up says little about the next
FORGET_SECONDS = 30.0
NEARLY_NONE = 1e-9
CHEAP_SECONDS = 0.001  # of the processor: a forecast that took no more is made after every change
PAUSE = 20.0  # after one that took more: so many times what it took

Key = tuple[float | str, ...]  # sorts by the order of service


@dataclass(frozen=True, slots=True)
class Forecast:
    """By id of the flight: seconds until it is done, and its place in the queue (0 = next) while it waits."""

    seconds: dict[str, float]
    positions: dict[str, int]


@dataclass(slots=True)
class _Row:
    """A picture, as far as a forecast needs it. `key` is its place in the engine's order of service."""

    flight_id: str
    size: Size
    rows: int
    steps_left: float
    rank: int  # its priority's
    candidate: Candidate
    key: Key


class Estimator:
    """Knows nothing until `ready`. What the profile says is corrected by the step times seen lately; without steps
    the correction fades, so that a slow spell does not refuse deadlines for ever.
    """

    def __init__(self, order: Order = shortest_first) -> None:
        self._continuous_order = self._order = order
        self._ready: Ready | None = None
        self._correction, self._corrected_at = 1.0, 0.0
        self._lowered: dict[Size, Lowered] = {}
        self._costs: dict[tuple[Size, int], float] = {}  # of one step of one picture in a full batch, by size and rows
        self._alone: dict[tuple[Size, int], float] = {}  # at most, alone too
        self.workers = 1
        """Engines that share the work."""

    def ready(self, message: Ready) -> None:
        """Take the model and the profile of an engine that has started."""
        self._ready = message
        self._correction, self._lowered, self._costs, self._alone = 1.0, {}, {}, {}
        is_continuous = message.batching is Batching.CONTINUOUS
        self._order = self._continuous_order if is_continuous else first_come_first_served

    def observe(self, event: Event, now: float) -> None:
        """Learn from what happened in the engine at monotonic `now`: how long steps take, and what does not fit."""
        if isinstance(event, BatchStepped) and self._ready is not None:
            ratio = event.seconds / max(self._ready.profile.step_seconds(event.size, event.rows), NEARLY_NONE)
            correction = self._faded(now)
            correction += WEIGHT * (min(max(ratio, 1 / MAX_RATIO), MAX_RATIO) - correction)
            self._correction, self._corrected_at = correction, now
        elif isinstance(event, OutOfMemorySplit) and event.stage is Stage.DENOISE:
            self._lowered[event.size] = Lowered(event.pictures, now)

    def _faded(self, now: float) -> float:
        return 1.0 + (self._correction - 1.0) * math.exp((self._corrected_at - now) / FORGET_SECONDS)

    def forecast(self, flights: Iterable[Flight], now: float) -> Forecast:
        """Play all unfinished `flights` forward from monotonic `now`; without a profile, only places are known."""
        keys = dict(sorted(((each, self._key(each, now)) for each in flights), key=itemgetter(1)))
        waiting = (each.id for each in keys if not each.has_started)
        positions = {flight_id: place for place, flight_id in enumerate(waiting)}
        if self._ready is None:
            return Forecast({}, positions)
        correction = self._faded(now)
        if not any(each.has_started for each in keys):  # what was slow is over
            correction = min(correction, 1.0)
        return Forecast({name: each * correction for name, each in self._play(keys, now).items()}, positions)

    def seconds_alone(self, params: Params, now: float) -> float | None:
        """The forecast for one picture if nothing else were there, without playing it."""
        if self._ready is None:
            return None
        profile = self._ready.profile
        step = profile.step_seconds(params.size, self._ready.info.rows(params))
        seconds = params.num_inference_steps * step + profile.beside_steps(params.size)
        return seconds * min(self._faded(now), 1.0)

    def alone(self, flight: Flight) -> float:
        """The most seconds that what is left of a computation takes an engine, one picture after the other, alone or as
        its share of full batches; 0: not known.
        """
        if self._ready is None:
            return 0.0
        params, profile = flight.params, self._ready.profile
        kind = (params.size, self._ready.info.rows(params))
        if kind not in self._alone:
            self._alone[kind] = max(profile.step_seconds(*kind), profile.picture_step_seconds(*kind))
        left = params.total_steps - flight.steps_done
        return left * self._alone[kind] + params.num_images * profile.beside_steps(params.size)

    def at_most(self, flights: Iterable[Flight], now: float) -> float:
        """Seconds within which all `flights` are done, whatever the order; infinite without a profile."""
        seconds = [self.alone(each) for each in flights]
        if self._ready is None:
            return math.inf
        return (sum(seconds) / self.workers + max(seconds, default=0.0)) * self._faded(now)

    def work(self, flight: Flight) -> float:
        """The seconds that one engine would take for what is left of a computation, in full batches; 0: not known."""
        if self._ready is None:
            return 0.0
        params = flight.params
        kind = (params.size, self._ready.info.rows(params))
        if kind not in self._costs:
            self._costs[kind] = self._ready.profile.picture_step_seconds(*kind)
        return (params.total_steps - flight.steps_done) * self._costs[kind]

    def _candidate(self, flight: Flight, now: float) -> Candidate:
        waited = now - flight.entered_at if flight.waited is None else flight.waited
        picture = Picture(flight.id, 0, flight.params)
        return Candidate(picture, flight.priority, flight.entered_at, self.work(flight), waited=waited)

    def _key(self, flight: Flight, now: float) -> Key:
        """The engine's own order of service."""
        return (*self._order(self._candidate(flight, now), now), flight.id)

    def _play(self, keys: Mapping[Flight, Key], now: float) -> dict[str, float]:
        """Seconds until each flight is done, by the profile.

        Rows get slots as in the engine and step together until one is done; sizes take turns.
        """
        assert self._ready is not None, "ready"
        running: dict[Size, list[_Row]] = {flight.params.size: [] for flight in keys}
        waiting: dict[Size, list[_Row]] = {size: [] for size in running}
        for flight, key in keys.items():
            rows = self._rows(flight, key, now)
            running[flight.params.size] += rows[: flight.slots]
            waiting[flight.params.size] += rows[flight.slots :]
        caps = {size: self._cap(size, now) for size in running}
        done: dict[str, float] = {}
        elapsed = 0.0
        while any(running.values()) or any(waiting.values()):
            for size, cap in caps.items():
                _fill(running[size], waiting[size], cap)
            batches = [rows for rows in running.values() if rows]
            steps = min(each.steps_left for rows in batches for each in rows)
            elapsed += steps * sum(self._step_seconds(rows) for rows in batches)
            for size, rows in running.items():
                for each in rows:
                    each.steps_left -= steps
                    if each.steps_left <= NEARLY_NONE:
                        elapsed += self._ready.profile.beside_steps(size)
                        done[each.flight_id] = elapsed
                rows[:] = [each for each in rows if each.steps_left > NEARLY_NONE]
        return done

    def _rows(self, flight: Flight, key: Key, now: float) -> list[_Row]:
        """The pictures that `flight` still needs, those that hold slots first and taken to be equally far."""
        assert self._ready is not None, "ready"
        steps = flight.params.num_inference_steps
        left = max(0, flight.params.total_steps - flight.steps_done)
        begun = max(flight.slots, 1) if flight.has_started else 0
        unbegun = max(0, math.ceil(left / steps) - begun)
        lengths = [(left - unbegun * steps) / max(begun, 1)] * begun + [float(steps)] * unbegun
        candidate = self._candidate(flight, now)
        rows = self._ready.info.rows(flight.params)
        rank = flight.priority.rank
        return [_Row(flight.id, flight.params.size, rows, length, rank, candidate, key) for length in lengths]

    def _cap(self, size: Size, now: float) -> int:
        assert self._ready is not None, "ready"
        cap = self._ready.profile.cap(size)
        cap = min(cap, self._lowered[size].allows(now)) if size in self._lowered else cap
        return cap * self.workers

    def _step_seconds(self, rows: Sequence[_Row]) -> float:
        assert self._ready is not None, "ready"
        busiest = math.ceil(len(rows) / self.workers) / len(rows)  # share of the rows
        return self._ready.profile.step_seconds(rows[0].size, sum(each.rows for each in rows) * busiest)


def _fill(running: list[_Row], waiting: list[_Row], cap: int) -> None:
    """Give the free slots to those that wait, in order, and those of rows that one of them may pause."""
    while waiting and len(running) < cap:
        running.append(waiting.pop(0))
    lowest = max((each.rank for each in running), default=0)
    for each in [each for each in waiting if each.rank < lowest]:  # only a higher priority may pause
        lower = [other for other in running if each.candidate.may_pause(other.candidate)]
        if lower:
            last = max(lower, key=lambda other: (other.candidate.standing, other.key))
            running.remove(last)
            waiting.remove(each)
            running.append(each)
            insort(waiting, last, key=lambda other: other.key)


class Outlook:
    """What `flights` can expect, worked out at most once after each change.

    Where there is so much that this costs, it is done less often: `processor` tells the thread's processor time.
    """

    def __init__(
        self,
        estimator: Estimator,
        flights: Flights,
        clock: Callable[[], float],
        processor: Callable[[], float] = time.thread_time,
    ) -> None:
        self._estimator = estimator
        self._flights = flights
        self._clock = clock
        self._processor = processor
        self._forecast = Forecast({}, {})
        self._work = 0.0  # seconds, of all that was there then
        self._made_at = self._not_before = -math.inf
        self._is_stale = True
        self._reserved: list[Flight] = []
        self._names = count()

    def changed(self) -> None:
        """Something entered, went on or left."""
        self._is_stale = True

    def of(self, flight: Flight) -> tuple[int | None, float | None]:
        """Place in the queue and seconds left, where they are known; one whose pictures are made has 0 s left.

        One that came since the last look stands behind all that were there.
        """
        now = self._clock()
        if self._is_stale and now >= self._not_before:
            self._look(now)
        if flight not in self._flights:
            return None, 0.0
        seconds, place = self._forecast.seconds.get(flight.id), self._forecast.positions.get(flight.id)
        if seconds is None and now > self._made_at and (alone := self._estimator.alone(flight)):
            seconds, place = self._work + alone, len(self._forecast.positions)
        left = None if seconds is None else max(0.0, seconds - (now - self._made_at))
        return (None if flight.has_started else place), left

    def _look(self, now: float) -> None:
        began = self._processor()
        self._forecast, self._made_at, self._is_stale = self._estimator.forecast(self._flights, now), now, False
        self._work = sum(map(self._estimator.work, self._flights)) / self._estimator.workers
        cost = self._processor() - began
        self._not_before = now + PAUSE * cost if cost > CHEAP_SECONDS else now

    def seconds_for(self, params: Params, priority: Priority, cache_key: str | None, enough: float) -> float | None:
        """How long a job that were accepted now would take; one that can join a computation ends with it.

        None where that is not known, or where it is at most `enough` whatever the order.
        """
        flight = self._flights.joinable(cache_key) if cache_key is not None else None
        if flight is not None:
            return self.of(flight)[1]
        flight = self._imagined(params, priority)
        flights = (*self._flights, *self._reserved, flight)
        if self._estimator.at_most(flights, flight.entered_at) <= enough:
            return None
        return self._estimator.forecast(flights, flight.entered_at).seconds.get(flight.id)

    def seconds_alone(self, params: Params) -> float | None:
        """How long it would take if nothing else were there."""
        if params.num_images == 1:
            return self._estimator.seconds_alone(params, self._clock())
        flight = self._imagined(params, Priority.NORMAL)
        return self._estimator.forecast([flight], flight.entered_at).seconds.get(flight.id)

    @contextmanager
    def reserved(self, params: Params, priority: Priority) -> Iterator[None]:
        """Meanwhile a job is counted in that is being recorded."""
        flight = self._imagined(params, priority)
        self._reserved.append(flight)
        try:
            yield
        finally:
            self._reserved.remove(flight)

    @property
    def reservations(self) -> int:
        """Jobs that are being recorded."""
        return len(self._reserved)

    def _imagined(self, params: Params, priority: Priority) -> Flight:
        now = self._clock()
        name = f"reserved {next(self._names)}"
        return Flight(name, name, params, priority, accepted_at=now, entered_at=now)
