"""Who works in a fleet, as each worker says in Redis by a key that soon expires."""

import logging
from dataclasses import dataclass, replace

from pydantic import TypeAdapter, ValidationError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.core import Size
from service.engine.contract import Ready
from service.queue.streams import PREFIX

log = logging.getLogger("safelight.queue")

LIVES_SECONDS = 8.0  # a worker that has not said for so long that it lives
LOOK_SECONDS = 1.0
MODEL = f"{PREFIX}:model"  # what the last worker that came up said, for times without any
PROGRESS = f"{PREFIX}:progress"  # by computation: its steps and seconds left


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


def dump(presence: Presence) -> str:
    """As JSON."""
    return PRESENCE.dump_json(presence).decode()


def of_presence(worker: str) -> str:
    """The key of a worker."""
    return f"{PREFIX}:worker:{worker}"


class Roster:
    """Looks every second who is there. Stands in for the engine of a process that has none."""

    is_alive = True  # the process of the API; its workers tell of themselves

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self.workers: dict[str, Presence] = {}
        self._said: Presence | None = None
        self.ready: Ready | None = None
        """What the workers' engines said, while the queue can be reached."""
        self.what_is_missing = "the queue has not been reached yet"

    @property
    def is_ready(self) -> bool:
        """Whether requests can be judged and queued."""
        return self.ready is not None

    async def look(self) -> None:
        """See who is there now."""
        try:
            names = [name async for name in self._redis.scan_iter(match=of_presence("*"), count=1000)]
            texts = await self._redis.mget([MODEL, *names])
        except RedisError as error:
            if self.is_ready:
                log.warning("the queue cannot be reached: %s", error)
            self.ready, self.what_is_missing = None, "the queue cannot be reached"
            return
        found = dict(zip(["", *names], map(_presence, texts), strict=True))
        last = found.pop("")
        self.workers = {name.removeprefix(of_presence("")): each for name, each in found.items() if each is not None}
        known = next(iter(self.workers.values()), last)
        if known is None:
            self.what_is_missing = "no worker has been there yet, and so no model is known"
        elif self.ready is None or self._said != known:
            self.ready, self._said = known.restored(), known


def _presence(text: str | bytes | None) -> Presence | None:
    try:
        return None if text is None else PRESENCE.validate_json(text)
    except ValidationError:
        log.warning("a worker of another version says what cannot be read")
        return None
