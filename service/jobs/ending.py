"""How a job ends or begins again, as records, and what is told of its end."""

from observability.events import EstimateChecked
from observability.labels import Reason
from observability.observer import Observer
from service.core import Job, JobState
from service.engine.contract import Finished
from service.jobs import telling
from service.jobs.delivery import Delivered
from service.jobs.flight import LiveJob


def completed(job: Job, blob: str, message: Finished, delivered: Delivered, now: float) -> Job:
    """The job with its pictures, at Unix time `now`."""
    return job.but(
        state=JobState.COMPLETED,
        finished_at=now,
        blob=blob,
        prompt_truncated=message.prompt_truncated,
        timings={**job.timings, **message.timings, **delivered.timings},
    )


def too_late(job: Job) -> str:
    """Why an expired job failed."""
    return f"not finished within its {job.expires_at - job.created_at:g} s"


def unrecorded(job: Job) -> Job:
    """The job as a failure, because its true end cannot be recorded."""
    detail = "the end of the job could not be recorded"
    return job.but(state=JobState.FAILED, reason=Reason.STORAGE_ERROR, detail=detail, blob=None)


def tell(observer: Observer, live: LiveJob, now: float) -> None:
    """That a job has ended, at monotonic `now`."""
    seconds = now - live.accepted_at
    observer.observe(telling.finished(live.job, seconds, live.flight))
    if live.job.state is JobState.COMPLETED and live.predicted is not None:
        observer.observe(EstimateChecked(live.predicted, seconds))


def anew(job: Job, revision: str) -> Job:
    """The job as it waits once more, for the model of `revision`."""
    cache_key = None if job.cache_key is None else job.params.cache_key(revision)
    return job.but(state=JobState.PENDING, started_at=None, timings={}, revision=revision, cache_key=cache_key)
