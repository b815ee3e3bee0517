"""What the engine knows of a kind of pipeline to run its denoiser itself, row by row.

Each method does what the pipeline's `__call__` does between two of its comments; the tests hold them to
diffusers' own pictures. A pipeline, or a feature of one, that is not known here is left to `PipelineModel`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps
from diffusers.utils.torch_utils import randn_tensor

from service.core import Params
from service.engine import schedulers
from service.engine.pipeline import LoadedPipeline

Embeddings = tuple[torch.Tensor, ...]  # one prompt as the denoiser reads it, each [1, ...]; never changed in place
Conditioning = Mapping[str, Any]  # keyword arguments of the denoiser, tensors with a first dimension of rows


class Family(Protocol):
    """A kind of pipeline. Everything is on the pipeline's device, except what a scheduler keeps."""

    def encode(self, prompts: Sequence[str | None]) -> list[Embeddings]:
        """The embeddings of each prompt, encoded together; None is the absence of a negative prompt."""

    def set_timesteps(self, scheduler: Any, params: Params) -> None:
        """Give `scheduler` the timesteps of `params`, on the host: stepping it must not wait for the device."""

    def latents(self, params: Params, scheduler: Any, generator: torch.Generator, dtype: torch.dtype) -> torch.Tensor:
        """The first latents of a picture, [1, ...], drawn from `generator` on the CPU."""

    def conditioning(self, embeddings: Sequence[Embeddings], params: Sequence[Params]) -> Conditioning:
        """What the denoiser is told about each row beside its latents and timestep. All rows share their size."""

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """The denoiser's output, [rows, ...] as `latents`; `timesteps` are float32, [rows]."""

    @property
    def looks_at_pictures(self) -> bool:
        """Whether `decode` waits for the pictures itself, to check or mark them on the host."""

    def decode(self, latents: torch.Tensor, width: int, height: int) -> torch.Tensor:
        """The pictures of finished `latents`, [rows, 3, height, width] in 0..1; sizes in pixels."""


