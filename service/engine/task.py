"""The engine's own records of a task and of its pictures while they wait and run."""

from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from typing import Generic, Protocol

from observability.labels import Priority, Stage
from service.core import Params, Size
from service.engine.contract import Decoded, Picture, Pixels, R


@dataclass(frozen=True, slots=True)
class Waiting:
    """A picture in the queue. `accepted_at` is a Unix time, `arrived_at` the monotonic one of reaching the engine;
    `waited` are the seconds that it had waited until then.
    """

    picture: Picture
    priority: Priority
    accepted_at: float
    arrived_at: float
    alone: bool = False
    waited: float = 0.0

    @property
    def since(self) -> float:
        """The monotonic time at which its wait began."""
        return self.arrived_at - self.waited


@dataclass(slots=True, eq=False)
class Begun(Generic[R]):
    """A picture with a row. It got its slot at `began` (monotonic); if it `found_free` ones, nobody had to leave.

    `free_since` (monotonic) is when a slot was there for it, until its first step. It was without one for `waited`
    seconds, not counting those since it was paused at `paused_at` (monotonic).
    """

    waiting: Waiting
    row: R
    found_free: bool
    began: InitVar[float]
    free_since: float | None = None
    waited: float = 0.0
    paused_at: float | None = None

    def __post_init__(self, began: float) -> None:
        """Until now it waited."""
        self.free_since = self.waiting.arrived_at if self.found_free else began
        self.waited = began - self.waiting.since

    @property
    def is_fresh(self) -> bool:
        """Whether it has made no step yet and found a free slot, so that it should not wait for other sizes."""
        return self.free_since is not None and self.found_free

    @property
    def holds_slot(self) -> bool:
        """Whether it takes part in steps."""
        return self.paused_at is None

    def without_slot(self, now: float) -> float:
        """Seconds that it has been without one."""
        return self.waited + (0.0 if self.paused_at is None else now - self.paused_at)

    def pause_or_resume(self, now: float) -> None:
        """Lose the slot, or get one again."""
        self.waited = self.without_slot(now)
        self.paused_at = now if self.paused_at is None else None

    @property
    def picture(self) -> Picture:
        """What it will be."""
        return self.waiting.picture

    @property
    def size(self) -> Size:
        """Only pictures of the same size share a step."""
        return self.picture.size


class Sized(Protocol):
    """What a picture and its row have in common here."""

    @property
    def size(self) -> Size:
        """Width and height in pixels."""


@dataclass(slots=True)
class Task:
    """Progress and finished pictures of one task."""

    params: Params
    has_started: bool = False
    steps_done: int = 0
    prompt_truncated: bool = False
    pictures: dict[int, Pixels] = field(default_factory=dict)
    timings: dict[Stage, float] = field(default_factory=dict)
    batch_seconds: float = 0.0  # its share of the time of the steps that it made
    step_cost: float = 0.0  # seconds that one step of one picture adds to a full batch
    denoised_at: float = 0.0  # monotonic
    _denoise_began: float = 0.0

    @property
    def is_complete(self) -> bool:
        """Whether every picture is there."""
        return len(self.pictures) == self.params.num_images

    @property
    def ordered_pictures(self) -> tuple[Pixels, ...]:
        """The pictures by index."""
        return tuple(self.pictures[index] for index in sorted(self.pictures))

    def keep(self, index: int, pixels: Pixels, truncated: bool) -> None:
        """Store a finished picture."""
        self.pictures[index] = pixels
        self.prompt_truncated |= truncated

    def add_timings(self, timings: Mapping[Stage, float]) -> None:
        """Add the stage seconds of one batch that this task was part of."""
        for stage, seconds in timings.items():
            self.timings[stage] = self.timings.get(stage, 0.0) + seconds

    def encoded(self, began: float, ended: float) -> None:
        """The prompts of its first pictures were encoded between these monotonic times; denoising begins."""
        if Stage.TEXT_ENCODE not in self.timings:
            self.timings[Stage.TEXT_ENCODE] = ended - began
            self._denoise_began = ended

    def decoded(self, now: float) -> None:
        """Its last pictures are decoded at monotonic `now`: the stages are the whole time since it began."""
        self.timings[Stage.DENOISE] = self.denoised_at - self._denoise_began
        self.timings[Stage.VAE_DECODE] = now - self.denoised_at

    def stepped(self, seconds: float) -> None:
        """One of its pictures made a step, whose share of the batch's time is `seconds`."""
        self.steps_done += 1
        self.batch_seconds += seconds

    def forget_unfinished(self) -> tuple[int, float]:
        """Set progress back to the finished pictures; return the steps that were lost, and their share of time."""
        kept = len(self.pictures) * self.params.num_inference_steps
        lost = self.steps_done - kept
        seconds = self.batch_seconds * lost / self.steps_done if lost else 0.0
        self.steps_done = kept
        self.batch_seconds -= seconds
        return lost, seconds


@dataclass(slots=True)
class Decoding(Generic[R]):
    """Finished rows on their way to pictures since monotonic `began`; `first` is the task of the first."""

    began: float
    first: str
    parts: list[tuple[Begun[R], Task, Decoded]] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        """Whether all are there."""
        return all(decoded.is_there for _, _, decoded in self.parts)
