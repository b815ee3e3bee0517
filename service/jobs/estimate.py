"""When each computation will be done: the queue, played forward by the engine's profile."""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from observability.events import Batching, BatchStepped, Priority
from service.core import ModelInfo, Params, Size
from service.engine.contract import Picture, Ready
from service.engine.policy import Candidate, Order, first_come_first_served, shortest_first
from service.engine.profile import Profile
from service.jobs.flight import Flight, Flights

WEIGHT = 0.1
FORGET_SECONDS = 30.0
NEARLY_NONE = 1e-9


@dataclass(frozen=True, slots=True)
class Forecast:
    """By id of the flight: seconds until it is done, and its place in the queue (0 = next) while it waits."""

    seconds: dict[str, float]
    positions: dict[str, int]


@dataclass(slots=True)
class _Row:
    """A picture, as far as a forecast needs it."""

    flight_id: str
    size: Size
    rows: int
    steps_left: float


class Estimator:
    """Knows nothing until `ready`. What the profile says is corrected by the step times seen lately; without steps
    the correction fades, so that a slow spell does not refuse deadlines for ever.
    """

    def __init__(self, order: Order = shortest_first) -> None:
        self._continuous_order = self._order = order
        self._profile: Profile | None = None
        self._info: ModelInfo | None = None
        self._correction, self._corrected_at = 1.0, 0.0
        self._caps: dict[Size, int] = {}  # of the profile, by size
        self._costs: dict[tuple[Size, int], float] = {}  # of one step of one picture, by size and rows

    def ready(self, message: Ready) -> None:
        """Take the model and the profile of an engine that has started."""
        self._info, self._profile = message.info, message.profile
        self._caps, self._costs = {}, {}
        is_continuous = message.batching is Batching.CONTINUOUS
        self._order = self._continuous_order if is_continuous else first_come_first_served

    def stepped(self, event: BatchStepped, now: float) -> None:
        """Take the time of one step of a batch that ended at monotonic `now`."""
        if self._profile is not None:
            ratio = event.seconds / max(self._profile.step_seconds(event.size, event.rows), NEARLY_NONE)
            correction = self._faded(now)
            self._correction, self._corrected_at = correction + WEIGHT * (ratio - correction), now

    def _faded(self, now: float) -> float:
        return 1.0 + (self._correction - 1.0) * math.exp((self._corrected_at - now) / FORGET_SECONDS)

    def forecast(self, flights: Iterable[Flight], now: float) -> Forecast:
        """Play all unfinished `flights` forward from monotonic `now`; without a profile, only places are known."""
        flights = list(flights)
        waiting = sorted((each for each in flights if not each.has_started), key=lambda each: self._key(each, now))
        positions = {each.id: place for place, each in enumerate(waiting)}
        running = [each for each in flights if each.has_started]
        seconds = self._play([*running, *waiting]) if self._profile is not None else {}
        correction = self._faded(now)
        seconds = {flight_id: each * correction for flight_id, each in seconds.items()}
        return Forecast(seconds, positions)

    def _key(self, flight: Flight, now: float) -> tuple[float | str, ...]:
        """The engine's own order of service."""
        work = self._work(flight.params)
        candidate = Candidate(Picture(flight.id, 0, flight.params), flight.priority, flight.entered_at, work)
        return (*self._order(candidate, now), flight.id)

    def _work(self, params: Params) -> float:
        if self._profile is None or self._info is None:
            return 0.0
        kind = (params.size, self._info.rows(params))
        if kind not in self._costs:
            self._costs[kind] = self._profile.picture_step_seconds(*kind)
        return params.total_steps * self._costs[kind]

    def _play(self, flights: Iterable[Flight]) -> dict[str, float]:
        """By the profile: rows take the slots in order and step together until one is done; sizes take turns."""
        assert self._profile is not None, "ready"
        waiting: dict[Size, list[_Row]] = {}
        for flight in flights:
            waiting.setdefault(flight.params.size, []).extend(self._rows(flight))
        self._caps |= {size: self._profile.cap(size) for size in waiting.keys() - self._caps.keys()}
        running: list[_Row] = []
        done: dict[str, float] = {}
        now = 0.0
        while running or any(waiting.values()):
            taken = Counter(each.size for each in running)
            for size, queue in waiting.items():
                free = self._caps[size] - taken[size]
                running += queue[:free]
                del queue[:free]
            steps = min(each.steps_left for each in running)
            now += steps * self._round_seconds(running)
            for each in running:
                each.steps_left -= steps
            for each in running:
                if each.steps_left <= NEARLY_NONE:
                    now += self._profile.extra_seconds
                    done[each.flight_id] = now
            running = [each for each in running if each.steps_left > NEARLY_NONE]
        return done

    def _rows(self, flight: Flight) -> list[_Row]:
        """The pictures that `flight` still needs; those that run are taken to be equally far."""
        assert self._info is not None, "ready"
        left = max(0, flight.params.total_steps - flight.steps_done)
        count = max(1, math.ceil(left / flight.params.num_inference_steps))
        rows = self._info.rows(flight.params)
        return [_Row(flight.id, flight.params.size, rows, left / count) for _ in range(count)]

    def _round_seconds(self, running: Iterable[_Row]) -> float:
        """One step of every size that has rows."""
        assert self._profile is not None, "ready"
        rows: Counter[Size] = Counter()
        for each in running:
            rows[each.size] += each.rows
        return sum(self._profile.step_seconds(size, count) for size, count in rows.items())


class Outlook:
    """What `flights` can expect, worked out at most once after each change."""

    def __init__(self, estimator: Estimator, flights: Flights, clock: Callable[[], float]) -> None:
        self._estimator = estimator
        self._flights = flights
        self._clock = clock
        self._forecast: Forecast | None = None

    def changed(self) -> None:
        """Something entered, went on or left."""
        self._forecast = None

    def of(self, flight: Flight) -> tuple[int | None, float | None]:
        """Place in the queue and seconds left, where they are known; one whose pictures are made has 0 s left."""
        if self._forecast is None:
            self._forecast = self._estimator.forecast(self._flights, self._clock())
        left_the_engine = 0.0 if flight not in self._flights else None
        return self._forecast.positions.get(flight.id), self._forecast.seconds.get(flight.id, left_the_engine)

    def seconds_for(self, params: Params, priority: Priority, cache_key: str | None) -> float | None:
        """How long a job that were accepted now would take; one that can join a computation ends with it."""
        flight = self._flights.joinable(cache_key) if cache_key is not None else None
        if flight is not None:
            return self.of(flight)[1]
        now = self._clock()
        flight = Flight("", "", params, priority, accepted_at=now, entered_at=now)
        return self._estimator.forecast((*self._flights, flight), now).seconds.get(flight.id)
