"""GPU metrics from NVML, and why there are none: a collector that never fails a scrape and never holds it up.

The calls run in a thread of their own; a scrape waits for them a second at most. What a GPU does not support is left
out; what fails although it should not makes the state `partial` and is counted.
"""

import contextlib
import ctypes
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import pynvml
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from observability.declared import PREFIX
from observability.gpu_facts import FACTS, UNSUPPORTED, own_memory
from observability.labels import NvmlState

DEADLINE_SECONDS = 1.0
MOST_AGE_SECONDS = 60.0  # of what a slow driver told late, and of there being none
XID_WAIT_MILLISECONDS = 1000
XID_RETRY_SECONDS = 10.0
# Those of https://docs.nvidia.com/deploy/xid-errors that say what to do; any other is told as `other`.
XIDS = ("13", "31", "43", "45", "48", "62", "63", "64", "74", "79", "92", "94", "95", "119", "120", "other")

TEXTS = {  # of the metrics beside the facts
    "nvml_available": "1 while GPU metrics can be had.",
    "nvml_state": "1 for what is known of NVML.",
    "nvml_read_seconds": "Time of the last round of calls.",
    "nvml_failed_calls": "Calls that failed in the last round although the GPU supports them.",
    "gpu_info": "The GPU's model and UUID.",
    "gpu_xid_watched": "1 while XID events are counted.",
    "gpu_xid_errors_total": "XID events seen.",
}

Sample = tuple[list[str], float]


STATES = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: NvmlState.NO_LIBRARY,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: NvmlState.NO_DRIVER,
    pynvml.NVML_ERROR_NO_PERMISSION: NvmlState.NO_PERMISSION,
}


@dataclass(frozen=True, slots=True)
class Reading:
    """What one round of calls told: samples by name of the fact, model and UUID by GPU, and how many calls failed."""

    state: NvmlState
    samples: Mapping[str, list[Sample]] = field(default_factory=dict)
    devices: Mapping[str, dict[str, str]] = field(default_factory=dict)
    failures: int = 0


def visible(environment: Mapping[str, str]) -> frozenset[int] | None:
    """The GPUs that a process was given by CUDA_VISIBLE_DEVICES, by the driver's numbers; None: all, or not told so.

    Those are CUDA's numbers too with CUDA_DEVICE_ORDER=PCI_BUS_ID.
    """
    names = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return frozenset(map(int, names)) if all(each.isdecimal() for each in names) else None


