"""Pipelines driven step by step, held to the pictures that diffusers' own pipelines draw."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from service.core import Params
from service.engine import families
from service.engine.contract import Picture, Pixels
from service.engine.pipeline import LoadedPipeline
from service.engine.stepwise import StepwiseModel, StepwiseRow
from tests.support import build, pipelines

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

MIB = 1 << 20
GAUSSIAN = ("ddim", "euler", "euler_a", "dpmpp_2m", "unipc", "lcm")
VAE_STATISTICS = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [0.9, 1.1, 1.0, 1.2]}
MAKERS: dict[str, Callable[[Path], None]] = {
    "sd2": pipelines.stable_diffusion,
    "distilled": lambda folder: pipelines.stable_diffusion(folder, time_cond_proj_dim=16),
    "sdxl": pipelines.stable_diffusion_xl,
    "sdxl-normalized": lambda folder: pipelines.stable_diffusion_xl(folder, force_zeros=False, **VAE_STATISTICS),
    "flux": pipelines.flux,
    "flux-dev": lambda folder: pipelines.flux(folder, guidance_embeds=True),
}
CASES = [("tiny", name) for name in GAUSSIAN]
CASES += [(model, name) for model in ("sd2", "sdxl") for name in GAUSSIAN]
CASES += [("distilled", "lcm"), ("sdxl-normalized", "euler")]
CASES += [(model, "flow_match_euler") for model in ("flux", "flux-dev")]

Load = Callable[[str], LoadedPipeline]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Loads each of the models once."""
    known: dict[str, LoadedPipeline] = {}

    def get(name: str) -> LoadedPipeline:
        if name not in known:
            known[name] = (
                make(tmp_path_factory.mktemp(name), MAKERS[name]) if name != "tiny" else pipelines.loaded("models/tiny")
            )
        return known[name]

    return get


def make(folder: Path, maker: Callable[[Path], None]) -> LoadedPipeline:
    """The model that `maker` writes, always with the same weights."""
    torch.manual_seed(0)
    with pipelines.quiet():
        maker(folder)
    return pipelines.loaded(folder)


def stepwise(loaded: LoadedPipeline, cache: int = MIB, lookups: list[bool] | None = None) -> StepwiseModel:
    """The model, with a prompt cache of `cache` bytes whose lookups are written down in `lookups`."""
    family = families.of(loaded)
    assert family is not None
    return StepwiseModel(loaded, family, cache, (lookups if lookups is not None else []).append)


def wishes(scheduler: str, **changes: Any) -> list[Params]:
    """Requests that have nothing in common but their size, and `changes`."""
    return [
        build.params(**{"scheduler": scheduler, "prompt": prompt, "seed": seed, **given, **changes})
        for seed, (prompt, given) in enumerate(
            {
                "a red apple": {"num_inference_steps": 9, "guidance_scale": 4.0},
                "a blue house": {"num_inference_steps": 4, "guidance_scale": 1.0},
                "a dog": {"num_inference_steps": 12, "guidance_scale": 7.3, "negative_prompt": "a cat, blurred"},
                "": {"num_inference_steps": 5, "guidance_scale": 2.5, "negative_prompt": "green"},
                "a star on a purple background": {"num_inference_steps": 7, "guidance_scale": 1.6},
            }.items()
        )
    ]


def draw(model: StepwiseModel, params: Sequence[Params]) -> list[Pixels]:
    """All pictures; each begins two steps after the one before it, and shares every call with those under way."""
    waiting = [Picture("task", 0, each) for each in params]
    rows: list[StepwiseRow] = []
    turn = 0
    while waiting or unfinished(rows):
        if turn % 2 == 0 and waiting:
            rows += model.begin([waiting.pop(0)])
        assert not any(model.denoise(unfinished(rows)))
        turn += 1
    return list(model.decode(rows))


def unfinished(rows: Sequence[StepwiseRow]) -> list[StepwiseRow]:
    """The rows with steps left."""
    return [row for row in rows if row.step < row.total_steps]


def assert_same(pictures: Sequence[Pixels], expected: Sequence[Pixels]) -> None:
    """Each as expected, give or take 2/255, and no two of them alike."""
    for picture, other in zip(pictures, expected, strict=True):
        assert picture.shape == other.shape
        assert np.abs(picture.astype(int) - other.astype(int)).max() <= 2
    for index, picture in enumerate(expected):
        assert all(np.abs(picture.astype(int) - other.astype(int)).max() > 10 for other in expected[:index])


@pytest.mark.parametrize(("name", "scheduler"), CASES)
def test_rows_at_steps_of_their_own_are_the_pictures_of_the_pipeline(load: Load, name: str, scheduler: str) -> None:
    """Rows of different prompts, seeds, steps and guidance that share calls are what the bare pipeline draws."""
    loaded = load(name)
    assert scheduler in loaded.info.schedulers
    params = wishes(scheduler)
    if not loaded.info.supports_negative_prompt:
        params = wishes(scheduler, negative_prompt="")
    expected = [pipelines.lone(loaded.pipe, each) for each in params]
    assert_same(draw(stepwise(loaded), params), expected)
