"""The life of a job over the socket: accepted, followed, finished, looked at, cancelled."""

import io
from typing import Any

import pytest
from PIL import Image

from observability.labels import Stage
from service.engine.contract import Picture
from service.engine.fake import colour
from tests.integration.conftest import FAKE, LONG, busy, held
from tests.support import build
from tests.support.place import Place
from tests.support.server import Server, until

IN_BOTH_SETTINGS = True


def pixel(data: bytes) -> tuple[int, ...]:
    """The colour of a picture of one colour."""
    value = Image.open(io.BytesIO(data)).convert("RGB").getpixel((5, 5))
    assert isinstance(value, tuple)
    return value


def wanted(prompt: str, seed: int) -> tuple[int, ...]:
    """The colour that the fake model gives a prompt and seed."""
    return tuple(int(value) for value in colour(Picture("", 0, build.params(prompt=prompt, seed=seed)))[0, 0])


def test_a_job_goes_from_pending_to_its_pictures(fake: Server) -> None:
    """202 with links; then completed, with progress 1, pictures in order of their seeds, and where the time went."""
    job = fake.generate(prompt="tree", seed=7, num_images=3, num_inference_steps=2)
    assert job["status"] == "pending"
    assert job["links"]["self"] == f"/jobs/{job['job_id']}"
    done = fake.await_status(job["job_id"], "completed")
    assert done["progress"] == 1.0
    assert (done["step"], done["total_steps"]) == (6, 6)
    assert done["image_url"] == done["image_urls"][0]
    assert set(done["timings"]) == {stage.value for stage in Stage}
    for index, url in enumerate(done["image_urls"]):
        response = fake.client.get(url)
        assert response.headers["content-type"] == "image/png"
        assert response.headers["x-seed"] == str(7 + index)
        assert pixel(response.content) == wanted("tree", 7 + index)


def test_defaults_are_the_models_and_are_reported(fake: Server) -> None:
    """What was left out is told in the job, the drawn seed included."""
    parameters = fake.generate(params={"wait": 60}, expect=200)["parameters"]
    model = fake.client.get("/model").json()
    assert parameters["width"] == model["default_width"]
    assert parameters["num_inference_steps"] == model["default_num_inference_steps"] == 20
    assert parameters["guidance_scale"] == model["default_guidance_scale"]
    assert parameters["scheduler"] == model["default_scheduler"]
    assert 0 <= parameters["seed"] < 2**53
    assert parameters["output_format"] == "png"


def test_a_drawn_seed_gives_the_same_picture_again(fake: Server) -> None:
    """The reported seed is the one that was used."""
    first = fake.generate(params={"wait": 60}, expect=200, num_inference_steps=1)
    again = fake.generate(
        params={"wait": 60}, expect=200, num_inference_steps=1, seed=first["parameters"]["seed"], cache=False
    )
    assert fake.client.get(first["image_url"]).content == fake.client.get(again["image_url"]).content


def test_a_waiting_job_knows_its_place_and_can_be_cancelled(fake: Server) -> None:
    """Queue positions count from 0; a cancelled job is gone from the queue, and cancelling it twice is a 409."""
    with busy(fake) as running:
        first, second = fake.generate(prompt="first"), fake.generate(prompt="second")
        until(lambda: fake.metric("safelight_queue_depth", priority="normal") == 2)
        assert fake.job(first["job_id"])["queue_position"] == 0
        assert fake.job(second["job_id"])["queue_position"] == 1
        assert fake.job(second["job_id"])["estimated_time"] >= fake.job(first["job_id"])["estimated_time"] > 0
        assert fake.client.delete(f"/jobs/{first['job_id']}").json()["status"] == "cancelled"
        assert fake.job(second["job_id"])["queue_position"] == 0
        assert fake.client.delete(f"/jobs/{first['job_id']}").status_code == 409
        for job in (*running, second["job_id"]):
            assert fake.client.delete(f"/jobs/{job}").status_code == 200


def test_a_running_job_leaves_at_the_next_step(fake: Server) -> None:
    """After the cancel the engine is free for the next job; the wasted steps are counted."""
    wasted = {"reason": "client_cancelled"}
    before = fake.metric("safelight_wasted_steps_total", **wasted)
    running = fake.generate(prompt="to be cancelled", **LONG)
    fake.await_status(running["job_id"], "processing")
    cancelled = fake.client.delete(f"/jobs/{running['job_id']}").json()
    assert cancelled["status"] == "cancelled"
    assert cancelled["error"] == {"reason": "client_cancelled", "detail": None}
    assert cancelled["image_urls"] == []
    fake.generate(params={"wait": 60}, expect=200, prompt="next", num_inference_steps=1)
    assert 0 < fake.metric("safelight_wasted_steps_total", **wasted) - before < 800


def test_cancelling_a_finished_job_is_a_conflict(fake: Server) -> None:
    """And changes nothing."""
    done = fake.generate(params={"wait": 60}, expect=200, num_inference_steps=1)
    assert fake.client.delete(f"/jobs/{done['job_id']}").status_code == 409
    assert fake.job(done["job_id"])["status"] == "completed"


