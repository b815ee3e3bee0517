"""Pipelines other than the embedded model's: tiny, randomly initialised ones, made here."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

from service.engine.contract import Picture
from service.engine.pipeline import PipelineModel
from service.settings import EngineSettings
from tests.support import build

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    """A CLIP text encoder of next to no size."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=32,
        max_position_embeddings=24,
    )


def stable_diffusion_xl(folder: Path) -> None:
    """A Stable Diffusion XL pipeline of 64 x 64 pictures."""
    tokenizer = CLIPTokenizer.from_pretrained("models/tiny/tokenizer")
    config = text_config(tokenizer)
    StableDiffusionXLPipeline(
        unet=UNet2DConditionModel(
            block_out_channels=(32, 64),
            layers_per_block=1,
            sample_size=32,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            transformer_layers_per_block=(1, 1),
            projection_class_embeddings_input_dim=80,
            cross_attention_dim=64,
        ),
        vae=AutoencoderKL(
            block_out_channels=(32, 64),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            sample_size=64,
        ),
        text_encoder=CLIPTextModel(config),
        text_encoder_2=CLIPTextModelWithProjection(config),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
    ).save_pretrained(folder)


def flux(folder: Path) -> None:
    """A FLUX pipeline: a flow-matching transformer without negative prompts."""
    tokenizer = CLIPTokenizer.from_pretrained("models/tiny/tokenizer")
    t5 = T5Config(vocab_size=len(tokenizer), d_model=32, d_ff=37, d_kv=8, num_layers=2, num_heads=4)
    FluxPipeline(
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
        ),
        vae=AutoencoderTiny(latent_channels=4),
        text_encoder=CLIPTextModel(text_config(tokenizer)),
        text_encoder_2=T5EncoderModel(t5),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    ).save_pretrained(folder)


@pytest.mark.parametrize("make", [stable_diffusion_xl, flux])
def test_a_batch_gives_each_its_own_picture(tmp_path: Path, make: Any) -> None:
    """Three pictures in one batch are what the pipeline draws for each alone, give or take 2/255."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries about themselves
        make(tmp_path)
        model = PipelineModel(EngineSettings(model=str(tmp_path), device="cpu", min_size=16))
        name = model.info.default_scheduler
        wishes = [
            build.params(prompt=prompt, seed=seed, scheduler=name, num_inference_steps=3, guidance_scale=3.0)
            for seed, prompt in enumerate(["a red apple", "a blue house", "a dog"])
        ]
        steps: list[float] = []
        batch = model.generate([Picture("t", 0, wish) for wish in wishes], steps.append)
        assert len(steps) == 3
        for wish, pixels in zip(wishes, batch.pixels, strict=True):
            generator = torch.Generator("cpu").manual_seed(wish.seed)
            alone = model._pipe(
                wish.prompt,
                num_inference_steps=3,
                guidance_scale=3.0,
                width=64,
                height=64,
                generator=generator,
                output_type="np",
            ).images[0]
            assert pixels.shape == (64, 64, 3)
            assert np.abs(pixels - alone * 255).max() <= 2
    assert model.info.pipeline in {"StableDiffusionXLPipeline", "FluxPipeline"}
