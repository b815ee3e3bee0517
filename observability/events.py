"""What happens to a request, a batch and the engine, as frozen values; and the enums of their labels.

Business code emits these to one `Observer`; metrics, traces and logs are made from them alone. Every
label value comes from an enum here, so that no series is ever made from an id, a prompt or free text.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Priority(StrEnum):
    """Order of service between jobs; `rank` 0 is served first."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"

    @property
    def rank(self) -> int:
        """0 for high, 1 for normal, 2 for low."""
        return list(Priority).index(self)


class Source(StrEnum):
    """Who sent a request: a user, or the synthetic probe, which is kept out of the users' SLIs."""

    USER = "user"
    PROBE = "probe"


class Outcome(StrEnum):
    """How a request ended. `rejected` requests were never accepted; the others are terminal job states."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    REJECTED = "rejected"


class Reason(StrEnum):
    """Why a request ended as it did; `none` for a completed one."""

    NONE = "none"
    QUEUE_FULL = "queue_full"
    DRAINING = "draining"
    NOT_READY = "not_ready"
    CLIENT_CANCELLED = "client_cancelled"
    DISCONNECTED = "disconnected"
    DEADLINE = "deadline"
    MODEL_ERROR = "model_error"
    OUT_OF_MEMORY = "out_of_memory"
    ENGINE_CRASHED = "engine_crashed"
    STORAGE_ERROR = "storage_error"


class Stage(StrEnum):
    """The parts of a request's time, in the order in which they happen."""

    QUEUE_WAIT = "queue_wait"
    TEXT_ENCODE = "text_encode"
    DENOISE = "denoise"
    VAE_DECODE = "vae_decode"
    IMAGE_ENCODE = "image_encode"
    STORE = "store"


class WorkClass(StrEnum):
    """Size class (s up to 512 x 512, m up to 1024 x 1024, l above) and step class (at most 8, 30, more)."""

    S_FEW = "s_few"
    S_STANDARD = "s_standard"
    S_MANY = "s_many"
    M_FEW = "m_few"
    M_STANDARD = "m_standard"
    M_MANY = "m_many"
    L_FEW = "l_few"
    L_STANDARD = "l_standard"
    L_MANY = "l_many"

    @classmethod
    def of(cls, pixels: int, steps: int) -> "WorkClass":
        """The class of one picture of `pixels` pixels made in `steps` denoising steps."""
        size = "s" if pixels <= 512 * 512 else "m" if pixels <= 1024 * 1024 else "l"
        length = "few" if steps <= 8 else "standard" if steps <= 30 else "many"
        return cls(f"{size}_{length}")


class Batching(StrEnum):
    """How requests share batches."""

    CONTINUOUS = "continuous"
    WINDOW = "window"
    SEQUENTIAL = "sequential"


class Cache(StrEnum):
    """The caches of the service."""

    RESPONSE = "response"
    PROMPT_EMBEDDING = "prompt_embedding"


class CacheResult(StrEnum):
    """What a look-up in a cache came to; `coalesced` joined an identical request in flight."""

    HIT = "hit"
    MISS = "miss"
    COALESCED = "coalesced"


@dataclass(frozen=True, slots=True)
class RequestRejected:
    """A well-formed request was refused before it was accepted."""

    reason: Reason
    source: Source


@dataclass(frozen=True, slots=True)
class RequestFinished:
    """An accepted request reached its one terminal state, `seconds` after it was accepted."""

    outcome: Outcome
    reason: Reason
    source: Source
    work_class: WorkClass
    seconds: float
    images: int


@dataclass(frozen=True, slots=True)
class RequestStarted:
    """A request left the queue for its first batch after `queue_wait` seconds."""

    priority: Priority
    queue_wait: float


@dataclass(frozen=True, slots=True)
class StageFinished:
    """One stage of one batch (engine stages) or of one request (encode, store) took `seconds`."""

    stage: Stage
    seconds: float


@dataclass(frozen=True, slots=True)
class BatchStepped:
    """One denoising step of one batch: for each picture in it, its request's id and the index of its step, from 0.

    `rows` are those of the model call (a guided picture is two), `size` is in pixels, `seconds` the step's time.
    """

    members: tuple[tuple[str, int], ...]
    rows: int
    size: tuple[int, int]
    seconds: float

    @property
    def requests(self) -> int:
        """Requests that shared the step."""
        return len({request for request, _ in self.members})

    @property
    def pictures(self) -> int:
        """Pictures that shared the step."""
        return len(self.members)


@dataclass(frozen=True, slots=True)
class PictureAdmitted:
    """A picture's first step began `seconds` after it arrived or, if later, after a slot became free for it."""

    seconds: float


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
    """Denoising steps (one picture, one step each) whose result was thrown away."""

    reason: Reason
    steps: int


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
    """A cache was asked."""

    cache: Cache
    result: CacheResult


@dataclass(frozen=True, slots=True)
class QueueChanged:
    """Requests waiting, by priority, and the monotonic time at which the oldest was accepted (None: empty)."""

    depths: Mapping[Priority, int]
    oldest_at: float | None


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


@dataclass(frozen=True, slots=True)
class EngineLost:
    """The engine process ended without being asked to."""


Event = (
    RequestRejected
    | RequestFinished
    | RequestStarted
    | StageFinished
    | BatchStepped
    | PictureAdmitted
    | PicturesPaused
    | PicturesResumed
    | StepsWasted
    | OutOfMemorySplit
    | CacheLookedUp
    | QueueChanged
    | EstimateChecked
    | EngineReady
    | EngineLost
)
