"""The response cache behaves the same on every database."""

from sqlalchemy import Connection

from service.jobs import table
from service.storage.cache import CachedResponse, ResponseCache
from service.storage.database import Database


def cache(ttl: float = 100.0, max_bytes: int = 1000) -> ResponseCache:
    """A cache with limits that do not matter unless a test sets them."""
    return ResponseCache(ttl=ttl, max_bytes=max_bytes)


def put(database: Database, into: ResponseCache, key: str, now: float, prompt_key: str = "p", size: int = 10) -> None:
    """Add an answer with a blob of its own."""

    def work(connection: Connection) -> None:
        table.add_blob(connection, f"{key}-{now}", size, now)
        into.put(connection, CachedResponse(key, 2**53 - 1, f"{key}-{now}", prompt_truncated=True), prompt_key, now)

    database.run_here(work)


def find(database: Database, where: ResponseCache, key: str, now: float) -> CachedResponse | None:
    """Look an answer up."""
    return database.run_here(lambda connection: where.find(connection, key, now))


def test_an_answer_is_found_by_its_key_until_its_time_is_over(database: Database) -> None:
    """With all that was put in."""
    put(database, cache(), "k", now=10.0)
    assert find(database, cache(), "k", now=109.9) == CachedResponse("k", 2**53 - 1, "k-10.0", prompt_truncated=True)
    assert find(database, cache(), "other", now=11.0) is None
    assert find(database, cache(), "k", now=110.0) is None


def test_a_newer_answer_takes_the_place_of_an_older_one(database: Database) -> None:
    """The older one's blob is then unused."""
    put(database, cache(), "k", now=10.0)
    put(database, cache(), "k", now=20.0)
    found = find(database, cache(), "k", now=21.0)
    assert found is not None
    assert found.blob == "k-20.0"
    assert database.run_here(table.delete_unused_blobs) == ["k-10.0"]


def test_variants_come_from_the_newest_once_there_are_enough(database: Database) -> None:
    """Fewer than asked for: none. Then any of the newest, and never an older or another prompt's."""

    def variant(variants: int) -> CachedResponse | None:
        return database.run_here(lambda connection: cache().find_variant(connection, "p", variants, now=50.0))

    put(database, cache(), "other", now=5.0, prompt_key="q")
    for n in range(3):
        assert variant(n + 1) is None
        put(database, cache(), f"k{n}", now=10.0 + n)
    assert variant(0) is None
    found = {answer.key for _ in range(60) if (answer := variant(2)) is not None}
    assert found == {"k1", "k2"}


def test_eviction_drops_the_old_and_the_longest_unused(database: Database) -> None:
    """Past the time to live, and over the bytes: what was not asked for longest goes first."""
    small = cache(ttl=100.0, max_bytes=25)
    for n in range(4):
        put(database, small, f"k{n}", now=100.0 + n)
    put(database, small, "ancient", now=1.0)
    assert find(database, small, "k0", now=150.0) is not None
    database.run_here(lambda connection: small.evict(connection, now=150.0))
    left = {key for key in ("k0", "k1", "k2", "k3", "ancient") if find(database, small, key, now=150.0)}
    assert left == {"k0", "k3"}


def test_a_cache_of_no_bytes_keeps_nothing(database: Database) -> None:
    """It is off."""
    put(database, cache(max_bytes=0), "k", now=10.0)
    assert find(database, cache(max_bytes=0), "k", now=11.0) is None
