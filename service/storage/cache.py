"""The response cache: which finished computation answers the same request again.

Exact: the key covers the model's revision and every parameter, seed included. Its pictures are blobs shared
with the jobs; here are only the pointers.
"""

import random
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from service.storage.schema import blobs, responses

# Built once: to build a statement costs as much as to execute it.
_USE = (
    update(responses)
    .where(responses.c.key == bindparam("wanted"), responses.c.created_at > bindparam("since"))
    .values(used_at=bindparam("now"))
    .returning(responses.c.seed, responses.c.blob, responses.c.prompt_truncated)
)


@dataclass(frozen=True, slots=True)
class CachedResponse:
    """A usable answer: its pictures' blob, the seed of the first, and whether its prompt was truncated."""

    key: str
    seed: int
    blob: str
    prompt_truncated: bool


class ResponseCache:
    """Look-ups and changes, each within the caller's transaction. Times are Unix times in seconds."""

    def __init__(self, *, ttl: float, max_bytes: int) -> None:
        self._ttl = ttl
        self._max_bytes = max_bytes

    def find(self, connection: Connection, key: str, now: float) -> CachedResponse | None:
        """The answer with this exact key, marked as used."""
        found = connection.execute(_USE, {"wanted": key, "since": now - self._ttl, "now": now}).one_or_none()
        return None if found is None else CachedResponse(key, int(found.seed), found.blob, found.prompt_truncated)

    def find_variant(self, connection: Connection, prompt_key: str, variants: int, now: float) -> CachedResponse | None:
        """One of the newest `variants` answers to the same request with any seed, at random.

        None as long as there are fewer: until then each request adds a variant of its own.
        """
        if not variants:
            return None
        query = (
            select(responses.c.key)
            .where(responses.c.prompt_key == prompt_key, responses.c.created_at > now - self._ttl)
            .order_by(responses.c.created_at.desc())
            .limit(variants)
        )
        keys = connection.execute(query).scalars().all()
        if len(keys) < variants:
            return None
        return self.find(connection, random.choice(keys), now)

    def put(self, connection: Connection, response: CachedResponse, prompt_key: str, now: float) -> None:
        """Add an answer, over an older one with the same key."""
        if not self._max_bytes:
            return
        connection.execute(delete(responses).where(responses.c.key == response.key))
        try:
            with connection.begin_nested():
                connection.execute(
                    insert(responses).values(
                        key=response.key,
                        prompt_key=prompt_key,
                        seed=str(response.seed),
                        prompt_truncated=response.prompt_truncated,
                        blob=response.blob,
                        created_at=now,
                        used_at=now,
                    )
                )
        except IntegrityError:
            return  # another process put the same answer at the same moment

    def evict(self, connection: Connection, now: float) -> int:
        """Drop answers past their time to live, then the longest unused ones over the size limit; bytes that stay."""
        connection.execute(delete(responses).where(responses.c.created_at <= now - self._ttl))
        newest_first = (
            select(
                responses.c.key,
                func.sum(blobs.c.bytes).over(order_by=[responses.c.used_at.desc(), responses.c.key]).label("total"),
            )
            .join(blobs, blobs.c.id == responses.c.blob)
            .subquery()
        )
        over = select(newest_first.c.key).where(newest_first.c.total > self._max_bytes)
        connection.execute(delete(responses).where(responses.c.key.in_(over)))
        held = select(func.coalesce(func.sum(blobs.c.bytes), 0)).where(blobs.c.id.in_(select(responses.c.blob)))
        return int(connection.execute(held).scalar_one())
