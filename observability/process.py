"""The process itself: its standard metrics, how late its event loop is, and what its engine's process uses."""

import asyncio
import time
from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.registry import Collector

from observability.declared import PREFIX
from observability.events import LoopLagged
from observability.observer import Observer

LAG_INTERVAL_SECONDS = 1.0


def new_registry() -> CollectorRegistry:
    """A registry with the standard process, platform and garbage-collector metrics in it."""
    disable_created_metrics()  # type: ignore[no-untyped-call]  # the library lacks the annotation
    registry = CollectorRegistry()
    collectors: tuple[type[Collector], ...] = (ProcessCollector, PlatformCollector, GCCollector)
    for collector in collectors:
        collector(registry=registry)  # type: ignore[call-arg]  # the base class does not declare the argument
    return registry


async def watch_event_loop(observer: Observer, clock: Callable[[], float] = time.monotonic) -> None:
    """Tell every second how late the event loop is, until cancelled."""
    while True:
        due = clock() + LAG_INTERVAL_SECONDS
        await asyncio.sleep(LAG_INTERVAL_SECONDS)
        observer.observe(LoopLagged(max(0.0, clock() - due)))


def register_engine_process(registry: CollectorRegistry, pid: Callable[[], int | None]) -> None:
    """Processor time, memory and open files of the process that `pid` names; nothing while there is none."""
    ProcessCollector(f"{PREFIX}engine", pid=lambda: pid() or "none", registry=registry)
