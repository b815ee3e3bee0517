"""A stand-in model without weights: deterministic pictures, as fast or slow as asked, failing on demand.

`fake:?step_ms=20&load_ms=0&size=64&hold=FILE&signed=1` is its address; the faults of `engine.faults` can be added. Each
step waits as long as the file of `hold` exists. What is `signed` has a first row that no other call ever draws. A
prompt of over 24 words counts as truncated. It draws nothing but a colour derived from prompt and seed.
"""

import hashlib
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import numpy as np

from observability.labels import Stage
from service.core import ModelInfo
from service.engine.contract import Batch, Decoded, Picture, Pixels
from service.engine.loading import revision
from service.settings import SCHEDULER_NAMES, EngineSettings

SCHEME = "fake:"
HOLD_SECONDS = 0.005
MAX_WORDS = 24


@dataclass(slots=True)
class FakeRow:
    """A picture that counts its steps."""

    picture: Picture
    step: int = 0

    @property
    def total_steps(self) -> int:
        """What was asked for."""
        return self.picture.params.num_inference_steps

    @property
    def truncated(self) -> bool:
        """Whether the prompt is too long."""
        return len(self.picture.params.prompt.split()) > MAX_WORDS


class FakeModel:
    """See the module's words. It serves every batching mode."""

    def __init__(self, settings: EngineSettings, sleep: Callable[[float], None] = time.sleep) -> None:
        options = dict(parse_qsl(urlsplit(settings.model).query))
        self._step_seconds = float(options.get("step_ms", 0)) / 1e3
        self._sleep = sleep
        self._hold = Path(options["hold"]) if "hold" in options else None
        self._is_signed = "signed" in options
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
            max_prompt_tokens=MAX_WORDS,
            supports_negative_prompt=True,
        )
        sleep(float(options.get("load_ms", 0)) / 1e3)

    def begin(self, pictures: Sequence[Picture]) -> list[FakeRow]:
        """See `StepModel.begin`."""
        return [FakeRow(each) for each in pictures]

    def denoise(self, rows: Sequence[FakeRow]) -> list[Exception | None]:
        """Wait; see `StepModel.denoise`."""
        while self._hold is not None and self._hold.exists():
            self._sleep(HOLD_SECONDS)
        if self._step_seconds:
            self._sleep(self._step_seconds)
        for row in rows:
            row.step += 1
        return [None] * len(rows)

    def decode(self, rows: Sequence[FakeRow]) -> list[Decoded]:
        """One colour a picture; see `StepModel.decode`."""
        drawn = [colour(row.picture) for row in rows]
        for pixels in drawn if self._is_signed else ():
            pixels[0] = np.frombuffer(secrets.token_bytes(pixels[0].size), np.uint8).reshape(pixels[0].shape)
        return [Decoded(each) for each in drawn]

    decodes_beside = False

    def peak_bytes(self) -> None:
        """Not known."""

    def generate(self, pictures: Sequence[Picture], on_step: Callable[[float], None]) -> Batch:
        """A whole batch; see `BatchModel.generate`."""
        started = time.monotonic()
        rows = self.begin(pictures)
        while rows[0].step < rows[0].total_steps:
            began = time.monotonic()
            self.denoise(rows)
            on_step(time.monotonic() - began)
        timings = {Stage.DENOISE: time.monotonic() - started}
        return Batch(tuple(each.pixels() for each in self.decode(rows)), tuple(row.truncated for row in rows), timings)


def colour(picture: Picture) -> Pixels:
    """The picture that the fake model makes: one colour, from prompt and seed alone."""
    digest = hashlib.sha256(f"{picture.params.prompt}\0{picture.seed}".encode()).digest()
    shape = (picture.params.height, picture.params.width, 3)
    return np.broadcast_to(np.frombuffer(digest[:3], np.uint8), shape).copy()
