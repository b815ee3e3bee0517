"""The routes of an inbox."""

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.requests import ClientDisconnect

from observability.inbox.core import Inbox
from observability.inbox.store import Record
from observability.inbox.webhook import Malformed, parse
from observability.labels import AlertStatus

log = logging.getLogger("safelight.inbox")

MAX_BODY_BYTES = 1 << 20
MAX_LIMIT = 1000
RECENTLY = 50  # resolved alerts on the page
# Nothing that an alert says can load or run anything, were it ever to be taken for HTML.
SAFE = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}

router = APIRouter()


def _inbox(request: Request) -> Inbox:
    inbox: Inbox = request.app.state.inbox
    return inbox


InboxDep = Annotated[Inbox, Depends(_inbox)]


def build_app(inbox: Inbox) -> FastAPI:
    """The application, which starts and stops `inbox`."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        inbox.start()
        yield
        await asyncio.to_thread(inbox.stop)

    app = FastAPI(title="Safelight's alert inbox", openapi_url=None, lifespan=lifespan)
    app.state.inbox = inbox
    app.include_router(router)
    app.add_exception_handler(sqlite3.Error, _unavailable)
    return app


async def _unavailable(_request: Request, error: Exception) -> JSONResponse:
    """503: Alertmanager tries again."""
    log.error("the database cannot be used", exc_info=error)
    return JSONResponse({"detail": "the inbox's database cannot be used at the moment"}, 503, {"Retry-After": "5"})


@router.post("/webhook")
async def webhook(request: Request, inbox: InboxDep) -> dict[str, int]:
    """Keep what Alertmanager tells. 401, 413, 415 or 422 if it is not Alertmanager's; nothing of it is kept then."""
    try:
        if not inbox.knows(request.headers.get("authorization", "")):
            raise HTTPException(401, "the bearer token is missing or wrong", {"WWW-Authenticate": "Bearer"})
        # Another type could be sent by any web page that its reader has open on this machine.
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise HTTPException(415, "the body must be application/json")
        notification = parse(await _body(request))
    except Malformed as error:
        refused = HTTPException(422, str(error))
    except HTTPException as error:
        refused = error
    else:
        await asyncio.to_thread(inbox.take, notification)
        return {"alerts": len(notification.alerts)}
    inbox.metrics.rejected.inc()
    log.warning("a notification was refused: %s", refused.detail)
    raise refused


async def _body(request: Request) -> bytes:
    body = bytearray()
    try:
        async with aclosing(request.stream()) as chunks:
            async for chunk in chunks:
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise HTTPException(413, f"the body must be at most {MAX_BODY_BYTES} bytes")
    except ClientDisconnect as error:
        raise HTTPException(400, "the body has no end") from error
    return bytes(body)


@router.get("/alerts")
def alerts(
    inbox: InboxDep,
    status: AlertStatus | None = None,
    alertname: str | None = None,
    since: float | None = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = 100,
) -> list[Record]:
    """Alerts, the one heard of last first. `since` (Unix seconds): only those that were heard of from then on."""
    return inbox.store.alerts(status, alertname, since, limit)


@router.get("/watchdog")
def watchdog(inbox: InboxDep) -> dict[str, Any]:
    """How it is with the alert that always fires."""
    return asdict(inbox.deadman.status())


@router.get("/")
def page(inbox: InboxDep) -> HTMLResponse:
    """The alerts, for people."""
    firing = inbox.store.alerts(AlertStatus.FIRING, limit=MAX_LIMIT)
    resolved = inbox.store.alerts(AlertStatus.RESOLVED, limit=RECENTLY)
    html = inbox.pages.alerts(firing, resolved, inbox.deadman.status(), inbox.wall())
    return HTMLResponse(html, headers={**SAFE, "Cache-Control": "no-store"})


@router.get("/runbooks")
def runbooks(inbox: InboxDep) -> HTMLResponse:
    """A list of the runbooks."""
    return HTMLResponse(inbox.pages.runbook_list(), headers=SAFE)


@router.get("/runbooks/{name}")
def runbook(inbox: InboxDep, name: str) -> HTMLResponse:
    """One runbook, by the name of its alert."""
    html = inbox.pages.runbook(name)
    if html is None:
        raise HTTPException(404, "there is no runbook of this name; /runbooks lists those there are")
    return HTMLResponse(html, headers=SAFE)


@router.get("/health/live")
async def live() -> dict[str, str]:
    """Whether the inbox answers."""
    return {"status": "ok"}


@router.get("/metrics")
def metrics(request: Request, inbox: InboxDep) -> Response:
    """Text or OpenMetrics, as the Accept header asks."""
    text, content_type = inbox.exposition.render(request.headers.get("accept", ""))
    return Response(text, headers={"Content-Type": content_type})
