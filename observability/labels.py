"""The values of all labels, as enums: no series is ever made from an id, a prompt or free text."""

from collections.abc import Mapping
from enum import StrEnum


class Priority(StrEnum):
    """Order of service between jobs; `rank` 0 is served first."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"

    @property
    def rank(self) -> int:
        """0 for high, 1 for normal, 2 for low."""
        return RANKS[self]


RANKS = {each: rank for rank, each in enumerate(Priority)}  # looked up at every step, for every picture


class Pool(StrEnum):
    """What kind of machine a worker runs on: one that stays, or one that may be taken away at any time."""

    ON_DEMAND = "on_demand"
    SPOT = "spot"


class Dependency(StrEnum):
    """What a service of several processes needs beside itself."""

    QUEUE = "queue"
    DATABASE = "database"
    STORAGE = "storage"


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
    OVERLOADED = "overloaded"  # the deadline could be met, were it not for those before
    CLIENT_CANCELLED = "client_cancelled"
    DISCONNECTED = "disconnected"
    DEADLINE = "deadline"
    MODEL_ERROR = "model_error"
    OUT_OF_MEMORY = "out_of_memory"
    ENGINE_CRASHED = "engine_crashed"
    STORAGE_ERROR = "storage_error"
    MOVED = "moved"  # to another worker
    DEAD_LETTER = "dead_letter"  # it has cost too many workers


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


class ProbeResult(StrEnum):
    """What came of the probe's request."""

    OK = "ok"
    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    REFUSED = "refused"
    FAILED = "failed"
    BAD_PICTURE = "bad_picture"
    WRONG_SIZE = "wrong_size"
    WRONG_COLOUR = "wrong_colour"


class AlertStatus(StrEnum):
    """What Alertmanager tells of an alert."""

    FIRING = "firing"
    RESOLVED = "resolved"


class CallResult(StrEnum):
    """What came of a call for help."""

    OK = "ok"
    FAILED = "failed"


class Consumer(StrEnum):
    """What takes the events."""

    LOGS = "logs"
    METRICS = "metrics"
    TRACES = "traces"
    FLEET = "fleet"  # what other processes are told


class SpanLoss(StrEnum):
    """Why spans were not exported that were, or might have been, to be."""

    BUFFER_FULL = "buffer_full"  # their trace was not over yet, and others needed the room
    QUEUE_FULL = "queue_full"  # the collector takes them too slowly
    EXPORT_FAILED = "export_failed"


class NvmlState(StrEnum):
    """Whether GPU metrics can be had, and why not."""

    AVAILABLE = "available"
    PARTIAL = "partial"  # a GPU, or something that it supports, cannot be read
    NO_LIBRARY = "no_library"
    NO_DRIVER = "no_driver"
    NO_GPU = "no_gpu"
    NO_PERMISSION = "no_permission"
    HANGING = "hanging"
    FAILED = "failed"


class BatchField(StrEnum):
    """What two requests must have in common to share a batch, in the order in which it is compared.

    In `continuous` mode that is the size alone.
    """

    SIZE = "size"
    STEPS = "steps"
    GUIDANCE = "guidance"
    SCHEDULER = "scheduler"
    NEGATIVE_PROMPT = "negative_prompt"


ENDINGS: Mapping[Outcome, tuple[Reason, ...]] = {
    Outcome.COMPLETED: (Reason.NONE,),
    Outcome.FAILED: (
        Reason.MODEL_ERROR,
        Reason.OUT_OF_MEMORY,
        Reason.ENGINE_CRASHED,
        Reason.STORAGE_ERROR,
        Reason.DEAD_LETTER,
    ),
    Outcome.CANCELLED: (Reason.CLIENT_CANCELLED, Reason.DISCONNECTED),
    Outcome.EXPIRED: (Reason.DEADLINE,),
    Outcome.REJECTED: (
        Reason.QUEUE_FULL,
        Reason.OVERLOADED,
        Reason.DEADLINE,
        Reason.NOT_READY,
        Reason.DRAINING,
        Reason.STORAGE_ERROR,
    ),
}
"""How requests can end."""

FAILURES = (Outcome.FAILED, Outcome.EXPIRED)
"""The ends of accepted requests that are errors of ours."""
