"""Which traces leave the process: decided when nothing of one is open here any more, so that errors and slow ones do.

Everything is recorded. What is kept waits in a bounded queue for a thread that exports it; nothing else ever waits.
"""

import logging
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

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
BATCH_SECONDS = 5.0  # as the SDK has it
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
    """Hands spans to an exporter from a thread of its own. What it cannot take or deliver is lost, and told of.

    The thread looks every `seconds`, or as soon as a batch is full: to wake it for each span costs more than that.
    """

    def __init__(
        self,
        exporter: SpanExporter,
        on_exported: OnSpans,
        on_lost: OnLost,
        max_spans: int = MAX_QUEUED_SPANS,
        seconds: float = BATCH_SECONDS,
    ) -> None:
        self._exporter = exporter
        self._on_exported = on_exported
        self._on_lost = on_lost
        self._max_spans = max_spans
        self._seconds = seconds
        self._waiting: deque[ReadableSpan] = deque()
        self._wake = threading.Event()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="safelight-traces", daemon=True)
        self._thread.start()

    def put(self, spans: Sequence[ReadableSpan]) -> None:
        """Take what there is room for. For one thread at a time."""
        room = max(0, self._max_spans - len(self._waiting))
        self._waiting.extend(spans[:room])
        if len(spans) > room:
            self._on_lost(SpanLoss.QUEUE_FULL, len(spans) - room)
        if len(self._waiting) >= BATCH_SPANS:
            self._wake.set()

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Deliver what waits, if that can be done within `seconds`."""
        self._is_stopping = True
        self._wake.set()
        self._thread.join(seconds)
        self._exporter.shutdown()
        if self._thread.is_alive():
            left = len(self._waiting)
            self._on_lost(SpanLoss.QUEUE_FULL, left)
            log.warning("leaving without about %d spans that the collector has not taken", left)

    def _run(self) -> None:
        is_over = False
        while not is_over:
            self._wake.wait(self._seconds)
            self._wake.clear()
            is_over = self._is_stopping
            while self._waiting:
                self._export([self._waiting.popleft() for _ in range(min(BATCH_SPANS, len(self._waiting)))])

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
            self._keep(span)
            self._open[trace_id] -= 1
            if self._open[trace_id] <= 0:
                del self._open[trace_id]
                self._close(trace_id)

    def take(self, span: ReadableSpan) -> None:
        """One that was never open here, of a trace that is."""
        with self._lock:
            self._keep(span)

    def _keep(self, span: ReadableSpan) -> None:
        self._ended.setdefault(_context(span).trace_id, []).append(span)
        self._buffered += 1
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
