"""Any diffusers text-to-image pipeline as a `Model`: one pipeline call a batch."""

import inspect
import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoPipelineForText2Image, DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging

from observability.events import Stage
from service.core import ModelInfo
from service.engine import schedulers
from service.engine.contract import Batch, Picture, Pixels
from service.engine.loading import check_folder, describe_failure, locate, revision
from service.errors import StartupError
from service.settings import EngineSettings


class PipelineModel:
    """A loaded diffusers pipeline.

    Each picture has a generator of its own, seeded on the CPU, and each batch a scheduler object of its own,
    so a picture does not depend on its batch-mates or on what ran before.
    """

    def __init__(self, settings: EngineSettings) -> None:
        _quieten()
        self._device = _device(settings)
        self._dtype = _dtype(settings, self._device)
        _configure_torch(settings, self._device)
        self._pipe = _load(settings, self._dtype).to(self._device)
        _configure(self._pipe, settings)
        self._own_scheduler = self._pipe.scheduler
        self._accepts = frozenset(inspect.signature(self._pipe.__call__).parameters)
        self.info = self._describe(settings)
        self._denoiser = getattr(self._pipe, "unet", None) or self._pipe.transformer

    def _describe(self, settings: EngineSettings) -> ModelInfo:
        names = schedulers.names_for(self._own_scheduler)
        if settings.scheduler not in (None, *names):
            raise StartupError(f"SAFELIGHT_SCHEDULER: this model takes {', '.join(names)}, not {settings.scheduler}")
        defaults = _defaults(locate(settings.model))
        native = _native_size(self._pipe)
        tokenizer = getattr(self._pipe, "tokenizer", None)
        signature = inspect.signature(self._pipe.__call__).parameters
        guidance = signature.get("guidance_scale")
        return ModelInfo(
            name=Path(settings.model).name or settings.model,
            revision=revision(locate(settings.model)),
            pipeline=type(self._pipe).__name__,
            device=str(self._device),
            dtype=str(self._dtype).removeprefix("torch."),
            default_width=native,
            default_height=native,
            min_size=settings.min_size or native // 2,
            max_size=settings.max_size or native * 3 // 2,
            size_multiple=self._pipe.vae_scale_factor * (2 if hasattr(self._pipe, "transformer") else 1),
            schedulers=names,
            default_scheduler=settings.scheduler or names[0],
            default_steps=int(defaults.get("num_inference_steps", 20)),
            default_guidance_scale=float(
                defaults.get("guidance_scale", guidance.default if guidance is not None else 1.0)
            ),
            max_prompt_tokens=getattr(tokenizer, "model_max_length", None),
            supports_negative_prompt="negative_prompt" in self._accepts,
        )

    def generate(self, pictures: Sequence[Picture], on_step: Callable[[float], None]) -> Batch:
        """One pipeline call for all `pictures`; see `Model.generate`."""
        first = pictures[0].params
        watch = _StageWatch(self._denoiser, self._device)

        def after_step(_pipe: object, _step: int, _timestep: object, kwargs: dict[str, Any]) -> dict[str, Any]:
            on_step(watch.stepped())
            return kwargs

        self._pipe.scheduler = schedulers.make(first.scheduler, self._own_scheduler)
        with torch.inference_mode(), watch:
            output = self._pipe(
                prompt=[each.params.prompt for each in pictures],
                num_inference_steps=first.num_inference_steps,
                guidance_scale=first.guidance_scale,
                width=first.width,
                height=first.height,
                generator=[torch.Generator("cpu").manual_seed(each.seed) for each in pictures],
                callback_on_step_end=after_step,
                output_type="np",
                **self._negative_prompts(pictures),
            )
        return Batch(
            pixels=tuple(_pixels(image) for image in output.images),
            truncated=tuple(self._is_truncated(each.params.prompt) for each in pictures),
            timings=watch.timings,
        )

    def _negative_prompts(self, pictures: Sequence[Picture]) -> dict[str, list[str]]:
        negatives = [each.params.negative_prompt for each in pictures]
        return {"negative_prompt": negatives} if any(negatives) else {}

    def _is_truncated(self, prompt: str) -> bool:
        tokenizer = getattr(self._pipe, "tokenizer", None)
        if tokenizer is None:
            return False
        return bool(len(tokenizer(prompt, truncation=False).input_ids) > tokenizer.model_max_length)


