"""The engine's own record of one task while it waits and runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from observability.events import Stage
from service.core import Params
from service.engine.contract import Pixels


@dataclass(slots=True)
class Task:
    """Progress and finished pictures of one task."""

    params: Params
    has_started: bool = False
    steps_done: int = 0
    prompt_truncated: bool = False
    pictures: dict[int, Pixels] = field(default_factory=dict)
    timings: dict[Stage, float] = field(default_factory=dict)

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

    def forget_unfinished(self) -> int:
        """Set progress back to the finished pictures; return the steps that were lost."""
        kept = len(self.pictures) * self.params.num_inference_steps
        lost, self.steps_done = self.steps_done - kept, kept
        return lost
