"""Jobs: one, many, their pictures, their end."""

import base64
import binascii
import math
import re
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response
from fastapi.responses import RedirectResponse

from observability.labels import Reason
from service.api.problems import RESPONSES
from service.api.schemas import JobPage, JobView
from service.api.state import ServicesDep
from service.core import ImageFormat, JobState
from service.errors import InvalidRequest

router = APIRouter(prefix="/jobs", tags=["jobs"], responses=RESPONSES)

JOB_ID = re.compile("[0-9A-Za-z_-]{1,64}")
JobId = Annotated[str, Path(pattern=f"^{JOB_ID.pattern}$")]


@router.get("", summary="Jobs, newest first")
async def list_jobs(
    services: ServicesDep,
    status: Annotated[list[JobState] | None, Query(description="Only jobs in these states.")] = None,
    reason: Annotated[list[Reason] | None, Query(description="Only jobs that ended for these reasons.")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=200, description="`next` of the page before.")] = None,
) -> JobPage:
    """One page of jobs; go on with its `next`."""
    before = None if cursor is None else _decode_cursor(cursor)
    found = await services.jobs.page(status or (), reason or (), limit + 1, before)
    shown = found[:limit]
    more = len(found) > limit
    return JobPage(
        jobs=[JobView.of(each) for each in shown],
        next=_encode_cursor(shown[-1].job.created_at, shown[-1].job.id) if more else None,
    )


@router.get("/{job_id}", summary="One job and where it stands")
async def get_job(services: ServicesDep, job_id: JobId) -> JobView:
    """Status, progress, place in the queue, links to pictures, breakdown of time."""
    return JobView.of(await services.jobs.get(job_id))


@router.delete("/{job_id}", summary="Cancel a job")
async def cancel_job(services: ServicesDep, job_id: JobId) -> JobView:
    """A waiting job never starts, a running one leaves its batch at the next step; an ended one is a 409."""
    return JobView.of(await services.jobs.cancel(job_id))


@router.get(
    "/{job_id}/images/{index}",
    summary="A finished picture",
    response_class=Response,
    responses={200: {"content": {each.media_type: {} for each in ImageFormat}}, 307: {"description": "Where it is."}},
)
async def get_image(
    services: ServicesDep,
    job_id: JobId,
    index: Annotated[int, Path(ge=0, le=7)],
    presigned: Annotated[bool, Query(description="Rather say where the store has it, if it is one like S3.")] = False,
) -> Response:
    """The bytes of picture `index`, from 0."""
    if presigned and (url := await services.jobs.image_url(job_id, index)) is not None:
        return RedirectResponse(url, headers={"Cache-Control": "no-store"})
    data, job = await services.jobs.image(job_id, index)
    headers = {"X-Seed": str(job.params.seed + index), "Cache-Control": "private, max-age=31536000, immutable"}
    return Response(data, 200, headers, job.params.output_format.media_type)


def _encode_cursor(created_at: float, job_id: str) -> str:
    return base64.urlsafe_b64encode(f"{created_at!r} {job_id}".encode()).decode()


def _decode_cursor(cursor: str) -> tuple[float, str]:
    try:
        created_at, job_id = base64.urlsafe_b64decode(cursor.encode()).decode("ascii").split(" ")
        if not math.isfinite(float(created_at)) or "\0" in job_id:
            raise ValueError(cursor)
        return float(created_at), job_id
    except (ValueError, binascii.Error) as error:
        raise InvalidRequest("must be the `next` of an earlier page", field="cursor") from error
