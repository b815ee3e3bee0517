"""The start-up profile: measured with the loaded model, kept on disk, read again while nothing has changed."""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import takewhile

from pydantic import TypeAdapter, ValidationError

from service.core import ImageFormat, ModelInfo, Params, Size
from service.engine.contract import BatchModel, Picture, R, StepModel, is_out_of_memory
from service.engine.profile import Curve, Point, Profile
from service.settings import EngineSettings

log = logging.getLogger("safelight.engine")

WARM_STEPS = 1
TIMED_STEPS = 3
ADAPTER = TypeAdapter(Profile)


def profile_by_step(model: StepModel[R], settings: EngineSettings, machine: str) -> Profile:
    """Warm `model`; its profile on `machine` (a description of what its speed depends on), measured or from disk.

    A profile that cannot be read is measured anew, and one that cannot be kept is used all the same.
    """
    _make(model, _pictures(model.info, default_size(model.info), 1))
    file = settings.data_dir / f"profile-{_digest(model.info, settings, machine)}.json"
    try:
        profile = ADAPTER.validate_json(file.read_bytes())
    except (OSError, ValidationError):
        profile = measure(model, settings.sizes_to_profile or [default_size(model.info)], settings.max_batch)
        try:
            settings.data_dir.mkdir(parents=True, exist_ok=True)
            file.write_bytes(ADAPTER.dump_json(profile, indent=2, exclude={"max_batch", "slots"}))
        except OSError:
            log.warning("the profile cannot be kept in %s", file, exc_info=True)
    return replace(profile, max_batch=settings.max_batch, slots=settings.slots_by_size)


def profile_by_batch(model: BatchModel, slots: int) -> Profile:
    """A rough profile of a model that makes whole batches: from one picture, and as if batching gained nothing."""
    size = default_size(model.info)
    warm_up = _pictures(model.info, size, 1)
    steps: list[float] = []
    began = time.monotonic()
    model.generate(warm_up, steps.append)
    extra = time.monotonic() - began - sum(steps)
    points = tuple(Point(n, n * steps[-1]) for n in sorted({1, slots}))
    return Profile((Curve(size, points),), extra, model.info.rows(warm_up[0].params), slots, {size: slots})


def default_size(info: ModelInfo) -> Size:
    """The size of a picture whose request names none."""
    return (info.default_width, info.default_height)


def _digest(info: ModelInfo, settings: EngineSettings, machine: str) -> str:
    """A hash of all that the profile depends on."""
    tuning = settings.model_dump(mode="json", exclude={"data_dir", "batching", "batch_window_ms", "slots"})
    return hashlib.sha256(f"{info}\0{tuning}\0{machine}".encode()).hexdigest()[:16]


def measure(
    model: StepModel[R], sizes: Sequence[Size], max_batch: int, clock: Callable[[], float] = time.monotonic
) -> Profile:
    """Time steps of 1, 2, 4, ... `max_batch` guided pictures of each size; the least of a few, after a warm one."""
    pictures = _pictures(model.info, sizes[0], 1, prompt="another prompt, which is in no cache")
    extra = _make(model, pictures, clock)
    curves = tuple(_curve(model, size, max_batch, clock) for size in sizes)
    return Profile(curves, extra, model.info.rows(pictures[0].params), max_batch)


def _curve(model: StepModel[R], size: Size, max_batch: int, clock: Callable[[], float]) -> Curve:
    points: list[Point] = []
    for batch in batches(max_batch):
        try:
            rows = model.begin(_pictures(model.info, size, batch))
            seconds = [_step_seconds(model, rows, clock) for _ in range(WARM_STEPS + TIMED_STEPS)][WARM_STEPS:]
        except Exception as error:
            if not (points and is_out_of_memory(error)):
                raise
            return Curve(size, tuple(points), is_whole=False)
        points.append(Point(batch, min(seconds), model.peak_bytes()))
    return Curve(size, tuple(points))


def batches(most: int) -> Iterator[int]:
    """1, 2, 4, ... and `most` itself."""
    yield from takewhile(lambda n: n < most, (1 << n for n in range(most.bit_length())))
    yield most


def _step_seconds(model: StepModel[R], rows: Sequence[R], clock: Callable[[], float]) -> float:
    began = clock()
    _step(model, rows)
    return clock() - began


def _step(model: StepModel[R], rows: Sequence[R]) -> None:
    for error in model.denoise(rows):
        if error is not None:
            raise error


def _make(model: StepModel[R], pictures: Sequence[Picture], clock: Callable[[], float] = time.monotonic) -> float:
    """Make the pictures; return the seconds that all but the steps took."""
    began = clock()
    rows = model.begin(pictures)
    seconds = clock() - began
    while rows[0].step < rows[0].total_steps:
        _step(model, rows)
    began = clock()
    model.decode(rows)
    return seconds + clock() - began


def _pictures(info: ModelInfo, size: Size, count: int, prompt: str = "warm-up") -> list[Picture]:
    params = Params(
        prompt=prompt,
        negative_prompt="",
        num_inference_steps=WARM_STEPS + TIMED_STEPS,
        guidance_scale=max(info.default_guidance_scale, 2.0),
        width=size[0],
        height=size[1],
        seed=0,
        num_images=count,
        scheduler=info.default_scheduler,
        output_format=ImageFormat.PNG,
    )
    return [Picture("warm-up", index, params) for index in range(count)]
