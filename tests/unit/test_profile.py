"""The start-up profile: what a step costs at which batch, and how many slots that is worth."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from service.engine.fake import FakeModel, FakeRow
from service.engine.profile import Curve, Point, Profile
from service.engine.profiling import batches, measure, profile_by_batch, profile_by_step
from service.errors import StartupError
from service.settings import EngineSettings

KNEE_AT_FOUR = {1: 0.050, 2: 0.055, 4: 0.075, 8: 0.150}
MIB = 2**20


def profile(points: dict[int, float], is_whole: bool = True, max_batch: int = 8) -> Profile:
    """Measured at 128 x 128, two rows a guided picture."""
    curve = Curve((128, 128), tuple(Point(n, seconds) for n, seconds in points.items()), is_whole)
    return Profile((curve,), extra_seconds=0.1, rows_per_guided=2, max_batch=max_batch)


def test_the_slots_are_at_the_knee_of_the_curve() -> None:
    """Four make as many pictures a second as eight, so that eight would only make each wait longer."""
    assert profile(KNEE_AT_FOUR).cap((128, 128)) == 4
    assert profile({1: 0.05, 2: 0.05, 4: 0.05, 8: 0.06}).cap((128, 128)) == 8
    assert profile({1: 0.05, 2: 0.1, 4: 0.2, 8: 0.4}).cap((128, 128)) == 1


def test_an_operator_has_the_last_word_below_the_largest_batch() -> None:
    """Slots by size go before the curve."""
    own = replace(profile(KNEE_AT_FOUR), slots={(128, 128): 6, (64, 64): 99})
    assert own.cap((128, 128)) == 6
    assert own.cap((64, 64)) == 8


def test_steps_are_read_off_the_curve() -> None:
    """Between its points and beyond them, by rows."""
    curve = profile(KNEE_AT_FOUR)
    assert curve.step_seconds((128, 128), 8) == pytest.approx(0.075)
    assert curve.step_seconds((128, 128), 12) == pytest.approx((0.075 + 0.150) / 2)
    assert curve.step_seconds((128, 128), 1) == pytest.approx(0.050)
    assert curve.step_seconds((128, 128), 32) == pytest.approx(0.150 + 8 * 0.01875)
    assert profile({1: 0.05}).step_seconds((128, 128), 8) == pytest.approx(0.2)


def test_other_sizes_are_scaled_by_pixels() -> None:
    """Four times the pixels cost as much as four times the rows, and get fewer slots."""
    curve = profile(KNEE_AT_FOUR)
    assert curve.step_seconds((256, 256), 2) == pytest.approx(0.075)
    assert curve.cap((256, 256)) == 1
    assert curve.cap((64, 64)) == 8


def test_what_a_picture_costs_beside_its_steps_is_by_pixels_too() -> None:
    """Of the size that it was measured at, whichever curve is the nearest: two sizes differ by their pixels."""
    both = replace(profile(KNEE_AT_FOUR), curves=(*profile(KNEE_AT_FOUR).curves, Curve((256, 256), (Point(1, 0.2),))))
    assert both.beside_steps((128, 128)) == pytest.approx(0.1)
    assert both.beside_steps((256, 256)) == pytest.approx(0.4)
    assert both.beside_steps((64, 128)) == pytest.approx(0.05)


def test_what_did_not_fit_is_not_given_slots() -> None:
    """Memory ended the measurement at four pictures: no more of that size, fewer of a larger one."""
    short = profile({1: 0.05, 2: 0.05, 4: 0.05}, is_whole=False)
    assert short.cap((128, 128)) == 4
    assert short.cap((256, 128)) == 2
    assert short.cap((512, 512)) == 1


class Clocked(FakeModel):
    """A fake model whose steps cost `seconds` by batch, without waiting; `fits` pictures fit into memory."""

    def __init__(self, fits: int = 99, seconds: dict[int, float] = KNEE_AT_FOUR) -> None:
        super().__init__(EngineSettings(model="fake:"))
        self.now = 0.0
        self.fits = fits
        self.seconds = seconds

    def denoise(self, rows: Sequence[FakeRow]) -> list[Exception | None]:
        """One step."""
        if len(rows) > self.fits:
            raise MemoryError
        self.now += self.seconds[len(rows)]
        return super().denoise(rows)

    def peak_bytes(self) -> int:
        """A MiB a second."""
        return int(self.now) * MIB


def test_the_profile_is_measured_with_the_model() -> None:
    """1, 2, 4, ... pictures up to the largest batch."""
    model = Clocked()
    (curve,) = measure(model, [(64, 64)], 8, clock=lambda: model.now).curves
    assert {point.pictures: pytest.approx(point.seconds) for point in curve.points} == KNEE_AT_FOUR
    assert curve.points[-1].peak_bytes is not None
    assert list(batches(6)) == [1, 2, 4, 6]
    assert list(batches(1)) == [1]


def test_measuring_stops_where_memory_ends() -> None:
    """What was measured before counts."""
    (curve,) = measure(Clocked(fits=2), [(64, 64)], 8).curves
    assert [point.pictures for point in curve.points] == [1, 2]
    assert not curve.is_whole


def test_a_larger_batch_is_never_faster() -> None:
    """A disturbed measurement of a small batch does not make steps of many pictures free."""
    model = Clocked(seconds={1: 0.05, 2: 0.9, 4: 0.075, 8: 0.05})
    (curve,) = measure(model, [(64, 64)], 8, clock=lambda: model.now).curves
    assert [point.seconds for point in curve.points] == [pytest.approx(each) for each in (0.05, 0.9, 0.9, 0.9)]


def start(settings: EngineSettings, model: Clocked | None = None, machine: str = "this machine") -> Profile:
    """The profile at a start of the engine."""
    model = model or Clocked()
    return profile_by_step(model, settings, machine, clock=lambda: model.now)


def test_a_profile_is_kept_and_read_again(tmp_path: Path) -> None:
    """Until what it depends on changes; one that cannot be used is measured anew."""
    settings = EngineSettings(model="fake:", data_dir=tmp_path, slots="64x64=3")
    first = start(settings)
    assert first.slots == {(64, 64): 3}
    (file,) = tmp_path.glob("profile-*.json")
    kept = file.read_text()
    file.write_text(kept.replace('"extra_seconds": 0.0', '"extra_seconds": 7.0'))
    assert start(settings).extra_seconds == 7.0
    for broken in (
        "{",
        '{"curves": [], "extra_seconds": 0, "rows_per_guided": 2}',
        re.sub(r'"seconds": [^,]+', '"seconds": 0', kept),
    ):
        file.write_text(broken)
        assert start(settings) == first
        assert file.read_text() == kept
    start(settings, machine="another machine")
    assert len(list(tmp_path.glob("profile-*.json"))) == 2


def test_a_profile_that_does_not_hold_any_more_is_measured_anew(tmp_path: Path) -> None:
    """As one that was measured beside other work: steps are checked at every start."""
    settings = EngineSettings(model="fake:", data_dir=tmp_path)
    slow = start(settings, Clocked(seconds={n: 3 * seconds for n, seconds in KNEE_AT_FOUR.items()}))
    quick = start(settings)
    assert slow.step_seconds((64, 64), 2) == pytest.approx(0.150)
    assert quick.step_seconds((64, 64), 2) == pytest.approx(0.050)


def test_a_profile_that_memory_cut_short_is_measured_anew(tmp_path: Path) -> None:
    """Others may have had the memory then."""
    settings = EngineSettings(model="fake:", data_dir=tmp_path)
    assert [point.pictures for point in start(settings, Clocked(fits=2)).curves[0].points] == [1, 2]
    assert [point.pictures for point in start(settings).curves[0].points] == [1, 2, 4, 8]


def test_only_sizes_that_the_model_takes_can_be_profiled(tmp_path: Path) -> None:
    """Others stop the start and name the variable."""
    for size in ("100x101", "512x512"):
        with pytest.raises(StartupError, match="SAFELIGHT_PROFILE_SIZES"):
            start(EngineSettings(model="fake:", data_dir=tmp_path, profile_sizes=size))


def test_a_folder_that_cannot_be_written_does_not_matter(tmp_path: Path) -> None:
    """The profile is measured at every start."""
    (tmp_path / "file").touch()
    settings = EngineSettings(model="fake:", data_dir=tmp_path / "file" / "data")
    assert start(settings).cap((64, 64)) == 4


def test_a_model_that_makes_whole_batches_has_a_rough_profile() -> None:
    """All slots of its largest batch, and steps from one picture."""
    rough = profile_by_batch(FakeModel(EngineSettings(model="fake:?step_ms=1")), 8)
    assert rough.cap((64, 64)) == 8
    assert rough.step_seconds((64, 64), 2) >= 0.001


def test_peak_memory_is_that_of_the_next_larger_measured_batch() -> None:
    """Unknown beyond what was measured, and where the device does not tell."""
    points = tuple(Point(n, 0.1, n * MIB) for n in (1, 2, 4))
    measured = Profile((Curve((128, 128), points),), extra_seconds=0.1, rows_per_guided=2, max_batch=8)
    assert measured.peak_bytes((128, 128), 6) == 4 * MIB
    assert measured.peak_bytes((256, 256), 2) == 4 * MIB
    assert measured.peak_bytes((128, 128), 10) is None
    assert profile(KNEE_AT_FOUR).peak_bytes((128, 128), 2) is None
