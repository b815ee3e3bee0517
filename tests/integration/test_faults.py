"""Faults that are put into a running engine: only where a setting allows it, and gone when they are taken back."""

import re
from collections.abc import Callable
from pathlib import Path

import httpx

from tests.support.server import Server, serving, until

METRICS = re.compile(r"metrics are on (http://127\.0\.0\.1:\d+)/metrics")
FAKE = "fake:?step_ms=1"


def putter(server: Server) -> Callable[[str], httpx.Response]:
    """`PUT /debug/faults`."""
    match = METRICS.search(server.log.read_text())
    assert match is not None, server.log.read_text()
    return lambda text: httpx.put(f"{match[1]}/debug/faults", content=text)


def outcome(server: Server, prompt: str) -> str:
    """Of one request that is waited for."""
    answer = server.client.post("/generate", params={"wait": 60}, json={"prompt": prompt, "cache": False})
    return str(answer.json().get("status", answer.status_code))


def test_without_the_setting_there_is_no_such_thing(data_dir: Path) -> None:
    """Also if the variable is there and empty, or has faults to begin with."""
    for number, faults in enumerate(("", "fail=poison")):
        with serving(data_dir / str(number), model=FAKE, metrics_port=0, faults=faults) as server:
            assert putter(server)("fail=*").status_code == 404
            assert outcome(server, "a red apple") == "completed"
            assert ("may fail on purpose" in server.log.read_text()) == bool(faults)


def test_faults_come_and_go(data_dir: Path) -> None:
    """By word or for all, and what is no fault is refused and changes nothing."""
    with serving(data_dir, model=FAKE, metrics_port=0, faults=1) as server:
        put = putter(server)
        assert outcome(server, "a red apple") == "completed"
        assert put("fail=apple").status_code == 200
        assert outcome(server, "a red apple") == "failed"
        for wrong in ("fail", "fall=apple", "slow=x", "fail=", "x" * 1000):
            refused = put(wrong)
            assert refused.status_code == 400
            assert refused.text.startswith("faults must be")
        assert outcome(server, "a red apple") == "failed"
        assert outcome(server, "a pizza") == "completed"
        assert put("fail=*").status_code == 200
        assert outcome(server, "a pizza") == "failed"
        assert put("").status_code == 200
        assert outcome(server, "a red apple") == "completed"


def test_a_hang_ends_with_its_fault(data_dir: Path) -> None:
    """Though the engine's loop is amid the step that hangs; the job completes."""
    with serving(data_dir, model=FAKE, metrics_port=0, faults=1) as server:
        put = putter(server)
        put("hang=*")
        job = server.start()
        assert server.client.get(f"/jobs/{job['job_id']}").json()["progress"] == 0
        put("")
        assert server.await_status(job["job_id"], "completed", "failed")["status"] == "completed"


def test_faults_outlive_the_engine(data_dir: Path) -> None:
    """One that dies by a fault meets it again in the next process, until it is taken back."""
    with serving(data_dir, model=FAKE, metrics_port=0, faults=1) as server:
        put = putter(server)
        put("crash=apple")
        assert outcome(server, "a red apple") == "failed"  # also when it was tried alone
        put("")
        until(lambda: server.client.get("/health/ready").status_code == 200)
        assert outcome(server, "a red apple") == "completed"
