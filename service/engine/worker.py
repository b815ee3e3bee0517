"""The engine process: load and warm the model, then run its loop until the parent goes away."""

import logging.config
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from observability import logs
from observability.labels import Batching
from service.engine.continuous import ContinuousLoop
from service.engine.contract import (
    BatchModel,
    Command,
    Happened,
    LoadFailed,
    Message,
    PutFaults,
    R,
    Ready,
    StepModel,
    Stepped,
    Submit,
)
from service.engine.fake import SCHEME, FakeModel
from service.engine.faults import Faults, FaultyBatchModel, FaultyStepModel
from service.engine.loop import EngineLoop
from service.engine.policy import ORDERS
from service.engine.profiling import profile_by_batch, profile_by_step
from service.engine.window_loop import WindowLoop
from service.errors import StartupError
from service.garbage import forget_garbage
from service.settings import FAULTS_ALLOWED, EngineSettings

if TYPE_CHECKING:  # only the process of an engine with a model loads PyTorch
    from service.engine.pipeline import LoadedPipeline

HOLD_SECONDS = 0.2  # five times a second is live for people who watch

IMPORT_ENVIRONMENT = {
    # OpenMP's threads spin long while they wait by default, which starves them all once anything else wants a core.
    "GOMP_SPINCOUNT": "10000",
    # Advice about what is not installed is none for a server's log.
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
}
# Each of OpenMP's threads has a core of its own: when the API takes one for a moment, its thread is not put beside
# another that waits for it.
ONE_CORE_EACH = {"OMP_PROC_BIND": "spread", "OMP_PLACES": "cores"}


