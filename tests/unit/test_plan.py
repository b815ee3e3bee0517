"""The simulated launch: the same day every time, nothing lost in it, and what production's policy makes of it."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from service.__main__ import main
from service.scaling.plan import A10G, figures, machine, table
from service.scaling.policy import Policy
from service.scaling.simulation import HOUR, Launch, Machine, Outcome, Scenario, simulate

LAUNCH = Launch(base=0.2, peak=6.0, at=0.25 * HOUR, rise=300.0, hold=900.0, fall=900.0)
SCENARIO = Scenario(A10G, LAUNCH, Policy(least=1, most=20), seconds=1.5 * HOUR, prompts=500, interruptions=2.0)


def ended(outcome: Outcome) -> int:
    """Requests of which something became."""
    return len(outcome.latencies) + outcome.refused + outcome.expired


def test_a_worker_is_as_fast_as_its_curve() -> None:
    """One request at a time takes its steps; a saturated worker makes what it can."""
    alone = Machine(points=((1, 0.1), (4, 0.2)), extra_seconds=0.0, slots=4, name="")
    assert [alone.step_seconds(n) for n in (1, 2, 4, 8)] == pytest.approx([0.1, 0.1 + 0.1 / 3, 0.2, 0.1 + 0.7 / 3])
    rare = Scenario(alone, Launch(0.01, 0.01), Policy(1, 1), has_cache=False, interruptions=0.0, seconds=HOUR)
    assert max(simulate(rare).latencies) < 3.0
    assert min(simulate(rare).latencies) == pytest.approx(2.0)
    flooded = replace(rare, launch=Launch(5.0, 5.0), queue_limit=50, timeout=1e9)
    assert len(simulate(flooded).latencies) / HOUR == pytest.approx(alone.rate(20), rel=0.02)


def test_the_same_seed_gives_the_same_day() -> None:
    """And another seed another."""
    assert simulate(SCENARIO).latencies == simulate(SCENARIO).latencies
    assert simulate(replace(SCENARIO, seed=1)).asked != simulate(SCENARIO).asked


def test_no_request_is_lost() -> None:
    """Though workers are taken away: all but what still runs has ended."""
    outcome = simulate(replace(SCENARIO, has_cache=False, interruptions=10.0))
    assert outcome.interrupted > 3
    assert 0 <= outcome.asked - ended(outcome) < 20


def test_workers_come_for_the_peak_and_leave_after_it() -> None:
    """Minutes late, since machines take minutes to come; and few of them are there at the end."""
    outcome = simulate(replace(SCENARIO, has_cache=False))
    there = [point[2] for point in outcome.points]
    assert there[5] <= 2
    assert outcome.most >= max(there) > 6
    assert there[-1] < max(there) / 2


def test_the_cache_saves_work_and_waiting() -> None:
    """Of prompts that are asked for again."""
    without, with_cache = (simulate(replace(SCENARIO, has_cache=has_cache)) for has_cache in (False, True))
    assert without.hits == 0
    assert with_cache.hits > 0.4 * with_cache.asked
    assert sum(with_cache.latencies) < sum(without.latencies)
    told = table({"without": figures(SCENARIO, without), "with": figures(SCENARIO, with_cache)})
    assert "p99 seconds" in told


def test_a_running_services_own_profile_is_taken(tmp_path: Path) -> None:
    """As `GET /model` answers it; anything else is refused."""
    file = tmp_path / "model.json"
    steps = [{"pictures": 1, "seconds": 0.02, "peak_bytes": None}, {"pictures": 4, "seconds": 0.05, "peak_bytes": None}]
    profile = [{"width": 64, "height": 64, "slots": 4, "steps": steps}]
    model = {"name": "tiny", "device": "cpu", "default_width": 64, "default_height": 64, "extra_seconds": 0.01}
    file.write_text(json.dumps({**model, "profile": profile}))
    assert machine(file) == Machine(((1, 0.02), (4, 0.05)), 0.01, 4, "tiny on cpu (measured)")
    file.write_text("[]")
    refused = CliRunner().invoke(main, ["plan", "--model", str(file)])
    assert refused.exit_code == 2
    assert "GET /model" in refused.output


def test_the_command_prints_a_table_and_draws_a_picture(tmp_path: Path) -> None:
    """And says that it is a simulation."""
    plot, figures_file = tmp_path / "plan.png", tmp_path / "plan.json"
    words = ["plan", "--peak", "1", "--base", "0.05", "--workers", "1:3"]
    done = CliRunner().invoke(main, [*words, "--plot", str(plot), "--json", str(figures_file)])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("Simulated, not measured")
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert set(json.loads(figures_file.read_text())["figures"]) == {"without cache", "with cache"}
    assert CliRunner().invoke(main, ["plan", "--workers", "3:1"]).exit_code == 2


def results(file: Path, seconds_of_a_step: float) -> Path:
    """What a benchmark leaves of a machine that has two slots and needs no time beside its steps."""
    curve = [{"pictures": n, "encode": 0.0, "step": seconds_of_a_step, "decode": 0.0} for n in (1, 2)]
    block = {"target": "safelight", "beside": "other", "latencies": [20 * seconds_of_a_step] * 10, "rate": None}
    uniform = {**block, "part": "uniform", "busy": [10, 100 * seconds_of_a_step]}
    mixed = {**block, "part": "mixed", "seconds": 1.0, "rate": 0.01}
    file.write_text(json.dumps({"machine": "a machine", "slots": 2, "curve": curve, "measured": [uniform, mixed]}))
    return file


def test_a_measured_machine_is_multiplied(tmp_path: Path) -> None:
    """Until the p99 is met; and what is predicted of the benchmark itself stands beside what was measured."""
    file = results(tmp_path / "results.json", seconds_of_a_step=0.1)
    told = CliRunner().invoke(main, ["plan", "--measured", str(file), "--rate", "5", "--p99", "3", "--gpu-price", "2"])
    assert told.exit_code == 0
    assert "makes 1.00 pictures/s" in told.output
    found = re.search(r"take (\d+) of them .* p99 ([\d.]+) s.*, ([\d.]+) for 1,000", told.output, re.DOTALL)
    assert found is not None
    workers, p99, dollars = int(found[1]), float(found[2]), float(found[3])
    assert 5 < workers < 12
    assert 2.0 <= p99 <= 3.0
    assert dollars == pytest.approx(1000 * 2 * workers / (5 * HOUR), abs=0.001)
    assert "pictures/s: 1.000 against 1.000, +0.0%" in told.output


def test_a_service_that_was_slower_than_its_pipeline_is_taken_as_it_was(tmp_path: Path) -> None:
    """Machines are counted by what it made, and the error of what the pipeline's own times say is told."""
    file = results(tmp_path / "results.json", seconds_of_a_step=0.1)
    found = json.loads(file.read_text())
    found["measured"][0]["busy"][1] *= 2
    file.write_text(json.dumps(found))
    told = CliRunner().invoke(main, ["plan", "--measured", str(file), "--rate", "1", "--p99", "9"])
    assert "makes 0.50 pictures/s" in told.output
    assert "pictures/s: 1.000 against 0.500, +100.0%" in told.output