class _StageWatch:
    """Stage times of one pipeline call, seen from outside: the denoiser's first call ends text encoding, the
    last step ends denoising.
    """

    def __init__(self, denoiser: torch.nn.Module, device: torch.device) -> None:
        self._denoiser = denoiser
        self._device = device
        self._first_call: float | None = None

    def __enter__(self) -> None:
        self._started = self._last_step = time.monotonic()
        self._hook = self._denoiser.register_forward_pre_hook(self._called)

    def __exit__(self, *_: object) -> None:
        self._hook.remove()
        self._ended = time.monotonic()

    def _called(self, *_: object) -> None:
        if self._first_call is None:
            self._first_call = self._last_step = time.monotonic()

    def stepped(self) -> float:
        """A denoising step was issued; wait for it on an asynchronous device, and return its true seconds."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        before, self._last_step = self._last_step, time.monotonic()
        return self._last_step - before

    @property
    def timings(self) -> dict[Stage, float]:
        """Seconds by stage, after the call."""
        first_call = self._first_call or self._started
        return {
            Stage.TEXT_ENCODE: first_call - self._started,
            Stage.DENOISE: self._last_step - first_call,
            Stage.VAE_DECODE: self._ended - self._last_step,
        }


def _quieten() -> None:
    """No progress bars in the log of a server."""
    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
    tqdm.set_lock(threading.RLock())  # its own is a semaphore that a killed process leaves behind


def _device(settings: EngineSettings) -> torch.device:
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if settings.device == "auto":
        return torch.device(next(name for name, there in available.items() if there))
    if not available[settings.device]:
        raise StartupError(f"SAFELIGHT_DEVICE: PyTorch finds no {settings.device} device here")
    return torch.device(settings.device)


def _dtype(settings: EngineSettings, device: torch.device) -> torch.dtype:
    if settings.dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    dtype: torch.dtype = getattr(torch, settings.dtype)
    return dtype


def _configure_torch(settings: EngineSettings, device: torch.device) -> None:
    if settings.torch_threads is not None:
        torch.set_num_threads(settings.torch_threads)
    elif device.type == "cuda":
        torch.set_num_threads(1)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = settings.cudnn_benchmark


def _load(settings: EngineSettings, dtype: torch.dtype) -> DiffusionPipeline:
    model = locate(settings.model)
    check_folder(model)
    try:
        return AutoPipelineForText2Image.from_pretrained(model, dtype=dtype, use_safetensors=True)
    except Exception as error:
        raise StartupError(describe_failure(settings.model, error)) from error


def _configure(pipe: Any, settings: EngineSettings) -> None:
    pipe.set_progress_bar_config(disable=True)
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    if settings.channels_last:
        for module in (denoiser, pipe.vae):
            module.to(memory_format=torch.channels_last)
    if settings.attention_slicing:
        pipe.enable_attention_slicing()
    if settings.attention_backend is not None:
        try:
            denoiser.set_attention_backend(settings.attention_backend)
        except Exception as error:
            raise StartupError(f"SAFELIGHT_ATTENTION_BACKEND: {str(error).splitlines()[0]}") from error


def _native_size(pipe: Any) -> int:
    """The side of the picture that the model was made for, in pixels."""
    if (size := getattr(pipe, "default_sample_size", None)) is not None:
        return int(size * pipe.vae_scale_factor)
    return int(pipe.unet.config.sample_size * pipe.vae_scale_factor)


def _defaults(model: str) -> dict[str, Any]:
    """A model folder's own `safelight.json` (`guidance_scale`, `num_inference_steps`), if it has one."""
    path = Path(model) / "safelight.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _pixels(image: Any) -> Pixels:
    """[h, w, 3] floats in 0..1 as bytes, rounded as diffusers' own conversion does."""
    return (np.asarray(image) * 255).round().astype(np.uint8)
