"""How a job ends, as values: the terminal record and the terminal event."""

from observability.events import RequestFinished
from observability.labels import Outcome, Reason
from service.core import Job, JobState
from service.engine.contract import Finished
from service.jobs.delivery import Delivered


def completed(job: Job, blob: str, message: Finished, delivered: Delivered, now: float) -> Job:
    """The job with its pictures, at Unix time `now`."""
    return job.but(
        state=JobState.COMPLETED,
        finished_at=now,
        blob=blob,
        prompt_truncated=message.prompt_truncated,
        timings={**job.timings, **message.timings, **delivered.timings},
    )


def unrecorded(job: Job) -> Job:
    """The job as a failure, because its true end cannot be recorded."""
    detail = "the end of the job could not be recorded"
    return job.but(state=JobState.FAILED, reason=Reason.STORAGE_ERROR, detail=detail, blob=None)


def event(job: Job, seconds: float, batch_seconds: float = 0.0) -> RequestFinished:
    """The one terminal event of a job that took `seconds` from acceptance and `batch_seconds` of the engine."""
    images = 0 if job.cached else job.params.num_images
    return RequestFinished(
        outcome=Outcome(job.state.value),
        reason=job.reason,
        source=job.source,
        work_class=job.params.work_class,
        seconds=seconds,
        images=images,
        pixels=images * job.params.width * job.params.height,
        batch_seconds=batch_seconds,
    )
