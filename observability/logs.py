"""Logs: JSON lines, or a readable style on a terminal; one line for the end of every request."""

import logging
import sys
from collections.abc import Callable, MutableMapping
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

Entry = MutableMapping[str, Any]

for each in ("logThreads", "logProcesses", "logMultiprocessing"):  # no line tells them, and each costs more than a line
    setattr(logging, each, False)


def add_trace(_logger: object, _method: str, entry: Entry) -> Entry:
    """The ids of the span in which the line is written, unless it names some."""
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        entry.setdefault("trace_id", format_trace_id(context.trace_id))
        entry.setdefault("span_id", format_span_id(context.span_id))
    return entry


def bound(_logger: object, _method: str, entry: Entry) -> Entry:
    """No value is longer than a line should be; a traceback is as long as it is."""
    for name, value in entry.items():
        if isinstance(value, str) and len(value) > MAX_CHARACTERS:
            entry[name] = f"{value[:MAX_CHARACTERS]}... ({len(value)} characters)"
    return entry


def add_access(_logger: object, _method: str, entry: Entry) -> Entry:
    """The fields of uvicorn's access log, which come as the arguments of a format."""
    arguments = entry.pop("positional_args", ())
    if entry["_record"].name == "uvicorn.access" and len(arguments) == 5:
        client, method, path, _version, status = arguments
        entry.update(event="http request", client=client, method=method, path=path, status=status)
    return entry


class Noise(logging.Filter):
    """Keeps requests of machines that look every few seconds out of the access log."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is to be written."""
        path = str(record.args[2]) if isinstance(record.args, tuple) and len(record.args) > 2 else ""
        return not path.startswith(QUIET_PATHS)


def config(level: str, style: str = "auto") -> dict[str, Any]:
    """For `logging.config.dictConfig`: every logger writes to standard error, in `style` json or console.

    `auto` is console on a terminal.
    """
    is_console = style == "console" or (style == "auto" and sys.stderr.isatty())
    before = [
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        add_access,
        add_trace,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Any] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta, bound]
    if is_console:
        last.append(
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
        )
    else:
        last += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    line = {
        "()": structlog.stdlib.ProcessorFormatter,
        "foreign_pre_chain": before,
        "processors": last,
        "pass_foreign_args": True,
    }
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": line},
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
