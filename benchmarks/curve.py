"""How long the parts of a batch take, by the pictures in it: what a simulation knows of the machine."""

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from service.engine.profile import Curve, Point, Profile
from service.engine.profiling import batches

MAX_BATCH = 8
SIZE = (1, 1)  # stands for the model's own; nothing here compares sizes
ROWS_PER_GUIDED = 2


@dataclass(frozen=True, slots=True)
class Sample:
    """Stage seconds of one call of the bare pipeline for `pictures` guided pictures; `step` is a median."""

    pictures: int
    encode: float
    step: float
    decode: float


class Times:
    """Seconds of each stage by the number of guided pictures: medians of samples, linear in between."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        by_batch: dict[int, list[Sample]] = defaultdict(list)
        for sample in samples:
            by_batch[sample.pictures].append(sample)

        def curve(stage: str) -> Curve:
            medians = {n: statistics.median(getattr(each, stage) for each in by_batch[n]) for n in sorted(by_batch)}
            return Curve(SIZE, tuple(Point(n, seconds) for n, seconds in medians.items()))

        self._encode, self._step, self._decode = curve("encode"), curve("step"), curve("decode")
        points = tuple(each for each in self._step.points if each.pictures in set(batches(MAX_BATCH)))
        extra = self.encode(1) + self.decode(1)
        self.profile = Profile((Curve(SIZE, points),), extra, ROWS_PER_GUIDED, MAX_BATCH)

    def encode(self, pictures: int) -> float:
        """Seconds from the prompts to the first step."""
        return self._encode.seconds(pictures)

    def step(self, pictures: int) -> float:
        """Seconds of one denoising step."""
        return self._step.seconds(pictures)

    def decode(self, pictures: int) -> float:
        """Seconds from the last latents to the images."""
        return self._decode.seconds(pictures)

    def batch(self, pictures: int, steps: int) -> float:
        """Seconds of a whole batch that stays together."""
        return self.encode(pictures) + steps * self.step(pictures) + self.decode(pictures)

    def table(self) -> str:
        """The curve as text, in milliseconds."""
        lines = ["pictures  encode    step  decode   step a picture   (ms)"]
        for n in (point.pictures for point in self._step.points):
            stages = self.encode(n), self.step(n), self.decode(n), self.step(n) / n
            lines.append(f"{n:8d}" + "".join(f"{seconds * 1e3:8.1f}" for seconds in stages))
        if any(more.seconds < less.seconds for less, more in pairwise(self._step.points)):
            lines.append(
                "A step of more pictures took less time: the machine was not quiet, and the ideal means little."
            )
        return "\n".join(lines)


def read(path: Path) -> list[Sample]:
    """The curve in a file of `benchmarks.simulate` or of `benchmarks.engine`."""
    return [Sample(**each) for each in json.loads(path.read_text())["curve"]]
