"""The queue of a fleet: Redis Streams, one for each priority, read by workers as one consumer group.

An entry carries the id of a computation and nothing else. It is pending from when a worker takes it until that is done
with it; a worker that lives keeps what it took, and what nobody keeps goes back, to the high priority. Every change is
one script, and so is there whole or not at all, whoever is killed meanwhile.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.commands.core import AsyncScript
from redis.exceptions import RedisError, ResponseError

from observability.labels import Pool, Priority
from service.errors import Unavailable

PREFIX = "{safelight}"  # in braces, so that a cluster keeps all keys together
GROUP = "workers"
STREAMS = {priority: f"{PREFIX}:queue:{priority.value}" for priority in Priority}
ENTRIES = f"{PREFIX}:entries"  # by id of the computation: the stream and the id of its entry
WORKERS = f"{PREFIX}:workers"  # pool and name of each, by when it is to be thought dead
LEAVE_SECONDS = 2.0  # how long a spot worker leaves what is urgent to others
REPLY_SECONDS = 1.0
PATIENT_SECONDS = 60.0  # for an answer that may well take so long
FORGET_SECONDS = 3600.0  # a consumer that has nothing, and has asked for nothing since
MANY = 500  # entries that one script puts
RETRY_SECONDS = 5
FIRST = "0-0"

# KEYS: streams. ARGV: group.
PREPARE = "for _, stream in ipairs(KEYS) do redis.pcall('XGROUP', 'CREATE', stream, ARGV[1], '0', 'MKSTREAM') end"

# KEYS: entries. ARGV: stream and computation of each. The computations that were not there and are now.
PUT = """
local added = {}
for n = 1, #ARGV, 2 do
  local entry, is_there = redis.call('HGET', KEYS[1], ARGV[n + 1]), false
  if entry then
    local stream, id = entry:match('^(.*) (.*)$')
    is_there = #redis.call('XRANGE', stream, id, id) == 1
  end
  if not is_there then
    local id = redis.call('XADD', ARGV[n], '*', 'flight', ARGV[n + 1])
    redis.call('HSET', KEYS[1], ARGV[n + 1], ARGV[n] .. ' ' .. id)
    added[#added + 1] = ARGV[n + 1]
  end
end
return added
"""

# KEYS: workers, streams in the order of service. ARGV: group, consumer, how many, for how many milliseconds the first
# stream is left to workers of another pool, and how their names begin. Stream, id and computation of each.
TAKE = """
local left, found = tonumber(ARGV[3]), {}
local time = redis.call('TIME')

local function is_left_to_others(stream)
  if stream ~= KEYS[2] or tonumber(ARGV[4]) == 0 then return false end
  local waits, others = false, false
  local groups = redis.pcall('XINFO', 'GROUPS', stream)
  if groups.err then return false end
  for _, group in ipairs(groups) do  -- name, its value, ..., and as the fourth what was handed out last
    if group[2] == ARGV[1] then
      local next = redis.call('XRANGE', stream, '(' .. group[8], '+', 'COUNT', 1)[1]
      local since = next and tonumber(next[1]:match('^%d+'))
      waits = since and time[1] * 1000 + time[2] / 1000 - since < tonumber(ARGV[4])
    end
  end
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], time[1], '+inf')) do
    others = others or name:sub(1, #ARGV[5]) == ARGV[5]
  end
  return waits and others
end

for n = 2, #KEYS do
  local stream = KEYS[n]
  local answer = left > 0 and not is_left_to_others(stream) and
    redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', left, 'STREAMS', stream, '>')
  for _, entry in ipairs(answer and answer[1][2] or {}) do
    found[#found + 1] = {stream, entry[1], entry[2][2]}
    left = left - 1
  end
end
return found
"""

IS_MINE = """
local function is_mine(stream, id)
  local pending = redis.call('XPENDING', stream, ARGV[1], id, id, 1)
  return #pending == 1 and pending[1][2] == ARGV[2]
end
local function remove(stream, id, flight)
  redis.call('XACK', stream, ARGV[1], id)
  redis.call('XDEL', stream, id)
  if redis.call('HGET', KEYS[1], flight) == stream .. ' ' .. id then redis.call('HDEL', KEYS[1], flight) end
end
"""

# KEYS: entries, streams. ARGV: group, consumer, then stream and id of each. The numbers of those that are not its own.
KEEP = (
    IS_MINE
    + """
local lost = {}
for n = 3, #ARGV, 2 do
  if is_mine(ARGV[n], ARGV[n + 1]) then
    redis.call('XCLAIM', ARGV[n], ARGV[1], ARGV[2], 0, ARGV[n + 1], 'JUSTID')
  else
    lost[#lost + 1] = (n - 3) / 2
  end
end
return lost
"""
)

# KEYS: entries, stream. ARGV: group, consumer, id, computation.
DONE = (
    IS_MINE
    + """
if is_mine(KEYS[2], ARGV[3]) then remove(KEYS[2], ARGV[3], ARGV[4]) end
"""
)

# KEYS: entries, stream, stream to go to. ARGV: group, consumer, id, computation. 1 if it was the consumer's.
GIVE_BACK = (
    IS_MINE
    + """
if not is_mine(KEYS[2], ARGV[3]) then return 0 end
remove(KEYS[2], ARGV[3], ARGV[4])
redis.call('HSET', KEYS[1], ARGV[4], KEYS[3] .. ' ' .. redis.call('XADD', KEYS[3], '*', 'flight', ARGV[4]))
return 1
"""
)

# KEYS: entries, stream to go to, streams. ARGV: group, consumer, milliseconds, milliseconds after which a consumer that
# has nothing is forgotten. How many entries went back.
RESCUE = (
    IS_MINE
    + """
local count = 0
for n = 3, #KEYS do
  local answer = redis.call('XAUTOCLAIM', KEYS[n], ARGV[1], ARGV[2], ARGV[3], '0-0', 'COUNT', 1000)
  for _, entry in ipairs(answer[2]) do
    local flight = entry[2][2]
    remove(KEYS[n], entry[1], flight)
    redis.call('HSET', KEYS[1], flight, KEYS[2] .. ' ' .. redis.call('XADD', KEYS[2], '*', 'flight', flight))
    count = count + 1
  end
  for _, each in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[n], ARGV[1])) do  -- name, its value, pending, idle
    if each[4] == 0 and each[6] > tonumber(ARGV[4]) then
      redis.call('XGROUP', 'DELCONSUMER', KEYS[n], ARGV[1], each[2])
    end
  end
end
return count
"""
)

# KEYS: entries, stream to go to, those before it. ARGV: group, computation. 1 if it waited in none of them.
RAISE = """
local entry = redis.call('HGET', KEYS[1], ARGV[2])
if not entry then return 0 end
local stream, id = entry:match('^(.*) (.*)$')
for n = 2, #KEYS do
  if stream == KEYS[n] then return 0 end
end
if #redis.call('XPENDING', stream, ARGV[1], id, id, 1) == 1 then return 0 end
if redis.call('XDEL', stream, id) == 0 then return 0 end
redis.call('HSET', KEYS[1], ARGV[2], KEYS[2] .. ' ' .. redis.call('XADD', KEYS[2], '*', 'flight', ARGV[2]))
return 1
"""

# KEYS: entries. ARGV: group, computation. 1 if it waited, and does no more.
DROP = """
local entry = redis.call('HGET', KEYS[1], ARGV[2])
if not entry then return 0 end
local stream, id = entry:match('^(.*) (.*)$')
if #redis.call('XPENDING', stream, ARGV[1], id, id, 1) == 1 then return 0 end
redis.call('XDEL', stream, id)
return redis.call('HDEL', KEYS[1], ARGV[2])
"""


class QueueAway(Unavailable):
    """Redis cannot be reached, or takes no changes."""


@dataclass(frozen=True, slots=True)
class Claim:
    """An entry that a worker took: the computation's id, and where the entry is."""

    flight: str
    stream: str
    id: str


class Streams:
    """The queue as `consumer` sees it. Every method may raise `QueueAway`."""

    def __init__(self, url: str, consumer: str, pool: Pool = Pool.ON_DEMAND) -> None:
        self._consumer = consumer
        self._leave_ms = int(LEAVE_SECONDS * 1000) if pool is Pool.SPOT else 0
        once_more = Retry(NoBackoff(), 1)  # with a new connection: the old one may be of before a restart
        options: dict[str, Any] = {"decode_responses": True, "socket_connect_timeout": REPLY_SECONDS}
        self._redis = Redis.from_url(url, socket_timeout=REPLY_SECONDS, retry=once_more, **options)
        self._patient = Redis.from_url(url, socket_timeout=PATIENT_SECONDS, retry=once_more, **options)
        names = {"prepare": PREPARE, "put": PUT, "take": TAKE, "keep": KEEP, "done": DONE, "give_back": GIVE_BACK}
        names |= {"rescue": RESCUE, "raise": RAISE, "drop": DROP}
        self._scripts = {name: self._redis.register_script(text) for name, text in names.items()}

    # For those who bring work

    async def put(self, flight: str, priority: Priority) -> bool:
        """Add a computation; return whether it was not there already."""
        return bool(await self.put_all([(flight, priority)]))

    async def put_all(self, wanted: Sequence[tuple[str, Priority]]) -> list[str]:
        """Add those computations that are not there; return them."""
        added: list[str] = []
        for start in range(0, len(wanted), MANY):
            texts = [text for flight, priority in wanted[start : start + MANY] for text in (STREAMS[priority], flight)]
            added += await self._run("put", [ENTRIES], texts)
        return added

    async def raise_to(self, flight: str, priority: Priority) -> bool:
        """Let a computation that waits behind that priority go to the end of it; return whether it did."""
        before = [STREAMS[each] for each in Priority if each.rank < priority.rank]
        return bool(await self._run("raise", [ENTRIES, STREAMS[priority], *before], [GROUP, flight]))

    async def drop(self, flight: str) -> bool:
        """Take a computation out that nobody has taken; return whether it was there."""
        return bool(await self._run("drop", [ENTRIES], [GROUP, flight]))

    # For workers

    async def take(self, count: int) -> list[Claim]:
        """At most `count` computations, high priority first, in the order in which they came; it waits for none.

        A spot worker leaves those of high priority to an on-demand one, if there is one and it does not take long.
        """
        keys = [WORKERS, *STREAMS.values()]
        found = await self._run("take", keys, [GROUP, self._consumer, count, self._leave_ms, f"{Pool.ON_DEMAND}:"])
        return [Claim(flight, stream, entry) for stream, entry, flight in found]

    async def keep(self, claims: Sequence[Claim]) -> set[Claim]:
        """Say that this worker lives and is at work on `claims`; return those that another has, or nobody any more."""
        if not claims:
            return set()
        where = [text for each in claims for text in (each.stream, each.id)]
        lost = await self._run("keep", [ENTRIES, *STREAMS.values()], [GROUP, self._consumer, *where])
        return {claims[number] for number in lost}

    async def done(self, claim: Claim) -> None:
        """It is over, and its end is recorded. Without effect if another has taken it since."""
        await self._run("done", [ENTRIES, claim.stream], [GROUP, self._consumer, claim.id, claim.flight])

    async def give_back(self, claim: Claim) -> bool:
        """Another is to do it, before most that wait; return whether it was this worker's."""
        keys = [ENTRIES, claim.stream, STREAMS[Priority.HIGH]]
        return bool(await self._run("give_back", keys, [GROUP, self._consumer, claim.id, claim.flight]))

    async def rescue(self, idle: float) -> int:
        """Put back what was taken and not kept for `idle` seconds, to the high priority; return how much."""
        keys = [ENTRIES, STREAMS[Priority.HIGH], *STREAMS.values()]
        limits = [int(idle * 1000), int(FORGET_SECONDS * 1000)]
        return int(await self._run("rescue", keys, [GROUP, self._consumer, *limits]))

    async def newest(self) -> dict[str, str]:
        """The ids of the last entries, by stream; `arrival` tells of those after them."""
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for stream in STREAMS.values():
                    pipe.xrevrange(stream, count=1)
                found = await pipe.execute()
        except RedisError as error:
            raise _unavailable(error) from error
        ends = zip(STREAMS.values(), found, strict=True)
        return {stream: entries[0][0] if entries else FIRST for stream, entries in ends}

    async def arrival(self, since: dict[str, str], seconds: float) -> None:
        """Return when there are entries after `since`, or after `seconds`, and sooner if this worker leaves some."""
        if self._leave_ms:
            seconds = min(seconds, LEAVE_SECONDS)
        try:
            await self._patient.xread(since, count=1, block=max(1, int(seconds * 1000)))  # type: ignore[arg-type]
        except RedisError as error:
            raise _unavailable(error) from error

    async def close(self) -> None:
        """Let go of the connections."""
        await self._redis.aclose()
        await self._patient.aclose()

    async def _run(self, name: str, keys: list[str], arguments: list[Any]) -> Any:
        script = self._scripts[name]
        try:
            return await self._with_group(script, keys, arguments)
        except RedisError as error:
            raise _unavailable(error) from error

    async def _with_group(self, script: AsyncScript, keys: list[str], arguments: list[Any]) -> Any:
        try:
            return await script(keys=keys, args=arguments)
        except ResponseError as error:
            if not _is_no_group(error):
                raise
        await self._scripts["prepare"](keys=list(STREAMS.values()), args=[GROUP])
        return await script(keys=keys, args=arguments)


def _is_no_group(error: object) -> bool:
    return isinstance(error, ResponseError) and "NOGROUP" in str(error)


def _unavailable(error: RedisError) -> QueueAway:
    return QueueAway(f"the queue cannot be used at the moment: {type(error).__name__}", retry_after=RETRY_SECONDS)
