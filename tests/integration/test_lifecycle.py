"""The process: start, full queue, drain, death and deletion. No accepted job is ever lost."""

import json
import os
import signal
import subprocess
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import FAKE
from tests.support.server import PATIENCE, Server, block_picture, environment, serving, until


def test_a_full_queue_refuses_and_keeps_what_it_has(data_dir: Path) -> None:
    """One running and two waiting is full: 429 with Retry-After; the jobs that were accepted all complete."""
    with serving(data_dir, model=FAKE, queue_limit=2, batching="sequential") as server:
        with server.held():
            jobs = [server.start(num_inference_steps=2), *(server.generate(num_inference_steps=1) for _ in range(2))]
            for _ in range(3):
                refused = server.client.post("/generate", json={"prompt": "one too many"})
                assert refused.status_code == 429
                assert int(refused.headers["retry-after"]) > 0
                assert refused.headers["content-type"] == "application/problem+json"
            assert len(server.client.get("/jobs").json()["jobs"]) == 3
            rejections = {"outcome": "rejected", "reason": "queue_full", "source": "user"}
            assert server.metric("safelight_requests_total", **rejections) == 3
        for job in jobs:
            assert server.await_status(job["job_id"], "completed")
        server.generate(num_inference_steps=1)


def test_a_full_queue_still_answers_from_the_cache(data_dir: Path) -> None:
    """A hit needs no place in the queue."""
    with serving(data_dir, model=FAKE, queue_limit=1, batching="sequential") as server:
        server.generate(params={"wait": 60}, expect=200, seed=1, num_inference_steps=1)
        with server.held():
            server.start()
            server.generate()
            assert server.generate(seed=1, num_inference_steps=1)["cached"] is True
            server.generate(expect=429, seed=2)


def test_a_job_is_on_disk_before_its_id_is_answered(data_dir: Path) -> None:
    """Whoever opens the database file after the 202 finds the job."""
    with serving(data_dir, model=FAKE) as server, server.held():
        job = server.generate(prompt="a red apple")
        row = server.recorded(job["job_id"])
        assert row is not None
        assert json.loads(row["params"])["prompt"] == "a red apple"


def test_before_the_model_is_loaded_the_service_says_so(data_dir: Path) -> None:
    """Alive but not ready; requests get a 503 with Retry-After; nothing is recorded."""
    data_dir.mkdir()
    (data_dir / "hold").touch()  # holds the warm-up
    server = Server(data_dir, model=FAKE)
    try:
        assert server.client.get("/health/live").status_code == 200
        assert server.client.get("/health/ready").json() == {"status": "loading"}
        refused = server.client.post("/generate", json={"prompt": "early"})
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) > 0
        assert server.client.get("/model").status_code == 503
        server.hold.unlink()
        server.await_ready()
        assert server.client.get("/jobs").json()["jobs"] == []
        assert server.metric("safelight_requests_total", outcome="rejected", reason="not_ready", source="user") == 1
    finally:
        server.kill()


def test_sigterm_drains(data_dir: Path) -> None:
    """Running work finishes, new work is a 503, waiting work stays for the next start and completes then."""
    with serving(data_dir, model=FAKE, batching="sequential", drain_seconds=PATIENCE) as server:
        with server.held():
            running = server.start(prompt="running", num_inference_steps=2, num_images=3)
            waiting = server.generate(prompt="waiting", num_inference_steps=1)
            server.terminate()
            until(lambda: server.client.get("/health/ready").json() == {"status": "draining"})
            refused = server.client.post("/generate", json={"prompt": "late"})
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) > 0
            assert server.client.get("/health/live").status_code == 200
            assert server.job(running["job_id"])["status"] == "processing"
            assert server.job(waiting["job_id"])["status"] == "pending"
        assert server.process.wait(PATIENCE) == 0
    with serving(data_dir, model=FAKE) as server:
        assert server.job(running["job_id"])["status"] == "completed"
        assert server.client.get(f"/jobs/{running['job_id']}/images/0").status_code == 200
        assert server.await_status(waiting["job_id"], "completed")
        assert len(server.client.get("/jobs").json()["jobs"]) == 2


def test_work_that_outlasts_the_drain_runs_again(data_dir: Path) -> None:
    """After `SAFELIGHT_DRAIN_SECONDS` the process stops; the job is recorded as unfinished and completes later."""
    with serving(data_dir, model=FAKE, batching="sequential", drain_seconds=0.2) as server, server.held():
        job = server.start(num_inference_steps=2)
        assert server.stop() == 0
    with serving(data_dir, model="fake:") as server:
        assert server.await_status(job["job_id"], "completed")


