"""Ties the routes to a server: granian's callbacks without a task a request, or ASGI.

Both read a body only as far as it may be long, and only for as long as it may take.
"""

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator, Callable

import anyio
import structlog
from starlette.types import Receive, Scope, Send

from couponflow.kernel.answers import (
    Answer,
    AsgiHeaders,
    accept_lifespan,
    peer_of,
    send_answer,
)
from couponflow.kernel.client_address import Headers
from couponflow.kernel.clock import Clock
from couponflow.kernel.http_granian_fast import RsgiBody, RsgiProtocol, RsgiScope, pieces_of
from couponflow.webhooks.answers import Trouble
from couponflow.webhooks.http import Request, WebhookRoutes
from couponflow.webhooks.intake import Gate

SWEEP_SECONDS = 0.1
_LENGTH = re.compile(r"[0-9]{1,20}", re.ASCII)
_CHUNKED = "transfer-encoding"
_log = structlog.get_logger("couponflow.webhooks")


class RsgiAdapter:
    """The routes as a `BodyHandler`."""

    def __init__(self, routes: WebhookRoutes, clock: Clock) -> None:
        self._routes = routes
        self._clock = clock
        self._reading: deque[_Exchange] = deque()

    def begin(
        self, scope: RsgiScope, protocol: RsgiProtocol, finished: Callable[[], object]
    ) -> bool:
        """Begin to read a delivery of known length; the rest is answered in a task.

        On granian's thread: what it shares with the event loop are the source's places, and the
        bodies that are read.
        """
        path, method = scope.path, scope.method
        found = self._routes.find(path)
        if found is None or method not in found[0].source.methods:
            return False
        gate, token = found
        headers = scope.headers
        if not _is_short(method, headers, self._routes.limits.body_bytes):
            return False
        request = Request(method, token, scope.query_string, headers, scope.client)
        if self._routes.refuses_address(gate, request) is not None or not gate.take_place():
            return False
        give_up_at = self._clock.monotonic() + self._routes.limits.body_seconds
        exchange = _Exchange(self._routes, gate, request, path, protocol, finished, give_up_at)
        try:
            exchange.begin()
        except BaseException:
            gate.give_back_place()
            raise
        self._reading.append(exchange)
        return True

    async def give_up_late(self) -> None:
        """Give up on bodies that are late, until cancelled."""
        reading = self._reading
        while True:
            await anyio.sleep(SWEEP_SECONDS)
            now = self._clock.monotonic()
            # Those that come meanwhile stand behind these.
            for _ in range(len(reading)):
                exchange = reading.popleft()
                if not exchange.is_over(now):
                    reading.append(exchange)

    def answer_now(self, scope: RsgiScope, protocol: RsgiProtocol) -> bool:
        return False

    async def answer_later(self, scope: RsgiScope, protocol: RsgiProtocol) -> None:
        """Answer what is no delivery, or a delivery that does not say how long it is."""

        async def chunks() -> AsyncIterator[bytes]:
            ended = False
            async for chunk in pieces_of(protocol):
                if ended:
                    raise _SenderLeft
                ended = not chunk
                yield chunk

        path = scope.path
        found = self._routes.find(path)
        if found is None or scope.method not in found[0].source.methods:
            answer = self._routes.other(scope.method, path, scope.headers)
        else:
            gate, token = found
            request = Request(scope.method, token, scope.query_string, scope.headers, scope.client)
            answer = await _deliver(self._routes, gate, request, path, chunks())
        body = b"" if scope.method == "HEAD" else answer.body
        protocol.response_bytes(answer.status, answer.headers, body)


def _is_short(method: str, headers: Headers, body_bytes: int) -> bool:
    """Whether a body says how long it is, and may be; a GET needs none."""
    length = headers.get("content-length")
    if length is None:
        return method == "GET" and not ("content-length" in headers or _CHUNKED in headers)
    return bool(_LENGTH.fullmatch(length)) and int(length) <= body_bytes


