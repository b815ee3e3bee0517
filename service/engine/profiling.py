"""The start-up profile: measured with the loaded model, kept on disk, read again while nothing has changed."""

import hashlib
import logging
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from service.core import ImageFormat, ModelInfo, Params, Size
from service.engine.contract import BatchModel, Picture, R, StepModel, is_out_of_memory
from service.engine.profile import Curve, Point, Profile
from service.errors import StartupError
from service.settings import EngineSettings

log = logging.getLogger("safelight.engine")

ROUNDS = 3
TIMED_STEPS = 2  # of the largest batch; of smaller ones more, so that all are timed for about as long
DRIFT = 1.5
FORMAT = 2  # of the file; another number makes older ones void
NOT_TUNING = {
    "data_dir",
    "batching",
    "batch_window_ms",
    "order",
    "prompt_cache_mb",
    "slots",
    "log_level",
    "log_format",
    "faults",
}
ADAPTER = TypeAdapter(Profile)


def profile_by_step(
    model: StepModel[R],
    settings: EngineSettings,
    machine: str,
    clock: Callable[[], float] = time.monotonic,
) -> Profile:
    """Warm `model`; its profile on `machine` (a description of what its speed depends on), from disk if it still holds.

    Otherwise it is measured, and kept if that can be done. Raises `StartupError` for sizes the model does not take.
    """
    sizes = settings.sizes_to_profile or [model.info.default_size]
    for size in sizes:
        _check(size, model.info)
    _make(model, _pictures(model.info, model.info.default_size, 1), clock)
    file = settings.data_dir / f"profile-{_digest(model.info, settings, machine)}.json"
    profile = _read(file)
    if profile is None or not _still_holds(profile, model, settings.max_batch, clock):
        profile = measure(model, sizes, settings.max_batch, clock)
        _keep(file, profile)
    return replace(profile, max_batch=settings.max_batch, slots=settings.slots_by_size)


def _check(size: Size, info: ModelInfo) -> None:
    if not all(info.takes_side(side) for side in size):
        raise StartupError(
            f"SAFELIGHT_PROFILE_SIZES: sides must be multiples of {info.size_multiple} from {info.min_size} to "
            f"{info.max_size}, got {size[0]}x{size[1]}"
        )


def _read(file: Path) -> Profile | None:
    """The kept profile; None when there is none that can be used."""
    try:
        profile = ADAPTER.validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None
    points = [curve.points for curve in profile.curves]
    is_sound = (
        points and all(points) and all(point.pictures > 0 and point.seconds > 0 for each in points for point in each)
    )
    return profile if is_sound else None


def _keep(file: Path, profile: Profile) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(ADAPTER.dump_json(profile, indent=2, exclude={"max_batch", "slots"}))
    except OSError:
        log.warning("the profile cannot be kept in %s", file, exc_info=True)


def _still_holds(profile: Profile, model: StepModel[R], max_batch: int, clock: Callable[[], float]) -> bool:
    """Whether a step takes about as long as the profile says, which may have been measured beside other work.

    Where memory cut it short, it does not: others may have had that memory then.
    """
    if not all(curve.is_whole for curve in profile.curves):
        return False
    curve = profile.curves[0]
    batch = replace(profile, max_batch=max_batch).cap(curve.size)
    ratio = _step_seconds(model, curve.size, batch, max_batch, clock) / curve.seconds(batch)
    return 1 / DRIFT < ratio < DRIFT


def profile_by_batch(model: BatchModel, slots: int) -> Profile:
    """A rough profile of a model that makes whole batches: from one picture, and as if batching gained nothing."""
    size = model.info.default_size
    picture = _pictures(model.info, size, 1)
    model.generate(picture, lambda seconds: None)
    steps: list[float] = []
    began = time.monotonic()
    model.generate(picture, steps.append)
    extra = time.monotonic() - began - sum(steps)
    points = tuple(Point(n, n * min(steps)) for n in sorted({1, slots}))
    return Profile((Curve(size, points),), extra, model.info.rows(picture[0].params), slots, {size: slots})


