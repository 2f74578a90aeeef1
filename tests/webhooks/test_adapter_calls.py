"""What both adapters make of the calls of a server, without one."""

import asyncio
from collections.abc import Callable
from contextvars import Context

import pytest
from starlette.types import Message

from couponflow.kernel.http_granian_fast import RsgiBody, RsgiPieces
from couponflow.webhooks.adapters import AsgiAdapter, RsgiAdapter
from tests.samples import FakeHeaders, until
from tests.webhooks.deliveries import SIGNATURE, signature
from tests.webhooks.routes import RoutesParts, giving_up, routes_parts

pytestmark = pytest.mark.once


class Scope:
    """What granian tells of a request."""

    query_string = ""
    client = "198.51.100.4:5555"

    def __init__(self, length: str | None, method: str = "POST", path: str = "/shop") -> None:
        self.method, self.path = method, path
        pairs = [] if length is None else [("content-length", length)]
        self.headers = FakeHeaders(*pairs, (SIGNATURE, signature(b"ann")))


class Exchange:
    """granian's side of one request: its body comes, or fails to, when the test says so."""

    def __init__(self, *, refuses_answers: bool = False) -> None:
        self._refuses_answers = refuses_answers
        self._callbacks: list[Callable[[RsgiBody], object]] = []
        self._result: bytes | BaseException = b""
        self.cancelled = False
        self.answered: list[int] = []
        self.finished = 0

    def __call__(self) -> RsgiBody:
        return self

    def __aiter__(self) -> RsgiPieces:
        raise AssertionError("a body of known length is read as a whole")

    def add_done_callback(
        self, callback: Callable[[RsgiBody], object], *, context: Context | None
    ) -> None:
        self._callbacks.append(callback)

    def cancel(self) -> bool:
        self.cancelled = True
        return True

    def result(self) -> bytes:
        if isinstance(self._result, BaseException):
            raise self._result
        return self._result

    def arrive(self, result: bytes | BaseException) -> None:
        self._result = result
        for callback in self._callbacks:
            callback(self)

    def response_empty(self, status: int, headers: list[tuple[str, str]]) -> None:
        raise AssertionError("every answer has a body")

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        assert not self.finished
        self.answered.append(status)
        if self._refuses_answers:
            raise RuntimeError("the transport is closed")

    def finish(self) -> None:
        self.finished += 1


def begun(
    parts: RoutesParts, scope: Scope, exchange: Exchange, adapter: RsgiAdapter | None = None
) -> bool:
    adapter = adapter or RsgiAdapter(parts.routes, parts.intake.clock)
    assert not adapter.answer_now(scope, exchange)
    return adapter.begin(scope, exchange, exchange.finish)


@pytest.mark.parametrize("arriving", [b"ben", OSError("reset"), asyncio.CancelledError()])
@pytest.mark.parametrize("refuses_answers", [False, True])
async def test_whatever_happens_an_exchange_is_finished_once(
    arriving: bytes | BaseException, refuses_answers: bool
) -> None:
    parts = routes_parts()
    exchange = Exchange(refuses_answers=refuses_answers)
    assert begun(parts, Scope("3"), exchange)
    assert (parts.gates["shop"].in_flight, exchange.finished) == (1, 0)
    exchange.arrive(arriving)
    assert exchange.answered == [401 if arriving == b"ben" else 408]
    assert (parts.gates["shop"].in_flight, exchange.finished) == (0, 1)


@pytest.mark.parametrize("arriving", [b"ann", OSError("reset"), asyncio.CancelledError()])
async def test_a_body_that_comes_too_late_is_nobodys_concern(
    arriving: bytes | BaseException,
) -> None:
    parts = routes_parts(body_seconds=5.0)
    adapter = RsgiAdapter(parts.routes, parts.intake.clock)
    exchange = Exchange()
    async with giving_up(adapter):
        assert begun(parts, Scope("3"), exchange, adapter)
        parts.intake.clock.advance(5.0)
        await until(lambda: exchange.cancelled)
    exchange.arrive(arriving)
    assert (exchange.answered, exchange.finished) == ([408], 1)
    assert (parts.gates["shop"].in_flight, parts.shop.seen) == (0, [])


