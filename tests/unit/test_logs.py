"""Log lines are JSON objects with bounded values, or readable ones; one tells of the end of a request."""

import json
import logging
import logging.config
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.trace import SpanContext, TraceFlags, use_span

from observability import logs
from observability.events import RequestRejected
from observability.labels import Outcome, Reason, Source, Stage
from observability.propagation import new_provider
from tests.support import build

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CONTEXT = SpanContext(int(TRACE_ID, 16), int(SPAN_ID, 16), is_remote=False, trace_flags=TraceFlags(1))


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The loggers as they were, afterwards."""
    names = ("safelight", "uvicorn", "uvicorn.access", "")
    before = {name: (logging.getLogger(name).level, list(logging.getLogger(name).handlers)) for name in names}
    yield
    for name, (level, handlers) in before.items():
        logging.getLogger(name).setLevel(level)
        logging.getLogger(name).handlers = handlers
    logging.getLogger("uvicorn.access").filters.clear()


def written(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The lines so far, as JSON."""
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_is_a_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    """With level, logger, time and what else was given; no value is too long."""
    logging.config.dictConfig(logs.config("info", "json"))
    logging.getLogger("safelight.jobs").info("%d jobs", 3, extra={"why": "x" * 5000})
    logging.getLogger("safelight.jobs").debug("not told")
    (line,) = written(capsys)
    assert (line["event"], line["level"], line["logger"]) == ("3 jobs", "info", "safelight.jobs")
    assert line["timestamp"].endswith("Z")
    assert line["why"] == "x" * 1000 + "... (5000 characters)"


def test_an_error_has_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    """Within the same line."""
    logging.config.dictConfig(logs.config("info", "json"))
    try:
        raise OSError("disk full")
    except OSError:
        logging.getLogger("safelight.jobs").exception("not stored")
    (line,) = written(capsys)
    assert "OSError: disk full" in line["exception"]


def test_console_style_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    """Not JSON."""
    logging.config.dictConfig(logs.config("info", "console"))
    logging.getLogger("safelight").warning("look out", extra={"why": "smoke"})
    text = capsys.readouterr().err
    assert "look out" in text
    assert "why=smoke" in text
    assert not text.startswith("{")


def test_a_line_names_the_span_in_which_it_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    """Outside of one it has no ids."""
    logging.config.dictConfig(logs.config("info", "json"))
    span = new_provider([]).get_tracer("test").start_span("work")
    with use_span(span):
        logging.getLogger("safelight").info("inside")
    logging.getLogger("safelight").info("outside")
    inside, outside = written(capsys)
    assert int(inside["trace_id"], 16) == span.get_span_context().trace_id
    assert "trace_id" not in outside


def test_requests_of_machines_are_kept_out_of_the_access_log(capsys: pytest.CaptureFixture[str]) -> None:
    """Others are told field by field."""
    logging.config.dictConfig(logs.config("info", "json"))
    access = logging.getLogger("uvicorn.access")
    for path in ("/health/live", "/metrics", "/generate?wait=1"):
        access.info('%s - "%s %s HTTP/%s" %d', "127.0.0.1:1", "POST", path, "1.1", 202)
    (line,) = written(capsys)
    assert (line["event"], line["method"], line["path"], line["status"]) == (
        "http request",
        "POST",
        "/generate?wait=1",
        202,
    )


def test_the_level_can_be_changed(capsys: pytest.CaptureFixture[str]) -> None:
    """To one that there is."""
    logging.config.dictConfig(logs.config("warning", "json"))
    logging.getLogger("safelight").info("before")
    logs.set_level("info")
    logging.getLogger("safelight").info("after")
    assert [line["event"] for line in written(capsys)] == ["after"]
    with pytest.raises(ValueError, match="debug, info, warning, error"):
        logs.set_level("loud")


@pytest.mark.parametrize("with_prompts", [True, False])
def test_the_end_of_a_request_is_one_line(capsys: pytest.CaptureFixture[str], with_prompts: bool) -> None:
    """With its stages and the ids of its trace, and the prompt only if asked for."""
    logging.config.dictConfig(logs.config("info", "json"))
    log = logs.RequestLog(lambda request: CONTEXT if request == "a" else None, with_prompts)
    log.observe(build.finished("a", timings={Stage.DENOISE: 1.23456}, flight="f", batch_seconds=0.5, paid_seconds=0.0))
    (line,) = written(capsys)
    assert (line["request"], line["flight"]) == ("a", "f")
    assert (line["batch_seconds"], line["paid_seconds"]) == (0.5, 0.0)
    assert (line["outcome"], line["reason"], line["level"]) == ("completed", "none", "info")
    assert line["timings"] == {"denoise": 1.2346}
    assert (line["trace_id"], line["span_id"]) == (TRACE_ID, SPAN_ID)
    assert ("prompt" in line) is with_prompts


def test_a_failure_is_a_warning_with_its_detail(capsys: pytest.CaptureFixture[str]) -> None:
    """So is a refusal."""
    logging.config.dictConfig(logs.config("info", "json"))
    log = logs.RequestLog(lambda _request: None)
    log.observe(build.finished("a", Outcome.FAILED, reason=Reason.MODEL_ERROR, detail="it broke"))
    log.observe(RequestRejected(Reason.QUEUE_FULL, Source.USER))
    failed, rejected = written(capsys)
    assert (failed["level"], failed["detail"], failed["reason"]) == ("warning", "it broke", "model_error")
    assert (rejected["level"], rejected["outcome"], rejected["reason"]) == ("warning", "rejected", "queue_full")
