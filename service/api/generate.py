"""`POST /generate`: from a body to a job, and, if the client waits, to its pictures."""

import asyncio
import re
import secrets
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import JSONResponse

from observability.events import ClientRetried
from observability.labels import Reason, Source
from observability.propagation import current_traceparent
from service.api.problems import RESPONSES, problem
from service.api.schemas import GenerateRequest, JobView
from service.api.state import Services, ServicesDep
from service.core import ImageFormat, Job, JobState, ModelInfo
from service.errors import InvalidRequest, Unavailable
from service.jobs.background import end
from service.jobs.flight import Snapshot
from service.jobs.order import Order

router = APIRouter(tags=["generation"], responses=RESPONSES)

PATH = "/generate"
MAX_WAIT_SECONDS = 600.0
FAILURE_STATUS = {JobState.FAILED: 500, JobState.CANCELLED: 409, JobState.EXPIRED: 504}
KEY_PATTERN = re.compile(r"[\x21-\x7e]{1,255}")
ACCEPTED = {f"image/{each.value}": each for each in ImageFormat}


@dataclass(frozen=True, slots=True)
class Wish:
    """A request that was read: what `model` is to make, and how it is answered: `wanted` is the format of one that
    is the picture itself, `wait` are seconds.
    """

    order: Order
    model: ModelInfo
    wanted: ImageFormat | None
    wait: float | None
    cancels: bool

    @property
    def is_repeatable(self) -> bool:
        """Whether the same request wishes the same once more."""
        return self.order.seed_given


@dataclass(slots=True)
class Reading:
    """What became of the reading of a request; in its ASGI scope by `NAME`."""

    NAME: ClassVar[str] = "safelight.reading"

    wish: Wish | None = None


@router.post(
    PATH,
    status_code=202,
    response_model=JobView,
    summary="Generate pictures from a prompt",
    responses={
        200: {
            "model": JobView,
            "description": "With `wait`: the finished job; with `Accept: image/*`: the picture itself.",
            "content": {media_type: {} for media_type in ACCEPTED},
        },
        504: {"description": "With `Accept: image/*`: the job expired."},
    },
)
async def generate(
    request: Request,
    services: ServicesDep,
    body: GenerateRequest,
    wait: Annotated[
        float | None, Query(ge=0, le=MAX_WAIT_SECONDS, allow_inf_nan=False, description="Seconds to wait for the end.")
    ] = None,
    on_disconnect: Annotated[
        Literal["cancel", "continue"], Query(description="What becomes of the job if a waiting client goes away.")
    ] = "cancel",
    accept: Annotated[str, Header(description="`image/png`, `image/jpeg` or `image/webp` asks for bytes.")] = "*/*",
    idempotency_key: Annotated[
        str | None, Header(description="The same key and body give the same job for 24 hours.")
    ] = None,
    x_stainless_retry_count: Annotated[str, Header(include_in_schema=False)] = "0",
    x_safelight_probe: Annotated[str, Header(include_in_schema=False)] = "",
) -> Response:
    """Accept a job (202). With `wait` or an image type in `Accept`, hold the answer until the job ends."""
    if x_stainless_retry_count != "0":
        services.observer.observe(ClientRetried())
    wanted = _wanted_format(accept, body)
    source = _source(x_safelight_probe, services.settings.probe_token)
    model = _model(services, source)
    order = body.order(
        model,
        output_format=_output_format(body, wanted),
        idempotency_key=_checked_key(idempotency_key),
        source=source,
    )
    if wanted is not None and body.num_images > 1:
        raise InvalidRequest("must be 1 when the answer is to be the picture itself", field="num_images")
    if wait is None and wanted is not None:
        wait = min(MAX_WAIT_SECONDS, body.timeout_s + 1)
    wish = Wish(order, model, wanted, wait, on_disconnect == "cancel")
    request.scope[Reading.NAME].wish = wish
    return await _answer(request, services, wish)


async def answer_again(request: Request, wish: Wish) -> Response | None:
    """As `generate` would answer it; None if it would read the request otherwise now.

    Raises `SafelightError`.
    """
    services: Services = request.app.state.services
    if _model(services, wish.order.source) != wish.model:
        return None
    order = replace(wish.order, traceparent=current_traceparent())
    return await _answer(request, services, replace(wish, order=order))


