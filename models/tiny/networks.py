"""The model's parts: autoencoder, tokenizer, text encoder, denoiser, and the diffusers pipeline they form."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    DDPMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from models.tiny.dataset import CAPTIONS, COLOURS, Thing, article

POSITIONS = 24  # longest caption in tokens, both ends included
VOCABULARY = 3000
START, END = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True)
class Denoiser:
    """What the denoiser stage trains together, and the tokenizer its captions go through."""

    unet: UNet2DConditionModel
    text: CLIPTextModel
    tokenizer: CLIPTokenizer

    def named_parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        """Every trained parameter, names prefixed by the part."""
        parts: tuple[tuple[str, torch.nn.Module], ...] = (("unet", self.unet), ("text", self.text))
        return [(f"{part}.{name}", p) for part, module in parts for name, p in module.named_parameters()]

    def tokens(self, captions: list[str]) -> torch.Tensor:
        """Captions as int64 [n, 24], padded."""
        ids: torch.Tensor = self.tokenizer(
            captions, padding="max_length", max_length=POSITIONS, truncation=True, return_tensors="pt"
        ).input_ids
        return ids

    def velocity(self, noisy: torch.Tensor, timesteps: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """The predicted velocity [n, 4, 16, 16] of noisy latents at integer timesteps [n] under captions [n, 24]."""
        out: torch.Tensor = self.unet(noisy, timesteps, self.text(ids).last_hidden_state).sample
        return out


def noise_schedule() -> DDPMScheduler:
    """The forward process: 1,000 timesteps, the scaled-linear schedule, velocity as the target."""
    return DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction"
    )


def new_autoencoder() -> AutoencoderTiny:
    """An untrained autoencoder: 128 x 128 x 3 to 16 x 16 x 4, 0.73 million parameters."""
    return AutoencoderTiny(
        encoder_block_out_channels=(32,) * 4,
        decoder_block_out_channels=(48,) * 4,
        num_encoder_blocks=(1, 2, 2, 2),
        num_decoder_blocks=(2, 2, 2, 1),
        latent_channels=4,
        scaling_factor=1.0,
    )


def new_denoiser(things: Iterable[Thing], work: Path) -> Denoiser:
    """An untrained denoiser (10.9 million parameters) and text encoder (0.67 million); the tokenizer is learned."""
    tokenizer, vocabulary = learn_tokenizer(things, work / "tokenizer")
    text_config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        bos_token_id=vocabulary[START],
        eos_token_id=vocabulary[END],
        pad_token_id=vocabulary[END],
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(64, 128, 192),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=8,
        norm_num_groups=16,
    )
    return Denoiser(unet, CLIPTextModel(text_config), tokenizer)


def load_denoiser(folder: Path) -> Denoiser:
    """The denoiser of an existing diffusers folder, in float32."""
    return Denoiser(
        UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=torch.float32),
        CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", torch_dtype=torch.float32),
        CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"),
    )


def learn_tokenizer(things: Iterable[Thing], folder: Path) -> tuple[CLIPTokenizer, dict[str, int]]:
    """A CLIP tokenizer with a small byte-pair vocabulary learned from the captions, and that vocabulary.

    Every byte stands in the vocabulary both inside and at the end of a word, so that no text is unknown.
    """
    bpe = Tokenizer(models.BPE(unk_token=END, end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[START, END], end_of_word_suffix="</w>", initial_alphabet=alphabet
    )
    bpe.train_from_iterator(corpus(things), trainer)
    learned = json.loads(bpe.to_str())["model"]
    vocabulary: dict[str, int] = learned["vocab"]
    for character in alphabet:
        vocabulary.setdefault(character + "</w>", len(vocabulary))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in learned["merges"]]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    tokenizer = CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=POSITIONS, pad_token=END
    )
    return tokenizer, vocabulary


def corpus(things: Iterable[Thing]) -> Iterable[str]:
    """Every name on every colour, as the tokenizer's training text."""
    for thing in things:
        for name in thing.names:
            for colour in COLOURS:
                yield CAPTIONS[0].format(article=article(name), name=name, colour=colour)


def assemble(denoiser: Denoiser, autoencoder: AutoencoderTiny, scaling_factor: float) -> StableDiffusionPipeline:
    """The pipeline; ``scaling_factor`` brings the autoencoder's latents to unit variance."""
    autoencoder.register_to_config(scaling_factor=scaling_factor)
    scheduler = DDIMScheduler.from_config(
        noise_schedule().config, clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    return StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=denoiser.text.eval(),
        tokenizer=denoiser.tokenizer,
        unet=denoiser.unet.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
