"""`safelight jobs`: what an operator does with jobs from a shell."""

import json
import subprocess
import sys

from tests.integration.conftest import held
from tests.support.server import PATIENCE, Server


def jobs(server: Server, *words: str) -> subprocess.CompletedProcess[str]:
    """`safelight jobs WORDS`."""
    command = [sys.executable, "-m", "service", "jobs", words[0], "--url", server.url, *words[1:]]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)


def test_jobs_are_listed_shown_ended_and_asked_for_again(fake: Server) -> None:
    """A failed job is asked for again once, however often; a completed one is not."""
    done = fake.generate(expect=200, params={"wait": 60}, prompt="a tree", num_inference_steps=1)
    failed = fake.generate(expect=200, params={"wait": 60}, prompt="poison", seed=3, priority="high")
    with held(fake):
        waiting = fake.generate(prompt="to be ended")
        ended = jobs(fake, "cancel", waiting["job_id"])
        assert (ended.returncode, ended.stdout) == (0, f"{waiting['job_id']} is cancelled\n")
        assert jobs(fake, "cancel", waiting["job_id"]).returncode == 1

    listed = jobs(fake, "list", "--status", "failed", "--reason", "model_error")
    assert listed.returncode == 0, listed.stderr
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["job", failed["job_id"]]
    assert jobs(fake, "list", "--reason", "dead_letter").stdout == ""
    assert len(jobs(fake, "list", "--limit", "2", "--json").stdout.splitlines()) == 2
    assert json.loads(jobs(fake, "show", failed["job_id"]).stdout)["error"]["reason"] == "model_error"

    first, second = jobs(fake, "retry", failed["job_id"]), jobs(fake, "retry", failed["job_id"])
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout
    again = fake.job(first.stdout.split()[-1])
    assert again["job_id"] != failed["job_id"]
    assert (again["parameters"], again["priority"]) == (failed["parameters"], "high")
    assert jobs(fake, "retry", done["job_id"]).returncode == 1
    assert "there is no such job" in jobs(fake, "retry", "--dead-letters").stderr
    assert jobs(fake, "retry").returncode == 2


def test_what_cannot_be_asked_is_told(fake: Server) -> None:
    """In one line."""
    unknown = jobs(fake, "show", "unknown")
    assert unknown.returncode == 1
    assert unknown.stderr.startswith("Error: 404: ")
    fake_url, fake.url = fake.url, "http://127.0.0.1:9"
    try:
        assert "cannot be asked" in jobs(fake, "list").stderr
    finally:
        fake.url = fake_url