async def test_a_slow_body_keeps_nothing_of_those_that_have_come() -> None:
    parts = routes_parts(body_seconds=5.0)
    adapter = RsgiAdapter(parts.routes, parts.intake.clock)
    slow, quick = Exchange(), Exchange()
    async with giving_up(adapter):
        assert begun(parts, Scope("3"), slow, adapter)
        assert begun(parts, Scope("3"), quick, adapter)
        quick.arrive(b"ben")
        await until(lambda: len(adapter._reading) == 1)
        parts.intake.clock.advance(5.0)
        await until(lambda: not adapter._reading)
    assert (slow.answered, quick.answered) == ([408], [401])


def test_a_server_that_will_not_read_leaves_the_place_free() -> None:
    class Unwilling(Exchange):
        def __call__(self) -> RsgiBody:
            raise RuntimeError("it was read before")

    parts = routes_parts()
    with pytest.raises(RuntimeError, match="read before"):
        begun(parts, Scope("3"), Unwilling())
    assert parts.gates["shop"].in_flight == 0


async def test_a_fault_of_ours_is_a_500_and_the_place_is_free_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = routes_parts()
    monkeypatch.setattr(parts.shop, "verify", None)
    exchange = Exchange()
    assert begun(parts, Scope("3"), exchange)
    exchange.arrive(b"ann")
    assert (exchange.answered, exchange.finished) == ([500], 1)
    assert await ask_asgi(parts, {"type": "http.request", "body": b"ann"}) == 500
    assert parts.outcomes() == {"failed": 2}
    assert parts.gates["shop"].in_flight == 0


@pytest.mark.parametrize(
    "scope",
    [
        *(Scope(length) for length in (None, "", "+3", "3,3", " 3", "-1", "0x3", "3.0", "\u0663")),
        Scope("3", method="PUT"),
        Scope("3", path="/mall"),
    ],
    ids=lambda scope: f"{scope.method} {scope.path} {scope.headers.get('content-length')!r}",
)
async def test_what_is_no_delivery_of_known_length_is_left_to_a_task(scope: Scope) -> None:
    exchange = Exchange()
    assert not begun(routes_parts(), scope, exchange)
    assert (exchange.answered, exchange.finished) == ([], 0)


async def ask_asgi(parts: RoutesParts, *messages: Message) -> int:
    """The status that a delivery is answered with whose body comes in these messages."""
    coming = iter(messages)
    sent: list[Message] = []

    async def receive() -> Message:
        return next(coming)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/shop",
        "query_string": b"",
        "headers": [(SIGNATURE.encode(), signature(b"ann").encode())],
        "client": None,
    }
    await AsgiAdapter(parts.routes)(scope, receive, send)
    return sent[0]["status"]


async def test_an_asgi_sender_that_leaves_is_not_believed() -> None:
    parts = routes_parts()
    piece: Message = {"type": "http.request", "body": b"ann", "more_body": True}
    assert await ask_asgi(parts, piece, {"type": "http.disconnect"}) == 408
    assert await ask_asgi(parts, {"type": "http.disconnect"}) == 408
    assert parts.outcomes() == {"client-gone": 2}
    assert parts.gates["shop"].in_flight == 0


async def test_the_lifespan_is_accepted_and_nothing_else_but_http() -> None:
    messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    sent: list[str] = []

    async def receive() -> Message:
        return next(messages)

    async def send(message: Message) -> None:
        sent.append(message["type"])

    adapter = AsgiAdapter(routes_parts().routes)
    await adapter({"type": "lifespan"}, receive, send)
    await adapter({"type": "websocket"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