@pytest.mark.parametrize(
    ("words", "told"),
    [(["--measured", "FILE", "--peak", "5"], "--peak goes not"), (["--rate", "5"], "--rate goes only")],
)
def test_an_option_that_would_change_nothing_is_refused(tmp_path: Path, words: list[str], told: str) -> None:
    """Of a launch with a benchmark, or the other way round."""
    file = results(tmp_path / "results.json", 0.1)
    refused = CliRunner().invoke(main, ["plan", *(str(file) if each == "FILE" else each for each in words)])
    assert refused.exit_code == 2
    assert told in refused.output


def test_what_no_number_of_machines_can_do_is_said(tmp_path: Path) -> None:
    """A picture that takes longer than it may."""
    file = results(tmp_path / "results.json", seconds_of_a_step=1.0)
    told = CliRunner().invoke(main, ["plan", "--measured", str(file), "--rate", "1", "--p99", "5"])
    assert told.exit_code == 1
    assert "takes too long" in told.output


def test_other_files_are_refused(tmp_path: Path) -> None:
    """With the name of what was expected."""
    file = tmp_path / "other.json"
    file.write_text("{}")
    refused = CliRunner().invoke(main, ["plan", "--measured", str(file)])
    assert refused.exit_code == 2
    assert "benchmarks.suite" in refused.output
