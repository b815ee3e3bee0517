"""How long a denoising step takes at which batch size, and so how many slots are worth having."""

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field

from service.core import Size

KNEE = 0.95


@dataclass(frozen=True, slots=True)
class Point:
    """A step of `pictures` guided pictures took `seconds`; `peak_bytes` of device memory, where that is known."""

    pictures: int
    seconds: float
    peak_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of one picture size, by ascending batch; `is_whole` unless memory ended the measurement early."""

    size: Size
    points: tuple[Point, ...]
    is_whole: bool = True

    def seconds(self, pictures: float) -> float:
        """Seconds of a step of that many guided pictures, linear between the points and beyond the last."""
        batches = [point.pictures for point in self.points]
        if len(batches) == 1 or pictures <= batches[0]:
            return self.points[0].seconds * max(1.0, pictures / batches[0])
        right = min(bisect_left(batches, pictures), len(batches) - 1)
        low, high = self.points[right - 1], self.points[right]
        slope = (high.seconds - low.seconds) / (high.pictures - low.pictures)
        return low.seconds + slope * (pictures - low.pictures)


@dataclass(frozen=True)
class Profile:
    """Curves of some sizes. `extra_seconds` is what a picture of the first costs beside its steps: text encoding and
    decoding.

    `slots` are an operator's own caps, which go before what the curves say; `max_batch` bounds both.
    """

    curves: tuple[Curve, ...]
    extra_seconds: float
    rows_per_guided: int
    max_batch: int = 1
    slots: Mapping[Size, int] = field(default_factory=dict)

    def step_seconds(self, size: Size, rows: float) -> float:
        """Seconds of one step of `rows` rows of the model; for a size without a curve, scaled by pixels."""
        curve, scale = self._nearest(size)
        return curve.seconds(rows / self.rows_per_guided * scale)

    def beside_steps(self, size: Size) -> float:
        """Seconds that a picture costs beside its steps, by its pixels."""
        return self.extra_seconds * _pixels(size) / _pixels(self.curves[0].size)

    def peak_bytes(self, size: Size, rows: float) -> int | None:
        """Device memory at the peak of a step: that of the smallest measured batch that has as many pixels."""
        curve, scale = self._nearest(size)
        pictures = rows / self.rows_per_guided * scale
        return next((point.peak_bytes for point in curve.points if point.pictures >= pictures), None)

    def cap(self, size: Size) -> int:
        """Slots for `size`: the smallest batch that makes nearly as many pictures a second as the best one."""
        return min(self.slots.get(size, self._knee(size)), self.max_batch)

    def picture_step_seconds(self, size: Size, rows: int) -> float:
        """What one step of one picture of `rows` rows costs in a full batch, in seconds."""
        cap = self.cap(size)
        return self.step_seconds(size, cap * rows) / cap

    def decoded_together(self, size: Size) -> int:
        """Pictures whose decoding takes about as long as a step of a full batch."""
        step = self.step_seconds(size, self.cap(size) * self.rows_per_guided)
        return min(self.max_batch, max(1, int(step / max(self.beside_steps(size), 1e-9))))

    def _knee(self, size: Size) -> int:
        curve, scale = self._nearest(size)
        most = curve.points[-1].pictures
        fitting = [n for n in (each.pictures for each in curve.points) if curve.is_whole or n * scale <= most] or [1]
        rates = {n: n / curve.seconds(n * scale) for n in fitting}
        return min(n for n, rate in rates.items() if rate >= KNEE * max(rates.values()))

    def _nearest(self, size: Size) -> tuple[Curve, float]:
        """The curve of the size nearest in pixels, and how many times more pixels `size` has."""

        def ratio(curve: Curve) -> float:
            return _pixels(size) / _pixels(curve.size)

        nearest = min(self.curves, key=lambda curve: abs(math.log(ratio(curve))))
        return nearest, ratio(nearest)


def _pixels(size: Size) -> int:
    return size[0] * size[1]
