"""Any diffusers text-to-image pipeline: loaded, described, and run as a `BatchModel` with one call a batch."""

import inspect
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoPipelineForText2Image, DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor

from observability.labels import Stage
from service.core import ModelInfo
from service.engine import schedulers
from service.engine.contract import Batch, Picture
from service.engine.loading import check_folder, describe_failure, locate, revision
from service.engine.torch_setup import (
    choose_device,
    choose_dtype,
    configure_torch,
    describe_machine,
    keep_memory,
    quieten,
    set_memory_format,
    synchronize,
)
from service.errors import StartupError
from service.settings import EngineSettings


class LoadedPipeline:
    """A diffusers pipeline on its device, and what is known about it.

    `scheduler` is the model's own, whose noise schedule every other is made from; `denoiser` is its UNet or
    transformer; `machine` says what its speed depends on. Raises `StartupError` when the settings and the model do
    not go together.
    """

    def __init__(self, settings: EngineSettings) -> None:
        quieten()
        keep_memory()
        self.device = choose_device(settings)
        self.dtype = choose_dtype(settings, self.device)
        configure_torch(settings, self.device)
        self.machine = describe_machine(self.device)
        self.pipe: Any = _load(settings, self.dtype).to(self.device)
        self.scheduler: Any = self.pipe.scheduler
        self.denoiser: torch.nn.Module = getattr(self.pipe, "unet", None) or self.pipe.transformer
        _configure(self.pipe, self.denoiser, self.device, settings)
        self._parameters = inspect.signature(self.pipe.__call__).parameters
        self._tokenizer, self._max_tokens = _reader(self.pipe, self._parameters)
        self.info = self._describe(settings)

    def truncates(self, prompt: str) -> bool:
        """Whether `prompt` is longer than the model reads."""
        if self._tokenizer is None or self._max_tokens is None:
            return False
        return len(self._tokenizer(prompt, truncation=False).input_ids) > self._max_tokens

    def _describe(self, settings: EngineSettings) -> ModelInfo:
        names = schedulers.names_for(self.scheduler)
        if settings.scheduler not in (None, *names):
            raise StartupError(f"SAFELIGHT_SCHEDULER: this model takes {', '.join(names)}, not {settings.scheduler}")
        defaults = _defaults(locate(settings.model))
        native = _native_size(self.pipe)
        guidance = self._parameters.get("guidance_scale")
        guides = self._guides()
        return ModelInfo(
            name=Path(settings.model).name or settings.model,
            revision=revision(locate(settings.model)),
            pipeline=type(self.pipe).__name__,
            device=str(self.device),
            dtype=str(self.dtype).removeprefix("torch."),
            default_width=native,
            default_height=native,
            min_size=settings.min_size or native // 2,
            max_size=settings.max_size or native * 3 // 2,
            size_multiple=self.pipe.vae_scale_factor * (2 if hasattr(self.pipe, "transformer") else 1),
            schedulers=names,
            default_scheduler=settings.scheduler or names[0],
            default_steps=int(defaults.get("num_inference_steps", 20)),
            default_guidance_scale=float(
                defaults.get("guidance_scale", guidance.default if guidance is not None else 1.0)
            ),
            max_prompt_tokens=self._max_tokens,
            supports_negative_prompt=guides,
            doubles_guided=guides,
        )

    def _guides(self) -> bool:
        """Whether the guidance scale steers away from the negative prompt.

        A pipeline with a `true_cfg_scale` of its own and a guidance-distilled UNet take the scale as an input of
        the denoiser instead, and would ignore a negative prompt without a word.
        """
        distilled = getattr(self.denoiser.config, "time_cond_proj_dim", None) is not None
        return "negative_prompt" in self._parameters and "true_cfg_scale" not in self._parameters and not distilled


