"""Answers that need no computation: the response cache, shared computations, idempotency keys."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.integration.conftest import FAKE, Places, busy, held
from tests.support.place import Place
from tests.support.server import Server, until

IN_BOTH_SETTINGS = True


def finished(server: Server, **body: Any) -> dict[str, Any]:
    """A short job, waited for."""
    return server.generate(params={"wait": 60}, expect=200, **{"num_inference_steps": 2, **body})


def test_the_same_request_again_is_a_hit(fake: Server) -> None:
    """A job of its own, completed at once, with the same bytes; counted as a hit; no step is made."""
    first = finished(fake, prompt="cached", seed=5)
    hits = fake.metric("safelight_cache_lookups_total", cache="response", result="hit")
    steps = fake.metric("safelight_steps_total")
    again = fake.generate(prompt="cached", seed=5, num_inference_steps=2)
    assert again["status"] == "completed"
    assert again["cached"] is True
    assert first["cached"] is False
    assert again["job_id"] != first["job_id"]
    assert fake.client.get(again["image_url"]).content == fake.client.get(first["image_url"]).content
    assert fake.metric("safelight_steps_total") == steps
    assert fake.metric("safelight_cache_lookups_total", cache="response", result="hit") == hits + 1


@pytest.mark.parametrize(
    "other",
    [
        {"prompt": "cached?"},
        {"seed": 6},
        {"negative_prompt": "x"},
        {"num_inference_steps": 3},
        {"guidance_scale": 5.0},
        {"width": 72},
        {"height": 72},
        {"scheduler": "euler"},
        {"num_images": 2},
        {"output_format": "webp"},
    ],
)
def test_any_other_parameter_is_a_miss(fake: Server, other: dict[str, Any]) -> None:
    """Every parameter that changes the bytes is part of the key."""
    same = {"prompt": "cached", "seed": 5}
    finished(fake, **same)
    assert finished(fake, **{**same, **other})["cached"] is False


def test_spelling_out_the_defaults_is_still_a_hit(fake: Server) -> None:
    """The key is made of canonical parameters; priority and timeout are no part of it."""
    finished(fake, prompt="canonical", seed=5)
    explicit = {"width": 64, "height": 64, "guidance_scale": 4, "output_format": "png", "scheduler": "ddim"}
    assert finished(fake, prompt="canonical", seed=5, priority="low", timeout_s=60, **explicit)["cached"] is True


def test_a_request_can_do_without_the_cache(fake: Server) -> None:
    """`cache: false` neither takes an answer nor leaves one."""
    finished(fake, prompt="private", seed=5, cache=False)
    assert finished(fake, prompt="private", seed=5)["cached"] is False
    assert finished(fake, prompt="private", seed=5, cache=False)["cached"] is False


def test_without_a_seed_every_answer_is_new(fake: Server) -> None:
    """Variants are off by default."""
    seeds = {finished(fake, prompt="fresh")["parameters"]["seed"] for _ in range(3)}
    assert len(seeds) == 3


def test_concurrent_identical_requests_share_one_computation(fake: Server) -> None:
    """Ten at once: ten jobs with the same bytes, the steps of one."""
    coalesced = {"cache": "response", "result": "coalesced"}
    crowd: dict[str, Any] = {"prompt": "crowd", "seed": 9, "num_inference_steps": 5}
    with held(fake), ThreadPoolExecutor(10) as threads:
        joined, steps = fake.metric("safelight_cache_lookups_total", **coalesced), fake.metric("safelight_steps_total")
        jobs = list(threads.map(lambda _: fake.generate(**crowd), range(10)))
    assert len({job["job_id"] for job in jobs}) == 10
    done = [fake.await_status(job["job_id"], "completed") for job in jobs]
    assert len({fake.client.get(job["image_url"]).content for job in done}) == 1
    assert fake.metric("safelight_cache_lookups_total", **coalesced) == joined + 9
    assert fake.metric("safelight_steps_total") == steps + 5


def test_cancelling_the_first_of_a_shared_computation_spares_the_others(fake: Server) -> None:
    """The computation belongs to all who wait for it."""
    body: dict[str, Any] = {"prompt": "shared and cancelled", "seed": 9, "num_inference_steps": 5}
    with held(fake):
        first, second = fake.start(**body), fake.generate(**body)
        assert second["status"] == "processing", "it shares the first one's computation"
        assert fake.client.delete(f"/jobs/{first['job_id']}").status_code == 200
    done = fake.await_status(second["job_id"], "completed", "failed")
    assert done["status"] == "completed"
    assert fake.client.get(done["image_url"]).status_code == 200
    assert fake.job(first["job_id"])["status"] == "cancelled"


def test_an_urgent_twin_pulls_the_shared_computation_forward(sequential: Server) -> None:
    """A high-priority request that joins a waiting low one makes it urgent."""
    with busy(sequential, num_images=1, num_inference_steps=1) as blockers:
        low = sequential.generate(prompt="twin", seed=1, priority="low", num_inference_steps=2)
        normal = sequential.generate(prompt="between", num_inference_steps=3)
        high = sequential.generate(prompt="twin", seed=1, priority="high", num_inference_steps=2)
        assert {sequential.job(job["job_id"])["status"] for job in (low, normal, high)} == {"pending"}
    started = [sequential.await_status(job["job_id"], "completed")["started_at"] for job in (low, high, normal)]
    assert max(started[:2]) < started[2]
    for job in blockers[1:]:
        sequential.client.delete(f"/jobs/{job}")


def post(server: Server, key: str, **body: Any) -> Any:
    """POST /generate with an idempotency key."""
    return server.client.post("/generate", json={"prompt": "once", **body}, headers={"Idempotency-Key": key})


def test_the_same_key_and_body_give_the_same_job(fake: Server) -> None:
    """While it waits, runs, and after it has finished; also when the seed was drawn."""
    first = post(fake, "key-1", num_inference_steps=5).json()
    assert post(fake, "key-1", num_inference_steps=5).json()["job_id"] == first["job_id"]
    fake.await_status(first["job_id"], "completed")
    again = post(fake, "key-1", num_inference_steps=5)
    assert again.status_code == 202
    assert again.json()["job_id"] == first["job_id"]
    assert again.json()["status"] == "completed"


def test_the_same_key_with_another_body_is_a_conflict(fake: Server) -> None:
    """And no second job is made."""
    first = post(fake, "key-2", num_inference_steps=1).json()
    response = post(fake, "key-2", num_inference_steps=2)
    assert response.status_code == 409
    assert response.json()["errors"][0]["field"] == "Idempotency-Key"
    assert fake.client.get("/jobs", params={"limit": 1}).json()["jobs"][0]["job_id"] == first["job_id"]


def test_racing_requests_with_one_key_make_one_job(fake: Server) -> None:
    """However many arrive at the same moment."""
    with ThreadPoolExecutor(10) as threads:
        answers = list(threads.map(lambda _: post(fake, "key-3", num_inference_steps=1).json(), range(10)))
    assert len({answer["job_id"] for answer in answers}) == 1


@pytest.fixture(scope="module")
def varied(places: Places, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that gives requests without a seed one of three earlier answers."""
    with places(tmp_path_factory.mktemp("varied")) as place, place.serving(model=FAKE, cache_variants=3) as server:
        yield server


