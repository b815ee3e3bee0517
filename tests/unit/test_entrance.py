"""Who asks for pictures comes in a few at a time; what came before, byte by byte, is not read again."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Message, Receive, Scope, Send

from service.api import entrance
from service.api.entrance import IN_EACH_ROUND, MAX_KEY_BYTES, MAX_REMEMBERED, Entrance, Turnstile
from service.api.generate import PATH, Reading
from service.errors import Unavailable

JSON = (b"content-type", b"application/json")
KNOWN = SimpleNamespace(is_repeatable=True)
DRAWN = SimpleNamespace(is_repeatable=False)


class Inside:
    """What is behind the entrance: it reads the body, and tells of `wish` whatever that is."""

    def __init__(self) -> None:
        self.wish: Any = KNOWN
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read, and answer."""
        self.bodies.append(await Request(scope, receive).body())
        if Reading.NAME in scope:
            scope[Reading.NAME].wish = self.wish
        await PlainTextResponse("read")(scope, receive, send)


@pytest.fixture
def inside() -> Inside:
    """What is behind it."""
    return Inside()


class Again:
    """Takes the place of `answer_again`."""

    def __init__(self) -> None:
        self.answer: Callable[[], Response | None] = lambda: PlainTextResponse("known")

    async def __call__(self, request: Request, wish: object) -> Response | None:
        """The answer of the moment."""
        assert wish is KNOWN
        return self.answer()


@pytest.fixture
def again(monkeypatch: pytest.MonkeyPatch) -> Again:
    """What answers what is known."""
    made = Again()
    monkeypatch.setattr(entrance, "answer_again", made)
    return made


def ask(
    app: Entrance,
    body: bytes = b"{}",
    query: bytes = b"",
    headers: Sequence[tuple[bytes, bytes]] = (),
    path: str = PATH,
    receive: Callable[[], Awaitable[Message]] | None = None,
) -> tuple[int, str]:
    """Status and text of the answer."""
    sent: list[Message] = []
    pieces: Iterator[Message] = iter(
        [
            {"type": "http.request", "body": body[:1], "more_body": True},
            {"type": "http.request", "body": body[1:], "more_body": False},
        ]
    )

    async def pieces_of_it() -> Message:
        return next(pieces)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "query_string": query, "headers": [JSON, *headers]}
    asyncio.run(app(scope, receive or pieces_of_it, send))
    return sent[0]["status"], b"".join(each.get("body", b"") for each in sent[1:]).decode()


def test_what_came_before_is_not_read_again(inside: Inside, again: Again) -> None:
    """Byte by byte, with its query and what it accepts."""
    app = Entrance(inside)
    png, webp = (b"accept", b"image/png"), (b"accept", b"image/webp")
    for headers, query, body in (
        ((), b"", b"{}"),
        ((), b"", b"{ }"),
        ((), b"wait=1", b"{}"),
        ((png,), b"", b"{}"),
        ((png, webp), b"wait=1", b"{}"),
        ((webp, png), b"wait=1", b"{}"),
    ):
        assert ask(app, body, query, headers) == (200, "read")
        assert ask(app, body, query, headers) == (200, "known")
    assert inside.bodies == [b"{}", b"{ }", b"{}", b"{}", b"{}", b"{}"]


@pytest.mark.parametrize("header", [b"idempotency-key", b"x-stainless-retry-count", b"x-safelight-probe"])
def test_what_means_more_than_its_bytes_is_always_read(inside: Inside, again: Again, header: bytes) -> None:
    """Though it is known without that header."""
    app = Entrance(inside)
    ask(app)
    assert ask(app, headers=[(header, b"1")]) == (200, "read")


def test_what_cannot_be_remembered_is_always_read(inside: Inside, again: Again) -> None:
    """What draws a seed, what was refused, what is too long, and what is asked elsewhere."""
    app = Entrance(inside)
    for inside.wish in (DRAWN, None):
        assert [ask(app, b"[]"), ask(app, b"[]")] == [(200, "read")] * 2
    inside.wish = KNOWN
    for body, query in ((b"x" * (MAX_KEY_BYTES + 1), b""), (b"{}", b"x" * MAX_KEY_BYTES)):
        assert [ask(app, body, query), ask(app, body, query)] == [(200, "read")] * 2
    assert [ask(app, path="/jobs"), ask(app, path="/jobs")] == [(200, "read")] * 2


def test_what_means_something_else_by_now_is_read_anew(inside: Inside, again: Again) -> None:
    """And is known again after that."""
    app = Entrance(inside)
    ask(app)
    again.answer = lambda: None
    assert ask(app) == (200, "read")
    again.answer = lambda: PlainTextResponse("known")
    assert ask(app) == (200, "known")
    assert inside.bodies == [b"{}", b"{}"]


def test_an_error_is_a_problem_document(inside: Inside, again: Again) -> None:
    """As behind the routes."""

    def away() -> None:
        raise Unavailable("gone", retry_after=5)

    app = Entrance(inside)
    ask(app)
    again.answer = away
    status, text = ask(app)
    assert status == 503
    assert "gone" in text


def test_only_so_many_are_remembered(inside: Inside, again: Again) -> None:
    """Those that came last."""
    app = Entrance(inside)
    for number in range(MAX_REMEMBERED + 1):
        ask(app, b"%d " % number)
    assert ask(app, b"%d " % MAX_REMEMBERED) == (200, "known")
    assert ask(app, b"0 ") == (200, "read")


def test_a_body_that_ends_early_is_no_known_one(inside: Inside, again: Again) -> None:
    """Though all that came is."""
    app = Entrance(inside)
    ask(app)
    pieces = iter([{"type": "http.request", "body": b"{}", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> Message:
        return next(pieces)

    with pytest.raises(ClientDisconnect):
        ask(app, receive=receive)
    assert inside.bodies == [b"{}"]


def test_a_body_that_is_too_long_raises_where_it_is_read(inside: Inside, again: Again) -> None:
    """For whoever makes answers of such errors."""

    async def receive() -> Message:
        raise HTTPException(413)

    with pytest.raises(HTTPException):
        ask(Entrance(inside), receive=receive)


def test_so_many_come_in_each_round() -> None:
    """In the order in which they came; others run between; who left is passed over."""
    order: list[str] = []

    async def visitor(turnstile: Turnstile, name: str) -> None:
        await turnstile.enter()
        order.append(name)

    async def passer_by() -> None:
        for number in range(4):
            order.append(f"round {number}")
            await asyncio.sleep(0)

    async def crowd() -> None:
        turnstile = Turnstile(2)
        visitors = [asyncio.create_task(visitor(turnstile, each)) for each in "abcdefg"]
        other = asyncio.create_task(passer_by())
        await asyncio.sleep(0)
        visitors[3].cancel()
        await asyncio.wait({*visitors, other})
        await visitor(turnstile, "h")

    asyncio.run(crowd())
    assert [each for each in order if not each.startswith("round")] == list("abcefgh")
    assert order.index("b") < order.index("round 1") < order.index("f")
    assert IN_EACH_ROUND < 64
