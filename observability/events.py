"""What happens to a request, a batch and the engine, as frozen values; the values of their labels are `labels`.

Business code emits these to one `Observer`; metrics, traces and logs are made from them alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from observability.labels import (
    BatchField,
    Batching,
    Cache,
    CacheResult,
    Dependency,
    Outcome,
    Pool,
    Priority,
    Reason,
    Source,
    Stage,
    WorkClass,
)


@dataclass(frozen=True, slots=True)
class ServiceStarted:
    """The process accepts requests, of which `queue_limit` may wait; its GPU costs so many dollars an hour."""

    queue_limit: int
    gpu_dollars_per_hour: float


@dataclass(frozen=True, slots=True)
class DrainStarted:
    """The process takes no more work and will end."""


@dataclass(frozen=True, slots=True)
class ServiceStopped:
    """The process ends; what it has not finished goes on in the next one."""


@dataclass(frozen=True, slots=True)
class LoopLagged:
    """The event loop came so many seconds late to something that was due."""

    seconds: float


@dataclass(frozen=True, slots=True)
class ClientRetried:
    """A request came that says it is another try."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What was asked for. Sizes are in pixels; `images` pictures of `steps` denoising steps each."""

    id: str
    source: Source
    priority: Priority
    work_class: WorkClass
    images: int
    width: int
    height: int
    steps: int
    guidance_scale: float
    scheduler: str
    seed: int
    prompt: str

    @property
    def pixels(self) -> int:
        """Of all its pictures."""
        return self.images * self.width * self.height


@dataclass(frozen=True, slots=True)
class RequestRejected:
    """A well-formed request was refused before it was accepted."""

    reason: Reason
    source: Source


@dataclass(frozen=True, slots=True)
class RequestAccepted:
    """A request was recorded, which took `record_seconds`, of them `lookup_seconds` for a look into the cache.

    `lookup` is what came of that; None when it was not asked for. Requests of the same `flight` share one computation,
    which has the id of the first of them. `traceparent` is the W3C context in which it was sent.
    """

    request: Request
    flight: str
    record_seconds: float = 0.0
    lookup_seconds: float = 0.0
    lookup: CacheResult | None = None
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class RequestStarted:
    """A request left the queue for its first batch after `queue_wait` seconds."""

    request: Request
    queue_wait: float


@dataclass(frozen=True, slots=True)
class RequestLeft:
    """An accepted request, by its id, goes on or has ended in another process."""

    request: str


@dataclass(frozen=True, slots=True)
class RequestFinished:
    """An accepted request reached its one terminal state, `seconds` after it was accepted; `detail` says why it failed.

    By then its computation, `flight`, had made `steps_done` steps, whose share of the time of batches is
    `batch_seconds`. What of that this request accounts for is `paid_seconds`: of completed requests that shared one
    computation, one pays it all. `timings` are the seconds of its stages, which that computation may have made before
    this request joined it; of one that did not complete, at most of the first. A `cached` one was not made at all.
    """

    request: Request
    outcome: Outcome
    reason: Reason
    seconds: float
    flight: str | None = None
    cached: bool = False
    steps_done: int = 0
    batch_seconds: float = 0.0
    paid_seconds: float = 0.0
    timings: Mapping[Stage, float] = field(default_factory=dict)
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class StageFinished:
    """One stage took `seconds`: of a batch, of which `flight` is one (encoding of text, decoding), or of that alone."""

    stage: Stage
    seconds: float
    flight: str | None = None


@dataclass(frozen=True, slots=True)
class BatchStepped:
    """One denoising step of one batch: for each picture in it, its request's id and the index of its step, from 0.

    `rows` are those of the model call (a guided picture is two), `size` is in pixels, `seconds` the step's time.
    `slots` is how many pictures of this size may share a step now, `waiting` how many more would have liked to.
    `passed_over` are pictures that were there and could not share it, by the first field that differs.
    Where the device tells, `peak_bytes` of its memory were taken; the profile had predicted `predicted_bytes`.
    """

    members: tuple[tuple[str, int], ...]
    rows: int
    size: tuple[int, int]
    seconds: float
    slots: int
    waiting: int
    peak_bytes: int | None = None
    predicted_bytes: int | None = None
    passed_over: Mapping[BatchField, int] = field(default_factory=dict)

    @property
    def requests(self) -> int:
        """Requests that shared the step."""
        return len({request for request, _ in self.members})

    @property
    def pictures(self) -> int:
        """Pictures that shared the step."""
        return len(self.members)

    @property
    def seconds_each(self) -> float:
        """Each picture's share of the step's time."""
        return self.seconds / len(self.members)


