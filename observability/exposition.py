"""What a scrape gets, and a server for it, and for the log's level, whose thread is not the API's."""

import socket
import time
from collections.abc import Callable, Iterable, Mapping
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import ThreadingWSGIServer, choose_encoder

from observability.declared import Declarations
from observability.logs import set_level

MAX_LEVEL_BYTES = 100
SCRAPE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

StartResponse = Callable[[str, list[tuple[str, str]]], object]


def bracketed(host: str) -> str:
    """`host` as part of a URL."""
    return f"[{host}]" if ":" in host else host


class Exposition:
    """Writes the metrics of a registry, and two about that: they tell of the scrapes before."""

    def __init__(self, registry: CollectorRegistry, clock: Callable[[], float] = time.perf_counter) -> None:
        self._registry = registry
        self._clock = clock
        make = Declarations(registry)
        self._seconds = make.histogram("scrape_duration_seconds", "Time to write all metrics.", SCRAPE_SECONDS)
        self._series = make.gauge("scrape_series", "Series in the last scrape.")
        self.declared = tuple(make.declared)

    def render(self, accept: str) -> tuple[bytes, str]:
        """All metrics and their content type: text or OpenMetrics, as the Accept header asks."""
        began = self._clock()
        encoder, content_type = choose_encoder(accept)
        text = encoder(self._registry)
        self._series.set(sum(not line.startswith(b"#") for line in text.splitlines()))
        self._seconds.observe(self._clock() - began)
        return text, content_type


class _Handler(WSGIRequestHandler):
    """One that keeps its requests out of the log."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class names it so
        """Say nothing."""


class _Server6(ThreadingWSGIServer):
    address_family = socket.AF_INET6


class MetricsServer:
    """`GET /metrics` and `PUT /debug/log-level` on a port of their own.

    Each request has its own thread, and none of them is the event loop's. `on_level` is told a new level of the log.
    Raises `OSError` when the address cannot be used.
    """

    def __init__(
        self, exposition: Exposition, host: str, port: int, on_level: Callable[[str], None] = lambda _level: None
    ) -> None:
        self._exposition = exposition
        self._on_level = on_level
        family = _Server6 if ":" in host else ThreadingWSGIServer
        self._server = make_server(host, port, self._answer, family, _Handler)
        self.port: int = self._server.server_port
        Thread(target=self._server.serve_forever, name="safelight-metrics", daemon=True).start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        content_type = "text/plain; charset=utf-8"
        if path == "/metrics" and method in ("GET", "HEAD"):
            status = "200 OK"
            body, content_type = self._exposition.render(environ.get("HTTP_ACCEPT", ""))
        elif path == "/debug/log-level" and method == "PUT":
            status, body = self._set_log_level(environ)
        else:
            status, body = "404 Not Found", b"there are GET /metrics and PUT /debug/log-level\n"
        start_response(status, [("Content-Type", content_type), ("Content-Length", str(len(body)))])
        return [b"" if method == "HEAD" else body]

    def _set_log_level(self, environ: Mapping[str, Any]) -> tuple[str, bytes]:
        """As the body says, in one word."""
        length = environ.get("CONTENT_LENGTH") or "0"
        body = environ["wsgi.input"].read(min(int(length), MAX_LEVEL_BYTES)) if length.isdecimal() else b""
        level = body.decode("ascii", "replace").strip().lower()
        try:
            set_level(level)
        except ValueError as error:
            return "400 Bad Request", f"the level {error}\n".encode()
        self._on_level(level)
        return "200 OK", f"{level}\n".encode()
