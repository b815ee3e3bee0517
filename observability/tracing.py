"""Spans from events: one for each request with its stages, one for each batch run, linked both ways.

Times are those at which this process was told; stages other than steps are durations that others measured.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import singledispatchmethod
from itertools import islice

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, Span, SpanContext, Status, StatusCode, format_span_id, format_trace_id

from observability import events
from observability.events import Event
from observability.labels import FAILURES, Outcome, Stage
from observability.propagation import MAX_LINKS, MAX_RUN_STEPS, PROPAGATOR
from observability.sampling import Policy

AFTER_STEPS = (Stage.VAE_DECODE, Stage.IMAGE_ENCODE, Stage.STORE)
NANOSECONDS = 1_000_000_000
SCOPE = InstrumentationScope("safelight")

Size = tuple[int, int]
Attributes = dict[str, str | int | float | bool]


@dataclass(slots=True)
class _Request:
    """A request that has not ended. Times are Unix times in nanoseconds; those of steps are 0 before the first."""

    span: Span
    accepted: int
    flight: str
    runs: dict[int, SpanContext] = field(default_factory=dict)  # of batches, by span id
    first_step: int = 0  # its beginning
    last_step: int = 0  # its end

    @property
    def context(self) -> SpanContext:
        return self.span.get_span_context()


@dataclass(slots=True)
class _Run:
    """A batch from the first step of a group of pictures to the last of those that joined meanwhile."""

    span: Span
    requests: set[str] = field(default_factory=set)  # that have not ended
    links: int = 0  # to requests that joined later
    steps: int = 0
    last_step: int = 0


class Tracing:
    """The observer that makes spans. Prompts are told only if asked for.

    `policy` is None when none are exported. `take` gets the spans of stages, which are over when they are made; without
    it, nobody would.
    """

    def __init__(
        self,
        provider: TracerProvider,
        policy: Policy | None = None,
        with_prompts: bool = False,
        take: Callable[[ReadableSpan], None] | None = None,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        self._tracer = provider.get_tracer(SCOPE.name)
        self._resource, self._ids = provider.resource, provider.id_generator
        self._take = take
        self._policy = policy
        self._with_prompts = with_prompts
        self._now = now
        self._requests: dict[str, _Request] = {}
        self._flights: dict[str, set[str]] = {}  # requests by the computation that they share
        self._runs: dict[Size, _Run] = {}
        self._model: Mapping[str, str] = {}

    def context_of(self, request: str | None) -> SpanContext | None:
        """Trace and span of a request that has not ended, or of one of those that share the computation of that id;
        without either, of the code that runs now.
        """
        if request is None:
            context = trace.get_current_span().get_span_context()
            return context if context.is_valid else None
        name = request if request in self._requests else next(iter(self._flights.get(request, ())), None)
        if name is None or not self._requests[name].context.is_valid:
            return None
        return self._requests[name].context

    def exemplar(self, request: str | None, seconds: float = 0.0, is_error: bool = False) -> dict[str, str] | None:
        """The ids of the trace of a request, if that will be exported because of what is told of it now."""
        context = self.context_of(request)
        if context is None or (self._policy and not self._policy.keeps(context.trace_id, is_error, seconds)):
            return None
        return {"trace_id": format_trace_id(context.trace_id), "span_id": format_span_id(context.span_id)}

    @singledispatchmethod
    def observe(self, event: Event) -> None:
        """Take one event; a kind that spans do not tell of is passed over."""

    @observe.register
    def _(self, event: events.EngineReady) -> None:
        self._model = event.model

    @observe.register
    def _(self, event: events.RequestAccepted) -> None:
        parent = PROPAGATOR.extract({} if event.traceparent is None else {"traceparent": event.traceparent}, Context())
        now = self._now()
        asked = event.request
        began = now - int(event.record_seconds * NANOSECONDS)
        span = self._tracer.start_span("request", parent, start_time=began)
        if span.is_recording():
            span.set_attributes({**self._attributes(asked), "safelight.flight": event.flight})
        if event.lookup is not None:
            ended = began + int(event.lookup_seconds * NANOSECONDS)
            self._child(span, "cache", began, ended, attributes={"safelight.cache.result": event.lookup.value})
        self._requests[asked.id] = _Request(span, now, event.flight)
        self._flights.setdefault(event.flight, set()).add(asked.id)

    def _attributes(self, asked: events.Request) -> Attributes:
        attributes: Attributes = {
            "gen_ai.operation.name": "generate_content",
            "gen_ai.output.type": "image",
            "gen_ai.request.choice.count": asked.images,
            "gen_ai.request.seed": asked.seed,
            "safelight.request.id": asked.id,
            "safelight.source": asked.source.value,
            "safelight.priority": asked.priority.value,
            "safelight.work_class": asked.work_class.value,
            "safelight.width": asked.width,
            "safelight.height": asked.height,
            "safelight.steps": asked.steps,
            "safelight.guidance_scale": asked.guidance_scale,
            "safelight.scheduler": asked.scheduler,
        }
        if "name" in self._model:
            attributes["gen_ai.request.model"] = self._model["name"]
        if self._with_prompts:
            attributes["safelight.prompt"] = asked.prompt
        return attributes

    # Batches

    @observe.register
    def _(self, event: events.BatchStepped) -> None:
        now = self._now()
        began = now - int(event.seconds * NANOSECONDS)
        present = {each for flight, _ in event.members for each in self._flights.get(flight, ())}
        if not present:
            return  # all have ended while they made it
        for each in present:
            request = self._requests[each]
            request.first_step, request.last_step = request.first_step or began, now
        run = self._runs.get(event.size)
        if run is not None and (run.steps >= MAX_RUN_STEPS or run.links >= MAX_LINKS):
            self._end_run(event.size)
            run = None
        if run is None:
            run = self._runs[event.size] = self._begin_run(event, present, began)
        for name in present - run.requests:
            self._link(run, name)
        run.steps += 1
        run.last_step = now
        attributes: Attributes = {
            "safelight.batch.size": event.requests,
            "safelight.batch.pictures": event.pictures,
            "safelight.batch.rows": event.rows,
            "safelight.batch.slots": event.slots,
            "safelight.step.seconds": event.seconds,
        }
        run.span.add_event("step", attributes, now)

    @observe.register
    def _(self, event: events.OutOfMemorySplit) -> None:
        if (run := self._runs.get(event.size)) is not None:
            attributes: Attributes = {
                "safelight.stage": event.stage.value,
                "safelight.batch.pictures_at_most": event.pictures,
            }
            run.span.add_event("out_of_memory", attributes, self._now())

    @observe.register
    def _(self, _event: events.EngineLost) -> None:
        for size in list(self._runs):
            self._runs[size].span.set_status(Status(StatusCode.ERROR, "the engine was lost"))
            self._end_run(size)
        for request in self._requests.values():
            if request.first_step:  # what was done is lost
                request.span.add_event("engine_lost", timestamp=self._now())
                request.first_step = request.last_step = 0

    def _begin_run(self, event: events.BatchStepped, requests: Iterable[str], began: int) -> _Run:
        width, height = event.size
        links = [Link(self._requests[each].context) for each in islice(requests, MAX_LINKS)]
        attributes: Attributes = {"safelight.width": width, "safelight.height": height}
        return _Run(self._tracer.start_span("batch", Context(), attributes=attributes, links=links, start_time=began))

    def _link(self, run: _Run, name: str) -> None:
        """Both ways; those that made the run's first step are linked from its start."""
        request = self._requests[name]
        context = run.span.get_span_context()
        request.runs[context.span_id] = context
        run.requests.add(name)
        if run.steps:
            run.links += 1
            run.span.add_link(request.context)

    def _end_run(self, size: Size) -> None:
        run = self._runs.pop(size)
        run.span.set_attribute("safelight.batch.steps", run.steps)
        run.span.end(run.last_step)

    # Ends

    @observe.register
    def _(self, _event: events.ServiceStopped) -> None:
        """What has not ended goes on in another process, below the same parent."""
        now = self._now()
        for size in list(self._runs):
            self._end_run(size)
        for request in self._requests.values():
            request.span.add_event("service_stopped", timestamp=now)
            request.span.end(now)
        self._requests.clear()
        self._flights.clear()

    @observe.register
    def _(self, event: events.RequestLeft) -> None:
        request = self._requests.get(event.request)
        if request is not None:
            now = self._now()
            self._leave(event.request, request.flight)
            request.span.add_event("left", timestamp=now)
            request.span.end(now)

    @observe.register
    def _(self, event: events.RequestFinished) -> None:
        request = self._requests.get(event.request.id)
        if request is None:
            return
        now = self._now()
        if request.span.is_recording():
            self._stages(request, event.timings, event.outcome is Outcome.COMPLETED, now)
            self._tell_end(request.span, event)
        self._leave(event.request.id, request.flight)
        request.span.end(now)

    def _tell_end(self, span: Span, event: events.RequestFinished) -> None:
        span.set_attributes(
            {
                "safelight.outcome": event.outcome.value,
                "safelight.reason": event.reason.value,
                "safelight.cached": event.cached,
                "safelight.steps_done": event.steps_done,
                "safelight.batch.seconds": event.batch_seconds,
            }
        )
        if event.outcome in FAILURES:
            span.set_attribute("error.type", event.reason.value)
            span.set_status(Status(StatusCode.ERROR, event.detail or event.reason.value))

    def _stages(self, request: _Request, timings: Mapping[Stage, float], is_complete: bool, now: int) -> None:
        """The queue from acceptance on; the steps as they were seen; the rest before them, and backwards from the end.

        One that joined a computation when its steps were made already has only what came after that.
        """
        nanoseconds = {stage: int(seconds * NANOSECONDS) for stage, seconds in timings.items()}
        encoded = max(request.accepted, (request.first_step or now) - nanoseconds.get(Stage.TEXT_ENCODE, 0))
        if Stage.QUEUE_WAIT in nanoseconds:  # of which an earlier process may have seen the beginning
            started = min(request.accepted + nanoseconds[Stage.QUEUE_WAIT], encoded)
            self._child(request.span, Stage.QUEUE_WAIT.value, request.accepted, started)
        if request.first_step:
            if Stage.TEXT_ENCODE in nanoseconds:
                self._child(request.span, Stage.TEXT_ENCODE.value, encoded, request.first_step)
            links = list(request.runs.values())
            self._child(request.span, Stage.DENOISE.value, request.first_step, request.last_step, links)
        ended, least = now, max(request.accepted, request.last_step)
        for stage in reversed(AFTER_STEPS) if is_complete else ():
            if stage in nanoseconds and ended >= least:
                began = max(least, ended - nanoseconds[stage])
                self._child(request.span, stage.value, began, ended)
                ended = ended - nanoseconds[stage]

    def _child(
        self,
        parent: Span,
        name: str,
        began: int,
        ended: int,
        links: Iterable[SpanContext] = (),
        attributes: Attributes | None = None,
    ) -> None:
        """Made as it is in the end: to begin and end it by the SDK takes several times as long."""
        if self._take is None:
            return
        above = parent.get_span_context()
        context = SpanContext(above.trace_id, self._ids.generate_span_id(), False, above.trace_flags)
        span = ReadableSpan(
            name,
            context,
            above,
            self._resource,
            attributes or {},
            links=[Link(each) for each in links],
            instrumentation_scope=SCOPE,
            start_time=began,
            end_time=ended,
        )
        self._take(span)

    def _leave(self, name: str, flight: str) -> None:
        """The request is over, and so may be the runs that it was in."""
        del self._requests[name]
        self._flights[flight].discard(name)
        if not self._flights[flight]:
            del self._flights[flight]
        for size, run in list(self._runs.items()):
            if name in run.requests:
                run.requests.discard(name)
                if not run.requests:
                    self._end_run(size)
