"""A user that is always there: asks for one cheap picture now and then, and looks at it.

It finds what requests of users may not show: nobody asks, or a fast wrong picture. Its requests carry a token, so that
they stay out of the users' objectives.
"""

import http.client
import io
import itertools
import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image
from prometheus_client import CollectorRegistry

from observability.declared import Declarations
from observability.labels import ProbeResult
from observability.metrics import REQUEST_SECONDS

TOKEN_HEADER = "X-Safelight-Probe"
FRAME = 16  # one part of so many of a side is frame, where the embedded model paints its background
RESULTS = {429: ProbeResult.REFUSED, 503: ProbeResult.REFUSED, 504: ProbeResult.TIMEOUT}
PATIENCE_SECONDS = 1.0  # more than the service has, so that it is the one to say that time is up

# Of the embedded model's palette, far apart from one another.
COLOURS = {
    "red": (221, 46, 68),
    "yellow": (255, 217, 102),
    "green": (92, 145, 59),
    "blue": (59, 120, 222),
    "white": (255, 255, 255),
    "black": (20, 23, 26),
}


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The token is for one address alone."""

    def redirect_request(self, *_: object) -> None:
        """Follow nowhere."""


OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)


@dataclass(frozen=True, slots=True)
class Target:
    """Which service is asked, and for what. Without `checks_colour`, any picture of the right size will do."""

    url: str
    token: str | None = field(repr=False)
    timeout: float
    steps: int
    checks_colour: bool


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of one picture, after so many seconds."""

    result: ProbeResult
    seconds: float
    detail: str = ""


class ProbeMetrics:
    """What the probe tells of itself."""

    def __init__(self, registry: CollectorRegistry) -> None:
        make = Declarations(registry)
        self._runs = make.counter("probe_runs_total", "Pictures asked for, by result.", {"result": ProbeResult})
        self._seconds = make.histogram(
            "probe_duration_seconds", "Time that pictures took that were right.", REQUEST_SECONDS
        )
        self._success = make.gauge("probe_success", "1 if the last picture was right.")
        self._last_run = make.gauge("probe_last_run_timestamp_seconds", "Unix time of the last try; 0: none.")
        self._last_success = make.gauge("probe_last_success_timestamp_seconds", "Unix time of the last success, or 0.")
        self.declared = tuple(make.declared)

    def take(self, finding: Finding) -> None:
        """Count one finding."""
        is_right = finding.result is ProbeResult.OK
        self._runs.labels(finding.result).inc()
        self._success.set(is_right)
        self._last_run.set_to_current_time()
        if is_right:
            self._seconds.observe(finding.seconds)
            self._last_success.set_to_current_time()


def probe(target: Target, colour: str, clock: Callable[[], float] = time.monotonic) -> Finding:
    """Ask for a picture with a background of `colour`; never raises for what the service does."""
    began = clock()
    try:
        width, height = _size(target)
        result, detail = _look(_ask(target, colour), (width, height), colour if target.checks_colour else None)
    except urllib.error.HTTPError as error:
        result = RESULTS.get(error.code, ProbeResult.FAILED)
        detail = f"answered {error.code}"
    except TimeoutError:
        result, detail = ProbeResult.TIMEOUT, f"no answer in {target.timeout:g} s"
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:  # no HTTP, or not our JSON
        is_late = isinstance(getattr(error, "reason", None), socket.timeout)
        result = ProbeResult.TIMEOUT if is_late else ProbeResult.UNREACHABLE
        detail = str(error)
    return Finding(result, clock() - began, detail)


def _size(target: Target) -> tuple[int, int]:
    with OPENER.open(f"{target.url}/model", timeout=target.timeout) as answer:
        model = json.load(answer)
    return int(model["default_width"]), int(model["default_height"])


def _ask(target: Target, colour: str) -> bytes:
    body = {
        "prompt": f"an apple on a {colour} background",
        "num_inference_steps": target.steps,
        "timeout_s": max(1.0, target.timeout),
        "cache": False,
    }
    headers = {"Content-Type": "application/json", "Accept": "image/png"}
    if target.token is not None:
        headers[TOKEN_HEADER] = target.token
    request = urllib.request.Request(f"{target.url}/generate", json.dumps(body).encode(), headers)
    with OPENER.open(request, timeout=target.timeout + PATIENCE_SECONDS) as answer:
        data: bytes = answer.read()
    return data


def _look(data: bytes, size: tuple[int, int], colour: str | None) -> tuple[ProbeResult, str]:
    """Whether the picture is one, has this size, and has the background that was asked for."""
    try:
        with Image.open(io.BytesIO(data)) as opened:
            image = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return ProbeResult.BAD_PICTURE, f"{len(data)} bytes that are no picture"
    if image.size != size:
        return ProbeResult.WRONG_SIZE, f"{image.width} x {image.height} instead of {size[0]} x {size[1]}"
    if colour is not None and (seen := nearest(background(image))) != colour:
        return ProbeResult.WRONG_COLOUR, f"{seen} instead of {colour}"
    return ProbeResult.OK, ""


def background(image: Image.Image) -> tuple[int, int, int]:
    """The median colour of the picture's frame."""
    width, height = image.size
    edge = max(1, min(width, height) // FRAME)
    right, bottom = width - edge, height - edge
    strips = ((0, 0, width, edge), (0, bottom, width, height), (0, 0, edge, height), (right, 0, width, height))
    frame = np.concatenate([np.asarray(image.crop(strip)).reshape(-1, 3) for strip in strips])
    red, green, blue = (int(value) for value in np.median(frame, axis=0))
    return red, green, blue


def nearest(colour: tuple[int, int, int]) -> str:
    """The name of the nearest of `COLOURS`."""
    return min(COLOURS, key=lambda name: sum((a - b) ** 2 for a, b in zip(COLOURS[name], colour, strict=True)))


def run(target: Target, interval: float, metrics: ProbeMetrics) -> Iterator[Finding]:
    """A finding every `interval` seconds, for ever, one after the other, with a colour that changes."""
    for colour in itertools.cycle(COLOURS):
        due = time.monotonic() + interval
        finding = probe(target, colour)
        metrics.take(finding)
        yield finding
        time.sleep(max(0.0, due - time.monotonic()))
