"""Who works in a fleet, as each worker says in Redis by a key that soon expires."""

import logging
from collections import Counter
from dataclasses import dataclass, replace

from pydantic import TypeAdapter, ValidationError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from observability.events import WorkersSeen
from observability.labels import Pool
from observability.observer import Observer
from service.core import Size
from service.engine.contract import Ready
from service.queue.streams import PREFIX, WORKERS

log = logging.getLogger("safelight.queue")

LIVES_SECONDS = 8.0  # a worker that has not said for so long that it lives
LOOK_SECONDS = 1.0
PRESENCES = f"{PREFIX}:presences"  # what each worker says of itself
MODEL = f"{PREFIX}:model"  # what the last worker that came up said, for times without any
PROGRESS = f"{PREFIX}:progress"  # by computation: its steps and seconds left

# KEYS: workers, presences, model. ARGV: worker, for how many seconds, what it says.
TELL = """
local now = tonumber(redis.call('TIME')[1])
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
redis.call('SET', KEYS[3], ARGV[3])
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)) do
  redis.call('ZREM', KEYS[1], gone)
  redis.call('HDEL', KEYS[2], gone)
end
"""

# KEYS: workers, presences, model. What the last one said, then each worker that lives and what it says.
LOOK = """
local found = {redis.call('GET', KEYS[3]) or ''}
for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], redis.call('TIME')[1], '+inf')) do
  found[#found + 1] = name
  found[#found + 1] = redis.call('HGET', KEYS[2], name) or ''
end
return found
"""


@dataclass(frozen=True, slots=True)
class Presence:
    """What a worker says of itself; `caps` are the profile's own slots by size, which JSON cannot have as keys."""

    ready: Ready
    caps: tuple[tuple[Size, int], ...] = ()

    @classmethod
    def of(cls, ready: Ready) -> "Presence":
        """What it says when its engine is `ready`."""
        return cls(replace(ready, profile=replace(ready.profile, slots={})), tuple(ready.profile.slots.items()))

    def restored(self) -> Ready:
        """What its engine said."""
        return replace(self.ready, profile=replace(self.ready.profile, slots=dict(self.caps)))


PRESENCE = TypeAdapter(Presence)


class Attendance:
    """Who is there, as Redis has it. Every method raises `RedisError` while it is away."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._tell = redis.register_script(TELL)
        self._look = redis.register_script(LOOK)

    async def tell(self, worker: str, pool: Pool, presence: Presence) -> None:
        """The worker is there, for the next `LIVES_SECONDS`."""
        text = PRESENCE.dump_json(presence).decode()
        await self._tell(keys=[WORKERS, PRESENCES, MODEL], args=[f"{pool}:{worker}", int(LIVES_SECONDS), text])

    async def leave(self, worker: str, pool: Pool) -> None:
        """It is there no more."""
        await self._redis.zrem(WORKERS, f"{pool}:{worker}")
        await self._redis.hdel(PRESENCES, f"{pool}:{worker}")

    async def look(self) -> tuple[Presence | None, dict[str, Presence]]:
        """What the last worker said that came up, and who is there, by pool and name."""
        last, *rest = await self._look(keys=[WORKERS, PRESENCES, MODEL])
        said = {name: _presence(text) for name, text in zip(rest[::2], rest[1::2], strict=True)}
        return _presence(last), {name: each for name, each in said.items() if each is not None}


class Roster:
    """Looks every second who is there. Stands in for the engine of a process that has none."""

    is_alive = True  # the process of the API; its workers tell of themselves

    def __init__(self, redis: Redis, observer: Observer) -> None:
        self._attendance = Attendance(redis)
        self._observer = observer
        self.workers: dict[str, Presence] = {}
        self._said: Presence | None = None
        self.ready: Ready | None = None
        """What the workers' engines said, while the queue can be reached."""
        self.what_is_missing = "the queue has not been reached yet"

    @property
    def is_ready(self) -> bool:
        """Whether requests can be judged and queued."""
        return self.ready is not None

    def occupancy(self, pictures: int) -> float:
        """The share of what all workers could make that they make, with so many pictures spread evenly over them."""
        if self.ready is None or not self.workers:
            return 0.0
        profile, size = self.ready.profile, self.ready.info.default_size

        def made(count: float) -> float:
            return count / profile.step_seconds(size, max(1.0, count) * profile.rows_per_guided)

        return min(1.0, made(pictures / len(self.workers)) / made(profile.cap(size)))

    async def look(self) -> None:
        """See who is there now."""
        try:
            last, self.workers = await self._attendance.look()
        except RedisError as error:
            if self.is_ready:
                log.warning("the queue cannot be reached: %s", error)
            self.ready, self.what_is_missing = None, "the queue cannot be reached"
            return
        counts = Counter(name.partition(":")[0] for name in self.workers)
        self._observer.observe(WorkersSeen({pool: counts[pool] for pool in Pool}))
        known = next(iter(self.workers.values()), last)
        if known is None:
            self.what_is_missing = "no worker has been there yet, and so no model is known"
        elif self.ready is None or self._said != known:
            self.ready, self._said = known.restored(), known


def _presence(text: str) -> Presence | None:
    try:
        return PRESENCE.validate_json(text) if text else None
    except ValidationError:
        log.warning("a worker of another version says what cannot be read")
        return None
