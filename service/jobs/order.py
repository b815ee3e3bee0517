"""A valid request that is not yet a job."""

from dataclasses import dataclass

from observability.labels import Priority, Source
from service.core import Params


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
