"""`kill -9` at the worst moments: no accepted job is lost, and no engine process is left behind."""

import io
import os
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from tests.support.server import Server, until

STEPS = 60


def wait_in_the_queue(server: Server) -> list[str]:
    """Jobs before their first step: a long one takes all slots, and two wait behind it."""
    long = be_amid_denoising(server)
    jobs = [server.generate(prompt=f"waiting {n}", num_inference_steps=STEPS) for n in range(2)]
    for job in jobs:
        now = server.job(job["job_id"])
        assert (now["status"], now["step"]) == ("pending", 0)
    return [*long, *(job["job_id"] for job in jobs)]


def be_amid_denoising(server: Server) -> list[str]:
    """A job that has made some of its steps, and not all."""
    job = server.generate(prompt="denoising", num_inference_steps=100, num_images=8)
    until(lambda: 0 < server.job(job["job_id"])["step"] < 800)
    assert server.job(job["job_id"])["status"] == "processing"
    return [job["job_id"]]


def be_storing(server: Server) -> list[str]:
    """A job whose last picture is being written: the file is a pipe that nobody reads."""
    job = server.generate(prompt="storing", num_inference_steps=STEPS, num_images=2)
    folder = server.data_dir / "images" / job["job_id"][:2] / job["job_id"]
    folder.mkdir(parents=True)
    os.mkfifo(folder / "1.png")
    until((folder / "0.png").exists)
    until(lambda: server.job(job["job_id"])["progress"] == 1.0)
    assert server.job(job["job_id"])["status"] == "processing"
    return [job["job_id"]]


def children(pid: int) -> set[int]:
    """The processes that `pid` has started."""
    return {
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    }


def is_running(pid: int) -> bool:
    """Whether there is such a process, other than as a zombie."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def test_ten_kills_lose_no_accepted_job(data_dir: Path) -> None:
    """Three before the first step, four amid denoising, three while a picture is stored; then everything completes."""
    moments: list[Callable[[Server], list[str]]] = [wait_in_the_queue, be_amid_denoising, be_storing] * 3
    accepted: list[str] = []
    for moment in [*moments, be_amid_denoising]:
        server = Server(data_dir, model="fake:?step_ms=10")
        try:
            server.await_ready()
            accepted += moment(server)
            engines = children(server.process.pid)
        finally:
            server.kill()
        assert engines
        until(lambda engines=engines: not any(map(is_running, engines)))
        for pipe in data_dir.rglob("1.png"):
            if pipe.is_fifo():
                pipe.unlink()

    server = Server(data_dir, model="fake:")
    try:
        server.await_ready()
        for job_id in accepted:
            job = server.await_status(job_id, "completed", "failed", "expired", "cancelled")
            assert job["status"] == "completed", job
            for url in job["image_urls"]:
                Image.open(io.BytesIO(server.client.get(url).content)).verify()
        assert len(server.client.get("/jobs", params={"limit": 200}).json()["jobs"]) == len(accepted)
    finally:
        server.kill()
