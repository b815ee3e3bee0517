"""Which traces are exported, decided at the end of each; nothing blocks, and what is lost is counted."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Tracer
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import Link, Span, SpanContext, StatusCode, set_span_in_context

from observability.labels import SpanLoss
from observability.propagation import new_provider
from observability.sampling import Outbox, Policy, TailSampling
from tests.support.server import until

SECOND = 1_000_000_000


class Collector(SpanExporter):
    """An exporter that keeps what it gets, once `gate` is open; `fails` says how."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.fails: Callable[[], SpanExportResult] = lambda: SpanExportResult.SUCCESS

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Take some spans."""
        self.entered.set()
        self.gate.wait()
        result = self.fails()
        if result is SpanExportResult.SUCCESS:
            self.spans += spans
        return result


class Bench:
    """A tracer whose spans go through the sampling to a collector."""

    def __init__(self, ratio: float = 0.0, max_spans: int = 1000, max_queued: int = 1000) -> None:
        self.collector = Collector()
        self.lost: Counter[SpanLoss] = Counter()
        self.exported = 0
        self.outbox = Outbox(self.collector, self._count, self._lose, max_queued, seconds=0.01)
        policy = Policy(ratio, slow_seconds=30.0)
        self.sampling = TailSampling(policy, self.outbox, self._lose, max_spans)
        self.provider = new_provider([self.sampling])
        self.tracer: Tracer = self.provider.get_tracer("test")

    def _count(self, spans: int) -> None:
        self.exported += spans

    def _lose(self, reason: SpanLoss, spans: int) -> None:
        self.lost[reason] += spans

    def begin(self, name: str, parent: Span | None = None, links: Sequence[Span] = ()) -> Span:
        """A span from second 0 on."""
        context = Context() if parent is None else set_span_in_context(parent, Context())
        targets = [Link(each.get_span_context()) for each in links]
        return self.tracer.start_span(name, context, links=targets, start_time=0)

    def over(self, parent: Span) -> ReadableSpan:
        """A span below `parent` that is over."""
        above = parent.get_span_context()
        return ReadableSpan("over", SpanContext(above.trace_id, 1, False), above, start_time=0, end_time=SECOND)

    def stopped(self) -> list[str]:
        """The names of what arrived, at the end."""
        self.outbox.stop(60)
        return sorted(span.name for span in self.collector.spans)


@pytest.fixture
def bench() -> Iterator[Bench]:
    """One that exports nothing by chance."""
    bench = Bench()
    yield bench
    bench.collector.gate.set()
    bench.provider.shutdown()


@pytest.mark.parametrize(("ratio", "names"), [(0.0, []), (1.0, ["child", "root"])])
def test_a_quick_and_good_trace_is_exported_by_the_ratio(ratio: float, names: list[str]) -> None:
    """Whole or not at all."""
    bench = Bench(ratio)
    root = bench.begin("root")
    bench.begin("child", root).end(SECOND)
    root.end(2 * SECOND)
    assert bench.stopped() == names
    assert bench.exported == len(names)


def test_the_ratio_is_about_the_share_that_is_exported() -> None:
    """The id of a trace decides, so that every process does alike."""
    policy = Policy(0.25, 30.0)
    bench = Bench()
    ids = [bench.begin("root").get_span_context().trace_id for _ in range(2000)]
    assert 400 < sum(map(policy.by_id, ids)) < 600
    assert all(Policy(1.0, 30.0).by_id(each) for each in ids)
    bench.provider.shutdown()


def test_a_trace_with_an_error_is_exported_whole(bench: Bench) -> None:
    """Although the error is in a child that ended long before the root."""
    root = bench.begin("root")
    child = bench.begin("child", root)
    child.set_status(StatusCode.ERROR)
    child.end(SECOND)
    bench.begin("other", root).end(SECOND)
    assert not bench.collector.entered.is_set()
    root.end(2 * SECOND)
    assert bench.stopped() == ["child", "other", "root"]


def test_a_span_that_was_over_when_it_was_made_goes_with_its_trace(bench: Bench) -> None:
    """It was never open, and ends nothing."""
    root = bench.begin("root")
    child = bench.begin("child", root)
    bench.sampling.take(bench.over(child))
    child.end(SECOND)
    root.set_status(StatusCode.ERROR)
    assert not bench.collector.entered.wait(0.05)
    root.end(2 * SECOND)
    assert bench.stopped() == ["child", "over", "root"]


def test_a_slow_trace_is_exported(bench: Bench) -> None:
    """From the bound on."""
    bench.begin("slow").end(30 * SECOND)
    bench.begin("quick").end(29 * SECOND)
    assert bench.stopped() == ["slow"]


def test_what_outlives_its_parent_is_waited_for(bench: Bench) -> None:
    """An answer of 202 ends the HTTP request long before the job."""
    http = bench.begin("http")
    job = bench.begin("job", http)
    http.end(SECOND)
    job.set_status(StatusCode.ERROR)
    job.end(2 * SECOND)
    assert bench.stopped() == ["http", "job"]


def test_a_later_part_of_an_exported_trace_is_exported_too(bench: Bench) -> None:
    """A client may ask for its job within the same trace."""
    first = bench.begin("first")
    first.set_status(StatusCode.ERROR)
    first.end(SECOND)
    bench.begin("second", first).end(SECOND)
    assert bench.stopped() == ["first", "second"]


@pytest.mark.parametrize("is_batch_first", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_a_batch_goes_with_the_first_of_its_requests_that_is_exported(
    bench: Bench, is_batch_first: bool, fails: bool
) -> None:
    """Whichever ends first; and with none if none is."""
    requests = [bench.begin("good"), bench.begin("other")]
    batch = bench.begin("batch", links=requests)
    if is_batch_first:
        batch.end(SECOND)
    requests[0].end(SECOND)
    if fails:
        requests[1].set_status(StatusCode.ERROR)
    requests[1].end(SECOND)
    if not is_batch_first:
        batch.end(SECOND)
    assert bench.stopped() == (["batch", "other"] if fails else [])


def test_a_batch_with_an_error_of_its_own_is_exported(bench: Bench) -> None:
    """The engine was lost; its requests were made by the next one."""
    request = bench.begin("request")
    batch = bench.begin("batch", links=[request])
    batch.set_status(StatusCode.ERROR)
    batch.end(SECOND)
    request.end(2 * SECOND)
    bench.begin("slow batch", links=[request]).end(60 * SECOND)
    assert bench.stopped() == ["batch"]


def test_what_the_collector_has_not_taken_in_the_end_is_counted() -> None:
    """The service does not wait for it."""
    bench = Bench(ratio=1.0)
    bench.collector.gate.clear()
    bench.begin("first").end(SECOND)
    assert bench.collector.entered.wait(60)
    for _ in range(3):
        bench.begin("more").end(SECOND)
    bench.outbox.stop(0.02)
    assert bench.lost[SpanLoss.QUEUE_FULL] >= 3
    bench.collector.gate.set()


def test_the_room_for_unfinished_traces_is_bounded() -> None:
    """The oldest goes; what is lost is counted."""
    bench = Bench(ratio=1.0, max_spans=10)
    roots = [bench.begin(f"root{n}") for n in range(3)]
    for root in roots:
        for _ in range(4):
            bench.begin("child", root).end(SECOND)
    for root in roots:
        root.end(SECOND)
    assert bench.stopped() == [*["child"] * 8, "root0", "root1", "root2"]
    assert bench.lost == {SpanLoss.BUFFER_FULL: 4}


def test_a_slow_collector_holds_up_nobody() -> None:
    """What does not fit into the queue is lost and counted."""
    bench = Bench(ratio=1.0, max_queued=5)
    bench.collector.gate.clear()
    bench.begin("first").end(SECOND)
    assert bench.collector.entered.wait(60)
    for _ in range(9):
        bench.begin("more").end(SECOND)
    assert bench.lost == {SpanLoss.QUEUE_FULL: 4}
    bench.collector.gate.set()
    assert bench.stopped() == ["first", *["more"] * 5]


def _raises() -> SpanExportResult:
    raise OSError("no route")


@pytest.mark.parametrize("failure", [_raises, lambda: SpanExportResult.FAILURE])
def test_a_failing_export_is_counted_and_the_next_one_tried(
    bench: Bench, failure: Callable[[], SpanExportResult]
) -> None:
    """Whether the exporter says so or raises."""
    bench.collector.fails = failure
    bench.begin("lost").end(60 * SECOND)
    until(lambda: bench.lost[SpanLoss.EXPORT_FAILED] == 1)
    bench.collector.fails = lambda: SpanExportResult.SUCCESS
    bench.begin("later").end(60 * SECOND)
    assert bench.stopped() == ["later"]
    assert bench.exported == 1
