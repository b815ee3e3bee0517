"""Logs: JSON lines, or a readable style on a terminal; one line for the end of every request."""

import json
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import singledispatchmethod
from typing import Any

import structlog
from opentelemetry import trace
from opentelemetry.trace import SpanContext, format_span_id, format_trace_id

from observability import events
from observability.events import Event
from observability.labels import FAILURES, Outcome

LEVELS = ("debug", "info", "warning", "error")
OWN_LOGGERS = ("safelight", "uvicorn.access")
MAX_CHARACTERS = 1000  # of one value
QUIET_PATHS = ("/health/", "/metrics")

Entry = dict[str, Any]

JSON = json.JSONEncoder(default=repr)
OF_EVERY_RECORD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


class Lines(logging.Formatter):
    """One line a record: JSON, or what `render` makes of the fields. Those given as `extra` are fields too.

    Written out, since a chain of structlog's processors takes three times as long, and a request has two lines.
    """

    def __init__(self, render: Callable[[Entry], str] | None = None) -> None:
        super().__init__()
        self._render = render

    def format(self, record: logging.LogRecord) -> str:
        """See the class's words."""
        entry: Entry = {"event": "http request", "logger": record.name, "level": record.levelname.lower()}
        if record.name == "uvicorn.access" and isinstance(record.args, tuple) and len(record.args) == 5:
            entry["client"], entry["method"], entry["path"], _version, entry["status"] = record.args
        else:
            entry["event"] = record.getMessage()
        entry.update((name, value) for name, value in vars(record).items() if name not in OF_EVERY_RECORD)
        context = trace.get_current_span().get_span_context()
        if context.is_valid and "trace_id" not in entry:  # else it names the span that it is about
            entry["trace_id"] = format_trace_id(context.trace_id)
            entry["span_id"] = format_span_id(context.span_id)
        entry["timestamp"] = f"{datetime.fromtimestamp(record.created, UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
        for name, value in entry.items():
            if isinstance(value, str) and len(value) > MAX_CHARACTERS:
                entry[name] = f"{value[:MAX_CHARACTERS]}... ({len(value)} characters)"
        if self._render is not None:
            return self._render(entry | {"exc_info": record.exc_info})
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)  # as long as it is
        return JSON.encode(entry)


def _for_people() -> Lines:
    renderer = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
    )
    return Lines(lambda entry: str(renderer(None, "", entry)))


class Noise(logging.Filter):
    """Keeps requests of machines that look every few seconds out of the access log."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is to be written."""
        path = str(record.args[2]) if isinstance(record.args, tuple) and len(record.args) > 2 else ""
        return not path.startswith(QUIET_PATHS)


def config(level: str, style: str = "auto") -> dict[str, Any]:
    """For `logging.config.dictConfig`: every logger writes to standard error, in `style` json or console.

    `auto` is console on a terminal. What no line tells is not found out for each: it costs more than a line.
    """
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    is_console = style == "console" or (style == "auto" and sys.stderr.isatty())
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": _for_people if is_console else Lines}},
        "filters": {"noise": {"()": Noise}},
        "handlers": {
            "stderr": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stderr"},
        },
        "loggers": {
            "safelight": {"level": level.upper()},
            "uvicorn": {"level": "WARNING"},
            "uvicorn.access": {"level": level.upper(), "filters": ["noise"]},
        },
        "root": {"handlers": ["stderr"], "level": "WARNING"},
    }


def set_level(level: str) -> None:
    """From now on, of the service's own loggers. Raises `ValueError` for a level that there is not."""
    level = level.lower()
    if level not in LEVELS:
        raise ValueError(f"must be one of {', '.join(LEVELS)}")
    for name in OWN_LOGGERS:
        logging.getLogger(name).setLevel(level.upper())


class RequestLog:
    """The observer that writes a line when a request ends. `context_of` finds a request's span by its id.

    Prompts are told only if asked for.
    """

    def __init__(self, context_of: Callable[[str | None], SpanContext | None], with_prompts: bool = False) -> None:
        self._context_of = context_of
        self._with_prompts = with_prompts
        self._log = logging.getLogger("safelight.requests")

    @singledispatchmethod
    def observe(self, event: Event) -> None:
        """Take one event; most write nothing."""

    @observe.register
    def _(self, event: events.RequestRejected) -> None:
        fields = {"outcome": Outcome.REJECTED.value, "reason": event.reason.value, "source": event.source.value}
        self._log.warning("request rejected", extra=fields)

    @observe.register
    def _(self, event: events.RequestFinished) -> None:
        asked = event.request
        fields: dict[str, object] = {
            "request": asked.id,
            "flight": event.flight,
            "outcome": event.outcome.value,
            "reason": event.reason.value,
            "source": asked.source.value,
            "priority": asked.priority.value,
            "work_class": asked.work_class.value,
            "images": asked.images,
            "width": asked.width,
            "height": asked.height,
            "steps": asked.steps,
            "cached": event.cached,
            "seconds": round(event.seconds, 4),
            "steps_done": event.steps_done,
            "batch_seconds": round(event.batch_seconds, 4),
            "paid_seconds": round(event.paid_seconds, 4),
            "timings": {stage.value: round(seconds, 4) for stage, seconds in event.timings.items()},
        }
        if event.detail is not None:
            fields["detail"] = event.detail
        if self._with_prompts:
            fields["prompt"] = asked.prompt
        if (context := self._context_of(asked.id)) is not None:
            fields["trace_id"] = format_trace_id(context.trace_id)
            fields["span_id"] = format_span_id(context.span_id)
        level = logging.WARNING if event.outcome in FAILURES else logging.INFO
        self._log.log(level, "request %s", event.outcome.value, extra=fields)
