"""Spans are made from events: one of each request with its stages, one of each batch run, linked both ways."""

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode, format_span_id, format_trace_id

from observability import events
from observability.labels import Batching, CacheResult, Outcome, Reason, Stage
from observability.propagation import MAX_LINKS, MAX_RUN_STEPS, new_provider
from observability.sampling import Policy
from observability.tracing import Tracing
from tests.support import build

SECOND = 1_000_000_000
TIMINGS = {Stage.QUEUE_WAIT: 1.0, Stage.TEXT_ENCODE: 0.5, Stage.DENOISE: 4.0, Stage.VAE_DECODE: 0.25, Stage.STORE: 0.1}
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Bench:
    """Tracing with a clock that stands until it is moved."""

    def __init__(self, policy: Policy | None = None, with_prompts: bool = False) -> None:
        self.memory = InMemorySpanExporter()
        self.now = 1000 * SECOND
        processor = SimpleSpanProcessor(self.memory)
        provider = new_provider([processor])
        self.tracing = Tracing(provider, policy, with_prompts, processor.on_end, now=lambda: self.now)

    def accept(self, name: str, flight: str | None = None, traceparent: str | None = None) -> None:
        """A request that took 0.1 s to record, of which 0.05 to look into the cache."""
        request = build.request(name, prompt=f"prompt of {name}")
        looked = (0.1, 0.05, CacheResult.MISS)
        self.tracing.observe(events.RequestAccepted(request, flight or name, *looked, traceparent))

    def step(self, *flights: str) -> None:
        """A step of 0.2 s that all of them share."""
        self.now += SECOND // 5
        self.tracing.observe(build.step(*((each, 0) for each in flights)))

    def finish(self, name: str, outcome: Outcome = Outcome.COMPLETED, **changes: object) -> None:
        """The end of a request."""
        self.tracing.observe(build.finished(name, outcome, **changes))

    def spans(self, name: str) -> list[ReadableSpan]:
        """Ended ones of that name."""
        return [each for each in self.memory.get_finished_spans() if each.name == name]


@pytest.fixture
def bench() -> Bench:
    """One without prompts or export."""
    return Bench()


def span_id(span: ReadableSpan) -> int:
    """The span's own id."""
    context = span.get_span_context()
    assert context is not None
    return context.span_id


def times(span: ReadableSpan) -> tuple[float, float]:
    """Its beginning and end in seconds."""
    return (span.start_time or 0) / SECOND, (span.end_time or 0) / SECOND


def test_a_request_that_goes_on_elsewhere_leaves_a_span_without_an_end(bench: Bench) -> None:
    """Neither well nor ill; a batch that was for it alone is over."""
    bench.accept("a")
    bench.step("a")
    bench.tracing.observe(events.RequestLeft("a"))
    bench.tracing.observe(events.RequestLeft("unknown"))
    (root,) = bench.spans("request")
    assert [each.name for each in root.events] == ["left"]
    assert root.status.status_code is StatusCode.UNSET
    assert len(bench.spans("batch")) == 1


def test_a_request_has_a_span_with_one_for_each_stage(bench: Bench) -> None:
    """The queue from acceptance on, the steps as seen, what came after backwards from the end."""
    bench.accept("a")
    bench.now += 2 * SECOND
    bench.step("a")
    bench.now += 3 * SECOND
    bench.step("a")
    bench.now = 1010 * SECOND
    bench.finish("a", timings=TIMINGS)
    (root,) = bench.spans("request")
    found = {each.name: times(each) for each in bench.memory.get_finished_spans() if each.name != "batch"}
    assert found == {
        "request": pytest.approx((999.9, 1010.0)),
        "cache": pytest.approx((999.9, 999.95)),
        "queue_wait": pytest.approx((1000.0, 1001.0)),
        "text_encode": pytest.approx((1001.5, 1002.0)),
        "denoise": pytest.approx((1002.0, 1005.4)),
        "vae_decode": pytest.approx((1009.65, 1009.9)),
        "store": pytest.approx((1009.9, 1010.0)),
    }
    children = [each for each in bench.memory.get_finished_spans() if each.name not in {"request", "batch"}]
    assert all(each.parent is not None and each.parent.span_id == span_id(root) for each in children)