class Outgoing:
    """Messages on their way to the parent, some in one piece: to wake it costs more than most of them, and it takes
    its processor time from the model's. What only tells how far things are may wait, but not for a long step.
    """

    def __init__(self, send: Callable[[Sequence[Message]], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._send = send
        self._clock = clock
        self._messages: list[Message] = []
        self._leave_at = math.inf  # monotonic

    def put(self, message: Message) -> None:
        """Have it leave with a flush."""
        self._messages.append(message)
        may_wait = isinstance(message, Happened) or (
            isinstance(message, Stepped) and message.event.seconds < HOLD_SECONDS
        )
        self._leave_at = min(self._leave_at, self._clock() + HOLD_SECONDS * may_wait)

    def flush(self, is_last: bool = True) -> None:
        """Send what was put, in its order; if this is not the last flush for a while, only when some of it is due."""
        if self._messages and (is_last or self._clock() >= self._leave_at):
            messages, self._messages, self._leave_at = self._messages, [], math.inf
            self._send(messages)


def main(connection: "Connection[Sequence[Message], Command]", settings: EngineSettings) -> None:
    """Entry point of the process. Signals are the parent's business; its end is seen as the end of the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.config.dictConfig(logs.config(settings.log_level, settings.log_format))
    inbox: SimpleQueue[Command] = SimpleQueue()
    outgoing = Outgoing(connection.send)
    faults = make_faults(settings)
    threading.Thread(target=_read, args=(connection, inbox, faults), daemon=True).start()
    try:
        loop = make_loop(settings, inbox, outgoing, faults)
    except StartupError as error:
        connection.send([LoadFailed(error.detail)])
        return
    except Exception as error:  # noqa: BLE001  # whatever the warm-up raises; the parent reports it
        lines = str(error).splitlines() or [""]
        detail = f"SAFELIGHT_MODEL: {settings.model!r} cannot generate: {type(error).__name__}: {lines[0]}"
        connection.send([LoadFailed(detail)])
        return
    outgoing.flush()
    try:
        loop.run()
    finally:
        with suppress(OSError):  # the parent is gone
            outgoing.flush()


def make_faults(settings: EngineSettings) -> Faults:
    """Those of the setting, or else those in the address of a fake model."""
    if settings.faults in {None, FAULTS_ALLOWED} and settings.model.startswith(SCHEME):
        return Faults(urlsplit(settings.model).query)
    return Faults(settings.faults or "")


def make_loop(
    settings: EngineSettings, inbox: "SimpleQueue[Command]", outgoing: Outgoing, faults: Faults
) -> EngineLoop:
    """Load the model that `settings` name, warm it, and tell `Ready`; return the loop that serves it.

    A pipeline that cannot be driven step by step is served in `window` mode, which `Ready` tells.
    """
    faults.load()
    if settings.model.startswith(SCHEME):
        return _fake_loop(faults, settings, inbox, outgoing)
    began = time.monotonic()
    return serve(load(settings), faults, settings, inbox, outgoing, began)


def prepare_imports(settings: EngineSettings) -> None:
    """Set what PyTorch, diffusers and transformers read when they are imported, and nobody has set.

    An engine that takes all cores binds its threads to them. Of several with some cores each, all would be bound to the
    same ones; and a thread that feeds a GPU must be free.
    """
    is_cpu = settings.device == "cpu" or (settings.device == "auto" and version("torch").endswith("+cpu"))
    takes_all = settings.torch_threads is None and "OMP_NUM_THREADS" not in os.environ
    for name, value in {**IMPORT_ENVIRONMENT, **(ONE_CORE_EACH if is_cpu and takes_all else {})}.items():
        os.environ.setdefault(name, value)


def load(settings: EngineSettings) -> "LoadedPipeline":
    """The pipeline that `settings` name, on its device. Raises `StartupError`."""
    prepare_imports(settings)
    from service.engine.pipeline import LoadedPipeline
    from service.engine.torch_setup import give_way

    give_way(settings)
    loaded = LoadedPipeline(settings)
    forget_garbage()
    return loaded


def serve(
    loaded: "LoadedPipeline",
    faults: Faults,
    settings: EngineSettings,
    inbox: "SimpleQueue[Command]",
    outgoing: Outgoing,
    began: float,
) -> EngineLoop:
    """See `make_loop`, of a pipeline whose loading `began` at that monotonic time."""
    from service.engine import families
    from service.engine.pipeline import PipelineModel
    from service.engine.stepwise import StepwiseModel

    family = families.of(loaded) if settings.batching is Batching.CONTINUOUS else None
    if family is None:
        return _window_loop(PipelineModel(loaded), faults, settings, inbox, outgoing, began)

    cache_bytes = int(settings.prompt_cache_mb * 2**20)
    model = StepwiseModel(loaded, family, cache_bytes)
    loop = _continuous_loop(model, faults, settings, inbox, outgoing, began, loaded.machine)
    model.observe = lambda event: outgoing.put(Happened(event))  # what came before was warm-up
    return loop


def _fake_loop(
    faults: Faults, settings: EngineSettings, inbox: "SimpleQueue[Command]", outgoing: Outgoing
) -> EngineLoop:
    began = time.monotonic()
    model = FakeModel(settings)
    if settings.batching is not Batching.CONTINUOUS:
        return _window_loop(model, faults, settings, inbox, outgoing, began)
    return _continuous_loop(model, faults, settings, inbox, outgoing, began, "fake")


def _continuous_loop(
    model: StepModel[R],
    faults: Faults,
    settings: EngineSettings,
    inbox: "SimpleQueue[Command]",
    outgoing: Outgoing,
    began: float,
    machine: str,
) -> EngineLoop:
    loaded = time.monotonic()
    profile = profile_by_step(model, settings, machine)
    outgoing.put(Ready(model.info, Batching.CONTINUOUS, profile, loaded - began, time.monotonic() - loaded))
    faulty = FaultyStepModel(model, faults)
    order = ORDERS[settings.order]
    return ContinuousLoop(faulty, inbox, outgoing.put, outgoing.flush, profile=profile, order=order)


def _window_loop(
    model: BatchModel,
    faults: Faults,
    settings: EngineSettings,
    inbox: "SimpleQueue[Command]",
    outgoing: Outgoing,
    began: float,
) -> EngineLoop:
    loaded = time.monotonic()
    sequential = settings.batching is Batching.SEQUENTIAL
    slots = 1 if sequential else settings.max_batch
    profile = profile_by_batch(model, slots)
    batching = Batching.SEQUENTIAL if sequential else Batching.WINDOW
    outgoing.put(Ready(model.info, batching, profile, loaded - began, time.monotonic() - loaded))
    window = 0.0 if sequential else settings.batch_window_ms / 1e3
    faulty = FaultyBatchModel(model, faults)
    return WindowLoop(faulty, inbox, outgoing.put, outgoing.flush, window=window, max_batch=slots)


def _read(connection: "Connection[Sequence[Message], Command]", inbox: "SimpleQueue[Command]", faults: Faults) -> None:
    try:
        while True:
            command = connection.recv()
            if isinstance(command, PutFaults):  # the loop may be amid a step that hangs
                faults.put(command.text)
                continue
            if isinstance(command, Submit):  # the loop reads its inbox only between steps
                command = replace(command, arrived_at=time.monotonic())
            inbox.put(command)
    except (EOFError, OSError):
        os._exit(0)  # the parent is gone: nobody is left to answer to
