"""What events cost: processor time of each consumer for the events of a full batch, against that of a step."""

import logging.config
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from prometheus_client import CollectorRegistry

from benchmarks.lone import InProcessEngine
from benchmarks.report import Check
from benchmarks.traffic import MIXES, draw
from observability import events, logs
from observability.labels import CacheResult, Consumer, Outcome, Priority, Reason, Source, Stage, WorkClass
from observability.metering import Metrics
from observability.observer import FanOut, Observer
from observability.own import OwnMetrics
from observability.propagation import new_provider
from observability.sampling import Outbox, Policy, TailSampling
from observability.tracing import Tracing
from service.engine.contract import Stepped

BATCH = 8
STEPS = 20
EVENT_ROUNDS = 50  # batches whose events are timed
EVENT_BAR = 0.01


class Bin(SpanExporter):
    """An exporter that throws spans away."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Take some spans."""
        return SpanExportResult.SUCCESS


def consumers() -> dict[Consumer, Observer]:
    """As the service has them; log lines are formatted and go nowhere."""
    config = logs.config("info", "json")
    config["handlers"]["stderr"] = {"class": "logging.FileHandler", "formatter": "line", "filename": os.devnull}
    logging.config.dictConfig(config)
    registry = CollectorRegistry()
    own, policy = OwnMetrics(registry), Policy(1.0, 30.0)
    outbox = Outbox(Bin(), own.spans_exported, own.spans_lost)
    sampling = TailSampling(policy, outbox, own.spans_lost)
    tracing = Tracing(new_provider([sampling]), policy, take=sampling.take)
    return {
        Consumer.LOGS: logs.RequestLog(tracing.context_of),
        Consumer.METRICS: Metrics(registry, tracing.exemplar),
        Consumer.TRACES: tracing,
    }


def life_of_a_batch(number: int) -> Iterator[events.Event]:
    """Every event of `BATCH` requests that share all their steps."""
    requests = [
        events.Request(
            id=f"{number}-{each}",
            source=Source.USER,
            priority=Priority.NORMAL,
            work_class=WorkClass.S_STANDARD,
            images=1,
            width=512,
            height=512,
            steps=STEPS,
            guidance_scale=7.5,
            scheduler="ddim",
            seed=each,
            prompt="a red apple on a blue background",
        )
        for each in range(BATCH)
    ]
    for each in requests:
        yield events.RequestAccepted(each, each.id, 0.003, 0.001, CacheResult.MISS)
        yield events.QueueChanged(dict.fromkeys(Priority, 1), 0.0, 1)
        yield events.RequestStarted(each, 0.1)
        yield events.PictureAdmitted(0.1, 1, each.id)
    for step in range(STEPS):
        members = tuple((each.id, step) for each in requests)
        yield events.BatchStepped(members, 2 * BATCH, (512, 512), 0.2, slots=BATCH, waiting=0)
    timings = dict.fromkeys(Stage, 0.1)
    for each in requests:
        for stage in Stage:
            yield events.StageFinished(stage, 0.1)
        yield events.RequestFinished(each, Outcome.COMPLETED, Reason.NONE, 3.0, paid_seconds=0.5, timings=timings)
        yield events.EstimateChecked(1.0, 1.1)


def part_events(model: str) -> tuple[list[Check], dict[str, Any]]:
    """Microseconds by consumer and kind of event; and their share of the processor time of a step."""
    streams = [list(life_of_a_batch(number)) for number in range(EVENT_ROUNDS)]
    alone = consumers()
    micros: dict[str, dict[str, list[float]]] = {name.value: {} for name in alone}
    for stream in streams:
        for event in stream:
            for name, observer in alone.items():
                began = time.perf_counter()
                observer.observe(event)
                kinds = micros[name.value].setdefault(type(event).__name__, [])
                kinds.append((time.perf_counter() - began) * 1e6)
    together = FanOut(consumers(), lambda consumer: sys.exit(f"{consumer} could not take an event"))
    began = time.thread_time()
    for stream in streams:
        for event in stream:
            together.observe(event)
    each_step = (time.thread_time() - began) / (EVENT_ROUNDS * STEPS)
    step = _step_seconds(model)
    medians = {
        name: {kind: statistics.median(values) for kind, values in kinds.items()} for name, kinds in micros.items()
    }
    print("microseconds an event, medians" + " " * 12 + "".join(f"{name:>10}" for name in medians))
    for kind in medians[Consumer.METRICS.value]:
        print(f"  {kind:<40}" + "".join(f"{medians[name][kind]:10.1f}" for name in medians))
    events_each = len(streams[0]) / STEPS
    print(
        f"  {events_each:.1f} events for each step of {BATCH} pictures: {each_step * 1e6:.0f} us of {step * 1e3:.0f} ms"
    )
    check = Check("processor time of events over that of a denoising step", each_step / step, EVENT_BAR, most=True)
    return [check], {"microseconds": medians, "events_seconds": each_step, "step_seconds": step}


def _step_seconds(model: str) -> float:
    """Processor seconds of one step of `BATCH` pictures of the engine."""
    with tempfile.TemporaryDirectory() as folder:
        engine = InProcessEngine(model, Path(folder))
        for number, request in enumerate(draw(replace(MIXES["uniform"], steps=(STEPS,)), BATCH, 1.0, "telemetry")):
            engine.submit(str(number), request)
        began, began_processor = time.perf_counter(), time.process_time()
        engine.finish(BATCH)
        processors = (time.process_time() - began_processor) / (time.perf_counter() - began)
        stepped = [message.event.seconds for _, message in engine.heard if isinstance(message, Stepped)]
        return processors * statistics.mean(stepped)
