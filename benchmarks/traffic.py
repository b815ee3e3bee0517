"""Seeded traffic as values: what is asked for, and when."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product

from service.core import ImageFormat, Params, Size

COLOURS = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink")
THINGS = ("pizza", "rocket", "cat", "umbrella", "guitar", "whale", "candle", "tractor", "mushroom", "key")


@dataclass(frozen=True, slots=True)
class Request:
    """One picture of the model's own size, asked for `at` seconds after the traffic begins."""

    at: float
    prompt: str
    seed: int
    steps: int
    guidance: float

    def body(self) -> dict[str, str | int | float | bool]:
        """The JSON of `POST /generate`: no answer from the cache, and a day's time."""
        return {
            "prompt": self.prompt,
            "seed": self.seed,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "cache": False,
            "timeout_s": 86_400,
        }

    def params(self, size: Size, scheduler: str) -> Params:
        """The same for the engine itself; `size` in pixels."""
        return Params(
            prompt=self.prompt,
            negative_prompt="",
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            width=size[0],
            height=size[1],
            seed=self.seed,
            num_images=1,
            scheduler=scheduler,
            output_format=ImageFormat.PNG,
        )


@dataclass(frozen=True, slots=True)
class Mix:
    """What requests are drawn from, each value as likely as the others. Every picture is guided: two rows."""

    steps: tuple[int, ...]
    guidance: tuple[float, ...]

    def kinds(self) -> list[tuple[int, float]]:
        """Steps and guidance of every kind of request; only the same can share a batch of one pipeline call."""
        return list(product(self.steps, self.guidance))


MIXES: Mapping[str, Mix] = {
    "mixed": Mix(steps=(4, 8, 20, 50), guidance=(5.0, 7.5)),
    "uniform": Mix(steps=(20,), guidance=(7.5,)),
}


def draw(mix: Mix, count: int, rate: float, seed: str) -> list[Request]:
    """`count` requests that arrive at random (Poisson), `rate` a second.

    No two prompts are the same, also between seeds, so nothing is gained by a cache of prompts. Another rate stretches
    time and changes nothing else.
    """
    source = random.Random(seed)
    at = 0.0
    requests = []
    for _ in range(count):
        at += source.expovariate(rate)
        thing, colour, number = source.choice(THINGS), source.choice(COLOURS), source.randrange(1 << 40)
        requests.append(
            Request(
                at=at,
                prompt=f"a {thing} on a {colour} background, number {number}",
                seed=source.randrange(1 << 31),
                steps=source.choice(mix.steps),
                guidance=source.choice(mix.guidance),
            )
        )
    return requests


def all_at_once(mix: Mix, each: int, seed: str) -> list[Request]:
    """`each` requests of every kind in the mix, in random order, which are all there at 0."""
    kinds = mix.kinds() * each
    random.Random(seed).shuffle(kinds)
    drawn = draw(mix, len(kinds), 1.0, seed)
    return [
        replace(request, at=0.0, steps=steps, guidance=guidance)
        for request, (steps, guidance) in zip(drawn, kinds, strict=True)
    ]


def block(traffic: str, load: float, index: int, rate: float, count: int, seed: int) -> list[Request]:
    """Block number `index` for the load `load`: `count` requests of the mix `traffic` at `rate` a second."""
    return draw(MIXES[traffic], count, rate, f"{seed} {traffic} {load} {index}")
