"""Runs the application under uvicorn, and drains it before it stops."""

import asyncio
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Protocol

import click
import uvicorn
from fastapi import FastAPI

from observability import logs
from observability.exposition import MetricsServer, bracketed
from service.errors import StartupError
from service.settings import Settings

GRACE_SECONDS = 5


class Servable(Protocol):
    """A service or a worker."""

    app: FastAPI
    metrics_server: MetricsServer | None

    async def drain(self) -> None:
        """Finish what runs, and take no more."""


class DrainingServer(uvicorn.Server):
    """The first SIGTERM or SIGINT drains the service, which goes on answering meanwhile; a second one stops at once."""

    service: Servable
    _draining: "asyncio.Task[None] | None" = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called in the main thread by the signal."""
        if self._draining is not None or not self.started:
            super().handle_exit(signal.SIGINT if self.should_exit else sig, frame)
            return
        self._draining = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        try:
            await self.service.drain()
        finally:
            self.should_exit = True


def serve(settings: Settings, make: Callable[[Settings, Callable[[str], None]], Servable], what: str) -> None:
    """Serve until told to stop. Raises `StartupError` when the model or the address cannot be used."""
    failures: list[str] = []

    def on_load_failed(detail: str) -> None:
        failures.append(detail)
        server.should_exit = True

    service = make(settings, on_load_failed)
    config = uvicorn.Config(
        service.app,
        loop="uvloop",
        log_config=logs.config(settings.log_level, settings.log_format),
        timeout_graceful_shutdown=GRACE_SECONDS,
        ws_ping_interval=20.0,
    )
    server = DrainingServer(config)
    server.service = service
    listener = _listen(settings)
    host, port = listener.getsockname()[:2]
    host = bracketed(host)
    click.echo(f"{what} listens on http://{host}:{port} (documentation: /docs)", err=True)
    if service.metrics_server is not None:
        click.echo(f"Its metrics are on http://{host}:{service.metrics_server.port}/metrics", err=True)
    server.run(sockets=[listener])
    if failures:
        raise StartupError(failures[0])


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise StartupError(
            f"SAFELIGHT_PORT, SAFELIGHT_HOST: cannot listen on {settings.host}:{settings.port}: {error.strerror}"
        ) from error
    return listener
