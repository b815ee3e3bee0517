"""Pipelines other than the embedded model's, run whole."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from service.engine.contract import Picture
from service.engine.pipeline import PipelineModel
from tests.support import build, pipelines

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.mark.parametrize("make", [pipelines.stable_diffusion_xl, pipelines.flux])
def test_a_batch_gives_each_its_own_picture(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """Three pictures in one batch are what the pipeline draws for each alone, give or take 2/255."""
    torch.manual_seed(0)
    with pipelines.quiet():
        make(tmp_path)
    loaded = pipelines.loaded(tmp_path)
    model = PipelineModel(loaded)
    wishes = [
        build.params(prompt=prompt, seed=seed, scheduler=model.info.default_scheduler, num_inference_steps=3)
        for seed, prompt in enumerate(["a red apple", "a blue house", "a dog"])
    ]
    steps: list[float] = []
    with pipelines.quiet():
        batch = model.generate([Picture("t", 0, wish) for wish in wishes], steps.append)
    assert len(steps) == 3
    for wish, pixels in zip(wishes, batch.pixels, strict=True):
        assert pixels.shape == (64, 64, 3)
        assert np.abs(pixels.astype(int) - pipelines.lone(loaded.pipe, wish)).max() <= 2
    assert model.info.pipeline in {"StableDiffusionXLPipeline", "FluxPipeline"}
