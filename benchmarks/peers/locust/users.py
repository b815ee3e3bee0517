"""A user asks for a picture, and for the next one as soon as it is there. Locust runs this file in its own environment.

`USERS_PEER` names the peer, `USERS_FILE` where every request is written: when it began and ended, what was wrong and,
of a share of them, whether the picture is right. One that had no answer when all was over was wrong by that.
"""

import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

from locust import FastHttpUser, events, task

from benchmarks.peers.catalogue import PEERS, SAFELIGHT
from benchmarks.peers.colours import CHECKED, right_colour
from benchmarks.peers.load import PNG
from benchmarks.peers.published import REQUESTS

PEER = {**PEERS, SAFELIGHT.name: SAFELIGHT}[os.environ["USERS_PEER"]]
FILE = Path(os.environ["USERS_FILE"])

numbers = itertools.count()
answers: list[dict[str, Any]] = []


class User(FastHttpUser):
    network_timeout = connection_timeout = 900.0

    @task
    def ask(self) -> None:
        number = next(numbers)
        request = REQUESTS[number % len(REQUESTS)]
        told: dict[str, Any] = {"request": number % len(REQUESTS), "began": time.monotonic(), "error": ""}
        answers.append(told)
        headers = {"Content-Type": "application/json", **PEER.headers}
        with self.client.post(
            PEER.path, data=PEER.encode(request.body()), headers=headers, catch_response=True
        ) as answer:
            told["ended"] = time.monotonic()
            told["error"], picture = understood(answer)
            if picture and number % CHECKED == 0:
                told["right"] = right_colour(picture, request.prompt)


def understood(answer: Any) -> tuple[str, bytes]:
    """What is wrong with an answer, or its picture."""
    if answer.status_code != 200:
        return f"status {answer.status_code}", b""
    try:
        picture = PEER.picture(answer.content)
    except (ValueError, LookupError):
        picture = b""
    return ("", picture) if picture.startswith(PNG) else ("no picture", b"")


@events.quitting.add_listener
def write(**_: Any) -> None:
    unanswered = {"ended": time.monotonic(), "error": "no answer"}
    FILE.write_text(json.dumps([each if "ended" in each else each | unanswered for each in answers]))
