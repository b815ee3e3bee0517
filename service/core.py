"""The nouns of the service: what is asked for, the job that does it, the model that can. Imports no sibling."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import lru_cache

from observability.labels import Priority, Reason, Source, Stage, WorkClass

Size = tuple[int, int]  # width and height in pixels

REMEMBERED = 256  # parameters, of those asked for lately: who asks for them asks for them again


class JobState(StrEnum):
    """The life of a job. It changes on a `service.jobs.board.Board`, and in the table at last."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


TERMINAL_STATES = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED})


class ImageFormat(StrEnum):
    """File formats of finished pictures."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"

    @property
    def media_type(self) -> str:
        """The format's media type, such as `image/png`."""
        return f"image/{self.value}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """What to generate, complete: every default is filled in and the seed is drawn.

    Picture n (from 0) of `num_images` is generated with `seed + n`. Sizes are in pixels.
    """

    prompt: str
    negative_prompt: str
    num_inference_steps: int
    guidance_scale: float
    width: int
    height: int
    seed: int
    num_images: int
    scheduler: str
    output_format: ImageFormat

    @property
    def size(self) -> Size:
        """Width and height."""
        return (self.width, self.height)

    @property
    def total_steps(self) -> int:
        """Denoising steps of all pictures together."""
        return self.num_inference_steps * self.num_images

    @property
    def work_class(self) -> WorkClass:
        """The metrics' class of work of one picture."""
        return WorkClass.of(self.width * self.height, self.num_inference_steps)

    def as_dict(self) -> dict[str, str | int | float]:
        """Its fields by name, as JSON has them."""
        return {name: getattr(self, name) for name in self.__slots__}

    def as_json(self) -> str:
        """`as_dict` as text."""
        return _json(self)

    def prompt_key(self, revision: str) -> str:
        """Hash of everything but the seed, for the model `revision`."""
        return _digest({**self.as_dict(), "seed": None, "revision": revision})

    def cache_key(self, revision: str) -> str:
        """Hash of everything that decides the pictures' bytes, for the model `revision`."""
        return _cache_key(self, revision)


@lru_cache(REMEMBERED)
def _json(params: Params) -> str:
    return json.dumps(params.as_dict())


@lru_cache(REMEMBERED)
def _cache_key(params: Params, revision: str) -> str:
    return _digest({**params.as_dict(), "revision": revision})


def _digest(canonical: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(canonical, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The record of one accepted request.

    `created_at`, `expires_at`, `started_at` and `finished_at` are Unix times, since a job outlives its process;
    `blob` names the folder of its pictures in the image store; `timings` are seconds by stage; `revision` is the
    model's. A job without `cache_key` shares nothing with others. `traceparent` is the W3C context in which it came;
    `flight`, in a fleet, the computation that it waits for.
    """

    id: str
    params: Params
    revision: str
    created_at: float
    expires_at: float
    state: JobState = JobState.PENDING
    priority: Priority = Priority.NORMAL
    source: Source = Source.USER
    cache_key: str | None = None
    started_at: float | None = None
    finished_at: float | None = None
    reason: Reason = Reason.NONE
    detail: str | None = None
    blob: str | None = None
    cached: bool = False
    prompt_truncated: bool = False
    timings: Mapping[Stage, float] = field(default_factory=dict)
    traceparent: str | None = None
    flight: str | None = None

    @property
    def is_finished(self) -> bool:
        """Whether the job has reached a terminal state."""
        return self.state in TERMINAL_STATES

    def but(self, **changes: object) -> "Job":
        """A copy with `changes`."""
        return replace(self, **changes)  # type: ignore[arg-type]  # field types are checked where they are passed


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What the loaded model is and what it can be asked for. Sizes are in pixels."""

    name: str
    revision: str
    pipeline: str
    device: str
    dtype: str
    default_width: int
    default_height: int
    min_size: int
    max_size: int
    size_multiple: int
    schedulers: tuple[str, ...]
    default_scheduler: str
    default_steps: int
    default_guidance_scale: float
    max_prompt_tokens: int | None
    supports_negative_prompt: bool
    doubles_guided: bool = True  # whether a guided picture is two rows of a model call

    @property
    def default_size(self) -> Size:
        """The size of a picture whose request names none."""
        return (self.default_width, self.default_height)

    def takes_side(self, side: int) -> bool:
        """Whether a picture may be `side` pixels wide or high."""
        return self.min_size <= side <= self.max_size and side % self.size_multiple == 0

    def rows(self, params: Params) -> int:
        """Rows of a model call that one picture of `params` takes."""
        return 2 if self.doubles_guided and params.guidance_scale > 1 else 1
