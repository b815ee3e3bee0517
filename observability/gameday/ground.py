"""What causes act on: a stack, its users and a store of traces."""

import socketserver
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from observability.gameday.stack import Stack
from observability.gameday.traffic import Traffic


class Traces:
    """Stands for a store of traces: takes what is exported and forgets it; nothing is simulated on the way there."""

    class _Server(ThreadingHTTPServer):
        daemon_threads = True

    class _Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class names it so
            """Say nothing."""

    def __init__(self, port: int = 0) -> None:
        self._server: socketserver.BaseServer | None = None
        self.port = port
        self.start()

    def start(self) -> None:
        """Take them from now on."""
        server = self._Server(("127.0.0.1", self.port), self._Handler)
        self.port = server.server_port
        self._server = server
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Take no more."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


@dataclass(frozen=True, slots=True)
class Ground:
    """What causes act on."""

    stack: Stack
    traffic: Traffic
    traces: Traces


Cause = Callable[[Ground], AbstractContextManager[None]]