def test_a_picture_that_cannot_be_stored_does_not_hold_up_the_drain(data_dir: Path) -> None:
    """Its file is a pipe that nobody reads: the process ends all the same, and the next start completes the job."""
    with serving(data_dir, model=FAKE, drain_seconds=1) as server:
        with server.held():
            job = server.start(num_inference_steps=2)
            pipe = block_picture(server, job["job_id"], 0)
        until(lambda: server.job(job["job_id"])["progress"] == 1.0)
        assert server.job(job["job_id"])["status"] == "processing"
        server.terminate()
        server.process.wait(PATIENCE)
    pipe.unlink()
    with serving(data_dir, model=FAKE) as server:
        assert server.await_status(job["job_id"], "completed", "failed")["status"] == "completed"
        assert server.client.get(f"/jobs/{job['job_id']}/images/0").status_code == 200


def test_an_engine_that_dies_in_a_drain_starts_nothing_more(data_dir: Path) -> None:
    """The process ends; the running and the waiting job are for the next start."""
    with serving(data_dir, model=FAKE, batching="sequential", drain_seconds=5) as server:
        with server.held():
            running = server.start(prompt="running", num_inference_steps=2)
            waiting = server.generate(prompt="waiting", num_inference_steps=1)
            server.terminate()
            until(lambda: server.client.get("/health/ready").json() == {"status": "draining"})
            os.kill(server.engine(), signal.SIGKILL)
        server.process.wait(PATIENCE)
        for job in (running, waiting):
            row = server.recorded(job["job_id"])
            assert row is not None
            assert row["state"] in ({"pending"} if job is waiting else {"pending", "processing"})
    with serving(data_dir, model=FAKE) as server:
        for job in (running, waiting):
            assert server.await_status(job["job_id"], "completed", "failed")["status"] == "completed"


def test_an_engine_that_stands_still_does_not_stop_the_answers(data_dir: Path) -> None:
    """More prompts than its pipe holds are accepted, `/health/live` tells of it, and then everything completes."""
    with serving(data_dir, model=FAKE, heartbeat_timeout_seconds=1.5) as server:
        with server.frozen():
            jobs = [server.generate(prompt=f"{n} {'x' * 1500}", num_inference_steps=1) for n in range(60)]
            until(lambda: server.client.get("/health/live").status_code == 503)
            assert server.client.get("/health/live").json() == {"status": "stalled"}
        for job in jobs:
            assert server.await_status(job["job_id"], "completed", "failed")["status"] == "completed"
        until(lambda: server.client.get("/health/live").status_code == 200)


def test_two_services_cannot_share_a_data_folder(data_dir: Path) -> None:
    """The second one stops with a line that names the setting; the first one goes on."""
    with serving(data_dir, model=FAKE) as server:
        check_refuses_to_start(data_dir, ["SAFELIGHT_DATA_DIR", str(data_dir)], model=FAKE)
        server.generate(params={"wait": 60}, expect=200, num_inference_steps=1)


def test_a_client_that_waits_is_answered_when_the_service_stops(data_dir: Path) -> None:
    """It gets 202 and its job, which the next start completes."""
    with serving(data_dir, model=FAKE, batching="sequential", drain_seconds=1) as server:
        body = '{"prompt": "patient", "num_inference_steps": 2}'
        with server.held():
            client = subprocess.Popen(
                [sys.executable, "-c", _CLIENT, f"{server.url}/generate?wait=600", body],
                stdout=subprocess.PIPE,
                text=True,
            )
            until(lambda: server.client.get("/jobs", params={"status": "processing"}).json()["jobs"])
            (job,) = server.client.get("/jobs").json()["jobs"]
            assert server.stop() == 0
        output, _ = client.communicate(timeout=PATIENCE)
    assert output.startswith("202 ")
    with serving(data_dir, model=FAKE) as server:
        assert server.await_status(job["job_id"], "completed")


_CLIENT = """
import httpx, sys
response = httpx.post(sys.argv[1], content=sys.argv[2], headers={"content-type": "application/json"}, timeout=600)
print(response.status_code, response.json()["status"])
"""


def test_finished_jobs_are_deleted_when_their_time_is_over(data_dir: Path) -> None:
    """Then they are 404, their pictures too, and the folder is empty; an unfinished job of that age is kept."""
    with serving(data_dir, model=FAKE, retention_seconds=1, cache_max_bytes=0) as server:
        job = server.generate(num_inference_steps=1)
        until(lambda: server.client.get(f"/jobs/{job['job_id']}").status_code == 404)
        assert server.client.get(f"/jobs/{job['job_id']}/images/0").status_code == 404
        assert server.client.get("/jobs").json()["jobs"] == []
        until(lambda: not list((data_dir / "images").rglob("*.png")))
        with server.held():
            unfinished = server.start(prompt="still here", num_inference_steps=1)
            younger = server.generate(prompt="cancelled")
            server.client.delete(f"/jobs/{younger['job_id']}")
            until(lambda: server.recorded(younger["job_id"]) is None)
            assert server.recorded(unfinished["job_id"]) is not None
            assert server.job(unfinished["job_id"])["status"] == "processing"