def test_a_request_goes_on_with_the_trace_of_its_client(bench: Bench) -> None:
    """As W3C's header tells it; without one, a trace begins."""
    bench.accept("a", traceparent=PARENT)
    bench.accept("b")
    bench.finish("a")
    bench.finish("b")
    with_parent, without = bench.spans("request")
    assert with_parent.context is not None
    assert format_trace_id(with_parent.context.trace_id) == PARENT.split("-")[1]
    assert with_parent.parent is not None
    assert format_span_id(with_parent.parent.span_id) == PARENT.split("-")[2]
    assert without.parent is None


@pytest.mark.parametrize("with_prompts", [True, False])
def test_prompts_are_told_only_if_asked_for(with_prompts: bool) -> None:
    """Nowhere in the span otherwise."""
    bench = Bench(with_prompts=with_prompts)
    bench.tracing.observe(events.EngineReady(Batching.CONTINUOUS, 8, 1.0, 0.5, {"name": "tiny"}))
    bench.accept("a")
    bench.finish("a")
    (root,) = bench.spans("request")
    assert ("prompt of a" in root.to_json()) is with_prompts
    attributes = root.attributes or {}
    assert attributes["gen_ai.request.model"] == "tiny"
    assert attributes["gen_ai.output.type"] == "image"
    assert attributes["safelight.outcome"] == "completed"


def test_a_batch_and_its_requests_are_linked_both_ways(bench: Bench) -> None:
    """From the first step that any of them made to the last; each step tells how many shared it.

    Also one that was called off; a step that nobody wants any more begins no batch.
    """
    for name in "abc":
        bench.accept(name)
    bench.step("a")
    bench.step("a", "b")
    bench.accept("d", flight="b")
    bench.step("a", "b")
    bench.now += SECOND
    bench.finish("a", Outcome.CANCELLED, reason=Reason.DISCONNECTED)
    for name in "bd":
        bench.finish(name, timings=TIMINGS)
    bench.step("a")
    bench.step("c")
    bench.finish("c", timings=TIMINGS)
    first, second = bench.spans("batch")
    assert [(each.attributes or {})["safelight.batch.size"] for each in first.events] == [1, 2, 2]
    assert times(first) == pytest.approx((1000.0, 1000.6))
    requests = {(each.attributes or {})["safelight.request.id"]: each for each in bench.spans("request")}
    assert {link.context.span_id for link in first.links} == {span_id(requests[name]) for name in "abd"}
    assert {link.context.span_id for link in second.links} == {span_id(requests["c"])}
    denoised = {each.parent.span_id: each for each in bench.spans("denoise") if each.parent is not None}
    for name, batch in (("a", first), ("b", first), ("d", first), ("c", second)):
        links = denoised[span_id(requests[name])].links
        assert [link.context.span_id for link in links] == [span_id(batch)]
    assert first.parent is None


def test_sizes_have_runs_of_their_own(bench: Bench) -> None:
    """They share no step."""
    bench.accept("a")
    bench.accept("b")
    bench.step("a")
    bench.tracing.observe(build.step(("b", 0), size=(128, 64)))
    bench.finish("a")
    assert [(each.attributes or {})["safelight.width"] for each in bench.spans("batch")] == [64]
    bench.finish("b")
    assert [(each.attributes or {})["safelight.width"] for each in bench.spans("batch")] == [64, 128]


def test_a_batch_that_never_ends_is_told_in_parts(bench: Bench) -> None:
    """A request in two of them is linked with both; no step is missing."""
    bench.accept("a")
    for _ in range(MAX_RUN_STEPS + 5):
        bench.step("a")
    assert [len(each.events) for each in bench.spans("batch")] == [MAX_RUN_STEPS]
    bench.finish("a", timings=TIMINGS)
    assert [len(each.events) for each in bench.spans("batch")] == [MAX_RUN_STEPS, 5]
    (denoise,) = bench.spans("denoise")
    assert len(denoise.links) == 2


def test_who_joins_late_has_only_what_came_after(bench: Bench) -> None:
    """The steps were made before; the id of the computation tells with whom it is shared."""
    bench.accept("a")
    bench.step("a")
    bench.now += SECOND
    bench.accept("b", flight="a")
    bench.now += SECOND // 20
    bench.finish("b", timings=TIMINGS)
    (late,) = bench.spans("request")
    children = {each.name for each in bench.memory.get_finished_spans() if each.parent is not None}
    assert children == {"cache", "queue_wait", "store"}
    assert (late.attributes or {})["safelight.flight"] == "a"