def _digest(info: ModelInfo, settings: EngineSettings, machine: str) -> str:
    """A hash of all that the profile depends on."""
    tuning = settings.model_dump(mode="json", exclude=NOT_TUNING)
    return hashlib.sha256(f"{FORMAT}\0{info}\0{tuning}\0{machine}".encode()).hexdigest()[:16]


def measure(
    model: StepModel[R], sizes: Sequence[Size], max_batch: int, clock: Callable[[], float] = time.monotonic
) -> Profile:
    """Time steps of 1, 2, 4, ... `max_batch` guided pictures of each size."""
    new = [_pictures(model.info, sizes[0], 1, prompt=f"prompt {n}, which is in no cache") for n in range(ROUNDS)]
    extra = statistics.median(_make(model, pictures, clock) for pictures in new)
    curves = tuple(_curve(model, size, max_batch, clock) for size in sizes)
    return Profile(curves, extra, model.info.rows(new[0][0].params), max_batch)


def _curve(model: StepModel[R], size: Size, max_batch: int, clock: Callable[[], float]) -> Curve:
    """All batch sizes in turns and for as long, so that a machine that is busy at times does not bend the curve."""
    seconds: dict[int, list[float]] = {batch: [] for batch in batches(max_batch)}
    peaks: dict[int, int | None] = {}
    is_whole = True
    for _ in range(ROUNDS):
        for batch in list(seconds):
            try:
                seconds[batch].append(_step_seconds(model, size, batch, max_batch, clock))
            except Exception as error:
                if batch == 1 or not is_out_of_memory(error):
                    raise
                is_whole = False
                seconds = {smaller: taken for smaller, taken in seconds.items() if smaller < batch}
                break
            peaks[batch] = model.peak_bytes()
    points: list[Point] = []
    for batch, taken in seconds.items():
        least = points[-1].seconds if points else 0.0  # a larger batch is never faster, whatever disturbed the clock
        points.append(Point(batch, max(statistics.median(taken), least), peaks[batch]))
    return Curve(size, tuple(points), is_whole)


def batches(most: int) -> Iterator[int]:
    """1, 2, 4, ... and `most` itself."""
    yield from takewhile(lambda n: n < most, (1 << n for n in range(most.bit_length())))
    yield most


def _step_seconds(model: StepModel[R], size: Size, batch: int, max_batch: int, clock: Callable[[], float]) -> float:
    """The mean time of some steps of `batch` pictures, after a warm one."""
    steps = TIMED_STEPS * math.ceil(max_batch / batch)
    rows = model.begin(_pictures(model.info, size, batch, steps=1 + steps))
    _step(model, rows)
    began = clock()
    for _ in range(steps):
        _step(model, rows)
    return (clock() - began) / steps


def _step(model: StepModel[R], rows: Sequence[R]) -> None:
    for error in model.denoise(rows):
        if error is not None:
            raise error


def _make(model: StepModel[R], pictures: Sequence[Picture], clock: Callable[[], float]) -> float:
    """Make the pictures; return the seconds that all but the steps took."""
    began = clock()
    rows = model.begin(pictures)
    seconds = clock() - began
    while rows[0].step < rows[0].total_steps:
        _step(model, rows)
    began = clock()
    for decoded in model.decode(rows):
        decoded.pixels()
    return seconds + clock() - began


def _pictures(info: ModelInfo, size: Size, count: int, prompt: str = "warm-up", steps: int = 3) -> list[Picture]:
    params = Params(
        prompt=prompt,
        negative_prompt="",
        num_inference_steps=steps,
        guidance_scale=max(info.default_guidance_scale, 2.0),
        width=size[0],
        height=size[1],
        seed=0,
        num_images=count,
        scheduler=info.default_scheduler,
        output_format=ImageFormat.PNG,
    )
    return [Picture("warm-up", index, params) for index in range(count)]
