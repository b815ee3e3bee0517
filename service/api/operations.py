"""For operators: health, metrics, the model."""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse

from observability.labels import Dependency
from service.api.problems import RESPONSES
from service.api.schemas import Health, ModelView, ProfileView, Status
from service.api.state import ServicesDep
from service.errors import NotFound

router = APIRouter(tags=["operations"])

HEALTH: dict[int | str, dict[str, Any]] = {
    200: {"model": Health},
    503: {"model": Health, "description": "Not fit; the status says why."},
}


@router.get("/health/live", responses=HEALTH, summary="Whether the engine's loop is alive")
async def live(services: ServicesDep) -> Response:
    """503 when the engine was not heard of for the heartbeat timeout: restart the process."""
    return health("ok" if services.runner.is_alive else "stalled")


@router.get("/health/ready", responses=HEALTH, summary="Whether requests are served now")
async def ready(services: ServicesDep) -> Response:
    """200 once the model is loaded and has made a picture, until the service drains, and while all that it needs is
    there.
    """
    if services.jobs.is_draining:
        return health("draining")
    if services.dependencies.missing:
        return health("unavailable", services.dependencies.missing)
    return health("ok" if services.runner.is_ready else "loading")


def health(status: Status, missing: Sequence[Dependency] = ()) -> Response:
    """How the process is, as an answer."""
    fit = status == "ok"
    found = Health(status=status, missing=list(missing)).model_dump(exclude_defaults=True)
    return JSONResponse(found, 200 if fit else 503, {} if fit else {"Retry-After": "1"})


@router.get("/metrics", response_class=Response, summary="Prometheus metrics", include_in_schema=False)
def metrics(request: Request, services: ServicesDep) -> Response:
    """Text or OpenMetrics, as the Accept header asks. Runs in a thread, since it may take a while."""
    if services.exposition is None:
        raise NotFound("metrics are served on SAFELIGHT_METRICS_PORT")
    text, content_type = services.exposition.render(request.headers.get("accept", ""))
    return Response(text, headers={"Content-Type": content_type})


@router.get("/model", responses=RESPONSES, summary="The loaded model and what it can do")
async def model(services: ServicesDep) -> ModelView:
    """Name, revision, sizes, limits, schedulers, device, number format; how it batches, and its profile."""
    ready = services.ready()
    info, profile = ready.info, ready.profile
    return ModelView(
        name=info.name,
        revision=info.revision,
        pipeline=info.pipeline,
        device=info.device,
        dtype=info.dtype,
        default_width=info.default_width,
        default_height=info.default_height,
        min_size=info.min_size,
        max_size=info.max_size,
        size_multiple=info.size_multiple,
        default_num_inference_steps=info.default_steps,
        default_guidance_scale=info.default_guidance_scale,
        schedulers=list(info.schedulers),
        default_scheduler=info.default_scheduler,
        max_prompt_tokens=info.max_prompt_tokens,
        supports_negative_prompt=info.supports_negative_prompt,
        batching=ready.batching,
        max_batch=profile.max_batch,
        extra_seconds=profile.beside_steps(info.default_size),
        profile=[ProfileView.of(profile, curve) for curve in profile.curves],
    )


@router.get("/", include_in_schema=False)
async def root() -> RedirectResponse:
    """The documentation, until there is a page."""
    return RedirectResponse("/docs")
