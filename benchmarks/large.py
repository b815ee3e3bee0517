"""Pipelines of the size of well-known models, with random weights: what a step costs, without a download."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from service.engine.loading import locate

TOKENS = 77
VOCABULARY = 49408
BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def _tokenizer() -> CLIPTokenizer:
    """The embedded model's, which has fewer words."""
    return CLIPTokenizer.from_pretrained(locate("models/tiny") + "/tokenizer", model_max_length=TOKENS)


def _text_config(width: int, layers: int, heads: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        projection_dim=width,
        max_position_embeddings=TOKENS,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def _autoencoder(sample_size: int, scaling_factor: float) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=sample_size,
        scaling_factor=scaling_factor,
        force_upcast=False,  # these weights stay in the range of float16
    )


def _stable_diffusion(scheduler: DDIMScheduler) -> StableDiffusionPipeline:
    """As Stable Diffusion 1.5: 860 million weights in the UNet, 512 x 512."""
    return StableDiffusionPipeline(
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
        vae=_autoencoder(512, 0.18215),
        text_encoder=CLIPTextModel(_text_config(width=768, layers=12, heads=12)),
        tokenizer=_tokenizer(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _stable_diffusion_xl(scheduler: EulerDiscreteScheduler) -> StableDiffusionXLPipeline:
    """As Stable Diffusion XL: 2.6 thousand million weights in the UNet, 1024 x 1024."""
    return StableDiffusionXLPipeline(
        unet=UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(5, 10, 20),
            transformer_layers_per_block=(1, 2, 10),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        ),
        vae=_autoencoder(1024, 0.13025),
        text_encoder=CLIPTextModel(_text_config(width=768, layers=12, heads=12)),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(width=1280, layers=32, heads=20)),
        tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(),
        scheduler=scheduler,
    )


MAKERS: dict[str, tuple[Callable[[Any], DiffusionPipeline], Callable[[], Any]]] = {  # and the scheduler of each
    "sd15": (
        _stable_diffusion,
        lambda: DDIMScheduler(steps_offset=1, set_alpha_to_one=False, clip_sample=False, **BETAS),
    ),
    "sdxl": (
        _stable_diffusion_xl,
        lambda: EulerDiscreteScheduler(steps_offset=1, timestep_spacing="leading", **BETAS),
    ),
}


def make(name: str, device: str) -> DiffusionPipeline:
    """The pipeline `name`, always with the same weights, drawn on `device`."""
    torch.manual_seed(0)
    pipeline, scheduler = MAKERS[name]
    own = scheduler()
    with torch.device(device):
        return pipeline(own)


def save(name: str, folder: Path, device: str) -> None:
    """Write it to `folder` in float16."""
    make(name, device).to(dtype=torch.float16).save_pretrained(folder)
