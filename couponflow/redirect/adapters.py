"""Ties the routes to a server: granian's fast path, or ASGI for any other."""

import structlog
from starlette.types import Receive, Scope, Send

from couponflow.kernel.answers import (
    Answer,
    AsgiHeaders,
    accept_lifespan,
    peer_of,
    problem_answer,
    send_answer,
)
from couponflow.kernel.client_address import Headers
from couponflow.kernel.http_granian_fast import RsgiProtocol, RsgiScope
from couponflow.redirect.http import PREFIX, RedirectRoutes

_log = structlog.get_logger("couponflow.redirect")


class RsgiAdapter:
    """The routes as a `FastHandler`."""

    def __init__(self, routes: RedirectRoutes) -> None:
        self._follow = routes.follow
        self._routes = routes

    def answer_now(self, scope: RsgiScope, protocol: RsgiProtocol) -> bool:
        path = scope.path
        if not path.startswith(PREFIX):
            return False
        answer = self._follow(scope.method, path, scope.client, scope.headers)
        try:
            if answer.body:
                protocol.response_bytes(answer.status, answer.headers, answer.body)
            else:
                protocol.response_empty(answer.status, answer.headers)
        except Exception:  # noqa: BLE001 - a header the server refuses; the client must not hang
            _log.exception("answer refused by the server", path=path)
            protocol.response_empty(500, [])
        return True

    async def answer_later(self, scope: RsgiScope, protocol: RsgiProtocol) -> None:
        answer = await _answer_safely(self._routes, scope.method, scope.path, scope.headers)
        body = b"" if scope.method == "HEAD" else answer.body
        protocol.response_bytes(answer.status, answer.headers, body)


class AsgiAdapter:
    """The routes as an ASGI application."""

    def __init__(self, routes: RedirectRoutes) -> None:
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await accept_lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        method, path, headers = scope["method"], scope["path"], AsgiHeaders(scope["headers"])
        if path.startswith(PREFIX):
            answer = self._routes.follow(method, path, peer_of(scope), headers)
        else:
            answer = await _answer_safely(self._routes, method, path, headers)
        await send_answer(answer, method, send)


async def _answer_safely(
    routes: RedirectRoutes, method: str, path: str, headers: Headers
) -> Answer:
    try:
        return await routes.answer(method, path, headers)
    except Exception:  # noqa: BLE001 - the last wall; the traceback is in the log
        _log.exception("request failed", path=path)
        return problem_answer(500, "internal", "Something went wrong on our side", "")
