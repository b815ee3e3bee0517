"""How a job ends, as records."""

from observability.labels import Reason
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