def test_a_crash_of_the_engine_fails_only_the_culprit(data_dir: Path) -> None:
    """The engine is started anew; the job that takes it down twice fails, its batch-mates and later jobs complete."""
    with serving(data_dir, model=FAKE) as server:
        with server.held():
            blocker = server.start(prompt="blocker", num_inference_steps=1)
            culprit = server.generate(prompt="landmine", num_inference_steps=3)
            mates = [server.generate(prompt=f"mate {n}", num_inference_steps=3) for n in range(3)]
            with server.client.stream("GET", f"/jobs/{mates[-1]['job_id']}/events") as response:
                told = (line.removeprefix("event: ") for line in response.iter_lines() if line.startswith("event: "))
                story = [next(told)]
                server.hold.unlink()
                story += told
        once, twice = ["pending", "processing"], ["pending", "processing", "completed"]
        assert [status for status, _ in groupby(story)] == once + twice, "it was in the batch that crashed"
        failed = server.await_status(culprit["job_id"], "failed", "completed")
        assert failed["error"]["reason"] == "engine_crashed"
        for job in (blocker, *mates):
            assert server.await_status(job["job_id"], "failed", "completed")["status"] == "completed"
        assert server.metric("safelight_engine_restarts_total") == 2
        server.await_ready()
        assert server.generate(params={"wait": 60}, expect=200, num_inference_steps=1)["status"] == "completed"


def test_an_engine_that_hangs_is_reported(data_dir: Path) -> None:
    """Without a beat for the timeout, `/health/live` fails, so that the process can be replaced."""
    with serving(data_dir, model="fake:?hang=quicksand", heartbeat_timeout_seconds=1.5) as server:
        assert server.client.get("/health/live").status_code == 200
        job = server.generate(prompt="quicksand")
        until(lambda: server.client.get("/health/live").status_code == 503)
        assert server.client.get("/health/live").json() == {"status": "stalled"}
        assert server.client.delete(f"/jobs/{job['job_id']}").json()["status"] == "cancelled"


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"model": "nowhere/to/be/found"}, ["SAFELIGHT_MODEL", "nowhere/to/be/found"]),
        ({"model": "{empty}"}, ["SAFELIGHT_MODEL", "{empty}"]),
        ({"model": "{broken}"}, ["SAFELIGHT_MODEL", "{broken}"]),
        ({"model": "{listed}"}, ["SAFELIGHT_MODEL", "{listed}"]),
        ({"model": "{mute}"}, ["SAFELIGHT_MODEL", "{mute}"]),
        ({"model": "{unloadable}"}, ["SAFELIGHT_MODEL", "{unloadable}"]),
        ({"port": "eighty"}, ["SAFELIGHT_PORT"]),
        ({"port": "70000"}, ["SAFELIGHT_PORT"]),
        ({"max_batch": "0"}, ["SAFELIGHT_MAX_BATCH"]),
        ({"batching": "magic"}, ["SAFELIGHT_BATCHING"]),
        ({"host": "192.0.2.1"}, ["SAFELIGHT_HOST"]),
        ({"database_url": "nonsense"}, ["SAFELIGHT_DATABASE_URL"]),
        ({"database_url": "sqlite:////proc/no/such.db"}, ["SAFELIGHT_DATABASE_URL"]),
        ({"storage_url": "nonsense://x"}, ["SAFELIGHT_STORAGE_URL"]),
    ],
)
def test_what_cannot_work_stops_the_start_with_one_line(
    data_dir: Path, settings: dict[str, str], names: list[str]
) -> None:
    """The line names the setting and its value; the status is not 0; there is no traceback."""
    places = broken_models(data_dir.parent)
    given: dict[str, Any] = {"model": FAKE, **{name: value.format(**places) for name, value in settings.items()}}
    check_refuses_to_start(data_dir, [name.format(**places) for name in names], **given)


def check_refuses_to_start(data_dir: Path, names: list[str], **settings: object) -> None:
    """Start the service, which must stop with status 2 and one line that holds all `names`."""
    done = subprocess.run(
        [sys.executable, "-m", "service", "serve"],
        env=environment(data_dir, **settings),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("safelight: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for name in names:
        assert name in lines[0]


def broken_models(parent: Path) -> dict[str, Path]:
    """Model folders: empty, with a broken index, with a list as index, without weights, without a tokenizer."""
    places = {name: parent / name for name in ("empty", "broken", "listed", "unloadable", "mute")}
    for place in places.values():
        place.mkdir()
    (places["broken"] / "model_index.json").write_text("{")
    (places["listed"] / "model_index.json").write_text("[]")
    (places["unloadable"] / "unet").mkdir()
    (places["unloadable"] / "model_index.json").write_text(
        '{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}'
    )
    for path in Path("models/tiny").resolve().iterdir():
        if path.name != "tokenizer":
            (places["mute"] / path.name).symlink_to(path)
    (places["mute"] / "tokenizer").mkdir()
    return places
