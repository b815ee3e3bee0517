"""Every error as an RFC 9457 problem document; values that the client sent in a body are never echoed."""

import logging
from collections.abc import Collection, Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.schemas import FieldProblem, Problem
from service.errors import SafelightError

log = logging.getLogger("safelight.api")

MAX_ERRORS = 20
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
MEDIA_TYPE = "application/problem+json"
RESPONSES: dict[int | str, dict[str, object]] = {
    "4XX": {"model": Problem, "content": {MEDIA_TYPE: {}}, "description": "The request cannot be served as it is."},
    "503": {"model": Problem, "content": {MEDIA_TYPE: {}}, "description": "Loading or draining; see Retry-After."},
}


def problem(
    status: int,
    title: str,
    detail: str,
    errors: list[FieldProblem] | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """A problem document as a response."""
    body = Problem(title=title, status=status, detail=detail, errors=errors or [])
    return JSONResponse(body.model_dump(), status, dict(headers or {}), MEDIA_TYPE)


def from_error(error: SafelightError) -> JSONResponse:
    """One of the service's own errors as a response."""
    errors = [FieldProblem(field=error.field, detail=error.detail)] if error.field else []
    detail = f"{error.field}: {error.detail}" if error.field else error.detail
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return problem(error.status_code, error.title, detail, errors, headers)


def install(app: FastAPI) -> None:
    """Answer every error of `app` with a problem document."""

    @app.exception_handler(SafelightError)
    async def on_own_error(_request: Request, error: SafelightError) -> JSONResponse:
        return from_error(error)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        errors = [FieldProblem(field=_path(each["loc"]), detail=each["msg"]) for each in error.errors()[:MAX_ERRORS]]
        malformed = any(each["type"] == "json_invalid" for each in error.errors())
        status, title = (400, "Malformed JSON") if malformed else (422, "Invalid request")
        detail = "; ".join(f"{each.field}: {each.detail}" for each in errors[:5])
        return problem(status, title, detail, errors)

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> JSONResponse:
        detail = f"{request.method} {request.url.path[:200]}: {error.detail}"
        return problem(error.status_code, str(error.detail), detail, headers=error.headers)

    @app.exception_handler(Exception)
    async def on_unexpected(_request: Request, error: Exception) -> JSONResponse:
        log.error("unexpected %s", type(error).__name__, exc_info=error)
        return problem(500, "Internal error", "the service made a mistake; its log tells which")


def _path(location: tuple[int | str, ...]) -> str:
    """`("body", "prompt")` as `prompt`; a query parameter or header by its name; the whole body as `body`."""
    parts = [str(each).encode("ascii", "backslashreplace").decode()[:64] for each in location]
    return ".".join(parts[1:]) or parts[0] if parts[0] in {"body", "query", "path", "header"} else ".".join(parts)


class BodyGuard:
    """On `paths` that take JSON, refuses bodies not declared as such (415); anywhere, those that are too long (413)."""

    def __init__(self, app: ASGIApp, max_bytes: int, paths: Collection[str]) -> None:
        self._app = app
        self._paths = frozenset(paths)
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or answer."""
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in self._paths:
            refusal = self._refusal(dict(scope["headers"]))
            if refusal is not None:
                await refusal(scope, receive, send)
                return
        await self._app(scope, self._counting(receive), send)

    def _counting(self, receive: Receive) -> Receive:
        """`receive`, raising a 413 once more bytes have come than are allowed."""
        received = 0

        async def counting() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise HTTPException(413, "Content too large")
            return message

        return counting

    def _refusal(self, headers: Mapping[bytes, bytes]) -> JSONResponse | None:
        if headers.get(b"content-type", b"").split(b";")[0].strip().lower() != b"application/json":
            detail = "must be application/json"
            error = FieldProblem(field="Content-Type", detail=detail)
            return problem(415, "Unsupported media type", f"Content-Type: {detail}", [error])
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._max_bytes:
            return problem(413, "Content too large", f"the body must be at most {self._max_bytes} bytes")
        return None


class MethodGuard:
    """Refuses methods that no route can have (501): anybody could make up more of them than metrics have room for."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or answer."""
        if scope["type"] == "http" and scope["method"] not in METHODS:
            refusal = problem(501, "Not implemented", f"there is no method {scope['method'][:32]!r} here")
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)
