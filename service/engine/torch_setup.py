"""PyTorch as the settings ask for it: the device, the number format, threads, and waiting for the device."""

import ctypes
import os
import platform
import threading
import time
from collections.abc import Callable
from functools import cache

import diffusers
import torch
from diffusers.utils import logging as diffusers_logging
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging

from service.errors import StartupError
from service.settings import EngineSettings

# Of malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
NEVER = (1 << 31) - 1

TRIM_SECONDS = 5.0
NICENESS = 10


def quieten() -> None:
    """No progress bars in the log of a server."""
    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
    tqdm.set_lock(threading.RLock())  # its own is a semaphore that a killed process leaves behind


@cache
def keep_memory() -> None:
    """Let the C library keep what is freed for a while, and give it back to the system once in `TRIM_SECONDS`.

    Giving each step's buffers back and faulting them in again takes time; never doing so, memory creeps up by the gaps
    that no later buffer fits into. Once is enough for a process.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):  # glibc
        library.mallopt(M_MMAP_THRESHOLD, NEVER)
        library.mallopt(M_TRIM_THRESHOLD, NEVER)
        threading.Thread(target=_trim, args=(library.malloc_trim,), name="trim", daemon=True).start()


def _trim(malloc_trim: Callable[[int], int]) -> None:
    while True:
        time.sleep(TRIM_SECONDS)
        malloc_trim(0)


def give_way(settings: EngineSettings) -> None:
    """Where the model runs on the CPU, on all of it: let whoever answers requests meanwhile go first.

    Threads that are made later do the same. A thread that feeds a GPU gives way to nobody.
    """
    if choose_device(settings).type == "cpu" and hasattr(os, "nice"):
        os.nice(NICENESS)


def choose_device(settings: EngineSettings) -> torch.device:
    """The device to run on. Raises `StartupError` when the one asked for is not there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if settings.device == "auto":
        return torch.device(next(name for name, there in available.items() if there))
    if not available[settings.device]:
        raise StartupError(f"SAFELIGHT_DEVICE: PyTorch finds no {settings.device} device here")
    return torch.device(settings.device)


def choose_dtype(settings: EngineSettings, device: torch.device) -> torch.dtype:
    """The number format of weights and latents on `device`."""
    if settings.dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    dtype: torch.dtype = getattr(torch, settings.dtype)
    return dtype


def configure_torch(settings: EngineSettings, device: torch.device) -> None:
    """Set what PyTorch keeps for the whole process."""
    if settings.torch_threads is not None:
        torch.set_num_threads(settings.torch_threads)
    elif device.type == "cuda":
        torch.set_num_threads(1)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = settings.cudnn_benchmark


def set_memory_format(module: torch.nn.Module, memory_format: torch.memory_format) -> None:
    """Keep the weights of all 2-D convolutions in this order of dimensions. Other weights have no such order."""
    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.to(memory_format=memory_format)  # type: ignore[call-overload]


def synchronize(device: torch.device) -> None:
    """Wait until an asynchronous device has done what this thread gave it, so that a clock tells the true time.

    What it does beside that goes on (see `Beside`).
    """
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()


class Beside:
    """A second stream of a CUDA device, whose work fills what gaps the first one leaves; elsewhere, and where it is not
    `wanted`, there is none.
    """

    def __init__(self, device: torch.device, wanted: bool) -> None:
        self._device = device
        is_there = wanted and device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if is_there else None  # type: ignore[no-untyped-call]

    @property
    def is_there(self) -> bool:
        """Whether the device can do two things at a time."""
        return self._stream is not None

    def fetch(
        self, given: torch.Tensor, compute: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.cuda.Event | None]:
        """What `compute` makes of `given`, on the host once the event has happened; None: it is there.

        `given` is a tensor of the first stream and nobody else's; what `compute` uses beside it must not go meanwhile.
        """
        if self._stream is None:
            return compute(given).cpu(), None
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        given.record_stream(self._stream)
        with torch.cuda.stream(self._stream):
            result = compute(given).to("cpu", non_blocking=True)  # to memory that the device can write by itself
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        return result, event


def peak_bytes(device: torch.device) -> int | None:
    """The most memory of `device` that tensors took since the last call; None where PyTorch does not count."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def describe_machine(device: torch.device) -> str:
    """What the speed of `device` depends on beside the model and the settings."""
    threads = torch.get_num_threads()
    host = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores, {threads} threads"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{name} on {host}, torch {torch.__version__}, diffusers {diffusers.__version__}"
