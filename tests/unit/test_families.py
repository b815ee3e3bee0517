"""Pipelines driven step by step, held to the pictures that diffusers' own pipelines draw."""

from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
)

from observability.labels import Batching
from service.engine import families, schedulers
from service.engine.contract import Message, Picture, Ready
from service.engine.faults import Faults
from service.engine.worker import Outgoing, make_loop
from service.settings import EngineSettings
from tests.support import build, pipelines
from tests.support.stepping import MODELS, Models, assert_same, draw, make, stepwise, wishes

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """The models that the tests share."""
    return Models(tmp_path_factory)


@pytest.mark.parametrize(("name", "shift"), [(name, index) for index, name in enumerate(MODELS)] + [("tiny", 3)])
def test_rows_at_steps_of_their_own_are_the_pictures_of_the_pipeline(load: Models, name: str, shift: int) -> None:
    """Rows of other prompts, seeds, schedulers, steps and guidance share calls, as if the pipeline drew each alone."""
    loaded = load(name)
    params = wishes(loaded, shift)
    expected = [pipelines.lone(loaded.pipe, each) for each in params]
    assert_same(draw(stepwise(loaded), params), expected)


@pytest.mark.parametrize(("name", "width", "height"), [("tiny", 64, 96), ("sdxl", 48, 32), ("flux-dev", 32, 48)])
def test_a_picture_need_not_be_square(load: Models, name: str, width: int, height: int) -> None:
    """Width and height are not mixed up anywhere."""
    loaded = load(name)
    params = wishes(loaded, width=width, height=height)[:2]
    expected = [pipelines.lone(loaded.pipe, each) for each in params]
    assert expected[0].shape == (height, width, 3)
    assert_same(draw(stepwise(loaded), params), expected)


def test_a_vae_that_overflows_in_half_precision_decodes_in_single(tmp_path: Path) -> None:
    """As the pipeline does it for each call."""
    loaded = make(tmp_path, pipelines.stable_diffusion_xl, dtype="float16")
    family = families.of(loaded)
    assert family is not None
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1)).half()
    with pipelines.quiet(), torch.inference_mode():
        images = family.decode(latents, 32, 32)
        single = loaded.pipe.vae.to(torch.float32).decode(latents.float() / loaded.pipe.vae.config.scaling_factor)
    expected = (single.sample / 2 + 0.5).clamp(0, 1)
    assert (images - expected).abs().max() < 1e-6


def test_such_a_model_is_left_to_its_pipeline_in_window_mode(tmp_path: Path) -> None:
    """Which turns the autoencoder itself, and cannot work with one that was turned before."""
    make(tmp_path, pipelines.stable_diffusion_xl, dtype="float16")
    settings = EngineSettings(
        model=str(tmp_path), device="cpu", dtype="float16", batching=Batching.WINDOW, min_size=32, data_dir=tmp_path
    )
    sent: list[Message] = []
    with pipelines.quiet():
        outgoing = Outgoing(sent.extend)
        make_loop(settings, SimpleQueue(), outgoing, Faults())
    outgoing.flush()
    assert [type(each) for each in sent] == [Ready]


