"""The objectives are checked when they are loaded, and attainment is read from the process' own metrics."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from observability import slo
from observability.events import RequestRejected, RequestStarted
from observability.labels import Outcome, Priority, Reason, Source
from observability.metering import Metrics
from tests.support import build


@pytest.fixture
def content() -> dict[str, Any]:
    """The project's own file, to be spoilt."""
    loaded: dict[str, Any] = yaml.safe_load(slo.FILE.read_text())
    return loaded


def loaded(content: dict[str, Any], folder: Path) -> slo.Objectives:
    """What `content` means."""
    path = folder / "slo.yaml"
    path.write_text(yaml.safe_dump(content))
    return slo.load(path)


def test_the_projects_own_file_is_valid() -> None:
    """It has the default profile, with half a minute for the standard class, and one for the embedded model."""
    objectives = slo.load()
    assert set(objectives.profiles) == {"default", "demo"}
    standard = objectives.profiles["default"]["latency_standard"]
    assert isinstance(standard, slo.Latency)
    assert (standard.threshold, standard.objective) == (30.0, 0.99)
    assert objectives.profiles["default"]["availability"].objective == 0.99


@pytest.mark.parametrize(
    ("name", "field", "value", "words"),
    [
        ("latency_standard", "threshold", 31.0, "no edge"),
        ("queue_wait", "threshold", 11.0, "no edge"),
        ("availability", "objective", 1.0, "less than 1"),
        ("availability", "objective", 0.9, "never be reached"),
        ("latency_few", "work_classes", ["tiny"], "s_few"),
        ("latency_few", "target", 3, "not permitted"),
    ],
)
def test_objective_that_cannot_work_is_refused(
    content: dict[str, Any], tmp_path: Path, name: str, field: str, value: object, words: str
) -> None:
    """The error says what is wrong and where."""
    content["profiles"]["default"][name][field] = value
    with pytest.raises(ValidationError, match=words) as error:
        loaded(content, tmp_path)
    assert "default" in str(error.value)


def test_attainment_is_the_share_of_good_events() -> None:
    """Failures and refusals are bad; cancelled requests and those of the probe do not count."""
    metrics = Metrics(CollectorRegistry())

    def finish(outcome: Outcome, reason: Reason, seconds: float = 1.0, source: Source = Source.USER) -> None:
        request = build.request(source=source)
        metrics.observe(build.finished(request=request, outcome=outcome, reason=reason, seconds=seconds))

    for seconds in (1.0, 30.0, 31.0):
        finish(Outcome.COMPLETED, Reason.NONE, seconds)
    finish(Outcome.COMPLETED, Reason.NONE, 500.0, Source.PROBE)
    finish(Outcome.FAILED, Reason.MODEL_ERROR)
    finish(Outcome.CANCELLED, Reason.CLIENT_CANCELLED)
    metrics.observe(RequestRejected(Reason.QUEUE_FULL, Source.USER))
    metrics.observe(RequestStarted(build.request(priority=Priority.NORMAL), 9.0))
    metrics.observe(RequestStarted(build.request(priority=Priority.LOW), 90.0))
    samples = slo.Samples(metrics.indicators())
    counts = {name: each.counts(samples) for name, each in slo.load().profiles["default"].items()}
    assert counts["availability"] == slo.Counts(3, 5)
    assert counts["latency_standard"] == slo.Counts(2, 3)
    assert counts["latency_many"] == slo.Counts(0, 0)
    assert counts["queue_wait"] == slo.Counts(1, 1)


def test_budget_left_counts_failures_against_those_allowed() -> None:
    """None without events, 1 without failures, below 0 when too many."""
    assert slo.Counts(0, 0).budget_left(0.99) is None
    assert slo.Counts(100, 100).budget_left(0.99) == 1.0
    assert slo.Counts(99, 100).budget_left(0.99) == pytest.approx(0.0)
    assert slo.Counts(98, 100).budget_left(0.99) == pytest.approx(-1.0)