class StableDiffusion:
    """Stable Diffusion 1.x and 2.x, also distilled to take the guidance scale as an input (LCM)."""

    def __init__(self, loaded: LoadedPipeline) -> None:
        self._pipe = loaded.pipe
        self._unet = loaded.pipe.unet
        self._device = loaded.device

    def encode(self, prompts: Sequence[str | None]) -> list[Embeddings]:
        """[1, tokens, features] a prompt; an absent one is empty."""
        embeds, _ = self._pipe.encode_prompt([prompt or "" for prompt in prompts], self._device, 1, False)
        return [(each,) for each in _rows_of(embeds)]

    def set_timesteps(self, scheduler: Any, params: Params) -> None:
        """The scheduler's own spacing."""
        scheduler.set_timesteps(params.num_inference_steps, device="cpu")
        if hasattr(scheduler, "set_begin_index"):  # otherwise it looks for the timestep, which may occur twice
            scheduler.set_begin_index(0)

    def latents(self, params: Params, scheduler: Any, generator: torch.Generator, dtype: torch.dtype) -> torch.Tensor:
        """[1, channels, height, width], in the standard deviation that the scheduler starts from."""
        factor = self._pipe.vae_scale_factor
        shape = (1, self._unet.config.in_channels, params.height // factor, params.width // factor)
        noise: torch.Tensor = randn_tensor(shape, generator=generator, device=self._device, dtype=dtype)
        noise *= scheduler.init_noise_sigma
        return noise

    def conditioning(self, embeddings: Sequence[Embeddings], params: Sequence[Params]) -> Conditioning:
        """The prompt, and the guidance scale where the UNet takes it."""
        hidden = torch.cat([each[0] for each in embeddings])
        return {"encoder_hidden_states": hidden, "timestep_cond": self._timestep_cond(params, hidden.dtype)}

    def _timestep_cond(self, params: Sequence[Params], dtype: torch.dtype) -> torch.Tensor | None:
        size = self._unet.config.time_cond_proj_dim
        if size is None:
            return None
        scales = torch.tensor([each.guidance_scale - 1 for each in params])
        embedding: torch.Tensor = self._pipe.get_guidance_scale_embedding(scales, embedding_dim=size)
        return embedding.to(self._device, dtype)

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """Noise or velocity, [rows, channels, height, width]."""
        output: torch.Tensor = self._unet(latents, timesteps, **conditioning, return_dict=False)[0]
        return output

    @property
    def looks_at_pictures(self) -> bool:
        """With a safety checker."""
        return self._pipe.safety_checker is not None

    def decode(self, latents: torch.Tensor, width: int, height: int) -> torch.Tensor:
        """Pictures that passed the pipeline's safety checker, if it has one; the others are black."""
        pipe = self._pipe
        image = pipe.vae.decode(latents / pipe.vae.config.scaling_factor, return_dict=False)[0]
        image, is_unsafe = pipe.run_safety_checker(image, self._device, latents.dtype)
        keep = None if is_unsafe is None else [not each for each in is_unsafe]
        pictures: torch.Tensor = pipe.image_processor.postprocess(image, output_type="pt", do_denormalize=keep)
        return pictures


class StableDiffusionXL(StableDiffusion):
    """Stable Diffusion XL base models, and what is distilled from them.

    An autoencoder that overflows in half precision is turned to single precision for good, where diffusers does so for
    each call.
    """

    def __init__(self, loaded: LoadedPipeline) -> None:
        super().__init__(loaded)
        vae = loaded.pipe.vae
        if vae.dtype == torch.float16 and vae.config.force_upcast:
            vae.to(torch.float32)

    def encode(self, prompts: Sequence[str | None]) -> list[Embeddings]:
        """[1, tokens, features] and the pooled [1, features] of a prompt.

        An absent negative prompt is all zeros, or empty, as the model's configuration says.
        """
        embeds, _, pooled, _ = self._pipe.encode_prompt(
            [prompt or "" for prompt in prompts], device=self._device, do_classifier_free_guidance=False
        )
        zeros = self._pipe.config.force_zeros_for_empty_prompt
        return [
            (torch.zeros_like(hidden), torch.zeros_like(pool)) if prompt is None and zeros else (hidden, pool)
            for prompt, hidden, pool in zip(prompts, _rows_of(embeds), _rows_of(pooled), strict=True)
        ]

    def conditioning(self, embeddings: Sequence[Embeddings], params: Sequence[Params]) -> Conditioning:
        """The prompt, the guidance scale where the UNet takes it, and the size as that of an uncropped original."""
        size = (params[0].height, params[0].width)
        pooled = torch.cat([each[1] for each in embeddings])
        ids = torch.tensor([[*size, 0, 0, *size]], dtype=pooled.dtype, device=self._device).expand(len(params), -1)
        added = {"text_embeds": pooled, "time_ids": ids}
        return {**super().conditioning(embeddings, params), "added_cond_kwargs": added}

    @property
    def looks_at_pictures(self) -> bool:
        """With a watermark."""
        return self._pipe.watermark is not None

    def decode(self, latents: torch.Tensor, width: int, height: int) -> torch.Tensor:
        """Pictures, with the pipeline's watermark if it has one."""
        pipe = self._pipe
        image = pipe.vae.decode(self._unscaled(latents.to(pipe.vae.dtype)), return_dict=False)[0]
        if pipe.watermark is not None:
            image = pipe.watermark.apply_watermark(image)
        pictures: torch.Tensor = pipe.image_processor.postprocess(image, output_type="pt")
        return pictures

    def _unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        config = self._pipe.vae.config
        scale: float = config.scaling_factor
        mean, std = (getattr(config, name, None) for name in ("latents_mean", "latents_std"))
        if mean is None or std is None:
            return latents / scale
        mean, std = (torch.tensor(each).view(1, -1, 1, 1).to(latents.device, latents.dtype) for each in (mean, std))
        unscaled: torch.Tensor = latents * std / scale + mean
        return unscaled


class Flux:
    """FLUX.1: a flow-matching transformer over packed latents, [rows, patches, channels]."""

    def __init__(self, loaded: LoadedPipeline) -> None:
        self._pipe = loaded.pipe
        self._transformer = loaded.pipe.transformer
        self._device = loaded.device

    def encode(self, prompts: Sequence[str | None]) -> list[Embeddings]:
        """T5's [1, tokens, features] and CLIP's pooled [1, features] of a prompt."""
        embeds, pooled, _ = self._pipe.encode_prompt([prompt or "" for prompt in prompts], device=self._device)
        return list(zip(_rows_of(embeds), _rows_of(pooled), strict=True))

    def set_timesteps(self, scheduler: Any, params: Params) -> None:
        """Even sigmas, shifted by the picture's size where the model asks for it."""
        steps, config = params.num_inference_steps, scheduler.config
        height, width = self._patches(params.width, params.height)
        mu = calculate_shift(
            height * width,
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )
        retrieve_timesteps(scheduler, steps, "cpu", sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
        scheduler.set_begin_index(0)

    def latents(self, params: Params, scheduler: Any, generator: torch.Generator, dtype: torch.dtype) -> torch.Tensor:
        """[1, patches, channels]."""
        channels = self._transformer.config.in_channels // 4
        latents: torch.Tensor = self._pipe.prepare_latents(
            1, channels, params.height, params.width, dtype, self._device, generator
        )[0]
        return latents

    def conditioning(self, embeddings: Sequence[Embeddings], params: Sequence[Params]) -> Conditioning:
        """The prompt, the places of tokens and patches, and the guidance scale where the transformer takes it."""
        hidden = torch.cat([each[0] for each in embeddings])
        scales = torch.tensor([each.guidance_scale for each in params], dtype=torch.float32, device=self._device)
        height, width = self._patches(params[0].width, params[0].height)
        return {
            "encoder_hidden_states": hidden,
            "pooled_projections": torch.cat([each[1] for each in embeddings]),
            "txt_ids": torch.zeros(hidden.shape[1], 3, device=self._device, dtype=hidden.dtype),
            "img_ids": self._pipe._prepare_latent_image_ids(1, height, width, self._device, hidden.dtype),
            "guidance": scales if self._transformer.config.guidance_embeds else None,
        }

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """Velocity, [rows, patches, channels]."""
        times = timesteps.to(latents.dtype) / 1000
        output: torch.Tensor = self._transformer(latents, timestep=times, **conditioning, return_dict=False)[0]
        return output

    looks_at_pictures = False

    def decode(self, latents: torch.Tensor, width: int, height: int) -> torch.Tensor:
        """Pictures."""
        pipe, config = self._pipe, self._pipe.vae.config
        latents = pipe._unpack_latents(latents, height, width, pipe.vae_scale_factor)
        image = pipe.vae.decode(latents / config.scaling_factor + config.shift_factor, return_dict=False)[0]
        pictures: torch.Tensor = pipe.image_processor.postprocess(image, output_type="pt")
        return pictures

    def _patches(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of patches, each two by two latents."""
        side = self._pipe.vae_scale_factor * 2
        return height // side, width // side


def of(loaded: LoadedPipeline) -> Family | None:
    """The family of `loaded`, or None when it, or something it has, is not known here."""
    pipe = loaded.pipe
    if not set(loaded.info.schedulers) <= schedulers.CLASSES.keys():
        return None
    if type(pipe.vae) not in (AutoencoderKL, AutoencoderTiny):  # others draw noise when they decode
        return None
    if type(pipe) is StableDiffusionPipeline and _is_plain(pipe.unet, addition=None):
        return StableDiffusion(loaded)
    if type(pipe) is StableDiffusionXLPipeline and _is_plain(pipe.unet, addition="text_time") and _is_base(pipe):
        return StableDiffusionXL(loaded)
    if type(pipe) is FluxPipeline and _is_plain_flux(pipe.transformer):
        return Flux(loaded)
    return None


def _is_plain(unet: Any, addition: str | None) -> bool:
    """Whether the UNet reads latents, a timestep, a prompt and `addition`, and nothing else."""
    if type(unet) is not UNet2DConditionModel:
        return False
    config = unet.config
    return (
        config.in_channels == config.out_channels
        and config.addition_embed_type == addition
        and config.class_embed_type is None
        and config.num_class_embeds is None
        and config.encoder_hid_dim_type in {None, "text_proj"}  # an IP-adapter sets it
    )


def _is_base(pipe: Any) -> bool:
    """Whether the size is all that the UNet reads beside the pooled prompt; a refiner reads a score too."""
    encoder, unet = pipe.text_encoder_2, pipe.unet
    if encoder is None:
        return False
    read = unet.config.addition_time_embed_dim * 6 + encoder.config.projection_dim
    return bool(unet.add_embedding.linear_1.in_features == read)


def _is_plain_flux(transformer: Any) -> bool:
    """Whether the transformer reads packed latents and returns as many channels; an IP-adapter adds a part."""
    if type(transformer) is not FluxTransformer2DModel:
        return False
    return transformer.out_channels == transformer.config.in_channels and not hasattr(transformer, "encoder_hid_proj")


def _rows_of(batch: torch.Tensor) -> list[torch.Tensor]:
    """Each row as [1, ...], on its own: a view would keep the whole batch in memory."""
    return [row.clone() for row in batch.chunk(len(batch))]
