"""What passes between the service and its engine, and what the engine asks of a model.

Commands go in, messages come out, both as frozen values that can be pickled; nothing else is shared.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from observability.events import BatchStepped, Event
from observability.labels import Batching, Priority, Reason, Stage
from service.core import ModelInfo, Params, Size
from service.engine.profile import Profile

Pixels = npt.NDArray[np.uint8]  # [height, width, 3], RGB


@dataclass(frozen=True, slots=True)
class Submit:
    """Generate `params` under `task_id`.

    `accepted_at` is a Unix time; `waited` are seconds that the task has waited already. A task that was in a model
    call that took the engine down runs `alone`. `arrived_at` (monotonic) is when the engine's process got it.
    """

    task_id: str
    params: Params
    priority: Priority
    accepted_at: float
    alone: bool = False
    waited: float = 0.0
    arrived_at: float | None = None


@dataclass(frozen=True, slots=True)
class Raise:
    """Somebody more urgent waits for the task too. An unknown task is passed over."""

    task_id: str
    priority: Priority


@dataclass(frozen=True, slots=True)
class Cancel:
    """Forget the task: a waiting one never starts, a running one leaves at the next step. No reply.

    `reason` labels the steps that are wasted by it.
    """

    task_id: str
    reason: Reason


@dataclass(frozen=True, slots=True)
class Drain:
    """Finish what runs and start nothing more."""


@dataclass(frozen=True, slots=True)
class LogLevel:
    """Log from this level on."""

    level: str


@dataclass(frozen=True, slots=True)
class PutFaults:
    """Have these faults in force, as `engine.faults` takes them, and no others; at once, also amid a step."""

    text: str


Command = Submit | Raise | Cancel | Drain | LogLevel | PutFaults


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded and has made a picture; this is how its requests will share batches, and how fast it is."""

    info: ModelInfo
    batching: Batching
    profile: Profile
    load_seconds: float
    warmup_seconds: float


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The model cannot be loaded; the engine process ends."""

    detail: str


@dataclass(frozen=True, slots=True)
class Started:
    """The tasks' first pictures entered a batch."""

    task_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Working:
    """The model is called for these tasks now, and for no others: if the engine is lost, it was over one of them."""

    task_ids: frozenset[str]


@dataclass(frozen=True, slots=True)
class Stepped:
    """One denoising step is done by all pictures of its size that hold slots, as `event` tells the observer.

    For each task in the batch that is still wanted: steps done over all its pictures, and its share of their time.
    """

    event: BatchStepped
    steps_done: Mapping[str, int]
    batch_seconds: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Finished:
    """All pictures of a task, in order, the seconds that each stage took, and its share of the time of its steps."""

    task_id: str
    pictures: tuple[Pixels, ...]
    timings: Mapping[Stage, float]
    prompt_truncated: bool
    batch_seconds: float


@dataclass(frozen=True, slots=True)
class TaskFailed:
    """The task raised even when it ran alone."""

    task_id: str
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Beat:
    """The loop is alive; sent at least once a second while idle. Otherwise every step tells."""


@dataclass(frozen=True, slots=True)
class Happened:
    """An event for the observer."""

    event: Event


@dataclass(frozen=True, slots=True)
class Drained:
    """After `Drain`: what ran is finished, and every message about it was sent before this one."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The engine process ended without being asked to; made by the parent, never sent by the engine."""

    exit_code: int | None


Message = Ready | LoadFailed | Started | Working | Stepped | Finished | TaskFailed | Beat | Happened | Drained | Lost


class Engine(Protocol):
    """The service's end of an engine."""

    def start(self, on_messages: Callable[[Sequence[Message]], None]) -> None:
        """Start the engine; `on_messages` is called from a thread of the engine's own, some at a time, in order."""

    def send(self, command: Command) -> None:
        """Hand over a command; never blocks, and is a no-op once the engine is lost."""

    def stop(self) -> None:
        """End the engine, whatever it is doing."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of a task: what one slot of a batch holds."""

    task_id: str
    index: int
    params: Params

    @property
    def seed(self) -> int:
        """The seed of this picture."""
        return self.params.seed + self.index

    @property
    def size(self) -> Size:
        """Width and height in pixels."""
        return self.params.size


@dataclass(frozen=True, slots=True)
class Batch:
    """What one run of a model gave: a picture for each asked one, in order, and the batch's stage seconds."""

    pixels: tuple[Pixels, ...]
    truncated: tuple[bool, ...]
    timings: Mapping[Stage, float]


class Aborted(Exception):
    """Raised through a model's `generate` by its `on_step`: nobody waits for this batch any more."""


class BatchModel(Protocol):
    """A model that makes whole batches. Pictures of one call share size, steps, guidance, scheduler and having a
    negative prompt.
    """

    @property
    def info(self) -> ModelInfo:
        """What it is and what it can do."""

    def generate(self, pictures: Sequence[Picture], on_step: Callable[[float], None]) -> Batch:
        """Make all `pictures` in one batch, calling `on_step` with the seconds of each denoising step after it.

        An exception of `on_step` ends the batch and is passed on.
        """


class Row(Protocol):
    """One picture between its first and its last denoising step."""

    @property
    def step(self) -> int:
        """Denoising steps done."""

    @property
    def total_steps(self) -> int:
        """Denoising steps that it takes."""

    @property
    def truncated(self) -> bool:
        """Whether the prompt was longer than the model reads."""


R = TypeVar("R", bound=Row)


class DeviceEvent(Protocol):
    """What a device tells once it has got so far, as `torch.cuda.Event`."""

    def query(self) -> bool:
        """Whether it has."""

    def synchronize(self) -> None:
        """Wait until it has."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """A picture that is there when `event` has happened; None: it is."""

    buffer: Pixels
    event: DeviceEvent | None = None

    @property
    def is_there(self) -> bool:
        """Whether nobody has to wait for it."""
        return self.event is None or self.event.query()

    def pixels(self) -> Pixels:
        """The picture, waited for."""
        if self.event is not None:
            self.event.synchronize()
        return self.buffer


class StepModel(Protocol[R]):
    """A model that is driven step by step; rows of one call share the picture's size and nothing else."""

    @property
    def info(self) -> ModelInfo:
        """What it is and what it can do."""

    def begin(self, pictures: Sequence[Picture]) -> Sequence[R]:
        """Encode the prompts together and draw each picture's first latents; a row a picture, in order."""

    def denoise(self, rows: Sequence[R]) -> Sequence[Exception | None]:
        """One step for every row, returned when it is computed. Raises only when no row has changed.

        In order: None for a row that went on, or what stopped this one row for good.
        """

    @property
    def decodes_beside(self) -> bool:
        """Whether `decode` returns before the pictures are there, and the device makes steps meanwhile."""

    def decode(self, rows: Sequence[R]) -> Sequence[Decoded]:
        """The pictures of rows that have all their steps, in order. Changes nothing, so it can be tried again."""

    def peak_bytes(self) -> int | None:
        """The most device memory that was taken since the last call; None where that is not known."""


OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "ALLOC_FAILED")  # of MPS, the CPU, cuBLAS and cuDNN


def is_out_of_memory(error: Exception) -> bool:
    """Whether `error` says that the device's memory is exhausted; by name, so that torch need not be imported."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)


def is_device_lost(error: Exception) -> bool:
    """Whether nothing can be computed any more in this process, as after an illegal access on a GPU."""
    return type(error).__name__ == "AcceleratorError" and not is_out_of_memory(error)