def test_a_safety_checker_is_applied_to_each_picture(load: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture that it flags is black, its batch-mate is not, as in the pipeline."""
    loaded = load("sd2")
    params = wishes(loaded)[:2]
    expected = [pipelines.lone(loaded.pipe, each) for each in params]

    def check(images: torch.Tensor, clip_input: torch.Tensor) -> tuple[torch.Tensor, list[bool]]:
        assert len(clip_input) == len(images) == 2
        return images * torch.tensor([1.0, 0.0]).view(2, 1, 1, 1), [False, True]

    def extract(pictures: Sequence[Any], return_tensors: str) -> Any:
        inputs = SimpleNamespace(pixel_values=torch.zeros(len(pictures), 3, 8, 8))
        return SimpleNamespace(to=lambda device: inputs)

    monkeypatch.setattr(loaded.pipe, "safety_checker", check)
    monkeypatch.setattr(loaded.pipe, "feature_extractor", extract)
    assert_same(draw(stepwise(loaded), params), [expected[0], np.zeros_like(expected[1])])


@pytest.mark.parametrize(("name", "limit"), [("tiny", 24), ("sdxl", 24), ("flux", 32)])
def test_a_prompt_that_is_longer_than_the_model_reads_is_told(load: Models, name: str, limit: int) -> None:
    """FLUX reads as much as its longer text encoder does."""
    loaded = load(name)
    assert loaded.info.max_prompt_tokens == limit
    longest = " ".join(["dog"] * (limit - 2))
    params = [build.params(prompt=each, scheduler=loaded.info.schedulers[0]) for each in (longest, longest + " dog")]
    rows = stepwise(loaded).begin([Picture("task", 0, each) for each in params])
    assert [row.truncated for row in rows] == [False, True]


@pytest.mark.parametrize("name", ["flux", "flux-dev", "distilled"])
def test_a_model_that_reads_the_guidance_scale_takes_one_row_a_picture(load: Models, name: str) -> None:
    """It has no use for a negative prompt, and says so."""
    loaded = load(name)
    assert not loaded.info.supports_negative_prompt
    assert not loaded.info.doubles_guided
    rows = stepwise(loaded).begin([Picture("task", 0, each) for each in wishes(loaded)])
    assert all(row.negative is None for row in rows)


class Derived(StableDiffusionPipeline):
    """A pipeline that may do anything in its `__call__`."""


UNKNOWN: dict[str, Callable[[Path], None]] = {
    "a refiner": lambda folder: pipelines.stable_diffusion_xl(folder, inputs=72),
    "class labels": lambda folder: pipelines.stable_diffusion(folder, num_class_embeds=4),
    "an inpainting unet": lambda folder: pipelines.stable_diffusion(folder, in_channels=9),
    "a sample-predicting scheduler": lambda folder: pipelines.stable_diffusion(
        folder, scheduler=DDIMScheduler(prediction_type="sample", steps_offset=1, clip_sample=False)
    ),
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_what_is_not_reproduced_is_not_known(tmp_path: Path, what: str) -> None:
    """Such a model is left to its own pipeline."""
    assert families.of(make(tmp_path, UNKNOWN[what])) is None


def test_a_pipeline_of_another_class_or_with_an_adapter_is_not_known(
    load: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the exact classes are, with nothing added to their denoisers."""
    loaded = load("sd2")
    derived = SimpleNamespace(pipe=Derived(**loaded.pipe.components, requires_safety_checker=False), info=loaded.info)
    assert families.of(derived) is None  # type: ignore[arg-type]  # all that it looks at
    with pipelines.quiet():
        loaded.pipe.unet.register_to_config(encoder_hid_dim_type="ip_image_proj")
    assert families.of(loaded) is None
    loaded.pipe.unet.register_to_config(encoder_hid_dim_type=None)
    assert families.of(loaded) is not None
    transformer = load("flux").pipe.transformer
    monkeypatch.setattr(transformer, "encoder_hid_proj", torch.nn.Identity(), raising=False)
    assert families.of(load("flux")) is None


OWN: dict[str, Any] = {
    "Stable Diffusion 1.5": PNDMScheduler(skip_prk_steps=True, steps_offset=1, **pipelines.BETAS),
    "SD-Turbo": EulerDiscreteScheduler(timestep_spacing="trailing", steps_offset=1, **pipelines.BETAS),
    "Stable Diffusion XL": EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1, **pipelines.BETAS),
}


@pytest.mark.parametrize("own", OWN)
def test_a_scheduler_takes_the_steps_that_are_asked_for(own: str) -> None:
    """No offered scheduler has more timesteps than steps, as those with two calls of the denoiser a step do."""
    names = schedulers.names_for(OWN[own])
    assert set(names) == {"ddim", "euler", "euler_a", "dpmpp_2m", "unipc", "lcm"}
    for name in names:
        scheduler = schedulers.make(name, OWN[own])
        for steps in (1, 2, 3, 4, 7, 10, 20, 25, 30, 50):
            scheduler.set_timesteps(steps, device="cpu")
            assert len(scheduler.timesteps) == steps


@pytest.mark.parametrize("own", OWN)
def test_ddim_does_not_clip_latents(own: str) -> None:
    """Also for a model whose own scheduler has no say in it, where the class would clip them like pixels."""
    assert not schedulers.make("ddim", OWN[own]).config.clip_sample
    assert schedulers.make("ddim", DDIMScheduler(clip_sample=True)).config.clip_sample


def test_flow_matching_has_a_scheduler_of_its_own() -> None:
    """Neither it nor what a class does with flow sigmas can be exchanged for a scheduler of noise."""
    assert schedulers.names_for(FlowMatchEulerDiscreteScheduler()) == ("flow_match_euler",)
    sana = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    assert schedulers.names_for(sana) == ("DPMSolverMultistepScheduler",)
    assert type(schedulers.make("DPMSolverMultistepScheduler", sana)) is DPMSolverMultistepScheduler
