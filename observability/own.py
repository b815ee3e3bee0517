"""Metrics of telemetry itself: what it could not take, keep or deliver."""

from prometheus_client import CollectorRegistry

from observability.declared import Declarations
from observability.labels import Consumer, SpanLoss


class OwnMetrics:
    """May be called from any thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        make = Declarations(registry)
        self._events = make.counter(
            "events_dropped_total", "Events that a consumer could not take.", {"consumer": Consumer}
        )
        self._exported = make.counter("spans_exported_total", "Spans that the collector took.")
        self._lost = make.counter(
            "spans_dropped_total",
            "Spans that were, or might have been, to be exported and were not.",
            {"reason": SpanLoss},
        )
        self._errors = make.counter("span_export_errors_total", "Exports that failed, of many spans each.")
        self.declared = tuple(make.declared)

    def event_dropped(self, consumer: Consumer) -> None:
        """A consumer raised an error."""
        self._events.labels(consumer).inc()

    def spans_exported(self, spans: int) -> None:
        """The collector took them."""
        self._exported.inc(spans)

    def spans_lost(self, reason: SpanLoss, spans: int) -> None:
        """So many will not be exported."""
        self._lost.labels(reason).inc(spans)
        if reason is SpanLoss.EXPORT_FAILED:
            self._errors.inc()
