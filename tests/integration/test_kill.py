"""`kill -9` at the worst moments: no accepted job is lost, and no engine process is left behind."""

import io
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from tests.support.server import Server, block_picture, is_running, until


def wait_in_the_queue(server: Server) -> list[str]:
    """Jobs before their first step: one is held before it, and two wait behind that one."""
    server.hold.touch()
    first = server.start(prompt="before its first step", num_inference_steps=4)
    others = [server.generate(prompt=f"waiting {n}", num_inference_steps=4) for n in range(2)]
    for job, status in zip((first, *others), ("processing", "pending", "pending"), strict=True):
        now = server.job(job["job_id"])
        assert (now["status"], now["step"]) == (status, 0)
    return [job["job_id"] for job in (first, *others)]


def be_amid_denoising(server: Server) -> list[str]:
    """A job that is held when it has made some of its steps, and not all."""
    job = server.generate(prompt="denoising", num_inference_steps=100, num_images=8)
    until(lambda: server.job(job["job_id"])["step"] > 0)
    server.hold.touch()
    now = server.job(job["job_id"])
    assert now["status"] == "processing"
    assert 0 < now["step"] < now["total_steps"] - 1
    return [job["job_id"]]


def be_storing(server: Server) -> list[str]:
    """A job whose last picture is being written: the file is a pipe that nobody reads."""
    with server.held():
        job = server.start(prompt="storing", num_inference_steps=4, num_images=2)
        pipe = block_picture(server, job["job_id"], 1)
    until((pipe.parent / "0.png").exists)
    until(lambda: server.job(job["job_id"])["progress"] == 1.0)
    assert server.job(job["job_id"])["status"] == "processing"
    return [job["job_id"]]


def await_completion(server: Server, job_ids: list[str]) -> None:
    """Wait until all of these jobs are completed."""
    for job_id in job_ids:
        job = server.await_status(job_id, "completed", "failed", "expired", "cancelled")
        assert job["status"] == "completed", job


def await_end(pids: set[int]) -> None:
    """Wait until none of the processes is there any more."""
    until(lambda: not any(map(is_running, pids)))


def test_ten_kills_lose_no_accepted_job(data_dir: Path) -> None:
    """Three before the first step, four amid denoising, three while a picture is stored; then everything completes."""
    moments: list[Callable[[Server], list[str]]] = [wait_in_the_queue, be_amid_denoising, be_storing] * 3
    accepted: list[str] = []
    for moment in [*moments, be_amid_denoising]:
        # Slow steps only where the test must act between two of them; what the last kill interrupted runs fast.
        model = "fake:?step_ms=20" if moment is be_amid_denoising else "fake:"
        server = Server(data_dir, model=model, batching="sequential")
        try:
            server.await_ready()
            await_completion(server, accepted)
            accepted += moment(server)
            engines = server.children()
        finally:
            server.kill()
            server.hold.unlink(missing_ok=True)
        assert engines
        await_end(engines)
        for pipe in data_dir.rglob("1.png"):
            if pipe.is_fifo():
                pipe.unlink()

    server = Server(data_dir, model="fake:")
    try:
        server.await_ready()
        await_completion(server, accepted)
        for job_id in accepted:
            for url in server.job(job_id)["image_urls"]:
                Image.open(io.BytesIO(server.client.get(url).content)).verify()
        assert len(server.client.get("/jobs", params={"limit": 200}).json()["jobs"]) == len(accepted)
    finally:
        server.kill()
