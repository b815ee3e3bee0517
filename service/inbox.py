"""`safelight inbox`: the inbox of `observability.inbox` as a process of its own."""

import re
import shlex
import shutil
import socket
import sqlite3
from functools import partial
from pathlib import Path
from types import FrameType

import click
import uvicorn

from observability import logs
from observability.exposition import bracketed
from observability.inbox import deadman
from observability.inbox.app import build_app
from observability.inbox.core import Inbox, Options
from service.errors import StartupError

GRACE_SECONDS = 1
DAY_SECONDS = 86_400.0
PREFIX = "SAFELIGHT_INBOX_"


class _Server(uvicorn.Server):
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; uvicorn's own way would end the process by the same signal, as if something were wrong."""
        self.should_exit = True


def serve(
    *,
    host: str,
    port: int,
    data_dir: Path,
    runbooks: Path,
    watchdog_timeout: float,
    token_file: Path | None,
    on_missing_command: str | None,
    on_missing_url: str | None,
    retention_days: float,
) -> None:
    """Serve until told to stop. Raises `StartupError` when the address, a file or the command cannot be used."""
    calls: dict[str, deadman.Call] = {}
    if on_missing_command:
        calls["command"] = partial(deadman.run, _argv(on_missing_command))
    if on_missing_url:
        calls["URL"] = partial(deadman.post, _url(on_missing_url))
    options = Options(
        data_dir=data_dir,
        runbooks=runbooks,
        watchdog_timeout=watchdog_timeout,
        retention_seconds=retention_days * DAY_SECONDS,
        calls=calls,
        token=_token(token_file),
    )
    with _listen(host, port) as listener:
        app = build_app(_open(options))
        config = uvicorn.Config(app, log_config=logs.config("info"), timeout_graceful_shutdown=GRACE_SECONDS)
        bound, bound_port = listener.getsockname()[:2]
        click.echo(f"The alert inbox listens on http://{bracketed(bound)}:{bound_port}", err=True)
        _Server(config).run(sockets=[listener])


def _argv(command: str) -> list[str]:
    """The command in words. That it cannot be run is told now, not when it is needed."""
    try:
        argv = shlex.split(command)
    except ValueError as error:
        raise StartupError(f"{PREFIX}ON_MISSING_COMMAND: {error}") from error
    if not argv or shutil.which(argv[0]) is None:
        raise StartupError(f"{PREFIX}ON_MISSING_COMMAND: there is no program {' '.join(argv[:1])!r}")
    return argv


def _url(url: str) -> str:
    if not re.fullmatch(r"https?://[!-~]+", url):
        raise StartupError(f"{PREFIX}ON_MISSING_URL: must be a URL such as https://example.com/hook")
    return url


def _token(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        token = file.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise StartupError(f"{PREFIX}TOKEN_FILE: {str(file)!r} cannot be read: {error}") from error
    if not token:
        raise StartupError(f"{PREFIX}TOKEN_FILE: {str(file)!r} is empty")
    return token


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise StartupError(f"{PREFIX}PORT, {PREFIX}HOST: cannot listen: {error.strerror}") from error


def _open(options: Options) -> Inbox:
    try:
        return Inbox(options)
    except (OSError, sqlite3.Error) as error:
        raise StartupError(f"{PREFIX}DATA_DIR: {str(options.data_dir)!r} cannot be used: {error}") from error
