"""The service with its real, embedded model, as `make run` starts it."""

import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from models.tiny.dataset import PALETTE
from service.engine.schedulers import make
from tests.support.server import Server, serving

THINGS = ["red heart", "pizza", "dog face", "green apple"]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the default settings."""
    with serving(tmp_path_factory.mktemp("real")) as server:
        yield server


def pixels(data: bytes) -> npt.NDArray[np.int16]:
    """[height, width, 3] of a picture file."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(np.int16)


def background(picture: npt.NDArray[np.int16]) -> str:
    """The palette colour that the picture's border is nearest to."""
    border = np.concatenate([picture[:4].reshape(-1, 3), picture[-4:].reshape(-1, 3), picture[:, :4].reshape(-1, 3)])
    median = np.median(border, axis=0)
    return min(PALETTE, key=lambda name: float(((np.array(PALETTE[name]) - median) ** 2).sum()))


def draw(server: Server, **body: Any) -> npt.NDArray[np.int16]:
    """One picture as pixels."""
    response = server.client.post("/generate", json=body, headers={"accept": "image/png"})
    assert response.status_code == 200, response.text
    return pixels(response.content)


def draw_together(server: Server, wishes: list[dict[str, Any]]) -> list[npt.NDArray[np.int16]]:
    """The pictures of requests that the engine finds all at once, so that at most the first runs alone."""
    requests, batches = (server.metric(f"safelight_batch_size_{part}") for part in ("sum", "count"))
    with server.frozen():
        jobs = [server.generate(**wish) for wish in wishes]
    urls = [server.await_status(job["job_id"], "completed")["image_url"] for job in jobs]
    requests = server.metric("safelight_batch_size_sum") - requests
    assert requests > server.metric("safelight_batch_size_count") - batches, "they shared batches"
    return [pixels(server.client.get(url).content) for url in urls]


def test_sixteen_at_once_each_get_their_own_colour(real: Server) -> None:
    """Different prompts that share batches do not get one another's pictures."""
    colours = (list(PALETTE) * 2)[:16]
    prompts = [f"a {THINGS[n % 4]} on a {colour} background" for n, colour in enumerate(colours)]
    pictures = draw_together(real, [{"prompt": each, "seed": 3, "num_inference_steps": 10} for each in prompts])
    assert [background(picture) for picture in pictures] == colours


@pytest.fixture(scope="module")
def pipe() -> Any:
    """The model in diffusers' own pipeline."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of diffusers' own deprecations
        pipe = StableDiffusionPipeline.from_pretrained(Path("models/tiny"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("scheduler", ["ddim", "euler_a", "lcm"])
def test_the_picture_is_that_of_the_pipeline_itself(
    real: Server, pipe: Any, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among batch-mates: what `StableDiffusionPipeline` draws for the prompt and seed, give or take 2/255.

    Two of the schedulers add noise at each step, which must be the picture's own and not its batch-mates'.
    """
    monkeypatch.setattr(pipe, "scheduler", make(scheduler, pipe.scheduler))
    wishes: list[dict[str, Any]] = [
        {"prompt": f"a pizza on a {colour} background", "seed": 5} for colour in ("red", "blue", "green")
    ]
    options = {"num_inference_steps": 6, "scheduler": scheduler, "cache": False}
    served = draw_together(real, [{**wish, **options} for wish in wishes])
    for wish, picture in zip(wishes, served, strict=True):
        assert np.abs(picture - by_pipeline(pipe, **wish)).max() <= 2


def by_pipeline(pipe: Any, prompt: str, seed: int) -> npt.NDArray[np.int16]:
    """The picture of diffusers' own pipeline, called with one prompt."""
    generator = torch.Generator("cpu").manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of diffusers' own deprecations
        image = pipe(prompt, num_inference_steps=6, guidance_scale=4.0, generator=generator).images[0]
    return np.asarray(image).astype(np.int16)


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "euler_a", "dpmpp_2m", "unipc", "lcm"])
def test_every_scheduler_draws(real: Server, scheduler: str) -> None:
    """Each gives a picture that is neither empty nor noise: its border is of one colour."""
    picture = draw(real, prompt="a red heart on a blue background", scheduler=scheduler, seed=1, num_inference_steps=8)
    border = np.concatenate([picture[:3].reshape(-1, 3), picture[-3:].reshape(-1, 3)])
    assert picture.std() > 10
    assert border.std(axis=0).max() < 40


@pytest.mark.parametrize(("width", "height"), [(64, 64), (72, 184), (192, 192)])
def test_every_allowed_size_is_drawn(real: Server, width: int, height: int) -> None:
    """From 64 to 192 in multiples of 8, in any shape."""
    picture = draw(real, prompt="a red heart", width=width, height=height, seed=1, num_inference_steps=2)
    assert picture.shape == (height, width, 3)


def test_a_prompt_over_the_text_window_is_cut_and_said(real: Server) -> None:
    """24 tokens are read; the job says that there were more."""
    done = real.generate(params={"wait": 60}, expect=200, prompt="apple " * 60, num_inference_steps=1)
    assert done["prompt_truncated"] is True
    done = real.generate(params={"wait": 60}, expect=200, prompt="apple", num_inference_steps=1)
    assert done["prompt_truncated"] is False


def test_the_model_says_what_it_takes(real: Server) -> None:
    """The embedded model's sizes, defaults and limits."""
    model = real.client.get("/model").json()
    assert (model["min_size"], model["max_size"], model["default_width"], model["size_multiple"]) == (64, 192, 128, 8)
    assert model["default_guidance_scale"] == 4.0
    assert model["pipeline"] == "StableDiffusionPipeline"
    assert len(model["revision"]) == 16


def test_the_breakdown_of_time_has_every_stage(real: Server) -> None:
    """Queue wait, text encoding, denoising, decoding, picture encoding, storing; together no longer than the job."""
    done = real.generate(params={"wait": 60}, expect=200, num_inference_steps=2)
    assert set(done["timings"]) == {
        "queue_wait",
        "text_encode",
        "denoise",
        "vae_decode",
        "image_encode",
        "store",
    }
    assert all(seconds >= 0 for seconds in done["timings"].values())
