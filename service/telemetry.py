"""What watches a process: traces, metrics and logs, made from the same events."""

from collections.abc import Mapping

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from prometheus_client import CollectorRegistry

from observability.labels import Consumer
from observability.logs import RequestLog
from observability.metering import Metrics
from observability.observer import FanOut, Observer
from observability.own import OwnMetrics
from observability.propagation import new_provider
from observability.sampling import Outbox, Policy, TailSampling
from observability.slo import Samples
from observability.tracing import Tracing
from service.settings import Settings


class Telemetry:
    """The one observer of a process, and what stands behind it; `more` observe too."""

    def __init__(
        self, settings: Settings, registry: CollectorRegistry, more: Mapping[Consumer, Observer] | None = None
    ) -> None:
        own = OwnMetrics(registry)
        policy, sampling = None, None
        if settings.otlp_endpoint is not None:
            policy = Policy(settings.trace_ratio, settings.trace_slow_seconds)
            exporter = OTLPSpanExporter(f"{settings.otlp_endpoint}/v1/traces")
            outbox = Outbox(exporter, own.spans_exported, own.spans_lost)
            sampling = TailSampling(policy, outbox, own.spans_lost)
        self.provider = new_provider([] if sampling is None else [sampling])
        take = None if sampling is None else sampling.take
        tracing = Tracing(self.provider, policy, settings.record_prompts, take)
        self._metrics = Metrics(registry, tracing.exemplar)
        consumers: dict[Consumer, Observer] = {
            Consumer.LOGS: RequestLog(tracing.context_of, settings.record_prompts),
            Consumer.METRICS: self._metrics,
            Consumer.TRACES: tracing,  # last: the others ask it for ids
            **(more or {}),
        }
        self.observer = FanOut(consumers, own.event_dropped)

    def indicators(self) -> Samples:
        """What objectives are read from."""
        return Samples(self._metrics.indicators())