async def _answer(request: Request, services: Services, wish: Wish) -> Response:
    snapshot, is_new = await services.jobs.accept(wish.order)
    wait, wanted = wish.wait, wish.wanted
    if wait is not None and not snapshot.job.is_finished:
        snapshot = await _wait(request, services, snapshot.job.id, wait, is_new and wish.cancels)
    if wanted is not None and snapshot.job.is_finished:
        return await _bytes(services, snapshot.job)
    return _job_response(snapshot, 200 if wait is not None and snapshot.job.is_finished else 202)


def _source(given: str, token: str | None) -> Source:
    """The probe, if it gives the token; anybody else is a user."""
    is_probe = bool(token) and secrets.compare_digest(given.encode(), str(token).encode())
    return Source.PROBE if is_probe else Source.USER


def _model(services: Services, source: Source) -> ModelInfo:
    """The loaded model; a request that comes before it is counted as rejected."""
    try:
        return services.model()
    except Unavailable:
        services.jobs.reject(source, Reason.NOT_READY)
        raise


def _wanted_format(accept: str, body: GenerateRequest) -> ImageFormat | None:
    """The image format that the Accept header likes best, or None for JSON.

    `image/*` leaves the choice to the body.
    """
    choices: dict[str, ImageFormat | None] = {**ACCEPTED, "image/*": ImageFormat(body.output_format or "png")}
    choices |= dict.fromkeys(("application/json", "application/*", "*/*"))
    best, best_quality = None, 0.0
    for part in accept.lower().split(","):
        media_type, *options = (each.strip() for each in part.split(";"))
        quality = _quality(options)
        if media_type in choices and quality > best_quality:
            best, best_quality = choices[media_type], quality
    return best


def _quality(options: list[str]) -> float:
    """The `q` of one part of an Accept header; 1 when it is missing, 0 when it cannot be read."""
    given = next((each.removeprefix("q=") for each in options if each.startswith("q=")), "1")
    try:
        return float(given)
    except ValueError:
        return 0.0


def _output_format(body: GenerateRequest, wanted: ImageFormat | None) -> ImageFormat:
    if body.output_format is None:
        return wanted or ImageFormat.PNG
    if wanted is not None and wanted != body.output_format:
        raise InvalidRequest(f"must be {wanted.value}, as the Accept header says, or left out", field="output_format")
    return ImageFormat(body.output_format)


def _checked_key(key: str | None) -> str | None:
    if key is not None and not KEY_PATTERN.fullmatch(key):
        raise InvalidRequest("must be 1 to 255 printable ASCII characters without spaces", field="Idempotency-Key")
    return key


async def _wait(request: Request, services: Services, job_id: str, seconds: float, cancels: bool) -> Snapshot:
    """The job at its end or after `seconds`; a client that goes away meanwhile abandons it if `cancels`."""
    ended = asyncio.ensure_future(services.jobs.wait(job_id, seconds))
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({ended, gone}, return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            return ended.result()
        await end(ended)
        if cancels:
            await services.jobs.abandon(job_id)
        return await services.jobs.get(job_id)
    finally:
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _bytes(services: Services, job: Job) -> Response:
    headers = {"X-Job-Id": job.id, "X-Seed": str(job.params.seed), "Server-Timing": server_timing(job)}
    if job.state in FAILURE_STATUS:
        title = f"Job {job.state.value}"
        return problem(FAILURE_STATUS[job.state], title, job.detail or f"reason: {job.reason.value}", headers=headers)
    data = await services.jobs.picture(job, 0)
    if job.prompt_truncated:
        headers["X-Prompt-Truncated"] = "true"
    return Response(data, 200, headers, job.params.output_format.media_type)


def _job_response(snapshot: Snapshot, status: int) -> Response:
    headers = {
        "Location": f"/jobs/{snapshot.job.id}",
        "X-Job-Id": snapshot.job.id,
        "Server-Timing": server_timing(snapshot.job),
    }
    return JSONResponse(JobView.of(snapshot).model_dump(mode="json"), status, headers)


def server_timing(job: Job) -> str:
    """The job's stages as a Server-Timing header, in milliseconds."""
    return ", ".join(f"{stage.value};dur={seconds * 1e3:.1f}" for stage, seconds in job.timings.items())
