"""Every peer: how it is started, asked and understood.

All get the same JSON, and give the picture's bytes, but for two whose interfaces are of another kind.
"""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Body = Mapping[str, Any]
BATCH = 8  # the most that are made together, by any of them: the knee of the embedded model's curve
FIELDS = ("prompt", "seed", "num_inference_steps", "guidance_scale")
SERVER = ("python", "-m", "benchmarks.peers.{environment}.server")


def _same(body: Body) -> Any:
    return body


def _bytes(answer: bytes) -> bytes:
    return answer


@dataclass(frozen=True, slots=True)
class Peer:
    """`environment` is its folder, and its virtual environment's name; `command` is one of its programs and arguments,
    with `{port}` and `{environment}`; `body` is what is posted to `path`; `picture` finds the bytes in an answer.

    `python` makes the environment, where it must be a certain one.
    """

    name: str
    title: str
    environment: str
    path: str = "/generate"
    command: Sequence[str] = SERVER
    body: Callable[[Body], Any] = _same
    picture: Callable[[bytes], bytes] = _bytes
    python: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def encode(self, request: Body) -> bytes:
        """What is posted for the fields of a request."""
        return json.dumps(self.body({name: request[name] for name in FIELDS})).encode()


def _listed(body: Body) -> Any:
    """A batch of one."""
    return {"requests": [body]}


def _first_of_list(answer: bytes) -> bytes:
    return base64.b64decode(json.loads(answer)[0])


def _inference(body: Body) -> Any:
    """KServe's protocol, version 2; the picture is asked for in binary."""
    kinds = dict(zip(FIELDS, ("BYTES", "INT64", "INT32", "FP32"), strict=True))
    inputs = [{"name": name, "datatype": kinds[name], "shape": [1, 1], "data": [body[name]]} for name in FIELDS]
    return {"inputs": inputs, "outputs": [{"name": "picture", "parameters": {"binary_data": True}}]}


def _binary_output(answer: bytes) -> bytes:
    """JSON, then four bytes of length, then the picture."""
    return answer[answer.index(b"\x89PNG") :]


PLAIN = {
    "plain-sync": ("FastAPI, a function", "/sync"),
    "plain-async": ("FastAPI, an async function", "/async"),
    "plain-sync-stream": ("FastAPI, a function that streams", "/sync-stream"),
    "plain-async-stream": ("FastAPI, an async function that streams", "/async-stream"),
}
BENTO = ("bentoml", "serve", "benchmarks.peers.bentoml.server:Paint", "--host", "127.0.0.1", "--port", "{port}")
MOSEC = (*SERVER, "--address", "127.0.0.1", "--port", "{port}", "--timeout", "600000")

PEERS: Mapping[str, Peer] = {
    each.name: each
    for each in (
        *(Peer(name, title, "plain", path) for name, (title, path) in PLAIN.items()),
        Peer("window", "FastAPI, published window of 0.5 s", "window"),
        Peer("litserve", "LitServe", "litserve", "/predict"),
        Peer("bentoml", "BentoML", "bentoml", command=BENTO, body=_listed, picture=_first_of_list),
        Peer("ray", "Ray Serve", "ray"),
        Peer("mosec", "mosec", "mosec", "/inference", MOSEC),
        Peer(
            "triton",
            "Triton (PyTriton)",
            "triton",
            "/v2/models/painter/infer",
            body=_inference,
            picture=_binary_output,
            python="/usr/bin/python3",  # the backend that calls Python is built for Debian's
        ),
    )
}


def _uncached(body: Body) -> Any:
    """A picture that is made anew, and has a day's time."""
    return {**body, "cache": False, "timeout_s": 86_400}


SAFELIGHT = Peer("safelight", "Safelight", "", body=_uncached, headers={"Accept": "image/png"})