@dataclass(frozen=True, slots=True)
class PictureAdmitted:
    """A picture's first step began `seconds` after it arrived or, if later, after a slot became free for it.

    In between, `steps` ended; 65 stands for more. It is one of the pictures of `flight`.
    """

    seconds: float
    steps: int
    flight: str


@dataclass(frozen=True, slots=True)
class PicturesPaused:
    """So many pictures lost their slots at a step boundary; they keep their latents."""

    pictures: int


@dataclass(frozen=True, slots=True)
class PicturesResumed:
    """So many paused pictures got a slot again."""

    pictures: int


@dataclass(frozen=True, slots=True)
class StepsWasted:
    """Denoising steps (one picture, one step each) whose result was thrown away, and their share of batch time."""

    reason: Reason
    steps: int
    seconds: float


@dataclass(frozen=True, slots=True)
class OutOfMemorySplit:
    """A call of the model for `stage` did not fit into memory and was split in two.

    For now such calls for pictures of this `size` (pixels) take `pictures` at most.
    """

    stage: Stage
    size: tuple[int, int]
    pictures: int


@dataclass(frozen=True, slots=True)
class CacheLookedUp:
    """A cache was asked `lookups` times; what it knew saved about `seconds_saved` of batch time."""

    cache: Cache
    result: CacheResult
    lookups: int = 1
    seconds_saved: float = 0.0


@dataclass(frozen=True, slots=True)
class CacheResized:
    """A cache holds so many bytes now."""

    cache: Cache
    bytes: int


@dataclass(frozen=True, slots=True)
class QueueChanged:
    """Requests waiting, by priority, and the monotonic time at which the oldest was accepted (None: empty).

    `running` requests have started and not ended.
    """

    depths: Mapping[Priority, int]
    oldest_at: float | None
    running: int


@dataclass(frozen=True, slots=True)
class WorkersSeen:
    """So many workers of each pool of a fleet say that they are there."""

    counts: Mapping[Pool, int]


@dataclass(frozen=True, slots=True)
class WorkersWanted:
    """A fleet should have `count` workers for its load, which is at most `most`."""

    count: int
    most: int


@dataclass(frozen=True, slots=True)
class DependenciesSeen:
    """Whether each of those that are elsewhere can be used now."""

    are_there: Mapping[Dependency, bool]


@dataclass(frozen=True, slots=True)
class EstimateChecked:
    """A request completed after `actual` seconds; at acceptance it was told `predicted`."""

    predicted: float
    actual: float


@dataclass(frozen=True, slots=True)
class EngineReady:
    """The model is loaded and warmed; the engine holds `slots` pictures of the model's own size in a batch."""

    batching: Batching
    slots: int
    load_seconds: float
    warmup_seconds: float
    model: Mapping[str, str]  # name, revision, pipeline, device, dtype


@dataclass(frozen=True, slots=True)
class EngineLost:
    """The engine process ended without being asked to."""


Event = (
    ServiceStarted
    | DrainStarted
    | ServiceStopped
    | LoopLagged
    | ClientRetried
    | RequestRejected
    | RequestAccepted
    | RequestStarted
    | RequestLeft
    | RequestFinished
    | StageFinished
    | BatchStepped
    | PictureAdmitted
    | PicturesPaused
    | PicturesResumed
    | StepsWasted
    | OutOfMemorySplit
    | CacheLookedUp
    | CacheResized
    | QueueChanged
    | WorkersSeen
    | WorkersWanted
    | DependenciesSeen
    | EstimateChecked
    | EngineReady
    | EngineLost
)
