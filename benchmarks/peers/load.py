"""Clients of any peer: one after the other, so many at once, or at given times."""

import http.client
import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from benchmarks.peers.catalogue import Peer
from benchmarks.peers.colours import CHECKED, right_colour
from benchmarks.traffic import Request

CLIENT_SECONDS = 300.0
LEAD_SECONDS = 0.1
TOGETHER_SECONDS = 0.05  # between the first and the last answer of a batch
PNG = b"\x89PNG"


@dataclass(frozen=True, slots=True)
class Answer:
    """Seconds from when the request was due to the answer, which came at `ended` (monotonic); `error` says what is
    wrong with it, if something is.
    """

    request: Request
    seconds: float
    error: str = ""
    picture: bytes = b""
    ended: float = 0.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A peer that serves."""

    peer: Peer
    host: str
    port: int
    pid: int

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def ask(self, request: Request, due: float | None = None, patience: float = CLIENT_SECONDS) -> Answer:
        """One picture, over a connection of its own, for at most `patience` seconds."""
        due = time.perf_counter() if due is None else due
        picture, error = self._picture(request.body(), patience)
        ended = time.perf_counter()
        return Answer(request, ended - due, error, picture, ended)

    def _picture(self, request: Mapping[str, Any], patience: float) -> tuple[bytes, str]:
        """The picture, or what is wrong."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=patience)
        try:
            headers = {"Content-Type": "application/json", **self.peer.headers}
            connection.request("POST", self.peer.path, self.peer.encode(request), headers)
            response = connection.getresponse()
            body = response.read()
            if response.status != 200:
                return b"", f"status {response.status}"
            picture = self.peer.picture(body)
            return (picture, "") if picture.startswith(PNG) else (b"", "no picture")
        except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
            return b"", type(error).__name__
        finally:
            connection.close()


Work = Callable[[Endpoint, Sequence[Request]], list[Answer]]


def in_turn(endpoint: Endpoint, requests: Sequence[Request]) -> list[Answer]:
    """Each when the one before has its answer."""
    return [endpoint.ask(each) for each in requests]


def closed(clients: int) -> Work:
    """So many clients, each of which asks for its next picture as soon as it has one; none does whose patience ends."""

    def work(endpoint: Endpoint, requests: Sequence[Request]) -> list[Answer]:
        left, lock = iter(requests), threading.Lock()

        def client(_number: int) -> list[Answer]:
            answers: list[Answer] = []
            while True:
                with lock:
                    request = next(left, None)
                if request is None:
                    return answers
                answers.append(endpoint.ask(request))
                if answers[-1].error == TimeoutError.__name__:
                    return answers

        with ThreadPoolExecutor(clients) as pool:
            return list(itertools.chain(*pool.map(client, range(clients))))

    return work


def busy(answers: Sequence[Answer], clients: int) -> tuple[int, float]:
    """How many answers had come, and after how many seconds, when of so many closed-loop clients the first had nothing
    more to ask: from then on a server is not asked for all that it can. What comes together counts together.
    """
    ends = sorted(each.ended for each in answers)
    until = ends[max(0, len(ends) - clients - 1)] + TOGETHER_SECONDS
    began = min(each.ended - each.seconds for each in answers)
    counted = [each for each in ends if each <= until]
    return len(counted), counted[-1] - began


def opened(endpoint: Endpoint, requests: Sequence[Request]) -> list[Answer]:
    """Each at its time, whatever became of the others."""
    origin = time.perf_counter() + LEAD_SECONDS

    def client(request: Request) -> Answer:
        due = origin + request.at
        time.sleep(max(0.0, due - time.perf_counter()))
        return endpoint.ask(request, due)

    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(client, requests))


@dataclass(frozen=True, slots=True)
class Looks:
    """Of a share of the answers: how many pictures were looked at, and for which requests the background is not the one
    that the prompt asks for.
    """

    count: int
    doubtful: tuple[Request, ...]

    @classmethod
    def at(cls, answers: Sequence[Answer]) -> "Looks":
        """Look at them."""
        seen = [each for each in answers[::CHECKED] if not each.error]
        return cls(len(seen), tuple(each.request for each in seen if not is_right(each.picture, each.request)))

    def wrong(self, png: Callable[[Request], bytes]) -> int:
        """Of the doubtful ones, those that the pipeline itself, asked alone, paints as they should be."""
        return sum(is_right(png(request), request) for request in self.doubtful)


def is_right(picture: bytes, request: Request) -> bool:
    """Whether the background is the one that was asked for."""
    return right_colour(picture, request.prompt)