def test_a_job_past_its_time_expires(fake: Server) -> None:
    """`timeout_s` runs from acceptance; the job leaves the batch and says so."""
    with held(fake):
        job = fake.generate(prompt="too long", timeout_s=1)
        expired = fake.await_status(job["job_id"], "expired")
    assert expired["error"]["reason"] == "deadline"
    fake.generate(params={"wait": 60}, expect=200, prompt="engine is free", num_inference_steps=1)


def test_a_failing_job_fails_alone(place: Place) -> None:
    """Its mates in the same batch complete; the failure has a bounded reason and shows no prompt."""
    with place.serving(model=FAKE) as server:
        with server.held():
            blocker = server.start(prompt="blocker", num_inference_steps=50)
            poison = server.generate(prompt="poison and secret", num_inference_steps=3)
            mates = [blocker, server.generate(prompt="mate", num_inference_steps=3)]
        failed = server.await_status(poison["job_id"], "failed", "completed")
        assert failed["status"] == "failed"
        assert failed["error"]["reason"] == "model_error"
        assert "secret" not in str(failed["error"])
        for mate in mates:
            assert server.await_status(mate["job_id"], "failed", "completed")["status"] == "completed"
        failures = {"outcome": "failed", "reason": "model_error", "source": "user"}
        assert server.metric("safelight_requests_total", **failures) == 1


def test_high_priority_goes_first(sequential: Server) -> None:
    """Of jobs that wait, the urgent one starts before an older one."""
    with busy(sequential, num_images=1, num_inference_steps=1) as blockers:
        low = sequential.generate(prompt="low", priority="low", num_inference_steps=2)
        high = sequential.generate(prompt="high", priority="high", num_inference_steps=3)
        assert {sequential.job(job["job_id"])["status"] for job in (low, high)} == {"pending"}
    urgent, other = (sequential.await_status(job["job_id"], "completed")["started_at"] for job in (high, low))
    assert urgent < other
    for job in blockers[1:]:
        sequential.client.delete(f"/jobs/{job}")


def test_a_long_prompt_is_cut_and_the_job_says_so(fake: Server) -> None:
    """The model's window is 24 tokens."""
    done = fake.generate(params={"wait": 60}, expect=200, prompt="word " * 30, num_inference_steps=1)
    assert done["prompt_truncated"] is True
    short = fake.generate(params={"wait": 60}, expect=200, prompt="word", num_inference_steps=1)
    assert short["prompt_truncated"] is False


def test_jobs_are_listed_newest_first_in_pages(fake: Server) -> None:
    """Pages follow one another without gap or repetition; a status narrows them."""
    made = [fake.generate(params={"wait": 60}, expect=200, num_inference_steps=1)["job_id"] for _ in range(5)]
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 2}
    while len(seen) < 5:
        page = fake.client.get("/jobs", params=query).json()
        assert len(page["jobs"]) == 2
        seen += [job["job_id"] for job in page["jobs"]]
        query["cursor"] = page["next"]
    assert seen[:5] == made[::-1]
    completed = fake.client.get("/jobs", params={"status": "completed", "limit": 200}).json()
    assert {job["status"] for job in completed["jobs"]} == {"completed"}
    assert completed["next"] is None
    assert fake.client.get("/jobs", params={"status": "pending"}).json()["jobs"] == []


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_every_format_is_what_it_says(fake: Server, output_format: str) -> None:
    """The bytes, their media type and the job agree."""
    done = fake.generate(params={"wait": 60}, expect=200, num_inference_steps=1, output_format=output_format, width=72)
    response = fake.client.get(done["image_url"])
    assert response.headers["content-type"] == f"image/{output_format}"
    image = Image.open(io.BytesIO(response.content))
    assert image.format == output_format.upper()
    assert image.size == (72, 64)


def test_a_picture_that_is_not_there_is_a_404(fake: Server) -> None:
    """Neither of a job that is not finished nor beyond its last."""
    with held(fake):
        running = fake.start(prompt="not yet")
        assert fake.client.get(f"/jobs/{running['job_id']}/images/0").status_code == 404
        fake.client.delete(f"/jobs/{running['job_id']}")
    done = fake.generate(params={"wait": 60}, expect=200, num_inference_steps=1)
    assert fake.client.get(f"/jobs/{done['job_id']}/images/1").status_code == 404


def test_the_model_and_the_documentation_are_there(fake: Server) -> None:
    """`/` leads to the documentation; `/model` says what is loaded."""
    assert fake.client.get("/").headers["location"] == "/docs"
    assert fake.client.get("/docs").status_code == 200
    paths = fake.client.get("/openapi.json").json()["paths"]
    assert {"/generate", "/jobs", "/jobs/{job_id}", "/jobs/{job_id}/images/{index}", "/model"} <= set(paths)
    assert fake.client.get("/model").json()["name"] == "fake"
    assert fake.client.get("/health/live").json() == {"status": "ok"}