def test_variants_are_filled_and_then_reused(varied: Server) -> None:
    """The first three requests without a seed draw one each; every later one gets one of the three."""
    fresh = [finished(varied, prompt="any") for _ in range(3)]
    assert {job["cached"] for job in fresh} == {False}
    seeds = {job["parameters"]["seed"] for job in fresh}
    later = [finished(varied, prompt="any") for _ in range(12)]
    assert {job["cached"] for job in later} == {True}
    assert {job["parameters"]["seed"] for job in later} <= seeds
    pictures = {job["parameters"]["seed"]: varied.client.get(job["image_url"]).content for job in fresh}
    for job in later:
        assert varied.client.get(job["image_url"]).content == pictures[job["parameters"]["seed"]]


def test_a_given_seed_is_never_answered_with_another(varied: Server) -> None:
    """Variants are for requests that leave the seed open."""
    for _ in range(4):
        finished(varied, prompt="seeded")
    assert finished(varied, prompt="seeded", seed=123)["parameters"]["seed"] == 123


def test_the_cache_survives_a_restart(place: Place) -> None:
    """It is as durable as the jobs."""
    with place.serving(model=FAKE) as server:
        first = finished(server, seed=1)
        server.stop()
    with place.serving(model=FAKE) as server:
        again = finished(server, seed=1)
        assert again["cached"] is True
        assert server.client.get(again["image_url"]).status_code == 200
        assert server.client.get(first["image_url"]).status_code == 200


def test_another_model_does_not_get_the_old_answers(place: Place) -> None:
    """The model's revision is part of the key."""
    with place.serving(model=FAKE) as server:
        finished(server, seed=1)
        server.stop()
    with place.serving(model=FAKE + "&size=72") as server:
        assert finished(server, seed=1, width=64, height=64)["cached"] is False


def test_a_cached_answer_outlives_the_job_that_made_it(place: Place) -> None:
    """Deleting the job leaves its pictures to the cache, which answers from them."""
    with place.serving(model=FAKE) as server:
        first = finished(server, prompt="x", seed=1)
        picture = server.client.get(first["image_url"]).content
        server.stop()
    with place.serving(model=FAKE, retention_seconds=0.2) as server:
        until(lambda: server.recorded(first["job_id"]) is None)
        server.stop()
    with place.serving(model=FAKE) as server:
        assert server.client.get(f"/jobs/{first['job_id']}").status_code == 404
        again = finished(server, prompt="x", seed=1)
        assert again["cached"] is True
        assert server.client.get(again["image_url"]).content == picture


def test_a_cache_of_no_bytes_is_off(place: Place) -> None:
    """`SAFELIGHT_CACHE_MAX_BYTES=0` computes every answer."""
    with place.serving(model=FAKE, cache_max_bytes=0) as server:
        finished(server, seed=1)
        assert finished(server, seed=1)["cached"] is False
