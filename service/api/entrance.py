"""Before the routes: who asks for pictures comes in a few at a time, and need not be read twice."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Iterable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api import problems
from service.api.generate import PATH, Reading, Wish, answer_again
from service.errors import SafelightError

IN_EACH_ROUND = 4  # requests, of the event loop
MAX_KEY_BYTES = 4096
MAX_REMEMBERED = 1024
CHANGING = frozenset({b"idempotency-key", b"x-stainless-retry-count", b"x-safelight-probe"})  # what is done with it

Key = tuple[bytes, bytes, bytes]  # query, header Accept, body


class Entrance:
    """`POST /generate` goes on a few at a time, so that a crowd which comes at once does not hold up other answers. One
    that came before, byte by byte, as those do that a cache is for, is not parsed and checked again.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._turnstile = Turnstile(IN_EACH_ROUND)
        self._known: OrderedDict[Key, Wish] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or answer."""
        if scope["type"] != "http" or scope["path"] != PATH or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        await self._turnstile.enter()
        received = await Received.all_of(receive)
        key = received.key(scope["headers"], scope["query_string"])
        wish = None if key is None else self._known.get(key)
        if key is None or wish is None or not await self._answer(key, wish, Request(scope, received.again), send):
            await self._read(key, scope, received.again, send)

    async def _read(self, key: Key | None, scope: Scope, receive: Receive, send: Send) -> None:
        reading = scope[Reading.NAME] = Reading()
        await self._app(scope, receive, send)
        if key is not None and reading.wish is not None and reading.wish.is_repeatable:
            self._known[key] = reading.wish
            if len(self._known) > MAX_REMEMBERED:
                self._known.popitem(last=False)

    async def _answer(self, key: Key, wish: Wish, request: Request, send: Send) -> bool:
        """Whether it still means what it meant."""
        self._known.move_to_end(key)
        try:
            response = await answer_again(request, wish)
        except SafelightError as error:
            response = problems.from_error(error)
        if response is None:
            self._known.pop(key, None)
            return False
        await response(request.scope, request.receive, send)
        return True


class Turnstile:
    """Lets in so many in each round of the event loop, in the order in which they come."""

    def __init__(self, in_each_round: int) -> None:
        self._in_each_round = in_each_round
        self._passed = 0  # in this round
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self) -> None:
        """Return when it is this one's turn."""
        loop = asyncio.get_running_loop()
        if not self._passed:
            loop.call_soon(self._next_round)
        if self._passed < self._in_each_round:
            self._passed += 1
            return
        turn = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _next_round(self) -> None:
        self._passed = 0
        while self._waiting and self._passed < self._in_each_round:
            turn = self._waiting.popleft()
            if not turn.done():  # it may be cancelled
                turn.set_result(None)
                self._passed += 1
        if self._passed:
            asyncio.get_running_loop().call_soon(self._next_round)


class Received:
    """The messages with a request's body, and what ended them before their time."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._messages: list[Message] = []
        self._error: HTTPException | None = None  # too long
        self._is_whole = False

    @classmethod
    async def all_of(cls, receive: Receive) -> "Received":
        """Once they have come."""
        received = cls(receive)
        try:
            while not received._is_whole:
                message = await receive()
                received._messages.append(message)
                if message["type"] == "http.disconnect":
                    break
                received._is_whole = not message.get("more_body", False)
        except HTTPException as error:
            received._error = error
        received._messages.reverse()
        return received

    async def again(self) -> Message:
        """As `receive` gave, or gives, them."""
        if self._messages:
            return self._messages.pop()
        if self._error is not None:
            raise self._error
        return await self._receive()

    def key(self, headers: Iterable[tuple[bytes, bytes]], query: bytes) -> Key | None:
        """What the request is remembered by, if it can be."""
        if not self._is_whole or any(name in CHANGING for name, _ in headers):
            return None
        accept = next((value for name, value in headers if name == b"accept"), b"*/*")  # the first counts
        body = b"".join(message.get("body", b"") for message in reversed(self._messages))
        return (query, accept, body) if len(query) + len(accept) + len(body) <= MAX_KEY_BYTES else None
