"""The probe as a process of its own, against services and things that are none."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from observability.labels import ProbeResult
from observability.probe import COLOURS, Target, probe
from tests.support.server import PATIENCE, Server, serving, until

TOKEN = "a-secret"
METRICS = re.compile(r"metrics are on (http://\S+/metrics)")


def png(size: tuple[int, int] = (64, 64), colour: str = "red") -> bytes:
    """A picture in one colour."""
    file = BytesIO()
    Image.new("RGB", size, COLOURS[colour]).save(file, "PNG")
    return file.getvalue()


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """The address of something that answers every order so."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(200, json.dumps({"default_width": 64, "default_height": 64}).encode())

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(status, body)

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def target(url: str, timeout: float = PATIENCE) -> Target:
    """What the probe asks."""
    return Target(url, None, timeout, steps=8, checks_colour=True)


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, png(), ProbeResult.OK),
        (200, png(colour="blue"), ProbeResult.WRONG_COLOUR),
        (200, png((32, 64)), ProbeResult.WRONG_SIZE),
        (200, b"\x89PNG and no more", ProbeResult.BAD_PICTURE),
        (429, b"", ProbeResult.REFUSED),
        (503, b"", ProbeResult.REFUSED),
        (504, b"", ProbeResult.TIMEOUT),
        (302, b"", ProbeResult.FAILED),
        (500, b"", ProbeResult.FAILED),
    ],
)
def test_each_way_of_being_wrong_has_a_result(status: int, body: bytes, expected: ProbeResult) -> None:
    """A fast wrong picture is a failure."""
    with answering(status, body) as url:
        assert probe(target(url), "red").result is expected


def test_nobody_there_and_nobody_answering_are_told_apart(fake: Server) -> None:
    """A closed port, and a service whose engine does not go on."""
    with answering(200, b"") as url:
        pass
    assert probe(target(url), "red").result is ProbeResult.UNREACHABLE
    with fake.held():
        assert probe(target(fake.url, timeout=1.0), "red").result in (ProbeResult.TIMEOUT, ProbeResult.REFUSED)


def test_probe_keeps_out_of_the_users_numbers(tmp_path: Path) -> None:
    """With the right token; it serves metrics of its own and stops when told."""
    with serving(tmp_path / "data", model="models/tiny", probe_token=TOKEN, device="cpu") as server:
        command = [sys.executable, "-m", "service", "probe", "--url", server.url, "--token", TOKEN]
        process = subprocess.Popen(
            [*command, "--interval", "0.1", "--metrics-port", "0"], stderr=subprocess.PIPE, text=True
        )
        with process:
            try:
                assert process.stderr is not None
                match = METRICS.search(process.stderr.readline())
                assert match is not None

                def right() -> float:
                    text = httpx.get(match[1]).text
                    samples = {
                        (each.name, *each.labels.values()): each.value
                        for family in text_string_to_metric_families(text)
                        for each in family.samples
                    }
                    assert not any(
                        value for (name, *labels), value in samples.items() if "runs" in name and labels != ["ok"]
                    ), samples
                    return samples["safelight_probe_runs_total", "ok"]

                until(lambda: right() >= 3)
                of_probe = {"outcome": "completed", "reason": "none", "source": "probe"}
                assert server.metric("safelight_requests_total", **of_probe) >= 3
                assert server.metric("safelight_requests_total", **{**of_probe, "source": "user"}) == 0
                process.terminate()
                assert process.wait(PATIENCE) == 0
            finally:
                process.kill()
        wrong = subprocess.run([*command[:-1], "wrong", "--once"], check=False, capture_output=True, text=True)
        assert wrong.returncode == 0, wrong.stderr
        assert server.metric("safelight_requests_total", **{**of_probe, "source": "user"}) == 1


def test_probes_colours_are_the_embedded_models() -> None:
    """The palette is in the model's folder."""
    palette = json.loads((Path(__file__).parents[2] / "models/tiny/palette.json").read_text())
    assert {name: tuple(palette[name]) for name in COLOURS} == COLOURS
