"""Trace context in and out: the provider of spans, those of HTTP requests, and the header `traceparent`."""

import os
from collections.abc import Mapping, Sequence

from fastapi import FastAPI
from opentelemetry.context import Context
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.instrumentation.propagators import ResponsePropagator, set_global_response_propagator
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.propagators.textmap import CarrierT, Setter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

MAX_RUN_STEPS = 100  # a batch run that goes on longer is told in parts
MAX_LINKS = 100  # and one of more requests
UNTRACED = "/health/,/metrics$"

PROPAGATOR = TraceContextTextMapPropagator()


def new_provider(processors: Sequence[SpanProcessor]) -> TracerProvider:
    """A provider whose spans are all recorded, or, if there is nobody to take them, have ids only, for logs.

    OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME say more of the process.
    """
    provider = TracerProvider(
        sampler=ALWAYS_ON if processors else ALWAYS_OFF,
        resource=Resource({"service.name": "safelight"}).merge(OTELResourceDetector().detect()),
        span_limits=SpanLimits(max_events=2 * MAX_RUN_STEPS, max_links=2 * MAX_LINKS),
        shutdown_on_exit=False,
    )
    for processor in processors:
        provider.add_span_processor(processor)
    return provider


class TraceparentInAnswer(ResponsePropagator):
    """Tells the client the W3C context of its request's span, in the header `traceparent`."""

    def inject(self, carrier: CarrierT, context: Context | None = None, setter: Setter[CarrierT] | None = None) -> None:
        """Into the ASGI message that begins an answer."""
        assert setter is not None, "given by the instrumentation"
        if isinstance(carrier, Mapping) and carrier.get("type") == "http.response.start":
            PROPAGATOR.inject(carrier, context, setter)


def instrument(app: FastAPI, provider: TracerProvider) -> None:
    """A span for every HTTP request but those of machines that look every few seconds."""
    os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http")  # the stable names
    set_global_response_propagator(TraceparentInAnswer())  # type: ignore[no-untyped-call]  # the library lacks them
    FastAPIInstrumentor.instrument_app(
        app,
        tracer_provider=provider,
        meter_provider=NoOpMeterProvider(),
        excluded_urls=UNTRACED,
        exclude_spans=["receive", "send"],
    )


def current_traceparent() -> str | None:
    """The W3C context of the span in which this code runs, or None outside of any."""
    carrier: dict[str, str] = {}
    PROPAGATOR.inject(carrier)
    return carrier.get("traceparent")
