"""The engine process: load and warm the model, then run the loop until the parent goes away."""

import os
import signal
import threading
import time
from multiprocessing.connection import Connection
from queue import SimpleQueue

from service.core import ImageFormat, Params
from service.engine.contract import Command, LoadFailed, Message, BatchModel, Picture, Ready
from service.engine.fake import SCHEME, FakeModel
from service.engine.loop import EngineLoop
from service.errors import StartupError
from service.settings import EngineSettings

WARMUP_STEPS = 2

# Read by the libraries when they are imported.
IMPORT_ENVIRONMENT = {
    # OpenMP's threads spin long while they wait by default, which starves them all once anything else wants a core.
    "GOMP_SPINCOUNT": "10000",
    # Advice about what is not installed is none for a server's log.
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
}


def main(connection: "Connection[Message, Command]", settings: EngineSettings, slots: int) -> None:
    """Entry point of the process. Signals are the parent's business; its end is seen as the end of the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    inbox: SimpleQueue[Command] = SimpleQueue()
    threading.Thread(target=_read, args=(connection, inbox), daemon=True).start()
    started = time.monotonic()
    try:
        model = load(settings)
        loaded = time.monotonic()
        step_seconds = warm(model)
    except StartupError as error:
        connection.send(LoadFailed(error.detail))
        return
    except Exception as error:  # noqa: BLE001  # whatever the warm-up raises; the parent reports it
        lines = str(error).splitlines() or [""]
        detail = f"SAFELIGHT_MODEL: {settings.model!r} cannot generate: {type(error).__name__}: {lines[0]}"
        connection.send(LoadFailed(detail))
        return
    connection.send(Ready(model.info, loaded - started, time.monotonic() - loaded, step_seconds))
    window = settings.batch_window_ms / 1e3 if settings.batching == "window" else 0.0
    EngineLoop(model, inbox, connection.send, window=window, max_batch=slots).run()


def load(settings: EngineSettings) -> BatchModel:
    """The model that `settings` name."""
    if settings.model.startswith(SCHEME):
        return FakeModel(settings)
    for name, value in IMPORT_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from service.engine.pipeline import PipelineModel

    return PipelineModel(settings)


def warm(model: BatchModel) -> float:
    """Generate one picture; return the seconds of its last denoising step."""
    info = model.info
    params = Params(
        prompt="warm-up",
        negative_prompt="",
        num_inference_steps=WARMUP_STEPS,
        guidance_scale=info.default_guidance_scale,
        width=info.default_width,
        height=info.default_height,
        seed=0,
        num_images=1,
        scheduler=info.default_scheduler,
        output_format=ImageFormat.PNG,
    )
    steps: list[float] = []
    model.generate([Picture("warm-up", 0, params)], steps.append)
    return steps[-1]


def _read(connection: "Connection[Message, Command]", inbox: "SimpleQueue[Command]") -> None:
    try:
        while True:
            inbox.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)  # the parent is gone: nobody is left to answer to
