"""Values for tests, with defaults that do not matter."""

from typing import Any

from observability.events import Event
from observability.labels import Priority
from service.core import ImageFormat, Job, Params
from service.engine.contract import Submit


def params(**changes: Any) -> Params:
    """Parameters of a small job."""
    given: dict[str, Any] = {
        "prompt": "a red apple",
        "negative_prompt": "",
        "num_inference_steps": 4,
        "guidance_scale": 4.0,
        "width": 64,
        "height": 64,
        "seed": 1,
        "num_images": 1,
        "scheduler": "ddim",
        "output_format": ImageFormat.PNG,
    }
    return Params(**{**given, **changes})


def job(job_id: str = "a", **changes: Any) -> Job:
    """A pending job, accepted at 1000 s and due at 1300 s."""
    given: dict[str, Any] = {"params": params(), "revision": "r1", "created_at": 1000.0, "expires_at": 1300.0}
    return Job(id=job_id, **{**given, **changes})


def submit(task_id: str, accepted_at: float = 0.0, priority: Priority = Priority.NORMAL, **changes: Any) -> Submit:
    """A command to generate."""
    return Submit(task_id, params(**changes), priority, accepted_at)


class Recorder:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def observe(self, event: Event) -> None:
        """Remember one event."""
        self.events.append(event)

    def of(self, kind: type) -> list[Any]:
        """The events of one kind, in order."""
        return [event for event in self.events if isinstance(event, kind)]
