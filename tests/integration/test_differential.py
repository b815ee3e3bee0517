"""Continuous batching draws what diffusers' own pipelines draw, whoever shares the steps."""

import random
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest
import torch

from observability.labels import Priority
from service.core import Params
from service.engine import families
from service.engine.continuous import ContinuousLoop
from service.engine.contract import Command, Finished, Message, Pixels, Stepped, Submit
from service.engine.pipeline import LoadedPipeline
from service.engine.profile import Curve, Point, Profile
from service.engine.stepwise import StepwiseModel
from tests.support import build, pipelines

NOISE_PREDICTING = ["ddim", "euler", "euler_a", "dpmpp_2m", "unipc", "lcm"]
CASES = [
    *(("tiny", scheduler) for scheduler in NOISE_PREDICTING),
    *(("sdxl", scheduler) for scheduler in NOISE_PREDICTING),
    ("flux_schnell", "flow_match_euler"),
    ("flux_dev", "flow_match_euler"),
]
STEPS = [4, 6, 9, 12, 15, 20, 25, 30]
GUIDANCE = [1.0, 1.5, 3.0, 4.0, 5.0, 7.5, 9.0, 12.0]
# The lcm sampler adds noise at each step and magnifies rounding: with guidance 12 and 30 steps diffusers' own batch of
# two differs from its own lone call by 10/255. It is made for guidance up to 2.
LCM_GUIDANCE = [1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0]
THINGS = ["pizza", "red heart", "dog", "green apple", "house", "blue car", "tree", "smiling face"]


@pytest.fixture(scope="module")
def pipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedPipeline]:
    """A pipeline of every family: the embedded one, and tiny ones with random weights."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    with pipelines.quiet():
        pipelines.stable_diffusion_xl(folder / "sdxl")
        pipelines.flux(folder / "flux_schnell")
        pipelines.flux(folder / "flux_dev", guidance_embeds=True)
    models = {path.name: path for path in folder.iterdir()} | {"tiny": Path("models/tiny")}
    return {name: pipelines.loaded(path) for name, path in models.items()}


def wishes(scheduler: str, negatives: bool) -> list[Params]:
    """Eight requests that differ in all but size and scheduler."""
    drawn = random.Random(scheduler)
    steps = drawn.sample(STEPS, 8)
    guidance = drawn.sample(LCM_GUIDANCE if scheduler == "lcm" else GUIDANCE, 8)
    return [
        build.params(
            prompt=f"a {THINGS[n]} on a yellow background",
            negative_prompt="a blurred picture" if negatives and n % 3 == 0 else "",
            seed=100 + n,
            num_inference_steps=steps[n],
            guidance_scale=guidance[n],
            scheduler=scheduler,
        )
        for n in range(8)
    ]


def serve(loaded: LoadedPipeline, requests: list[Params]) -> list[Message]:
    """What the engine's loop says when a request arrives after every second step, and the batch has six slots."""
    family = families.of(loaded)
    assert family is not None
    inbox: SimpleQueue[Command] = SimpleQueue()
    sent: list[Message] = []
    steps = 0
    arriving = [Submit(str(n), params, Priority.NORMAL, float(n)) for n, params in enumerate(requests)]

    def send(message: Message) -> None:
        nonlocal steps
        sent.append(message)
        if isinstance(message, Stepped):
            steps += 1
            if steps % 2 == 0 and arriving:
                inbox.put(arriving.pop(0))

    points = (Point(1, 0.1), Point(6, 0.2))
    loop = ContinuousLoop(
        StepwiseModel(loaded, family, 2**20, lambda _hit: None),
        inbox,
        send,
        lambda _: None,
        profile=Profile((Curve(requests[0].size, points),), 0.0, rows_per_guided=2, max_batch=6),
    )
    while arriving or loop._tasks or not inbox.empty():
        if not loop._tasks and inbox.empty():
            inbox.put(arriving.pop(0))
        loop.turn()
    return sent


@pytest.mark.parametrize(("model", "scheduler"), CASES)
def test_requests_that_join_at_any_step_get_the_pictures_of_diffusers(
    pipes: dict[str, LoadedPipeline], model: str, scheduler: str
) -> None:
    """At most 2/255 from `pipe(prompt)` alone, and most of them shared steps with others at another step."""
    loaded = pipes[model]
    requests = wishes(scheduler, loaded.info.supports_negative_prompt)
    with pipelines.quiet():
        sent = serve(loaded, requests)

    shared = defaultdict(set)
    for message in sent:
        if isinstance(message, Stepped):
            for task_id, step in message.event.members:
                shared[task_id] |= {other for other, at in message.event.members if at != step}
    assert sum(bool(others) for others in shared.values()) >= 4

    finished = {each.task_id: each.pictures[0] for each in sent if isinstance(each, Finished)}
    assert len(finished) == 8
    for n, params in enumerate(requests):
        assert difference(finished[str(n)], pipelines.lone(loaded.pipe, params)) <= 2, f"request {n}: {params}"
    n = min(range(8), key=lambda n: requests[n].num_inference_steps)
    one_more = replace(requests[n], num_inference_steps=requests[n].num_inference_steps + 1)
    assert difference(finished[str(n)], pipelines.lone(loaded.pipe, one_more)) > 2, "a mistake of one step is seen"


def difference(one: Pixels, other: Pixels) -> int:
    """The largest difference between two pictures, of 255."""
    return int(np.abs(one.astype(int) - other.astype(int)).max())