class _Exchange:
    """One delivery, from its header to its answer, in callbacks."""

    __slots__ = (
        "_body",
        "_ended",
        "_finished",
        "_gate",
        "_give_up_at",
        "_has_come",
        "_path",
        "_protocol",
        "_request",
        "_routes",
    )

    def __init__(
        self,
        routes: WebhookRoutes,
        gate: Gate,
        request: Request,
        path: str,
        protocol: RsgiProtocol,
        finished: Callable[[], object],
        give_up_at: float,
    ) -> None:
        """A place of the gate was taken for it."""
        self._routes = routes
        self._gate = gate
        self._request = request
        self._path = path
        self._protocol = protocol
        self._finished = finished
        self._give_up_at = give_up_at
        self._body: RsgiBody | None = None
        self._has_come = False
        self._ended = False

    def begin(self) -> None:
        """Begin to read; what follows is called on the event loop."""
        body = self._body = self._protocol()
        body.add_done_callback(self._read, context=None)

    def is_over(self, now: float) -> bool:
        """Whether the body is there, or must not be waited for any longer, and is given up."""
        if self._has_come:
            return True
        if now < self._give_up_at:
            return False
        self._end_in("too-slow")
        if self._body is not None:
            # Until then the server goes on reading, and keeps the connection.
            self._body.cancel()
        return True

    def _read(self, body: RsgiBody) -> None:
        self._has_come = True
        # Each holds the other, out of the garbage collector's sight.
        self._body = None
        if self._ended:
            return
        try:
            received = body.result()
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001
            # Whatever the server calls a client that left.
            # Counted as an outcome, too; anybody may have it written as often as they like.
            _log.debug("sender left", source=self._gate.source.name, error=str(error))
            self._end_in("client-gone")
        else:
            self._deliver(received)

    def _deliver(self, body: bytes) -> None:
        try:
            self._routes.take(self._gate, self._request, body, self._end)
        except Exception:  # noqa: BLE001 - the sender must not hang, nor its place stay taken
            _log.exception("request failed", source=self._gate.source.name)
            self._end_in("failed")

    def _end_in(self, trouble: Trouble) -> None:
        self._end(self._routes.trouble(self._gate, trouble))

    def _end(self, answer: Answer) -> None:
        if self._ended:
            return
        self._ended = True
        self._gate.give_back_place()
        try:
            answer = self._routes.with_cors(self._path, self._request.headers, answer)
            self._protocol.response_bytes(answer.status, answer.headers, answer.body)
        except Exception as error:  # noqa: BLE001 - nobody is there to be answered any more
            _log.debug("sender not answered", source=self._gate.source.name, error=str(error))
        finally:
            self._finished()


class AsgiAdapter:
    """The routes as an ASGI application."""

    def __init__(self, routes: WebhookRoutes) -> None:
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await accept_lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        method, headers = scope["method"], AsgiHeaders(scope["headers"])
        path = scope["path"]
        found = self._routes.find(path)
        if found is None or method not in found[0].source.methods:
            answer = self._routes.other(method, path, headers)
        else:
            gate, token = found
            query = scope["query_string"].decode("latin-1")
            request = Request(method, token, query, headers, peer_of(scope))
            answer = await _deliver(self._routes, gate, request, path, _chunks(receive))
        await send_answer(answer, method, send)


async def _chunks(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise _SenderLeft
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


class _SenderLeft(Exception):
    """The sender closed its connection before the end of its body."""


class _TooLarge(Exception):
    """The body is longer than may be."""


async def _deliver(
    routes: WebhookRoutes, gate: Gate, request: Request, path: str, chunks: AsyncIterator[bytes]
) -> Answer:
    """Read a body chunk by chunk and have the delivery judged; never raises but to be cancelled."""
    if (shut_out := routes.turn_away(gate, request)) is not None:
        return shut_out
    length = request.headers.get("content-length") or ""
    if _LENGTH.fullmatch(length) and int(length) > routes.limits.body_bytes:
        return routes.trouble(gate, "too-large")
    if not gate.take_place():
        return routes.trouble(gate, "busy")
    try:
        with anyio.fail_after(routes.limits.body_seconds):
            body = await _read(chunks, routes.limits.body_bytes)
        judged: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        routes.take(gate, request, body, lambda answer: _tell(judged, answer))
        return routes.with_cors(path, request.headers, await judged)
    except TimeoutError:
        return routes.trouble(gate, "too-slow")
    except _TooLarge:
        return routes.trouble(gate, "too-large")
    except _SenderLeft:
        return routes.trouble(gate, "client-gone")
    except Exception:  # noqa: BLE001 - the last wall; the traceback is in the log
        _log.exception("request failed", source=gate.source.name)
        return routes.trouble(gate, "failed")
    finally:
        gate.give_back_place()


async def _read(chunks: AsyncIterator[bytes], body_bytes: int) -> bytes:
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > body_bytes:
            raise _TooLarge
    return bytes(body)


def _tell(judged: "asyncio.Future[Answer]", answer: Answer) -> None:
    if not judged.done():
        judged.set_result(answer)
