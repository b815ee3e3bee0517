"""Values for tests, with defaults that do not matter."""

from typing import Any

from observability.events import BatchStepped, Event, Request, RequestFinished
from observability.labels import Outcome, Priority, Reason, Source, WorkClass
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


def request(name: str = "a", **changes: Any) -> Request:
    """What a user asked for, as events tell it."""
    given: dict[str, Any] = {
        "source": Source.USER,
        "priority": Priority.NORMAL,
        "work_class": WorkClass.S_STANDARD,
        "images": 1,
        "width": 64,
        "height": 64,
        "steps": 20,
        "guidance_scale": 4.0,
        "scheduler": "ddim",
        "seed": 1,
        "prompt": "a red apple",
    }
    return Request(id=name, **{**given, **changes})


def finished(name: str = "a", outcome: Outcome = Outcome.COMPLETED, **changes: Any) -> RequestFinished:
    """The end of a request after 1.5 s."""
    given: dict[str, Any] = {"request": request(name), "reason": Reason.NONE, "seconds": 1.5}
    return RequestFinished(outcome=outcome, **{**given, **changes})


def step(*members: tuple[str, int], **changes: Any) -> BatchStepped:
    """One step of 0.2 s of guided pictures with slots to spare."""
    given: dict[str, Any] = {"rows": 2 * len(members), "size": (64, 64), "seconds": 0.2, "slots": 8, "waiting": 0}
    return BatchStepped(members, **{**given, **changes})


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
