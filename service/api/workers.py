"""What a worker answers: how it is, and its metrics."""

from collections.abc import Callable, Sequence

from fastapi import APIRouter, Request, Response

from observability.exposition import Exposition
from observability.labels import Dependency
from service.api.operations import health
from service.api.schemas import Status


def router(
    exposition: Exposition, state: Callable[[], Status], missing: Callable[[], Sequence[Dependency]]
) -> APIRouter:
    """Routes that tell of `state`, and of what is `missing` for it to be well."""
    made = APIRouter(tags=["operations"])

    @made.get("/health/live", summary="Whether the engine's loop is alive")
    async def live() -> Response:
        return health("stalled" if state() == "stalled" else "ok")

    @made.get("/health/ready", summary="Whether the worker takes work")
    async def ready() -> Response:
        return health(state(), missing())

    @made.get("/metrics", summary="Prometheus metrics")
    def metrics(request: Request) -> Response:
        text, content_type = exposition.render(request.headers.get("accept", ""))
        return Response(text, headers={"Content-Type": content_type})

    return made
