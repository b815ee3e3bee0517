"""What is told of jobs, as events."""

from dataclasses import dataclass

from observability.events import Request, RequestAccepted, RequestFinished, RequestStarted
from observability.labels import CacheResult, Outcome
from service.core import Job
from service.jobs.flight import Flight


@dataclass(frozen=True, slots=True)
class Recording:
    """How long it took to record a job, and of that to look for it in the cache; None when that was not done."""

    seconds: float = 0.0
    lookup_seconds: float | None = None


def accepted(job: Job, flight: str, recording: Recording, result: CacheResult) -> RequestAccepted:
    """The job was recorded and shares the computation `flight`; `result` is what came of a look-up, if one was made."""
    return RequestAccepted(
        request=_request(job),
        flight=flight,
        record_seconds=recording.seconds,
        lookup_seconds=recording.lookup_seconds or 0.0,
        lookup=None if recording.lookup_seconds is None else result,
        traceparent=job.traceparent,
    )


def started(job: Job, queue_wait: float) -> RequestStarted:
    """The job entered its first batch."""
    return RequestStarted(_request(job), queue_wait)


def finished(job: Job, seconds: float, flight: Flight | None = None) -> RequestFinished:
    """The one terminal event of a job that took `seconds` from acceptance and was made by `flight`, if it was."""
    return RequestFinished(
        request=_request(job),
        outcome=Outcome(job.state.value),
        reason=job.reason,
        seconds=seconds,
        flight=None if flight is None else flight.id,
        cached=job.cached,
        steps_done=0 if flight is None else flight.steps_done,
        batch_seconds=0.0 if flight is None else flight.batch_seconds,
        paid_seconds=0.0 if flight is None else flight.paid_by(job),
        timings=job.timings,
        detail=job.detail,
    )


def _request(job: Job) -> Request:
    params = job.params
    return Request(
        id=job.id,
        source=job.source,
        priority=job.priority,
        work_class=params.work_class,
        images=params.num_images,
        width=params.width,
        height=params.height,
        steps=params.num_inference_steps,
        guidance_scale=params.guidance_scale,
        scheduler=params.scheduler,
        seed=params.seed,
        prompt=params.prompt,
    )
