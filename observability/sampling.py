"""Which traces leave the process: decided when nothing of one is open here any more, so that errors and slow ones do.

Everything is recorded. What is kept waits in a bounded queue for a thread that exports it; nothing else ever waits.
"""

import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, Full, Queue

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanContext, StatusCode

from observability.labels import SpanLoss

log = logging.getLogger("safelight.traces")

MAX_BUFFERED_SPANS = 20_000  # of traces that are not over
MAX_DECISIONS = 10_000
MAX_WAITING_BATCHES = 1_000
MAX_QUEUED_SPANS = 8_192
BATCH_SPANS = 512
BATCH_SECONDS = 1.0
STOP_SECONDS = 2.0
TRACE_ID_BITS = 64  # the lower ones of an id decide by the ratio, as in OpenTelemetry's own sampler

OnSpans = Callable[[int], None]
OnLost = Callable[[SpanLoss, int], None]


@dataclass(frozen=True, slots=True)
class Policy:
    """Export this share of traces, and every one with an error or a span of at least `slow_seconds`."""

    ratio: float
    slow_seconds: float

    def by_id(self, trace_id: int) -> bool:
        """Whether the ratio alone keeps the trace; the same for all its parts, in every process."""
        return (trace_id & ((1 << TRACE_ID_BITS) - 1)) < round(self.ratio * (1 << TRACE_ID_BITS))

    def keeps(self, trace_id: int, is_error: bool, seconds: float) -> bool:
        """Whether a trace is exported that has such a span."""
        return is_error or seconds >= self.slow_seconds or self.by_id(trace_id)


def _context(span: ReadableSpan) -> SpanContext:
    context = span.get_span_context()
    assert context is not None, "a span of the SDK"
    return context


def _is_error(span: ReadableSpan) -> bool:
    return span.status.status_code is StatusCode.ERROR


