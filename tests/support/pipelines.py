"""Tiny pipelines with random weights, made in a moment, and the pictures that diffusers itself draws with them."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging as diffusers_logging
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

from service.core import Params
from service.engine import schedulers
from service.engine.pipeline import LoadedPipeline
from service.settings import EngineSettings

EMBEDDED = "models/tiny"
LOUDER = 4.0  # so that a step more or less is seen in the picture
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings of the libraries about themselves."""
    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        diffusers_logging.set_verbosity(verbosity)


def tokenizer(length: int = 24) -> CLIPTokenizer:
    """The embedded model's tokenizer, reading at most `length` tokens."""
    return CLIPTokenizer.from_pretrained(f"{EMBEDDED}/tokenizer", model_max_length=length)


def text_config() -> CLIPTextConfig:
    """A CLIP text encoder of next to no size."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer()),
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=32,
        max_position_embeddings=24,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def autoencoder(**options: Any) -> AutoencoderKL:
    """An autoencoder whose pictures are twice as wide and high as its latents."""
    return AutoencoderKL(
        block_out_channels=(16, 32),
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        sample_size=64,
        **options,
    )


def unet(**options: Any) -> UNet2DConditionModel:
    """A UNet for 64 x 64 pictures."""
    return UNet2DConditionModel(
        block_out_channels=(16, 32),
        norm_num_groups=8,
        layers_per_block=1,
        sample_size=32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        **options,
    )


def stable_diffusion(folder: Path, scheduler: Any = None, **options: Any) -> None:
    """A pipeline like Stable Diffusion 2.1, which predicts velocity; `options` are the UNet's."""
    pipe = StableDiffusionPipeline(
        unet=unet(cross_attention_dim=32, use_linear_projection=True, **options),
        vae=autoencoder(),
        text_encoder=CLIPTextModel(text_config()),
        tokenizer=tokenizer(),
        scheduler=scheduler
        or DDIMScheduler(
            prediction_type="v_prediction", steps_offset=1, set_alpha_to_one=False, clip_sample=False, **BETAS
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)


def stable_diffusion_xl(folder: Path, force_zeros: bool = True, inputs: int = 80, **vae_options: Any) -> None:
    """A Stable Diffusion XL pipeline; its UNet reads `inputs` numbers beside the prompt (80: as a base model's)."""
    StableDiffusionXLPipeline(
        unet=unet(
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            transformer_layers_per_block=(1, 1),
            projection_class_embeddings_input_dim=inputs,
            cross_attention_dim=64,
        ),
        vae=autoencoder(**vae_options),
        text_encoder=CLIPTextModel(text_config()),
        text_encoder_2=CLIPTextModelWithProjection(text_config()),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        scheduler=EulerDiscreteScheduler(steps_offset=1, timestep_spacing="leading", **BETAS),
        force_zeros_for_empty_prompt=force_zeros,
    ).save_pretrained(folder)


def flux(folder: Path, guidance_embeds: bool = False) -> None:
    """A FLUX pipeline as [schnell], or with `guidance_embeds` as [dev]."""
    length = 32
    reader = tokenizer(length)
    t5 = T5Config(vocab_size=len(reader), d_model=32, d_ff=37, d_kv=8, num_layers=2, num_heads=4)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 4, 8),
    )
    with torch.no_grad():
        transformer.proj_out.weight *= LOUDER
    FluxPipeline(
        transformer=transformer,
        vae=autoencoder(shift_factor=0.1),
        text_encoder=CLIPTextModel(text_config()),
        text_encoder_2=T5EncoderModel(t5),
        tokenizer=tokenizer(),
        tokenizer_2=reader,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=guidance_embeds),
    ).save_pretrained(folder)


def loaded(model: str | Path, **settings: Any) -> LoadedPipeline:
    """A model folder in float32, on the CPU or on `TEST_DEVICE`."""
    defaults: dict[str, Any] = {"device": os.environ.get("TEST_DEVICE", "cpu"), "dtype": "float32"}
    size = {"min_size": 32 if model != EMBEDDED else None}
    with quiet():
        return LoadedPipeline(EngineSettings(model=str(model), **{**defaults, **size, **settings}))


def lone(pipe: Any, params: Params) -> npt.NDArray[np.uint8]:
    """The picture of `params` by the bare pipeline, called with it alone; [height, width, 3]."""
    own = pipe.scheduler
    pipe.scheduler = schedulers.make(params.scheduler, own)
    negative = {"negative_prompt": params.negative_prompt} if params.negative_prompt else {}
    try:
        with quiet():
            output = pipe(
                params.prompt,
                num_inference_steps=params.num_inference_steps,
                guidance_scale=params.guidance_scale,
                width=params.width,
                height=params.height,
                generator=torch.Generator("cpu").manual_seed(params.seed),
                output_type="np",
                **negative,
            )
        return (output.images[0] * 255).round().astype(np.uint8)
    finally:
        pipe.scheduler = own
