"""Continuous batching over the socket: joining, deadlines, what is told about it."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from diffusers import DDIMScheduler

from tests.integration.conftest import FAKE, held
from tests.support import pipelines
from tests.support.server import Server, serving, until


def test_a_short_job_does_not_wait_for_the_long_one_that_runs(fake: Server) -> None:
    """It joins the batch at the next step and is completed long before."""
    with held(fake):
        long = fake.start(prompt="long", num_inference_steps=100)
        short = fake.generate(prompt="short", num_inference_steps=2)
    finished = [fake.await_status(job["job_id"], "completed")["finished_at"] for job in (short, long)]
    assert finished == sorted(finished)
    assert fake.metric("safelight_admission_delay_seconds_count") >= 2


def test_a_deadline_that_cannot_be_met_is_refused_at_once(data_dir: Path) -> None:
    """503 with the time after which it could be met; nothing is recorded; a cached answer is given all the same."""
    with serving(data_dir, model="fake:?step_ms=20", slots="64x64=1") as server:
        body = {"prompt": "a red apple", "num_inference_steps": 100, "seed": 1}
        done = server.generate(params={"wait": 60}, expect=200, **body)
        with server.held():
            running = server.start(prompt="long", num_inference_steps=100)
            refused = server.client.post("/generate", json={**body, "seed": 2, "timeout_s": 1})
            assert refused.status_code == 503
            assert refused.json()["title"] == "Deadline cannot be met"
            assert re.search(r"about \d+\.\d s, and timeout_s is 1", refused.json()["detail"])
            assert refused.json()["detail"].startswith("even alone")
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            behind = server.client.post("/generate", json={**body, "seed": 4, "timeout_s": 3})
            assert behind.status_code == 503
            assert not behind.json()["detail"].startswith("even alone")
            assert server.generate(params={"wait": 0}, expect=200, **body, timeout_s=1)["cached"] is True
            assert server.generate(**body | {"seed": 3}, timeout_s=600)["status"] == "pending"
        assert server.metric("safelight_requests_total", outcome="rejected", reason="deadline", source="user") == 1
        assert server.metric("safelight_requests_total", outcome="rejected", reason="overloaded", source="user") == 1
        jobs = server.client.get("/jobs").json()["jobs"]
        assert {job["parameters"]["seed"] for job in jobs if job["job_id"] != running["job_id"]} == {1, 3}
        assert done["status"] == "completed"


def test_deadlines_hold_for_many_that_come_at_once(data_dir: Path) -> None:
    """Each is counted for the next while it is still being recorded, so that not all are let in."""
    with serving(data_dir, model="fake:?step_ms=20", slots="64x64=1") as server, server.held():

        def ask(number: int) -> int:
            body = {"prompt": f"number {number}", "num_inference_steps": 100, "timeout_s": 10}
            return server.client.post("/generate", json=body).status_code

        with ThreadPoolExecutor(20) as clients:
            statuses = list(clients.map(ask, range(20)))
    assert 1 <= statuses.count(202) <= 5, "each takes two seconds"
    assert set(statuses) == {202, 503}


def test_the_profile_is_shown_and_kept(data_dir: Path) -> None:
    """`GET /model` has the step times and the slots that follow; they are kept in the data folder."""
    with serving(data_dir, model="fake:?step_ms=20", slots="96x96=2") as server:
        model = server.client.get("/model").json()
        (shown,) = model["profile"]
        assert model["batching"] == "continuous"
        assert (shown["width"], shown["height"], shown["slots"]) == (64, 64, 8)
        assert [step["pictures"] for step in shown["steps"]] == [1, 2, 4, 8]
        assert all(step["seconds"] >= 0.02 for step in shown["steps"])
        assert server.metric("safelight_batch_slots") == 8
        assert server.metric("safelight_batching_mode", mode="continuous") == 1
        server.stop()
    assert len(list(data_dir.glob("profile-*.json"))) == 1
    with serving(data_dir, model="fake:?step_ms=20", slots="64x64=3") as server:
        (shown,) = server.client.get("/model").json()["profile"]
        assert shown["slots"] == 3
    assert len(list(data_dir.glob("profile-*.json"))) == 1


def test_the_error_of_estimates_is_measured(fake: Server) -> None:
    """One observation for each job that completes."""
    before = fake.metric("safelight_estimate_error_ratio_count")
    fake.generate(params={"wait": 60}, expect=200, prompt="how long?", num_inference_steps=3)
    assert until(lambda: fake.metric("safelight_estimate_error_ratio_count") == before + 1)


def test_out_of_memory_loses_nothing(data_dir: Path) -> None:
    """Steps of more than two pictures do not fit: all complete, with the steps that they asked for and no more."""
    with serving(data_dir, model=f"{FAKE}&oom_above=2") as server:
        with server.held():
            jobs = [server.generate(prompt=f"picture {n}", num_inference_steps=5) for n in range(6)]
        for job in jobs:
            assert server.await_status(job["job_id"], "completed", "failed")["status"] == "completed"
        assert server.metric("safelight_oom_splits_total") >= 1
        assert server.metric("safelight_steps_total") == 30


@pytest.mark.parametrize("mode", ["window", "sequential"])
def test_the_other_modes_are_there(data_dir: Path, mode: str) -> None:
    """As asked for, and said in the metric."""
    with serving(data_dir, model=FAKE, batching=mode) as server:
        assert server.client.get("/model").json()["batching"] == mode
        assert server.metric("safelight_batching_mode", mode=mode) == 1
        assert server.generate(params={"wait": 60}, expect=200, num_inference_steps=2)["status"] == "completed"


def test_a_pipeline_that_is_not_known_is_served_in_windows(data_dir: Path) -> None:
    """And that is said, in the log and in the metric."""
    data_dir.mkdir(exist_ok=True)
    with pipelines.quiet():
        pipelines.stable_diffusion(data_dir / "model", scheduler=DDIMScheduler(prediction_type="sample"))
    with serving(data_dir, model=data_dir / "model", min_size=16) as server:
        assert server.metric("safelight_batching_mode", mode="window") == 1
        assert server.metric("safelight_batching_mode", mode="continuous") == 0
        assert "cannot be driven step by step: window batching instead" in server.log.read_text()