class Outbox:
    """Hands spans to an exporter from a thread of its own. What it cannot take or deliver is lost, and told of."""

    def __init__(
        self, exporter: SpanExporter, on_exported: OnSpans, on_lost: OnLost, max_spans: int = MAX_QUEUED_SPANS
    ) -> None:
        self._exporter = exporter
        self._on_exported = on_exported
        self._on_lost = on_lost
        self._queue: Queue[ReadableSpan | None] = Queue(max_spans)
        self._thread = threading.Thread(target=self._run, name="safelight-traces", daemon=True)
        self._thread.start()

    def put(self, spans: Iterable[ReadableSpan]) -> None:
        """Take what there is room for."""
        for span in spans:
            try:
                self._queue.put_nowait(span)
            except Full:
                self._on_lost(SpanLoss.QUEUE_FULL, 1)

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Deliver what waits, if that can be done within `seconds`."""
        try:
            self._queue.put(None, timeout=seconds / 2)
        except Full:
            log.debug("the queue stays full")
        self._thread.join(seconds / 2)
        self._exporter.shutdown()
        if self._thread.is_alive():
            left = self._queue.qsize()
            self._on_lost(SpanLoss.QUEUE_FULL, left)
            log.warning("leaving without about %d spans that the collector has not taken", left)

    def _run(self) -> None:
        is_over = False
        while not is_over:
            batch, is_over = self._batch()
            if batch:
                self._export(batch)

    def _batch(self) -> tuple[list[ReadableSpan], bool]:
        """What comes within `BATCH_SECONDS` of the next span, and whether it is the last."""
        batch = [self._queue.get()]
        until = time.monotonic() + BATCH_SECONDS
        with suppress(Empty):
            while batch[-1] is not None and len(batch) < BATCH_SPANS:
                batch.append(self._queue.get(timeout=max(0.0, until - time.monotonic())))
        return [span for span in batch if span is not None], batch[-1] is None

    def _export(self, batch: Sequence[ReadableSpan]) -> None:
        try:
            is_delivered = self._exporter.export(batch) is SpanExportResult.SUCCESS
        except Exception:
            log.exception("the exporter of traces failed")
            is_delivered = False
        if is_delivered:
            self._on_exported(len(batch))
        else:
            self._on_lost(SpanLoss.EXPORT_FAILED, len(batch))


@dataclass(slots=True)
class _Batch:
    """Spans of a batch run, which is exported with the first of its requests that is."""

    spans: list[ReadableSpan]
    undecided: set[int]


class TailSampling(SpanProcessor):
    """Collects the spans of each trace until none of them is open, then exports or forgets them.

    A trace whose root has links is that of a batch run: it goes where the traces go that it is linked to.
    """

    def __init__(self, policy: Policy, outbox: Outbox, on_lost: OnLost, max_spans: int = MAX_BUFFERED_SPANS) -> None:
        self._policy = policy
        self._outbox = outbox
        self._on_lost = on_lost
        self._max_spans = max_spans
        self._lock = threading.Lock()
        self._open: Counter[int] = Counter()  # spans, by trace
        self._ended: OrderedDict[int, list[ReadableSpan]] = OrderedDict()
        self._buffered = 0
        self._decisions: OrderedDict[int, bool] = OrderedDict()
        self._batches: list[_Batch] = []

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """A span is open."""
        with self._lock:
            self._open[_context(span).trace_id] += 1

    def on_end(self, span: ReadableSpan) -> None:
        """It is no more; with the last one of its trace, the trace is decided."""
        trace_id = _context(span).trace_id
        with self._lock:
            self._ended.setdefault(trace_id, []).append(span)
            self._buffered += 1
            self._open[trace_id] -= 1
            if self._open[trace_id] <= 0:
                del self._open[trace_id]
                self._close(trace_id)
            while self._buffered > self._max_spans:
                self._lose(self._ended.popitem(last=False)[1])

    def _lose(self, spans: Sequence[ReadableSpan]) -> None:
        self._buffered -= len(spans)
        self._on_lost(SpanLoss.BUFFER_FULL, len(spans))

    def _close(self, trace_id: int) -> None:
        spans = self._ended.pop(trace_id, [])
        links = {link.context.trace_id for span in spans if span.parent is None for link in span.links}
        if links:
            self._close_batch(_Batch(spans, {each for each in links if each in self._open}), links)
            return
        self._buffered -= len(spans)
        is_kept = self._decisions.get(trace_id, False) or any(self._is_reason(span) for span in spans)
        if is_kept:
            self._outbox.put(spans)
        self._decisions[trace_id] = is_kept
        while len(self._decisions) > MAX_DECISIONS:
            self._decisions.popitem(last=False)
        for batch in [each for each in self._batches if trace_id in each.undecided]:
            batch.undecided.discard(trace_id)
            if is_kept or not batch.undecided:
                self._batches.remove(batch)
                self._settle(batch, is_kept)

    def _is_reason(self, span: ReadableSpan) -> bool:
        seconds = ((span.end_time or 0) - (span.start_time or 0)) / 1e9
        return self._policy.keeps(_context(span).trace_id, _is_error(span), seconds)

    def _close_batch(self, batch: _Batch, links: Iterable[int]) -> None:
        is_kept = any(self._decisions.get(each, False) for each in links) or any(map(_is_error, batch.spans))
        if is_kept or not batch.undecided:
            self._settle(batch, is_kept)
            return
        self._batches.append(batch)
        if len(self._batches) > MAX_WAITING_BATCHES:
            self._lose(self._batches.pop(0).spans)

    def _settle(self, batch: _Batch, is_kept: bool) -> None:
        self._buffered -= len(batch.spans)
        if is_kept:
            self._outbox.put(batch.spans)

    def shutdown(self) -> None:
        """Deliver what was kept."""
        self._outbox.stop()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing to do: what is kept is on its way at once."""
        return True
