"""Keeps an engine running and carries its messages to the board."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from observability.events import EngineLost, EngineReady, Event
from observability.labels import Batching
from observability.observer import Observer
from service.engine.contract import (
    Beat,
    Command,
    Drain,
    Drained,
    Engine,
    Finished,
    Happened,
    LoadFailed,
    Lost,
    Message,
    Ready,
    Started,
    Stepped,
    TaskFailed,
    Working,
)
from service.jobs.board import Board
from service.jobs.estimate import Estimator

log = logging.getLogger("safelight.engine")

RESTART_SECONDS = 1.0


class Runner:
    """Starts the engine, starts it anew when it is lost, and knows whether it is loaded and alive."""

    what_is_missing = "the model is still loading"  # as long as `ready` is None

    def __init__(
        self,
        *,
        engine: Engine,
        batching: Batching,
        estimator: Estimator,
        observer: Observer,
        heartbeat_timeout: float,
        on_load_failed: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._batching = batching  # as asked for
        self._estimator = estimator
        self._observer = observer
        self._heartbeat_timeout = heartbeat_timeout
        self._on_load_failed = on_load_failed
        self._clock = clock
        self._board: Board | None = None
        self._last_beat: float | None = None  # None while loading: that may take any time
        self._drained = asyncio.Event()
        self._is_draining = False
        self.ready: Ready | None = None  # the last start's
        self.is_ready = False

    def start(self, board: Board) -> None:
        """Start the engine; its messages change `board`."""
        self._board = board
        self._loop = asyncio.get_running_loop()
        self._engine.start(self._from_engine)

    def send(self, command: Command) -> None:
        """Hand a command to the engine."""
        self._engine.send(command)

    @property
    def is_alive(self) -> bool:
        """Whether the engine is loading, or was heard of within the heartbeat timeout."""
        return self._last_beat is None or self._clock() - self._last_beat <= self._heartbeat_timeout

    def _from_engine(self, messages: Sequence[Message]) -> None:
        """Called in the engine's thread."""
        try:
            self._loop.call_soon_threadsafe(self._take_all, messages)
        except RuntimeError:
            log.debug("the service has stopped; dropped %d messages", len(messages))

    def _take_all(self, messages: Sequence[Message]) -> None:
        for each in messages:
            try:
                self._take(each)
            except Exception:
                log.exception("%s could not be taken", type(each).__name__)

    def _take(self, message: Message) -> None:
        assert self._board is not None, "started"
        if self.is_ready:
            self._last_beat = self._clock()
        match message:
            case Beat():
                pass
            case Happened():
                self._happened(message.event)
            case Stepped():
                self._happened(message.event)
                self._board.stepped(message)
            case Working():
                self._board.working(message.task_ids)
            case Started():
                self._board.started(message.task_ids)
            case Finished():
                self._board.finished(message)
            case TaskFailed():
                self._board.failed(message.task_id, message.reason, message.detail)
            case Ready():
                self._became_ready(message)
            case Drained():
                self._drained.set()
            case LoadFailed():
                self._on_load_failed(message.detail)
            case Lost():
                self._lost(message)

    def _happened(self, event: Event) -> None:
        self._estimator.observe(event, self._clock())
        self._observer.observe(event)

    def _became_ready(self, message: Ready) -> None:
        info, profile = message.info, message.profile
        slots = profile.cap(info.default_size)
        self.ready = message
        self.is_ready = True
        self._last_beat = self._clock()
        self._estimator.ready(message)
        model = {name: getattr(info, name) for name in ("name", "revision", "pipeline", "device", "dtype")}
        ready = EngineReady(message.batching, slots, message.load_seconds, message.warmup_seconds, model)
        self._observer.observe(ready)
        log.info(
            "%s (%s) is ready on %s in %s: loaded in %.1f s, warmed in %.1f s; %s batching, %d slots of %d x %d",
            info.name,
            info.pipeline,
            info.device,
            info.dtype,
            message.load_seconds,
            message.warmup_seconds,
            message.batching.value,
            slots,
            *info.default_size,
        )
        if message.batching is not self._batching:
            log.warning("%s cannot be driven step by step: %s batching instead", info.pipeline, message.batching.value)

    def _lost(self, message: Lost) -> None:
        assert self._board is not None, "started"
        if self.ready is None:
            self._on_load_failed(f"the engine process ended with {message.exit_code} while it loaded the model")
            return
        if self._is_draining:
            self._drained.set()
            return
        log.error("the engine process ended with %s; starting a new one", message.exit_code)
        self.is_ready = False  # the last beat is kept: an engine that does not come back fails the liveness check
        self._observer.observe(EngineLost())
        self._board.engine_lost()
        self._loop.call_later(RESTART_SECONDS, self._restart)

    def _restart(self) -> None:
        assert self._board is not None, "started"
        if not self._is_draining:
            self._engine.start(self._from_engine)
            self._board.resubmit()

    async def drain(self, seconds: float) -> bool:
        """Let running work finish for at most `seconds` and start no more; return whether all of it did."""
        self._is_draining = True
        if not self.is_ready:
            return True
        self._engine.send(Drain())
        try:
            await asyncio.wait_for(self._drained.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def stop(self) -> None:
        """End the engine, whatever it runs."""
        self._engine.stop()
