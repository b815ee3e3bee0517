"""The published experiment's scenarios, by Locust: one user, and eight of whom one comes every 50 seconds."""

import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.environment import ROOT, CannotServe, prepare
from benchmarks.peers.load import Answer, Endpoint, Looks
from benchmarks.peers.results import EIGHT_USERS, ONE_USER
from benchmarks.traffic import MIXES, all_at_once

ARRIVAL_SECONDS = 50.0
STOP_SECONDS = 120  # for the last answers


@dataclass(frozen=True, slots=True)
class Scenario:
    """So many users, of whom one comes every `arrival` seconds; it lasts as long again as one takes to come."""

    users: int
    arrival: float = ARRIVAL_SECONDS

    @property
    def seconds(self) -> float:
        return (self.users + 1) * self.arrival

    def scaled(self, scale: float) -> "Scenario":
        """The same in less time."""
        return Scenario(self.users, self.arrival * scale)


REQUESTS = all_at_once(MIXES["uniform"], 1000, "users")
SCENARIOS = {ONE_USER: Scenario(1), EIGHT_USERS: Scenario(8)}


def run(endpoint: Endpoint, scenario: Scenario) -> tuple[list[Answer], Looks, float]:
    """Every answer, what was seen on a share of the pictures, and the seconds from first request to last answer.

    Raises `CannotServe`.
    """
    folder = prepare("locust")
    with tempfile.TemporaryDirectory() as here:
        file = Path(here, "answers")
        options = {
            "--locustfile": ROOT / "benchmarks" / "peers" / "locust" / "users.py",
            "--host": endpoint.url,
            "--users": scenario.users,
            "--spawn-rate": 1 / scenario.arrival,
            "--run-time": f"{scenario.seconds:.0f}s",
            "--stop-timeout": STOP_SECONDS,
            "--exit-code-on-error": 0,
            "--loglevel": "ERROR",
        }
        command = [str(folder / "bin" / "locust"), "--headless", "--only-summary"]
        command += [str(word) for pair in options.items() for word in pair]
        told = {"USERS_PEER": endpoint.peer.name, "USERS_FILE": str(file), "PYTHONPATH": str(ROOT)}
        longest = scenario.seconds + 2 * STOP_SECONDS
        try:
            subprocess.run(
                command,
                env={**os.environ, **told},
                cwd=here,
                capture_output=True,
                text=True,
                check=True,
                timeout=longest,
            )
            found = json.loads(file.read_text())
        except subprocess.CalledProcessError as error:
            raise CannotServe(f"Locust: {error.stderr.strip()[-500:]}") from error
        except (OSError, subprocess.SubprocessError) as error:
            raise CannotServe(f"Locust: {error}") from error
    if not found:
        raise CannotServe("Locust: its users asked for nothing")
    answers = [Answer(REQUESTS[each["request"]], each["ended"] - each["began"], each["error"]) for each in found]
    seen = [each for each in found if "right" in each]
    looks = Looks(len(seen), tuple(REQUESTS[each["request"]] for each in seen if not each["right"]))
    return answers, looks, max(each["ended"] for each in found) - min(each["began"] for each in found)
