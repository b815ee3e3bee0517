"""The users of a game day: small requests that nobody waits for, as many a second as a drill wants."""

import contextlib
import http.client
import itertools
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # all is on this machine
TIMEOUT = 5.0
RATE = 2.0  # a second, while a drill wants nothing else
IDLE_SECONDS = 0.1
SIZE = {"width": 64, "height": 64}
STEPS = (4, 20, 31)  # one of each class of work that has an objective

Body = dict[str, Any]


def send(url: str, body: object = None, method: str = "GET") -> Any:
    """The JSON of an answer, or its text; None if the other side refuses, fails or is away."""
    data = body.encode() if isinstance(body, str) else None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with OPENER.open(request, timeout=TIMEOUT) as answer:
            text = answer.read().decode()
    except (OSError, urllib.error.URLError, http.client.HTTPException):
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text


def small(number: int) -> Body:
    """What is over before anybody else could mind: two steps, and before all others."""
    return {"prompt": f"a pizza {number}", "num_inference_steps": 2, "priority": "high", "cache": False, **SIZE}


def easy(number: int) -> Body:
    """Of every class from the cache, and some for which the engine is needed: what mends a budget."""
    if number % 4 == 0:
        return {**small(number), "num_inference_steps": 1, "priority": "normal"}
    return {"prompt": "a pizza", "seed": 1, "num_inference_steps": STEPS[number % 4 - 1], **SIZE}


class Traffic:
    """Asks for pictures in a thread of its own; `sent` counts."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/generate"
        self._rate = RATE
        self._body: Callable[[int], Body] = small
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._go_on, name="users", daemon=True)

    def __enter__(self) -> "Traffic":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @contextlib.contextmanager
    def instead(self, rate: float, body: Callable[[int], Body] = small) -> Iterator[None]:
        """Other requests, `rate` a second, while the block runs."""
        before = self._rate, self._body
        self._rate, self._body = rate, body
        try:
            yield
        finally:
            self._rate, self._body = before

    def ask(self, **body: Any) -> str | None:
        """Ask for one more; the id of its job, or None if it was not accepted."""
        answer = send(self._url, body, "POST")
        return answer.get("job_id") if isinstance(answer, dict) else None

    def _go_on(self) -> None:
        for number in itertools.count():
            while not self._rate:
                if self._stop.wait(IDLE_SECONDS):
                    return
            if self._stop.wait(1 / self._rate):
                return
            self.ask(**self._body(number))
