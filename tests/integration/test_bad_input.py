"""Whatever a client sends, it gets a clear 4xx problem document, and the queue stays as it was."""

import json
from typing import Any

import httpx
import pytest

from tests.support.server import Server

IN_BOTH_SETTINGS = True

JSON = {"content-type": "application/json"}


def check_refused(response: httpx.Response, status: int, field: str | None = None) -> dict[str, Any]:
    """The problem document of a refusal."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = response.json()
    assert document["status"] == status
    assert document["title"]
    assert document["detail"]
    assert "Traceback" not in response.text
    if field is not None:
        assert [error["field"] for error in document["errors"]] == [field], document
        assert document["errors"][0]["detail"]
    return document


@pytest.fixture(autouse=True)
def queue_stays_as_it_was(fake: Server) -> Any:
    """No test of this module may leave a job behind."""
    before = fake.client.get("/jobs").json()
    yield
    assert fake.client.get("/jobs").json() == before
    assert fake.metric("safelight_queue_depth", priority="normal") == 0


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "x" * 2001}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": ["x"]}, "prompt"),
        ({"prompt": "a\0b"}, "prompt"),
        ({"prompt": "x", "negative_prompt": "\0"}, "negative_prompt"),
        ({"prompt": "x", "colour": "red"}, "colour"),
        ({"prompt": "x", "num_inference_steps": 0}, "num_inference_steps"),
        ({"prompt": "x", "num_inference_steps": 101}, "num_inference_steps"),
        ({"prompt": "x", "num_inference_steps": "20"}, "num_inference_steps"),
        ({"prompt": "x", "num_inference_steps": 2.5}, "num_inference_steps"),
        ({"prompt": "x", "num_inference_steps": True}, "num_inference_steps"),
        ({"prompt": "x", "guidance_scale": 0.5}, "guidance_scale"),
        ({"prompt": "x", "guidance_scale": 20.5}, "guidance_scale"),
        ({"prompt": "x", "guidance_scale": "5"}, "guidance_scale"),
        ({"prompt": "x", "guidance_scale": float("nan")}, "guidance_scale"),
        ({"prompt": "x", "guidance_scale": float("inf")}, "guidance_scale"),
        ({"prompt": "x", "width": 100}, "width"),
        ({"prompt": "x", "width": 200}, "width"),
        ({"prompt": "x", "height": 0}, "height"),
        ({"prompt": "x", "height": -64}, "height"),
        ({"prompt": "x", "seed": -1}, "seed"),
        ({"prompt": "x", "seed": 2**53}, "seed"),
        ({"prompt": "x", "seed": 10**400}, "seed"),
        ({"prompt": "x", "seed": 2**53 - 1, "num_images": 2}, "seed"),
        ({"prompt": "x", "num_images": 0}, "num_images"),
        ({"prompt": "x", "num_images": 9}, "num_images"),
        ({"prompt": "x", "scheduler": "magic"}, "scheduler"),
        ({"prompt": "x", "scheduler": "lcm", "num_inference_steps": 51}, "num_inference_steps"),
        ({"prompt": "x", "output_format": "gif"}, "output_format"),
        ({"prompt": "x", "priority": "urgent"}, "priority"),
        ({"prompt": "x", "timeout_s": 0}, "timeout_s"),
        ({"prompt": "x", "timeout_s": float("nan")}, "timeout_s"),
        ({"prompt": "x", "cache": "yes"}, "cache"),
    ],
)
def test_a_bad_field_is_named(fake: Server, body: dict[str, Any], field: str) -> None:
    """Unknown fields, wrong types and values out of range are a 422 that names the one field."""
    check_refused(fake.client.post("/generate", content=json.dumps(body), headers=JSON), 422, field)


def test_the_allowed_sizes_are_told(fake: Server) -> None:
    """The message says what would be right."""
    document = check_refused(fake.client.post("/generate", json={"prompt": "x", "width": 100}), 422, "width")
    assert "multiple of 8 from 8 to 192" in document["errors"][0]["detail"]


def test_a_lone_surrogate_is_refused(fake: Server) -> None:
    r"""`\ud800` is valid JSON and no text."""
    check_refused(fake.client.post("/generate", content=rb'{"prompt": "a \ud800 b"}', headers=JSON), 422, "prompt")


def test_a_lone_surrogate_as_a_field_name_is_refused(fake: Server) -> None:
    r"""The name of an unknown field can be as broken as any text."""
    check_refused(fake.client.post("/generate", content=rb'{"prompt": "x", "\ud800": 1}', headers=JSON), 422)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"prompt": "x"', b"prompt=x", b"\xff\xfe", b'{"prompt": "\xff"}', b"[" * 100_000, b"1" * 10_000],
)
def test_malformed_json_is_refused(fake: Server, content: bytes) -> None:
    """What is no JSON at all is a 400 or a 422."""
    response = fake.client.post("/generate", content=content, headers=JSON)
    assert response.status_code in {400, 422}
    check_refused(response, response.status_code)


@pytest.mark.parametrize("content", [b"[]", b'"x"', b"null", b"7"])
def test_json_that_is_no_object_is_refused(fake: Server, content: bytes) -> None:
    """The body must be an object."""
    check_refused(fake.client.post("/generate", content=content, headers=JSON), 422)


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_wrong_content_type_is_refused(fake: Server, media_type: str) -> None:
    """Only JSON is read."""
    headers = {"content-type": media_type} if media_type else {}
    check_refused(fake.client.post("/generate", content=b'{"prompt": "x"}', headers=headers), 415, "Content-Type")


def test_a_prompt_of_a_megabyte_is_refused(fake: Server) -> None:
    """Under the limit of the body it is a field that is too long."""
    check_refused(fake.client.post("/generate", json={"prompt": "x" * 1_000_000}), 422, "prompt")


def test_the_answer_to_very_many_unknown_fields_is_short(fake: Server) -> None:
    """It does not list all 95,000."""
    body = json.dumps({"prompt": "x"} | dict.fromkeys(map(str, range(95_000)), 1), separators=(",", ":"))
    response = fake.client.post("/generate", content=body, headers=JSON)
    check_refused(response, 422)
    assert len(response.content) < 20_000


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_over_a_mebibyte_is_refused(fake: Server, declared: bool) -> None:
    """Whether its length is declared or it comes in chunks."""
    body = json.dumps({"prompt": "x" * (1 << 20)}).encode()
    content = body if declared else iter([body[:1000], body[1000:]])
    check_refused(fake.client.post("/generate", content=content, headers=JSON), 413)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/jobs/unknown", 404),
        ("DELETE", "/jobs/unknown", 404),
        ("GET", "/jobs/unknown/events", 404),
        ("GET", "/jobs/unknown/images/0", 404),
        ("GET", "/jobs/%00", 422),
        ("GET", "/jobs/" + "x" * 5000, 422),
        ("GET", "/jobs/unknown/images/-1", 422),
        ("GET", "/jobs/unknown/images/x", 422),
        ("GET", "/jobs?status=asleep", 422),
        ("GET", "/jobs?limit=0", 422),
        ("GET", "/jobs?limit=many", 422),
        ("GET", "/jobs?cursor=x", 422),
        ("GET", "/jobs?cursor=%F0%9F%8D%8E", 422),
        ("GET", "/jobs?cursor=bmFuIHg=", 422),
        ("GET", "/nowhere", 404),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404),
        ("POST", "/nowhere", 404),
        ("PATCH", "/jobs/unknown", 405),
        ("PUT", "/generate", 405),
        ("GET", "/generate", 405),
    ],
)
def test_bad_paths_and_queries_are_refused(fake: Server, method: str, path: str, status: int) -> None:
    """Unknown jobs, pictures, routes, and queries that mean nothing."""
    check_refused(fake.client.request(method, path), status)


@pytest.mark.parametrize("wait", ["-1", "601", "nan", "inf", "soon"])
def test_a_bad_wait_is_refused(fake: Server, wait: str) -> None:
    """The wait is from 0 to 600 seconds."""
    check_refused(fake.client.post("/generate", params={"wait": wait}, json={"prompt": "x"}), 422, "wait")


def test_a_bad_choice_on_disconnect_is_refused(fake: Server) -> None:
    """Only cancel and continue are known."""
    check_refused(
        fake.client.post("/generate", params={"on_disconnect": "x"}, json={"prompt": "x"}), 422, "on_disconnect"
    )


@pytest.mark.parametrize("key", ["", "two words", "x" * 256, "é"])
def test_a_bad_idempotency_key_is_refused(fake: Server, key: str) -> None:
    """It is 1 to 255 visible ASCII characters."""
    headers = {b"Idempotency-Key": key.encode()}
    check_refused(fake.client.post("/generate", json={"prompt": "x"}, headers=headers), 422, "Idempotency-Key")


def test_several_pictures_do_not_fit_one_answer(fake: Server) -> None:
    """An image in `Accept` takes one picture."""
    headers = {"accept": "image/png"}
    response = fake.client.post("/generate", json={"prompt": "x", "num_images": 2}, headers=headers)
    check_refused(response, 422, "num_images")


def test_accept_and_output_format_must_agree(fake: Server) -> None:
    """Two wishes for the format that differ are refused rather than one of them dropped."""
    headers = {"accept": "image/png"}
    response = fake.client.post("/generate", json={"prompt": "x", "output_format": "webp"}, headers=headers)
    check_refused(response, 422, "output_format")
