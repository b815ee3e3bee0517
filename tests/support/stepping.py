"""Models driven step by step in tests, and the requests that they are tested with."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from observability.events import Event
from service.core import Params
from service.engine import families
from service.engine.contract import Picture, Pixels
from service.engine.pipeline import LoadedPipeline
from service.engine.stepwise import StepwiseModel, StepwiseRow
from tests.support import build, pipelines

MIB = 1 << 20
VAE_STATISTICS = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [0.9, 1.1, 1.0, 1.2]}
MAKERS: dict[str, Callable[[Path], None]] = {
    "sd2": pipelines.stable_diffusion,
    "distilled": lambda folder: pipelines.stable_diffusion(folder, time_cond_proj_dim=16),
    "sdxl": pipelines.stable_diffusion_xl,
    "sdxl-normalized": lambda folder: pipelines.stable_diffusion_xl(folder, force_zeros=False, **VAE_STATISTICS),
    "flux": pipelines.flux,
    "flux-dev": lambda folder: pipelines.flux(folder, guidance_embeds=True),
}
MODELS = ("tiny", *MAKERS)


class Models:
    """Each of `MODELS`, made and loaded when it is first asked for."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self._folders = folders
        self._loaded: dict[str, LoadedPipeline] = {}

    def __call__(self, name: str) -> LoadedPipeline:
        """The model of that name."""
        if name not in self._loaded:
            is_embedded = name == "tiny"
            self._loaded[name] = (
                pipelines.loaded(pipelines.EMBEDDED) if is_embedded else make(self._folders.mktemp(name), MAKERS[name])
            )
        return self._loaded[name]


def make(folder: Path, maker: Callable[[Path], None], **settings: Any) -> LoadedPipeline:
    """The model that `maker` writes, always with the same weights."""
    torch.manual_seed(0)
    with pipelines.quiet():
        maker(folder)
    return pipelines.loaded(folder, **settings)


def stepwise(loaded: LoadedPipeline, cache: int = MIB, events: list[Event] | None = None) -> StepwiseModel:
    """The model, with a prompt cache of `cache` bytes whose events are written down in `events`."""
    family = families.of(loaded)
    assert family is not None
    return StepwiseModel(loaded, family, cache, (events if events is not None else []).append)


def wishes(loaded: LoadedPipeline, shift: int = 0, **changes: Any) -> list[Params]:
    """Six requests that have nothing in common but their size, and `changes`; every scheduler is among them."""
    names = loaded.info.schedulers
    size = loaded.info.min_size
    given: list[dict[str, Any]] = [
        {"prompt": "a red apple", "num_inference_steps": 9, "guidance_scale": 4.0},
        {"prompt": "a blue house", "num_inference_steps": 4, "guidance_scale": 1.0},
        {"prompt": "a dog", "num_inference_steps": 12, "guidance_scale": 7.3, "negative_prompt": "a cat, blurred"},
        {"prompt": "a dog", "num_inference_steps": 5, "guidance_scale": 2.5, "negative_prompt": "green"},
        {"prompt": "", "num_inference_steps": 7, "guidance_scale": 1.6, "negative_prompt": "a dog"},
        {"prompt": "a star on a purple background", "num_inference_steps": 6, "guidance_scale": 5.0},
    ]
    if not loaded.info.supports_negative_prompt:
        changes["negative_prompt"] = ""
    defaults = {"width": size, "height": size}
    return [
        build.params(**{**defaults, "seed": index, "scheduler": names[(index + shift) % len(names)], **each, **changes})
        for index, each in enumerate(given)
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
    return pictures_of(model, rows)


def pictures_of(model: StepwiseModel, rows: Sequence[StepwiseRow]) -> list[Pixels]:
    """The pictures of finished rows."""
    return [each.pixels() for each in model.decode(rows)]


def unfinished(rows: Sequence[StepwiseRow]) -> list[StepwiseRow]:
    """The rows with steps left."""
    return [row for row in rows if row.step < row.total_steps]


def assert_same(pictures: Sequence[Pixels], expected: Sequence[Pixels]) -> None:
    """Each as expected, give or take 1/255, and no two of them alike."""
    for picture, other in zip(pictures, expected, strict=True):
        assert picture.shape == other.shape
        assert np.abs(picture.astype(int) - other.astype(int)).max() <= 1
    for index, picture in enumerate(expected):
        assert all(np.abs(picture.astype(int) - other.astype(int)).max() > 10 for other in expected[:index])
