"""The alert inbox as a process of its own, to which is posted what Alertmanager posts."""

import json
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support.alerts import ENDED_SECONDS, alert, notification
from tests.support.inbox import Running, running
from tests.support.server import PATIENCE, environment, until

STOP_SECONDS = 10.0  # it takes one or two, but not on a machine that is busy


@pytest.fixture(scope="module")
def inbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One that several tests share, with a runbook."""
    folder = tmp_path_factory.mktemp("inbox")
    (folder / "runbooks").mkdir()
    (folder / "runbooks" / "QueueFull.md").write_text("# The queue is full\n\nLook at **it**.\n")
    (folder / "secret.md").write_text("secret")
    with running(folder) as inbox:
        yield inbox


def test_alerts_outlive_a_kill(tmp_path: Path) -> None:
    """What was answered 200 is on disk; after the restart it goes on."""
    before = time.time()
    with running(tmp_path) as inbox:
        inbox.post(alert("A"), alert("B"))
        inbox.process.kill()
    with running(tmp_path) as inbox:
        assert [each["alertname"] for each in inbox.alerts()] == ["B", "A"]
        assert inbox.metric("alerts_firing") == 2
        inbox.post(alert("A", "resolved"))
        (record,) = inbox.alerts(alertname="A")
        assert record["status"] == "resolved"
        assert record["ends_at"] == ENDED_SECONDS
        assert before <= record["received_firing_at"] <= record["received_resolved_at"] <= time.time()
        assert inbox.metric("alerts_firing") == 1


def test_sigterm_stops_it_at_once(tmp_path: Path) -> None:
    """Also while a client holds its connection, and while a call is under way; the exit status is 0."""
    called = tmp_path / "called"
    command = shlex.join(["sh", "-c", f"touch {called}; exec sleep 30"])
    with running(tmp_path, inbox_watchdog_timeout=0.2, inbox_on_missing_command=command) as inbox:
        until(called.exists)
        began = time.monotonic()
        inbox.process.send_signal(signal.SIGTERM)
        assert inbox.process.wait(PATIENCE) == 0, inbox.log.read_text()
        assert time.monotonic() - began < STOP_SECONDS
        assert "Traceback" not in inbox.log.read_text()


def test_the_page_shows_what_fires(inbox: Running) -> None:
    """For people, with a link to the runbook here; nothing else is loaded."""
    inbox.post(alert(annotations={"summary": "It is <full>"}), alert("Watchdog"))
    page = inbox.client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "It is &lt;full&gt;" in page.text
    assert "It is <full>" not in page.text
    assert "heard of" in page.text
    assert "Watchdog" not in page.text
    assert not re.search(r'(src|<link rel="stylesheet")', page.text)
    assert "The queue is full" in inbox.client.get("/runbooks/QueueFull").text
    assert 'href="/runbooks/QueueFull"' in inbox.client.get("/runbooks").text


def test_notifications_are_counted_and_filtered(inbox: Running) -> None:
    """By status, name and time; the watchdog is not among the alerts."""
    taken = inbox.metric("notifications_total", status="resolved")
    inbox.post(alert("Filtered", "resolved"), alert("Watchdog", "resolved"))
    assert inbox.metric("notifications_total", status="resolved") == taken + 1
    assert [each["alertname"] for each in inbox.alerts(limit=1)] == ["Filtered"]
    assert inbox.alerts(alertname="Watchdog") == []
    assert "Filtered" in {each["alertname"] for each in inbox.alerts(status="resolved")}
    assert "Filtered" not in {each["alertname"] for each in inbox.alerts(status="firing")}
    assert inbox.alerts(since=time.time() + 60) == []
    for wrong in ({"limit": 0}, {"limit": 5000}, {"status": "odd"}, {"since": "soon"}):
        assert inbox.client.get("/alerts", params=wrong).status_code == 422


@pytest.mark.parametrize(
    "path", ["..%2fsecret", "%2e%2e%2fsecret", "..%5csecret", "../secret", "Other", "QueueFull%00", "a-b", "%0a"]
)
def test_no_path_leads_out_of_the_runbooks(inbox: Running, path: str) -> None:
    """Sent as it is, past what clients make of it."""
    port = inbox.client.base_url.port
    assert port is not None
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
        connection.sendall(f"GET /runbooks/{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    assert answer.startswith("HTTP/1.1 404")
    assert "secret" not in answer
    assert '{"detail":' in answer


@pytest.mark.parametrize(
    ("body", "status", "expected"),
    [
        (b"", 422, "Invalid JSON"),
        (b"{}", 422, "version: Field required"),
        (json.dumps(notification(alert(startsAt="soon"))).encode(), 422, "alerts.0.startsAt"),
        (b" " * (1 << 20) + b"{}", 413, "at most 1048576 bytes"),
    ],
)
@pytest.mark.parametrize("declared", [True, False])
def test_a_bad_body_is_refused_and_changes_nothing(
    inbox: Running, body: bytes, status: int, expected: str, declared: bool
) -> None:
    """It is told why, it is counted, and what is there stays."""
    inbox.post(alert("Before"))
    before, rejected = inbox.alerts(limit=1000), inbox.metric("rejected_total")
    sent = body if declared else iter([body[:1000], body[1000:]])
    response = inbox.client.post("/webhook", content=sent, headers={"Content-Type": "application/json"})
    assert (response.status_code, expected in response.json()["detail"]) == (status, True), response.text
    assert inbox.alerts(limit=1000) == before
    assert inbox.metric("rejected_total") == rejected + 1
    inbox.post(alert("After"))


def test_a_web_page_cannot_post(inbox: Running) -> None:
    """What a browser sends for any page without asking is refused: it might pretend to be the watchdog."""
    body = json.dumps(notification(alert("Forged"))).encode()
    response = inbox.client.post("/webhook", content=body, headers={"Content-Type": "text/plain;charset=UTF-8"})
    assert response.status_code == 415
    assert inbox.alerts(alertname="Forged") == []


def test_only_who_has_the_token_may_post(tmp_path: Path) -> None:
    """All may read."""
    file = tmp_path / "token"
    file.write_text("a-secret\n")
    with running(tmp_path, inbox_token_file=file) as inbox:
        body = notification(alert())
        for wrong in (None, "Bearer other", "Bearer", "Basic a-secret", "a-secret", "Bearer ä"):
            headers = {} if wrong is None else {"Authorization": wrong.encode("latin-1")}
            response = inbox.client.post("/webhook", json=body, headers=headers)
            assert response.status_code == 401, wrong
            assert response.headers["www-authenticate"] == "Bearer"
        assert inbox.alerts() == []
        assert inbox.metric("rejected_total") == 6
        right = inbox.client.post("/webhook", json=body, headers={"Authorization": "Bearer a-secret"})
        assert right.status_code == 200
        assert len(inbox.alerts()) == 1
        assert "a-secret" not in inbox.log.read_text()


@contextmanager
def listening(first: int) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A URL, and what was posted there; the first post is answered with status `first`."""
    posted: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(first if len(posted) == 1 else 204)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook?key=1", posted
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("first", [500, 302])
def test_a_missing_watchdog_is_told(tmp_path: Path, first: int) -> None:
    """To a URL, which fails at first, and to a program; once each, and so is its return."""
    told = tmp_path / "told"
    command = shlex.join(["sh", "-c", f'echo "$SAFELIGHT_WATCHDOG_STATE" >> {told}'])
    with listening(first) as (url, posted):
        settings = {"inbox_on_missing_url": url, "inbox_on_missing_command": command}
        with running(tmp_path, inbox_watchdog_timeout=2, **settings) as inbox:
            assert inbox.metric("watchdog_last_seen_timestamp_seconds") == 0
            until(lambda: len(posted) == 2)
            assert inbox.client.get("/watchdog").json() == {"state": "missing", "last_seen": None, "timeout_seconds": 2}
            assert "The watchdog is missing." in inbox.client.get("/").text
            assert inbox.metric("watchdog_ok") == 0
            until(lambda: inbox.metric("calls_total", result="ok") == 2)
            assert inbox.metric("calls_total", result="failed") == 1

            def is_told_of_return() -> bool:
                inbox.post(alert("Watchdog"))
                return len(posted) == 3 and told.read_text() == "missing\nok\n"

            until(is_told_of_return)
            assert inbox.metric("watchdog_ok") == 1
            state = inbox.client.get("/watchdog").json()
            assert (state["state"], state["last_seen"]) == (
                "ok",
                pytest.approx(inbox.metric("watchdog_last_seen_timestamp_seconds")),
            )
            assert [each["state"] for each in posted] == ["missing", "missing", "ok"]
            assert posted[0]["text"].startswith("The watchdog is missing")
            assert inbox.alerts() == []
        assert "The watchdog is missing" in inbox.log.read_text()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"inbox_on_missing_command": "/no/such/program x"}, "ON_MISSING_COMMAND: there is no program"),
        ({"inbox_on_missing_command": "'open"}, "ON_MISSING_COMMAND: No closing quotation"),
        ({"inbox_on_missing_url": "file:///etc/passwd"}, "ON_MISSING_URL: must be a URL"),
        ({"inbox_token_file": "/dev/null"}, "TOKEN_FILE: '/dev/null' is empty"),
        ({"inbox_data_dir": "/dev/null/x"}, "DATA_DIR: '/dev/null/x' cannot be used"),
    ],
)
def test_what_prevents_a_start_is_one_line(tmp_path: Path, settings: dict[str, str], expected: str) -> None:
    """With exit status 2; the line names the setting."""
    given = {"inbox_port": 0, "inbox_data_dir": tmp_path, **settings}
    check_refused(environment(tmp_path, **given), expected)


def test_a_port_in_use_is_one_line(inbox: Running, tmp_path: Path) -> None:
    """And nothing of the one that has it is touched."""
    port = inbox.client.base_url.port
    check_refused(environment(tmp_path, inbox_port=port, inbox_data_dir=tmp_path), "cannot listen: Address already in")


def check_refused(variables: dict[str, str], expected: str) -> None:
    """It ends with status 2 and one line."""
    command = [sys.executable, "-m", "service", "inbox"]
    ended = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert (ended.returncode, expected in ended.stderr) == (2, True), ended.stderr
    assert ended.stderr.count("\n") == 1