class PipelineModel:
    """A pipeline that is run whole.

    Each picture has a generator of its own, seeded on the CPU, and each batch a scheduler object of its own,
    so a picture does not depend on its batch-mates or on what ran before.
    """

    def __init__(self, loaded: LoadedPipeline) -> None:
        self._loaded = loaded
        self._gives_tensors = isinstance(getattr(loaded.pipe, "image_processor", None), VaeImageProcessor)
        self.info = loaded.info

    def generate(self, pictures: Sequence[Picture], on_step: Callable[[float], None]) -> Batch:
        """One pipeline call for all `pictures`; see `BatchModel.generate`."""
        first = pictures[0].params
        pipe = self._loaded.pipe
        watch = _StageWatch(self._loaded.denoiser, self._loaded.device)

        def after_step(_pipe: object, _step: int, _timestep: object, kwargs: dict[str, Any]) -> dict[str, Any]:
            on_step(watch.stepped())
            return kwargs

        pipe.scheduler = schedulers.make(first.scheduler, self._loaded.scheduler)
        with torch.inference_mode(), watch:
            output = pipe(
                prompt=[each.params.prompt for each in pictures],
                num_inference_steps=first.num_inference_steps,
                guidance_scale=first.guidance_scale,
                width=first.width,
                height=first.height,
                generator=[torch.Generator("cpu").manual_seed(each.seed) for each in pictures],
                callback_on_step_end=after_step,
                output_type="pt" if self._gives_tensors else "np",
                **self._negative_prompts(pictures),
            )
        return Batch(
            pixels=tuple(to_bytes(_tensor(output.images)).cpu().numpy()),
            truncated=tuple(self._loaded.truncates(each.params.prompt) for each in pictures),
            timings=watch.timings,
        )

    def _negative_prompts(self, pictures: Sequence[Picture]) -> dict[str, list[str]]:
        negatives = [each.params.negative_prompt for each in pictures]
        return {"negative_prompt": negatives} if any(negatives) else {}


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
        synchronize(self._device)
        self._ended = time.monotonic()

    def _called(self, *_: object) -> None:
        if self._first_call is None:
            self._first_call = self._last_step = time.monotonic()

    def stepped(self) -> float:
        """A denoising step was issued; wait for it on an asynchronous device, and return its true seconds."""
        synchronize(self._device)
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


def to_bytes(images: torch.Tensor) -> torch.Tensor:
    """[n, 3, h, w] floats in 0..1 as [n, h, w, 3] bytes on the same device, rounded as diffusers does."""
    return (images.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _tensor(images: Any) -> torch.Tensor:
    """[n, 3, h, w], of the same or of an array [n, h, w, 3]."""
    return images if isinstance(images, torch.Tensor) else torch.as_tensor(np.asarray(images)).permute(0, 3, 1, 2)


def _load(settings: EngineSettings, dtype: torch.dtype) -> DiffusionPipeline:
    model = locate(settings.model)
    check_folder(model)
    try:
        return AutoPipelineForText2Image.from_pretrained(model, dtype=dtype, use_safetensors=True)
    except Exception as error:
        raise StartupError(describe_failure(settings.model, error)) from error


def _configure(pipe: Any, denoiser: Any, device: torch.device, settings: EngineSettings) -> None:
    pipe.set_progress_bar_config(disable=True)
    if settings.channels_last or (settings.channels_last is None and device.type != "mps"):
        for module in pipe.components.values():
            if isinstance(module, torch.nn.Module):
                set_memory_format(module, torch.channels_last)
    if settings.attention_slicing:
        pipe.enable_attention_slicing()
    if settings.attention_backend is not None:
        try:
            denoiser.set_attention_backend(settings.attention_backend)
        except Exception as error:
            raise StartupError(f"SAFELIGHT_ATTENTION_BACKEND: {str(error).splitlines()[0]}") from error


def _reader(pipe: Any, parameters: Mapping[str, inspect.Parameter]) -> tuple[Any, int | None]:
    """The tokenizer of the text encoder that reads most of a prompt, and how many tokens that is.

    A pipeline with a `max_sequence_length` has a long reader (T5 or another language model), which comes last.
    """
    tokenizers = [getattr(pipe, name, None) for name in ("tokenizer", "tokenizer_2", "tokenizer_3")]
    there = [each for each in tokenizers if each is not None]
    if not there:
        return None, None
    length = parameters.get("max_sequence_length")
    tokenizer = there[0] if length is None else there[-1]
    limits = [getattr(tokenizer, "model_max_length", None), length.default if length is not None else None]
    return tokenizer, min((limit for limit in limits if isinstance(limit, int)), default=None)


def _native_size(pipe: Any) -> int:
    """The side of the picture that the model was made for, in pixels."""
    if (size := getattr(pipe, "default_sample_size", None)) is not None:
        return int(size * pipe.vae_scale_factor)
    return int(pipe.unet.config.sample_size * pipe.vae_scale_factor)


def _defaults(model: str) -> dict[str, Any]:
    """A model folder's own `safelight.json` (`guidance_scale`, `num_inference_steps`), if it has one."""
    path = Path(model) / "safelight.json"
    return json.loads(path.read_text()) if path.is_file() else {}
