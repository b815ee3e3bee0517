"""A job's progress, pushed: server-sent events and WebSocket."""

from collections.abc import AsyncIterator

from fastapi import APIRouter, Depends, WebSocket
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.websockets import WebSocketDisconnect

from service.api.jobs import JobId
from service.api.problems import RESPONSES
from service.api.schemas import JobView
from service.api.state import ServicesDep
from service.errors import NotFound

router = APIRouter(tags=["progress"])

UNKNOWN_JOB = 4404
GOING_AWAY = 1001


async def _known(services: ServicesDep, job_id: JobId) -> None:
    """Raise `NotFound` before a stream begins."""
    await services.jobs.get(job_id)


@router.get(
    "/jobs/{job_id}/events",
    dependencies=[Depends(_known)],
    response_class=EventSourceResponse,
    summary="A job's progress as server-sent events",
    responses=RESPONSES,
)
async def job_events(services: ServicesDep, job_id: JobId) -> AsyncIterator[ServerSentEvent]:
    """Events named by the job's status, each with the whole job: as it is, then every change, up to its end."""
    async for snapshot in services.jobs.follow(job_id):
        yield ServerSentEvent(event=snapshot.job.state.value, data=JobView.of(snapshot).model_dump(mode="json"))


@router.websocket("/ws/jobs/{job_id}")
async def job_socket(websocket: WebSocket, services: ServicesDep, job_id: str) -> None:
    """The same as JSON messages; closes with 1000 after the end, 4404 for an unknown job."""
    await websocket.accept()
    try:
        ended = False
        async for snapshot in services.jobs.follow(job_id[:64]):
            await websocket.send_json(JobView.of(snapshot).model_dump(mode="json"))
            ended = snapshot.job.is_finished
        await websocket.close(1000 if ended else GOING_AWAY)
    except NotFound as error:
        await websocket.close(UNKNOWN_JOB, error.detail[:100])
    except WebSocketDisconnect:
        return
