"""A worker or an API is killed between any two steps of a job: the job ends once, with the right pictures, and nothing
is left behind.
"""

import io
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import httpx
import pytest
from PIL import Image

from service.engine.contract import Picture
from service.engine.fake import colour
from tests.support import build
from tests.support.fleet import Fleet, fleet
from tests.support.server import PATIENCE, Server, until

BODY = {"prompt": "a red apple", "num_images": 2, "num_inference_steps": 4, "seed": 1, "width": 64, "height": 64}
WORKER_MOMENTS = (
    "taken",
    "turn not committed",
    "turn committed",
    "entered",
    "started",
    "stepped",
    "made",
    "half stored",
    "stored",
    "end not committed",
    "end committed",
    "not acknowledged",
    "acknowledged",
)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Fleet, Server]]:
    """A fleet in which a claim is nobody's after a second, with an API that stays."""
    with pytest.MonkeyPatch.context() as patch, fleet(tmp_path_factory.mktemp("fleet")) as made:
        patch.setenv("CLAIM_SECONDS", "0.2 1 0.2")
        patch.setenv("PURGE_SECONDS", "0.5")
        api = made.api()
        worker = made.worker().await_ready()
        api.await_ready()
        worker.stop()
        yield made, api


def pixel(data: bytes) -> tuple[int, ...]:
    """The colour of a picture of one."""
    with Image.open(io.BytesIO(data)) as picture:
        found = picture.convert("RGB").getpixel((0, 0))
    assert isinstance(found, tuple)
    return found


def check(made: Fleet, api: Server, job_id: str, seed: int) -> None:
    """The job has its two pictures, and neither queue nor table nor folder keeps anything else of it."""
    job = api.await_status(job_id, "completed", "failed", "cancelled", "expired")
    assert (job["status"], job["progress"]) == ("completed", 1.0)
    for index, url in enumerate(job["image_urls"]):
        params = build.params(prompt=BODY["prompt"], seed=seed)
        expected = colour(Picture(job_id, index, params))[0, 0]
        assert pixel(api.client.get(url).content) == tuple(expected)
    until(lambda: made.redis.cli("hlen", "{safelight}:entries") == "0")
    for priority in ("high", "normal", "low"):
        assert made.redis.cli("xlen", f"{{safelight}}:queue:{priority}") == "0"
    with closing(sqlite3.connect(made.folder / "safelight.db")) as database:
        assert database.execute("SELECT * FROM flights").fetchall() == []

        def folders_are_recorded() -> bool:
            blobs = {row[0] for row in database.execute("SELECT id FROM blobs WHERE bytes > 0")}
            return {each.name for each in Path(made.folder, "images").glob("*/*")} == blobs

        until(folders_are_recorded)


@pytest.mark.parametrize("moment", WORKER_MOMENTS)
def test_a_worker_is_killed(quick: tuple[Fleet, Server], moment: str) -> None:
    """Another does what is left, and one that was over already is not done again."""
    made, api = quick
    seed = 1 + WORKER_MOMENTS.index(moment)
    doomed = made.worker(moment)
    job = api.generate(**{**BODY, "seed": seed})
    assert doomed.process.wait(PATIENCE) == -9
    heir = made.worker().await_ready()
    check(made, api, job["job_id"], seed)
    assert heir.metric("safelight_requests_total", outcome="completed", reason="none", source="user") <= 1
    assert heir.stop() == 0


@pytest.mark.parametrize("moment", ["accepted", "queued"])
def test_an_api_is_killed(quick: tuple[Fleet, Server], moment: str) -> None:
    """Between the table and the queue, or before it could answer: the job runs, as every recorded one does."""
    made, api = quick
    doomed = made.api(moment).await_ready()
    seed = 100 + len(moment)
    with suppress(httpx.TransportError):
        doomed.generate(**{**BODY, "seed": seed})
    assert doomed.process.wait(PATIENCE) == -9
    (newest,) = api.client.get("/jobs", params={"limit": 1}).json()["jobs"]
    assert newest["status"] == "pending"
    worker = made.worker().await_ready()
    check(made, api, newest["job_id"], seed)
    assert worker.stop() == 0
