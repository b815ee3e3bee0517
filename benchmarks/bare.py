"""Diffusers' pipeline without the service: what batching and serving are measured against."""

import io
import multiprocessing
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from multiprocessing.connection import Connection
from types import MappingProxyType
from typing import Any, Literal

from benchmarks.curve import MAX_BATCH, Sample
from benchmarks.traffic import MIXES, Request, all_at_once
from service.engine.loading import locate
from service.engine.worker import prepare_imports
from service.settings import EngineSettings

CURVE_STEPS = 5
ATTENTION = ("fused", "step by step", "sliced")


class BarePipeline:
    """The pipeline as a user would call it, with the engine's settings of PyTorch and memory. It makes PIL images.

    `pipe` is one that the engine has loaded, which saves another copy of the weights.
    """

    def __init__(self, model: str, device: Literal["cpu", "cuda"] = "cpu", pipe: Any = None) -> None:
        settings = EngineSettings(device=device)
        prepare_imports(settings)
        import torch
        from diffusers import AutoPipelineForText2Image

        from service.engine import torch_setup

        self._device = torch.device(device)
        self._torch = torch
        self._setup = torch_setup
        if pipe is None:
            torch_setup.quieten()
            torch_setup.keep_memory()
            torch_setup.configure_torch(settings, self._device)
            dtype = torch_setup.choose_dtype(settings, self._device)
            pipe = AutoPipelineForText2Image.from_pretrained(locate(model), dtype=dtype).to(self._device)
        self._pipe: Any = pipe
        self._pipe.set_progress_bar_config(disable=True)
        self.use_channels_last(True)

    def use_channels_last(self, is_wanted: bool) -> None:
        """Order the weights of convolutions as the engine does, or, if not wanted, as diffusers loads them."""
        memory_format = self._torch.channels_last if is_wanted else self._torch.contiguous_format
        for module in (self._pipe.unet, self._pipe.vae):
            self._setup.set_memory_format(module, memory_format)

    def use_attention(self, how: str) -> None:
        """One of `ATTENTION`; the first is diffusers' default."""
        from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

        if how == "sliced":
            self._pipe.enable_attention_slicing()
            return
        self._pipe.disable_attention_slicing()
        self._pipe.unet.set_attn_processor(AttnProcessor2_0() if how == "fused" else AttnProcessor())

    def images(self, requests: Sequence[Request], is_inference: bool = True, **options: Any) -> list[Any]:
        """One call for `requests`, which share steps and guidance; in PyTorch's inference mode, or as users call it."""
        first = requests[0]
        with self._torch.inference_mode(is_inference):
            output = self._pipe(
                [each.prompt for each in requests],
                num_inference_steps=first.steps,
                guidance_scale=first.guidance,
                generator=[self._torch.Generator("cpu").manual_seed(each.seed) for each in requests],
                **options,
            )
        images: list[Any] = output.images
        return images

    def png(self, request: Request, options: Mapping[str, Any] = MappingProxyType({})) -> bytes:
        """One picture as a user would keep it; `options` of the pipeline's call, such as another size."""
        buffer = io.BytesIO()
        self.images([request], **options)[0].save(buffer, "PNG")
        return buffer.getvalue()

    def image(self, request: Request, is_inference: bool = True) -> tuple[Any, float]:
        """One picture, and the seconds of the call."""
        began = time.monotonic()
        image = self.images([request], is_inference)[0]
        return image, time.monotonic() - began

    def seconds(self, batch: int, pictures: int, steps: int) -> float:
        """Seconds that `pictures` take in batches of `batch`."""
        began = time.perf_counter()
        for first in range(0, pictures, batch):
            self.images(_requests(min(batch, pictures - first), steps))
        return time.perf_counter() - began

    def sample(self, batch: int) -> Sample:
        """The stages of one short call: the first call of the UNet ends encoding, the last step ends denoising."""
        marks: list[float] = []

        def mark() -> None:
            self._setup.synchronize(self._device)
            marks.append(time.perf_counter())

        def called(*_: object) -> None:
            if not marks:
                mark()

        def stepped(_pipe: object, _step: int, _timestep: object, kwargs: dict[str, Any]) -> dict[str, Any]:
            mark()
            return kwargs

        requests = _requests(batch, CURVE_STEPS)
        hook = self._pipe.unet.register_forward_pre_hook(called)
        try:
            began = time.perf_counter()
            self.images(requests, callback_on_step_end=stepped)
            ended = time.perf_counter()
        finally:
            hook.remove()
        steps = [end - start for start, end in pairwise(marks)]
        return Sample(batch, marks[0] - began, statistics.median(steps), ended - marks[-1])


def _requests(count: int, steps: int) -> list[Request]:
    """The traffic `uniform` with another number of steps."""
    return all_at_once(replace(MIXES["uniform"], steps=(steps,)), count, "bare")


class BareEnded(RuntimeError):
    """The process with the bare pipeline is gone."""


class BareProcess:
    """A bare pipeline in a process of its own, warm; see `BarePipeline`. Idle between calls; they raise `BareEnded`."""

    def __init__(self, connection: "Connection[tuple[Any, ...], Any]") -> None:
        self._connection = connection

    def use_channels_last(self, is_wanted: bool) -> None:
        """As the engine does, or as diffusers loads the weights."""
        self._call("use_channels_last", is_wanted)

    def seconds(self, batch: int, pictures: int, steps: int) -> float:
        """Seconds that `pictures` take in batches of `batch`."""
        seconds: float = self._call("seconds", batch, pictures, steps)
        return seconds

    def png(self, request: Request, options: Mapping[str, Any] = MappingProxyType({})) -> bytes:
        """One picture as a user would keep it; `options` of the pipeline's call, such as another size."""
        picture: bytes = self._call("png", request, dict(options))
        return picture

    def sample(self, batch: int) -> Sample:
        """The stages of one short call."""
        sample: Sample = self._call("sample", batch)
        return sample

    def curve(self, rounds: int) -> list[Sample]:
        """Samples of every batch size, up and down in turns, so that a drift of the machine hurts all alike."""
        self.sample(1)  # it was idle
        sizes = range(1, MAX_BATCH + 1)
        return [self.sample(n) for each in range(rounds) for n in (sizes if each % 2 == 0 else reversed(sizes))]

    def _call(self, name: str, *arguments: object) -> Any:
        try:
            self._connection.send((name, *arguments))
            return self._connection.recv()
        except (EOFError, OSError) as error:
            raise BareEnded("the process with the bare pipeline ended") from error


@contextmanager
def bare_process(model: str, device: Literal["cpu", "cuda"] = "cpu") -> Iterator[BareProcess]:
    """A warm process with the bare pipeline."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, model, device), daemon=True)
    process.start()
    theirs.close()
    bare = BareProcess(ours)
    bare.curve(rounds=1)
    try:
        yield bare
    finally:
        ours.close()
        process.join(10)


def _serve(connection: "Connection[Any, tuple[Any, ...]]", model: str, device: Literal["cpu", "cuda"]) -> None:
    pipeline = BarePipeline(model, device)
    try:
        while True:
            name, *arguments = connection.recv()
            connection.send(getattr(pipeline, name)(*arguments))
    except EOFError:
        return