def test_a_service_that_stops_ends_its_spans(bench: Bench) -> None:
    """So that what was sent can be exported; the rest is told by the next process."""
    bench.accept("a", traceparent=PARENT)
    bench.step("a")
    bench.tracing.observe(events.ServiceStopped())
    (request,) = bench.spans("request")
    assert [each.name for each in request.events] == ["service_stopped"]
    assert len(bench.spans("batch")) == 1
    bench.finish("a")
    assert len(bench.spans("request")) == 1


def test_a_failure_is_an_error_with_its_reason(bench: Bench) -> None:
    """Its steps and its batch are told all the same. A cancelled request is none."""
    bench.accept("a")
    bench.accept("b")
    bench.step("a")
    bench.finish("a", Outcome.FAILED, reason=Reason.OUT_OF_MEMORY, detail="it did not fit")
    bench.finish("b", Outcome.CANCELLED, reason=Reason.DISCONNECTED)
    failed, cancelled = bench.spans("request")
    assert (failed.status.status_code, failed.status.description) == (StatusCode.ERROR, "it did not fit")
    assert (failed.attributes or {})["error.type"] == "out_of_memory"
    assert cancelled.status.status_code is StatusCode.UNSET
    (batch,) = bench.spans("batch")
    (denoise,) = bench.spans("denoise")
    assert [link.context.span_id for link in denoise.links] == [span_id(batch)]


def test_a_lost_engine_ends_its_batches(bench: Bench) -> None:
    """Splits of memory before that are told too."""
    bench.accept("a")
    bench.step("a")
    bench.tracing.observe(events.OutOfMemorySplit(Stage.DENOISE, (64, 64), 1))
    bench.tracing.observe(events.EngineLost())
    (batch,) = bench.spans("batch")
    assert [each.name for each in batch.events] == ["step", "out_of_memory"]
    assert batch.status.status_code is StatusCode.ERROR
    bench.now += 60 * SECOND
    again = bench.now / SECOND
    bench.step("a")
    bench.finish("a")
    assert len(bench.spans("batch")) == 2
    (root,), (denoise,) = bench.spans("request"), bench.spans("denoise")
    assert [each.name for each in root.events] == ["engine_lost"]
    assert times(denoise) == pytest.approx((again, again + 0.2))


def test_a_job_of_an_earlier_process_has_waited_here_since_it_came(bench: Bench) -> None:
    """Not for all the time that it waited there."""
    bench.accept("a")
    bench.now += 2 * SECOND
    bench.step("a")
    bench.finish("a", timings={Stage.QUEUE_WAIT: 600.0, Stage.TEXT_ENCODE: 0.5})
    (waited,) = bench.spans("queue_wait")
    assert times(waited) == pytest.approx((1000.0, 1001.5))


def test_many_requests_of_one_batch_do_not_end_it_at_every_step(bench: Bench) -> None:
    """Their links are bounded; those that join later begin another when they are too many."""
    names = [f"r{n}" for n in range(MAX_LINKS + 50)]
    for name in names:
        bench.accept(name, flight="f")
    bench.step("f")
    bench.step("f")
    for n in range(MAX_LINKS):
        bench.accept(f"late{n}", flight="f")
    bench.step("f")
    bench.step("f")
    for name in (*names, *(f"late{n}" for n in range(MAX_LINKS))):
        bench.finish(name)
    first, second = bench.spans("batch")
    assert [(first.attributes or {})["safelight.batch.steps"], (second.attributes or {})["safelight.batch.steps"]] == [
        3,
        1,
    ]
    assert (len(first.links), len(second.links)) == (2 * MAX_LINKS, MAX_LINKS)


def test_an_exemplar_points_at_a_trace_that_will_be_exported() -> None:
    """Without export, at any; an unknown request has none."""
    free, choosy = Bench(), Bench(Policy(ratio=0.0, slow_seconds=30.0))
    for bench in (free, choosy):
        bench.accept("a", traceparent=PARENT)
    assert (free.tracing.exemplar("a") or {})["trace_id"] == PARENT.split("-")[1]
    assert choosy.tracing.exemplar("a", 1.0) is None
    assert choosy.tracing.exemplar("a", 30.0) is not None
    assert choosy.tracing.exemplar("a", 1.0, is_error=True) is not None
    assert free.tracing.exemplar("b") is None
    free.accept("joined", flight="gone")
    assert free.tracing.exemplar("gone") == free.tracing.exemplar("joined")
    assert free.tracing.exemplar(None) is None
    free.finish("a")
    assert free.tracing.context_of("a") is None