class XidWatch:
    """Counts the errors that the driver reports of GPUs (XID events), in a thread that waits for them.

    `gpus` are those that matter, None: all.
    """

    def __init__(self, gpus: frozenset[int] | None = None) -> None:
        self._gpus = gpus
        self.counts: Counter[tuple[str, str]] = Counter()  # by GPU and code
        self.watched: Mapping[str, bool] = {}  # every GPU that ever was; whether it is now
        self._interrupted = threading.Event()
        self._stopping = threading.Event()

    def start(self) -> None:
        """Begin to watch; where that cannot be done, try again now and then."""
        threading.Thread(target=self._run, name="safelight-xid", daemon=True).start()

    def release(self) -> None:
        """Let go of the library, for it to be opened anew, and go on after a while."""
        self._interrupted.set()

    def stop(self) -> None:
        """End the thread soon."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._interrupted.clear()
            try:
                with contextlib.suppress(pynvml.NVMLError):
                    self._watch()
            finally:
                self.watched = dict.fromkeys(self.watched, False)
            self._stopping.wait(XID_RETRY_SECONDS)

    def _watch(self) -> None:
        """Until the thread is to stop or the driver fails."""
        pynvml.nvmlInit()
        events = None
        try:
            events = pynvml.nvmlEventSetCreate()
            indices = dict(self._register(events))
            self.watched = {**self.watched, **dict.fromkeys(indices.values(), True)}
            while indices and not self._interrupted.is_set() and not self._stopping.is_set():
                with contextlib.suppress(pynvml.NVMLError_Timeout):
                    event = pynvml.nvmlEventSetWait_v2(events, XID_WAIT_MILLISECONDS)
                    code = str(event.eventData)
                    gpu = indices.get(_address(event.device))
                    if gpu is not None:
                        self.counts[gpu, code if code in XIDS else "other"] += 1
        finally:
            with contextlib.suppress(pynvml.NVMLError):
                if events is not None:
                    pynvml.nvmlEventSetFree(events)
                pynvml.nvmlShutdown()

    def _register(self, events: Any) -> Iterator[tuple[int | None, str]]:
        """The GPUs that tell of errors, by address: one that falls off the bus cannot be asked for its index."""
        for index in _chosen(pynvml.nvmlDeviceGetCount(), self._gpus):
            with contextlib.suppress(pynvml.NVMLError):
                gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
                pynvml.nvmlDeviceRegisterEvents(gpu, pynvml.nvmlEventTypeXidCriticalError, events)
                yield _address(gpu), str(index)


def _chosen(count: int, gpus: frozenset[int] | None) -> list[int]:
    return [index for index in range(count) if gpus is None or index in gpus]


def _address(gpu: Any) -> int | None:
    return ctypes.cast(gpu, ctypes.c_void_p).value


class Nvml:
    """The calls, for one thread at a time. `pids` are the service's processes, `gpus` those that matter, None: all.

    After an error the library is opened anew, which takes that `xids` lets go of it too: a driver may come back.
    """

    def __init__(self, xids: XidWatch, pids: Callable[[], Collection[int]], gpus: frozenset[int] | None = None) -> None:
        self._gpus = gpus
        self.facts = (*FACTS, own_memory(pids))
        self._xids = xids
        self._is_open = False

    def read(self) -> Reading:
        """Ask every GPU everything."""
        try:
            if not self._is_open:
                pynvml.nvmlInit()
                self._is_open = True
            return self._read(_chosen(pynvml.nvmlDeviceGetCount(), self._gpus))
        except pynvml.NVMLError as error:
            self._close()
            return Reading(STATES.get(error.value, NvmlState.FAILED))

    def _read(self, indices: Sequence[int]) -> Reading:
        """What can be had of these GPUs; raises only if that is nothing."""
        samples: dict[str, list[Sample]] = defaultdict(list)
        devices: dict[str, dict[str, str]] = {}
        failures = 0
        for index in indices:
            try:
                gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
                device = {"model": pynvml.nvmlDeviceGetName(gpu), "uuid": pynvml.nvmlDeviceGetUUID(gpu)}
            except pynvml.NVMLError:
                failures += 1
                if failures == len(indices):
                    raise
                continue
            devices[str(index)] = device
            failures += self._read_device(str(index), gpu, samples)
        state = NvmlState.NO_GPU if not indices else NvmlState.PARTIAL if failures else NvmlState.AVAILABLE
        return Reading(state, samples, devices, failures)

    def _read_device(self, name: str, gpu: Any, samples: dict[str, list[Sample]]) -> int:
        """Add what one GPU tells; return how many calls failed."""
        failures = 0
        for fact in self.facts:
            try:
                read = fact.read(gpu)
            except pynvml.NVMLError as error:
                failures += error.value not in UNSUPPORTED
                continue
            if isinstance(read, Mapping):
                samples[fact.name] += [([name, value], number) for value, number in read.items()]
            elif read is not None:
                samples[fact.name].append(([name], float(read)))
        return failures

    def _close(self) -> None:
        self._xids.release()
        if self._is_open:
            self._is_open = False
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()


def _gauge(name: str, value: float | None = None, labels: Sequence[str] | None = None) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, TEXTS[name], value, labels)


class NvmlCollector(Collector):
    """The metrics. Each scrape reads anew and shares the calls of one that still waits."""

    def __init__(self, nvml: Nvml, xids: XidWatch, clock: Callable[[], float] = time.monotonic) -> None:
        self._nvml = nvml
        self._xids = xids
        self._clock = clock
        self._lock = threading.Lock()
        self._pending: Future[Reading] | None = None
        self._began = self._ended = self._seconds = 0.0  # of the last round of calls; monotonic times
        self._last = Reading(NvmlState.HANGING)

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering asks no GPU."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All samples; without a GPU only the state."""
        reading = self._within_deadline()
        available = reading.state in (NvmlState.AVAILABLE, NvmlState.PARTIAL)
        yield _gauge("nvml_available", float(available))
        states = _gauge("nvml_state", labels=["state"])
        for state in NvmlState:
            states.add_metric([state], float(state is reading.state))
        yield states
        yield _gauge("nvml_read_seconds", self._seconds)
        yield _gauge("nvml_failed_calls", float(reading.failures))
        info = InfoMetricFamily(f"{PREFIX}gpu", TEXTS["gpu_info"], labels=["gpu"])
        for gpu, device in reading.devices.items():
            info.add_metric([gpu], device)
        yield info
        for fact in self._nvml.facts:
            family = fact.family(PREFIX)
            for labels, value in reading.samples.get(fact.name, ()):
                family.add_metric(labels, value)
            yield family
        yield from self._xid_metrics()

    def _xid_metrics(self) -> Iterator[Metric]:
        watched = _gauge("gpu_xid_watched", labels=["gpu"])
        xids = CounterMetricFamily(f"{PREFIX}gpu_xid_errors", TEXTS["gpu_xid_errors_total"], labels=["gpu", "xid"])
        for gpu, is_watched in sorted(self._xids.watched.items()):
            watched.add_metric([gpu], float(is_watched))
            for code in XIDS:
                xids.add_metric([gpu, code], float(self._xids.counts[gpu, code]))
        yield from (watched, xids)

    def _within_deadline(self) -> Reading:
        """What is read now; of a driver that is always late, what it told last.

        A library that is not there is not looked for at every scrape.
        """
        if self._last.state is NvmlState.NO_LIBRARY and self._clock() - self._ended < MOST_AGE_SECONDS:
            return self._last
        with self._lock:
            if self._pending is None or self._pending.done():
                self._pending = Future()
                self._began = self._clock()
                threading.Thread(target=self._run, args=(self._pending,), name="safelight-nvml", daemon=True).start()
            pending, left = self._pending, self._began + DEADLINE_SECONDS - self._clock()
        try:
            return pending.result(timeout=max(left, 0.0))
        except TimeoutError:
            is_slow = self._seconds > DEADLINE_SECONDS and self._clock() - self._ended < MOST_AGE_SECONDS
            return self._last if is_slow else Reading(NvmlState.HANGING)

    def _run(self, pending: "Future[Reading]") -> None:
        try:
            reading = self._nvml.read()
        except Exception:  # noqa: BLE001  # a scrape must not fail, whatever a binding raises
            reading = Reading(NvmlState.FAILED)
        self._ended = self._clock()
        self._last, self._seconds = reading, self._ended - self._began
        pending.set_result(reading)
