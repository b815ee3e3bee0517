"""A job's progress, pushed: server-sent events and WebSocket."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress

from fastapi import APIRouter, Depends, WebSocket
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.websockets import WebSocketDisconnect

from service.api.jobs import JOB_ID, JobId
from service.api.problems import RESPONSES
from service.api.schemas import JobView
from service.api.state import Services, ServicesDep
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
    if not JOB_ID.fullmatch(job_id):
        await websocket.close(UNKNOWN_JOB, "there is no such job")
        return
    telling = asyncio.ensure_future(_tell(websocket, services, job_id))
    leaving = asyncio.ensure_future(_left(websocket))
    await asyncio.wait({telling, leaving}, return_when=asyncio.FIRST_COMPLETED)
    for task in (telling, leaving):
        task.cancel()
    with suppress(asyncio.CancelledError, WebSocketDisconnect):
        await telling


async def _tell(websocket: WebSocket, services: Services, job_id: str) -> None:
    try:
        ended = False
        async with aclosing(services.jobs.follow(job_id)) as changes:
            async for snapshot in changes:
                await websocket.send_json(JobView.of(snapshot).model_dump(mode="json"))
                ended = snapshot.job.is_finished
        await websocket.close(1000 if ended else GOING_AWAY)
    except NotFound as error:
        await websocket.close(UNKNOWN_JOB, error.detail[:100])


async def _left(websocket: WebSocket) -> None:
    """Return when the client closes; what it says is of no interest."""
    while (await websocket.receive())["type"] != "websocket.disconnect":
        pass
