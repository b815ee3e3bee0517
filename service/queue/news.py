"""What processes of a fleet tell each other at once, by Redis' publish and subscribe. It may get lost: whoever needs to
know looks into the table as well, only later.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from service.jobs.background import end
from service.queue.streams import PREFIX, REPLY_SECONDS

log = logging.getLogger("safelight.queue")

AGAIN_SECONDS = 0.5
QUIET = f"{PREFIX}:quiet"  # nobody speaks there; a connection listens to it when to nothing else

Message = Mapping[str, Any]
Inbox = asyncio.Queue[Message | None]


def of_job(job_id: str) -> str:
    """The channel on which a job's progress and end are told."""
    return f"{PREFIX}:job:{job_id}"


def of_worker(worker: str) -> str:
    """The channel on which a worker is told of the jobs that it makes."""
    return f"{PREFIX}:worker:{worker}"


class News:
    """Sends messages, and listens on one connection to as many channels as are wanted."""

    def __init__(self, url: str) -> None:
        options: dict[str, Any] = {"decode_responses": True, "socket_connect_timeout": REPLY_SECONDS}
        self._redis = Redis.from_url(url, socket_timeout=REPLY_SECONDS, **options)
        self._ears = Redis.from_url(url, socket_timeout=REPLY_SECONDS, **options)
        self._inboxes: dict[str, set[Inbox]] = {}
        self._heard: set[str] = set()  # redis-py knows only later that it hears a channel no more
        self._pubsub: PubSub | None = None
        self._changing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Listen from now on."""
        self._task = asyncio.get_running_loop().create_task(self._listen())

    async def stop(self) -> None:
        """Listen no more; everybody is told to look."""
        if self._task is not None:
            await end(self._task)
        self.wake()
        await self._redis.aclose()
        await self._ears.aclose()

    async def tell(self, messages: Mapping[str, Message]) -> None:
        """Send a message to each of these channels; what cannot be sent is lost."""
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for channel, message in messages.items():
                    pipe.publish(channel, json.dumps(message))
                await pipe.execute()
        except RedisError as error:
            log.debug("a message is lost: %s", error)

    async def listeners(self, *channels: str) -> list[int]:
        """How many processes listen to each channel. Raises `RedisError` while Redis is away."""
        return [count for _, count in await self._redis.pubsub_numsub(*channels)]

    def listens(self, channel: str) -> int:
        """How many listen to the channel in this process."""
        return len(self._inboxes.get(channel, ()))

    @asynccontextmanager
    async def on(self, channel: str) -> AsyncIterator[Inbox]:
        """The channel's messages from now on; None says that some may have been lost."""
        inbox: Inbox = asyncio.Queue()
        self._inboxes.setdefault(channel, set()).add(inbox)
        try:
            await self._adjust(channel)
            yield inbox
        finally:
            self._inboxes[channel].discard(inbox)
            if not self._inboxes[channel]:
                del self._inboxes[channel]
            await asyncio.shield(self._adjust(channel))

    async def _adjust(self, channel: str) -> None:
        """Listen to the channel if somebody wants to, and else not."""
        async with self._changing:
            if self._pubsub is None:
                return  # it will when it is connected again
            is_wanted, is_heard = channel in self._inboxes, channel in self._heard
            with suppress(RedisError):  # else everything is heard anew
                if is_wanted and not is_heard:
                    self._heard.add(channel)
                    await self._pubsub.subscribe(channel)
                elif is_heard and not is_wanted:
                    self._heard.discard(channel)
                    await self._pubsub.unsubscribe(channel)

    async def _listen(self) -> None:
        while True:
            try:
                async with self._ears.pubsub() as pubsub:
                    async with self._changing:
                        self._heard = set(self._inboxes)
                        await pubsub.subscribe(QUIET, *self._heard)
                        self._pubsub = pubsub
                    self.wake()
                    while True:
                        message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=None)
                        if message is not None:
                            self._take(message)
            except RedisError as error:
                log.debug("no news for a while: %s", error)
            except Exception:
                log.exception("news cannot be heard")
            self._pubsub = None
            await asyncio.sleep(AGAIN_SECONDS)

    def _take(self, message: Mapping[str, Any]) -> None:
        for inbox in self._inboxes.get(message["channel"], ()):
            inbox.put_nowait(json.loads(message["data"]))

    def wake(self) -> None:
        """Have everybody who listens look."""
        for inboxes in self._inboxes.values():
            for inbox in inboxes:
                inbox.put_nowait(None)
