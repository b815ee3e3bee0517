"""A valid request that is not yet a job, and how it becomes one."""

import secrets
from dataclasses import dataclass, replace

from observability.labels import Priority, Source
from service.core import Job, JobState, Params
from service.storage.cache import CachedResponse


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a job is made of. Without `seed_given`, the seed in `params` was drawn; `timeout` is in seconds.

    `fingerprint` tells whether an idempotency key comes with the same request; it is empty without one.
    `traceparent` is the W3C context of the request that brought it.
    """

    params: Params
    seed_given: bool
    priority: Priority
    source: Source
    timeout: float
    use_cache: bool
    idempotency_key: str | None
    fingerprint: str
    traceparent: str | None = None

    def job(self, revision: str, cache_key: str | None, now: float) -> Job:
        """A new job of it, for the model of `revision`, at Unix time `now`."""
        return Job(
            id=secrets.token_hex(16),
            params=self.params,
            revision=revision,
            created_at=now,
            expires_at=now + self.timeout,
            priority=self.priority,
            source=self.source,
            cache_key=cache_key,
            traceparent=self.traceparent,
        )


def answered(job: Job, hit: CachedResponse) -> Job:
    """The new job, completed by a cached response."""
    return job.but(
        params=replace(job.params, seed=hit.seed),
        cache_key=hit.key,
        state=JobState.COMPLETED,
        started_at=job.created_at,
        finished_at=job.created_at,
        blob=hit.blob,
        cached=True,
        prompt_truncated=hit.prompt_truncated,
    )
