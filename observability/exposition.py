"""What a scrape gets, and a server for it, and for what is set while a process runs, whose thread is not the API's."""

import logging
import socket
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from observability.declared import Declarations
from observability.encoding import Encoder
from observability.logs import set_level

log = logging.getLogger("safelight.metrics")

DEBUG = "/debug/"
MAX_WORD_BYTES = 500
IDLE_SECONDS = 120.0  # a connection without requests is closed
SCRAPE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


def bracketed(host: str) -> str:
    """`host` as part of a URL."""
    return f"[{host}]" if ":" in host else host


class Exposition:
    """Writes the metrics of a registry, and two about that: they tell of the scrapes before."""

    def __init__(self, registry: CollectorRegistry, clock: Callable[[], float] = time.perf_counter) -> None:
        self._registry = registry
        self._clock = clock
        self._encoder = Encoder()
        make = Declarations(registry)
        self._seconds = make.histogram("scrape_duration_seconds", "Time to write all metrics.", SCRAPE_SECONDS)
        self._series = make.gauge("scrape_series", "Series in the last scrape.")
        self.declared = tuple(make.declared)

    def render(self, accept: str) -> tuple[bytes, str]:
        """All metrics and their content type: text or OpenMetrics, as the Accept header asks."""
        began = self._clock()
        _, content_type = choose_encoder(accept)
        encode = self._encoder.openmetrics if "openmetrics" in content_type else self._encoder.text
        metrics = list(self._registry.collect())
        text = encode(metrics)
        self._series.set(sum(len(each.samples) for each in metrics))
        self._seconds.observe(self._clock() - began)
        return text, content_type


Put = Callable[[str], None]
"""Takes a value in one word, or raises `ValueError` that says what would do."""


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        log.warning("a scrape was not answered", exc_info=sys.exception())


class _Server6(_Server):
    address_family = socket.AF_INET6


LOG_LEVEL: Mapping[str, Put] = {"log-level": set_level}


class MetricsServer:
    """`GET /metrics`, and `PUT /debug/NAME` for each of `settable`, on a port of their own.

    Each connection has its own thread, and none of them is the event loop's. Raises `OSError` when the address cannot
    be used.
    """

    def __init__(self, exposition: Exposition, host: str, port: int, settable: Mapping[str, Put] = LOG_LEVEL) -> None:
        server = _Server6 if ":" in host else _Server
        self._server = server((host, port), partial(_Handler, exposition, settable))
        self.port: int = self._server.server_port
        Thread(target=self._server.serve_forever, name="safelight-metrics", daemon=True).start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    """The requests of one connection, which is kept open: Prometheus comes again."""

    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS
    disable_nagle_algorithm = True

    def __init__(self, exposition: Exposition, settable: Mapping[str, Put], *args: Any) -> None:
        self._exposition = exposition
        self._settable = settable
        super().__init__(*args)

    def do_GET(self) -> None:
        self.close_connection |= "Content-Length" in self.headers or "Transfer-Encoding" in self.headers  # not read
        if self._path != "/metrics":
            self._not_found()
            return
        self._answer(200, *self._exposition.render(self.headers.get("Accept", "")))

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        """Set what the path names to the body, which is one word."""
        word = self._word()
        name = self._path.removeprefix(DEBUG)
        put = self._settable.get(name) if self._path.startswith(DEBUG) else None
        if put is None:
            self._not_found()
            return
        try:
            if word is None:
                raise ValueError(f"must be one word of at most {MAX_WORD_BYTES} bytes")
            put(word)
        except ValueError as error:
            self._answer(400, f"{name} {error}\n".encode())
            return
        self._answer(200, f"{word}\n".encode())

    def _word(self) -> str | None:
        """The body; None of one that is too long, or as long as it likes."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or len(length) > 3 or int(length) > MAX_WORD_BYTES:
            self.close_connection = True  # what follows here is no request
            return None
        return self.rfile.read(int(length)).decode("ascii", "replace").strip()

    def _not_found(self) -> None:
        settable = "".join(f", PUT {DEBUG}{name}" for name in self._settable)
        self._answer(404, f"there are GET /metrics{settable}\n".encode())

    @property
    def _path(self) -> str:
        return self.path.partition("?")[0]

    def _answer(self, status: int, body: bytes, content_type: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class names it so
        """Say nothing: the log is for other requests."""
