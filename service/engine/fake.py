"""A stand-in model without weights: deterministic pictures, as fast or slow as asked, failing on demand.

`fake:?step_ms=20&load_ms=0&size=64&fail=WORD&hang=WORD&crash=WORD&oom_above=N&hold=FILE` is its address. A prompt
that holds the word of `fail` raises, of `crash` ends the process, of `hang` never comes back; a batch of more
than `oom_above` pictures raises `MemoryError`. Each step waits as long as the file of `hold` exists. A prompt of
over 24 words counts as truncated. It draws nothing but a colour derived from prompt and seed.
"""

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import numpy as np

from observability.events import Stage
from service.core import ModelInfo
from service.engine.contract import Batch, Picture, Pixels
from service.engine.loading import revision
from service.settings import SCHEDULER_NAMES, EngineSettings

SCHEME = "fake:"
HOLD_SECONDS = 0.005


class FakeModel:
    """See the module's words."""

    def __init__(self, settings: EngineSettings, sleep: Callable[[float], None] = time.sleep) -> None:
        options = dict(parse_qsl(urlsplit(settings.model).query))
        self._step_seconds = float(options.get("step_ms", 0)) / 1e3
        self._sleep = sleep
        self._words = {action: options.get(action) for action in ("fail", "hang", "crash")}
        self._hold = Path(options["hold"]) if "hold" in options else None
        self._oom_above = int(options.get("oom_above", 10**6))
        size = int(options.get("size", 64))
        self.info = ModelInfo(
            name="fake",
            revision=revision(settings.model),
            pipeline="FakeModel",
            device="cpu",
            dtype="uint8",
            default_width=size,
            default_height=size,
            min_size=settings.min_size or 8,
            max_size=settings.max_size or 192,
            size_multiple=8,
            schedulers=SCHEDULER_NAMES,
            default_scheduler=settings.scheduler or "ddim",
            default_steps=20,
            default_guidance_scale=4.0,
            max_prompt_tokens=24,
            supports_negative_prompt=True,
        )
        sleep(float(options.get("load_ms", 0)) / 1e3)

    def generate(self, pictures: Sequence[Picture], on_step: Callable[[float], None]) -> Batch:
        """One colour a picture; see `Model.generate`."""
        started = time.monotonic()
        for _ in range(pictures[0].params.num_inference_steps):
            begun = time.monotonic()
            while self._hold is not None and self._hold.exists():
                self._sleep(HOLD_SECONDS)
            if self._step_seconds:
                self._sleep(self._step_seconds)
            self._misbehave(pictures)
            on_step(time.monotonic() - begun)
        return Batch(
            pixels=tuple(colour(each) for each in pictures),
            truncated=tuple(len(each.params.prompt.split()) > 24 for each in pictures),
            timings={Stage.DENOISE: time.monotonic() - started},
        )

    def _misbehave(self, pictures: Sequence[Picture]) -> None:
        if len(pictures) > self._oom_above:
            raise MemoryError
        for action, word in self._words.items():
            if word is not None and any(word in each.params.prompt for each in pictures):
                if action == "crash":
                    os._exit(3)
                if action == "hang":
                    time.sleep(3600)
                raise RuntimeError(f"asked to fail by the word {word!r}")


def colour(picture: Picture) -> Pixels:
    """The picture that the fake model makes: one colour, from prompt and seed alone."""
    digest = hashlib.sha256(f"{picture.params.prompt}\0{picture.seed}".encode()).digest()
    shape = (picture.params.height, picture.params.width, 3)
    return np.broadcast_to(np.frombuffer(digest[:3], np.uint8), shape).copy()
