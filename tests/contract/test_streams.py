"""The queue of a fleet, on a real Redis: what is put is taken once, kept while its worker lives, and never lost."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from observability.labels import Priority
from service.errors import Unavailable
from service.queue.streams import Claim, Streams
from tests.support.redis import RedisServer, redis

Test = Callable[..., Awaitable[None]]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One Redis for all tests that leave it running."""
    with redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def server(shared: RedisServer) -> RedisServer:
    """It, empty."""
    shared.cli("flushall")
    return shared


@asynccontextmanager
async def queues(server: RedisServer, *names: str) -> AsyncIterator[list[Streams]]:
    """The queue as each of these workers sees it."""
    found = [Streams(server.url, name) for name in names]
    try:
        yield found
    finally:
        for each in found:
            await each.close()


def run(test: Test) -> Any:
    """A test that is a coroutine."""

    @wraps(test)
    def wrapper(*arguments: Any, **named: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*arguments, **named), 60))

    return wrapper


def names(claims: list[Claim]) -> list[str]:
    """What they are of."""
    return [each.flight for each in claims]


@run
async def test_high_priority_is_taken_first_and_then_the_oldest(server: RedisServer) -> None:
    """And no more than a worker has room for."""
    async with queues(server, "a", "b") as (a, b):
        for name, priority in (("1", "normal"), ("2", "low"), ("3", "high"), ("4", "normal"), ("5", "high")):
            assert await a.put(name, Priority(priority))
        assert names(await a.take(3)) == ["3", "5", "1"]
        assert names(await b.take(3)) == ["4", "2"]
        assert await b.take(3) == []


@run
async def test_what_is_there_is_not_put_again(server: RedisServer) -> None:
    """Neither while it waits nor while somebody has it."""
    async with queues(server, "a") as (a,):
        assert await a.put("1", Priority.NORMAL)
        assert not await a.put("1", Priority.HIGH)
        (claim,) = await a.take(2)
        assert not await a.put("1", Priority.NORMAL)
        await a.done(claim)
        assert await a.put("1", Priority.NORMAL)


@run
async def test_what_nobody_keeps_goes_back_before_all_others(server: RedisServer) -> None:
    """All of it at once; who had it before learns of it, and can end it no more."""
    async with queues(server, "dead", "alive") as (dead, alive):
        for name in "12345":
            await dead.put(name, Priority.LOW)
        lost, kept = await dead.take(3), await alive.take(1)
        await asyncio.sleep(0.3)
        assert await alive.keep(kept) == set()
        assert await alive.rescue(0.2) == 3
        assert names(await alive.take(9)) == ["1", "2", "3", "5"]
        assert await dead.keep(lost) == set(lost)
        for claim in lost:
            await dead.done(claim)
            assert not await dead.give_back(claim)
            assert not await dead.put(claim.flight, Priority.NORMAL)
        assert await alive.rescue(60) == 0


@run
async def test_what_is_given_back_goes_to_another_first(server: RedisServer) -> None:
    """As a worker does that has to leave."""
    async with queues(server, "leaving", "other") as (leaving, other):
        await other.put("1", Priority.LOW)
        (claim,) = await leaving.take(1)
        await other.put("2", Priority.NORMAL)
        assert await leaving.give_back(claim)
        assert names(await other.take(2)) == ["1", "2"]


@run
async def test_what_waits_can_be_raised_and_dropped(server: RedisServer) -> None:
    """What somebody has taken cannot."""
    async with queues(server, "a") as (a,):
        for name in "1234":
            await a.put(name, Priority.LOW)
        (claim,) = await a.take(1)
        assert await a.raise_to("4", Priority.HIGH)
        assert await a.drop("2")
        assert not await a.drop(claim.flight)
        assert not await a.raise_to(claim.flight, Priority.HIGH)
        assert not await a.drop("unknown")
        assert not await a.raise_to("unknown", Priority.HIGH)
        assert names(await a.take(9)) == ["4", "3"]


@run
async def test_a_worker_that_waits_is_told_of_what_comes(server: RedisServer) -> None:
    """Also of what came between its look and its wait."""
    async with queues(server, "a", "b") as (a, b):
        seen = await a.newest()
        waiting = asyncio.create_task(a.arrival(seen, 50))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await b.put("1", Priority.LOW)
        await waiting
        await a.arrival(seen, 50)
        began = time.monotonic()
        await a.arrival(await a.newest(), 0.1)
        assert time.monotonic() - began >= 0.1


@run
async def test_a_queue_that_lost_everything_takes_all_of_it_again(server: RedisServer) -> None:
    """As after a restart without its file; whoever reconciles puts what the table has."""
    async with queues(server, "a") as (a,):
        await a.put("1", Priority.LOW)
        (claim,) = await a.take(1)
        server.cli("flushall")
        assert await a.keep([claim]) == {claim}
        assert await a.put("1", Priority.LOW)
        await a.done(claim)
        assert names(await a.take(1)) == ["1"]


@run
async def test_an_entry_that_is_gone_does_not_bar_its_computation(server: RedisServer) -> None:
    """Somebody trimmed the stream."""
    async with queues(server, "a") as (a,):
        await a.put("1", Priority.LOW)
        server.cli("xtrim", "{safelight}:queue:low", "maxlen", "0")
        assert await a.put("1", Priority.LOW)
        assert names(await a.take(1)) == ["1"]


@run
async def test_nothing_is_lost_when_the_server_is_killed(tmp_path: Path) -> None:
    """What waited waits, what was taken is; meanwhile every call says in time that the queue is away."""
    with redis(tmp_path / "redis") as server:
        async with queues(server, "a", "b") as (a, b):
            for name in "123":
                await a.put(name, Priority.NORMAL)
            claims = await a.take(1)
            server.kill()
            began = time.monotonic()
            for call in (a.put("4", Priority.LOW), a.take(1), a.keep(claims), a.newest(), a.rescue(1)):
                with pytest.raises(Unavailable):
                    await call
            assert time.monotonic() - began < 12  # two seconds each
            server.start()
            assert await a.keep(claims) == set()
            assert names(await b.take(9)) == ["2", "3"]
            await a.done(claims[0])


@run
async def test_a_server_that_takes_no_changes_is_away_too(tmp_path: Path) -> None:
    """It has no memory left."""
    with redis(tmp_path / "redis") as server:
        async with queues(server, "a") as (a,):
            await a.put("1", Priority.NORMAL)
            server.cli("config", "set", "maxmemory", "1")
            with pytest.raises(Unavailable):
                await a.put("2", Priority.NORMAL)
            server.cli("config", "set", "maxmemory", "0")
            assert await a.put("2", Priority.NORMAL)
