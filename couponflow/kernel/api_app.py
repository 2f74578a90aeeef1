"""The JSON API as an ASGI application: request ids, bounds, problem details and the access log."""

import re
from collections.abc import Callable, Sequence

import anyio
import msgspec
import psycopg
import structlog
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from couponflow.kernel.api import Call, ProblemError, call_of, put_call
from couponflow.kernel.clock import Clock
from couponflow.kernel.database import DatabaseAway
from couponflow.kernel.problems import CONTENT_TYPE, Problem, problem_type
from couponflow.kernel.request_ids import HEADER, is_request_id
from couponflow.kernel.tokens import TokenVerifier

UNCOUNTED_PATHS = frozenset({"/health", "/ready"})
"""Answered even when too much else is going on: an orchestrator must not take that for death."""
_LOGGED_PATH_MAX = 200
_CLIENT_GONE = 499
_LENGTH = re.compile(r"[0-9]{1,18}", re.ASCII)
_log = structlog.get_logger("couponflow.api")


class ApiLimits(msgspec.Struct, frozen=True):
    """What one request, and all of them together, may take."""

    body_bytes: int = 1_048_576
    body_seconds: float = 10.0
    in_flight: int = 64
    retry_after_seconds: int = 1


def api_app(
    routes: Sequence[BaseRoute],
    *,
    tokens: TokenVerifier,
    clock: Clock,
    make_id: Callable[[], str],
    limits: ApiLimits | None = None,
) -> Starlette:
    """The application; `make_id` names the requests that bring no id of their own."""
    app = Starlette(
        routes=routes,
        middleware=[Middleware(_Guard, tokens, clock, make_id, limits or ApiLimits())],
        exception_handlers={HTTPException: _refuse_http},
    )
    # A redirect would be to whatever host the caller named.
    app.router.redirect_slashes = False
    return app


class _Guard:
    """Stands around every request."""

    def __init__(
        self,
        app: ASGIApp,
        tokens: TokenVerifier,
        clock: Clock,
        make_id: Callable[[], str],
        limits: ApiLimits,
    ) -> None:
        self._app = app
        self._tokens = tokens
        self._clock = clock
        self._make_id = make_id
        self._limits = limits
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER)
        request_id = given if given is not None and is_request_id(given) else self._make_id()
        call = Call(request_id, self._tokens)
        put_call(scope, call)
        begun_at = self._clock.monotonic()
        answer = _Answer(send, request_id)
        with structlog.contextvars.bound_contextvars(
            request_id=request_id, correlation_id=request_id
        ):
            await self._answer(scope, receive, answer, call)
            _log.info(
                "request",
                method=scope["method"],
                path=scope["path"][:_LOGGED_PATH_MAX],
                status=answer.status or _CLIENT_GONE,
                seconds=round(self._clock.monotonic() - begun_at, 6),
                actor=call.actor,
            )

    async def _answer(self, scope: Scope, receive: Receive, answer: "_Answer", call: Call) -> None:
        counted = scope["path"] not in UNCOUNTED_PATHS
        if counted and self._in_flight >= self._limits.in_flight:
            await answer.refuse(scope, receive, self._busy())
            return
        self._in_flight += counted
        try:
            body = _BoundedBody(scope, receive, self._limits)
            await self._app(scope, body.receive, answer.send)
        except ClientDisconnect:
            _log.info("client_gone")
        except Exception as error:
            refusal = self._refusal(error)
            if answer.status:
                # Half an answer is out: only a broken connection can tell the client so.
                raise
            await answer.refuse(scope, receive, refusal)
        finally:
            self._in_flight -= counted

    def _refusal(self, error: Exception) -> ProblemError:
        match error:
            case ProblemError():
                return error
            case DatabaseAway():
                _log.warning("request_without_database", error=str(error))
                return self._unavailable("database-away", "PostgreSQL is away; try again")
            case psycopg.OperationalError():
                # A statement took too long, a lock was not had, the disk is full: not our fault.
                _log.exception("request_refused_by_database", exc_info=error)
                return self._unavailable(
                    "database-refused", "PostgreSQL could not do it; try again"
                )
            case _:
                _log.exception("request_failed", exc_info=error)
                return ProblemError(
                    500, "internal-server-error", "Internal Server Error", "look in the log"
                )

    def _busy(self) -> ProblemError:
        _log.warning("too_many_requests_in_flight", limit=self._limits.in_flight)
        return self._unavailable("busy", "too many requests are being answered; try again")

    def _unavailable(self, name: str, detail: str) -> ProblemError:
        headers = {"retry-after": str(self._limits.retry_after_seconds)}
        return ProblemError(503, name, "Service Unavailable", detail, headers=headers)


class _Answer:
    """What goes out: the id is added to it, and its status is remembered."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.status = 0
        """0 until the answer has begun."""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)[HEADER] = self._request_id
        await self._send(message)

    async def refuse(self, scope: Scope, receive: Receive, error: ProblemError) -> None:
        await problem_response(error, self._request_id)(scope, receive, self.send)


class _BoundedBody:
    """What comes in: so many bytes, within so many seconds of the first look."""

    def __init__(self, scope: Scope, receive: Receive, limits: ApiLimits) -> None:
        self._receive = receive
        self._limits = limits
        length = Headers(scope=scope).get("content-length", "")
        self._announced = int(length) if _LENGTH.fullmatch(length) else 0
        # What is left of the body is not read. HTTP/2 knows no such header.
        http_1 = scope["http_version"].startswith("1")
        self._end_of_connection = {"connection": "close"} if http_1 else {}
        self._received = 0
        self._complete = False
        self._deadline: float | None = None

    async def receive(self) -> Message:
        if self._complete:
            return await self._receive()
        if self._announced > self._limits.body_bytes:
            raise self._too_large()
        if self._deadline is None:
            self._deadline = anyio.current_time() + self._limits.body_seconds
        message: Message | None = None
        with anyio.CancelScope(deadline=self._deadline):
            message = await self._receive()
        if message is None:
            raise ProblemError(
                408,
                "body-too-slow",
                "Request Timeout",
                f"the body did not arrive within {self._limits.body_seconds:g} s",
                headers=self._end_of_connection,
            )
        self._received += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        if self._received > self._limits.body_bytes:
            raise self._too_large()
        return message

    def _too_large(self) -> ProblemError:
        return ProblemError(
            413,
            "body-too-large",
            "Content Too Large",
            f"the body may have {self._limits.body_bytes} bytes at most",
            headers=self._end_of_connection,
        )


def problem_response(error: ProblemError, request_id: str) -> Response:
    """The answer that a `ProblemError` stands for."""
    problem = Problem(
        type=problem_type(error.name),
        title=error.title,
        status=error.status,
        detail=error.detail,
        path=error.path,
        request_id=request_id,
    )
    return Response(problem.encode(), error.status, error.headers, media_type=CONTENT_TYPE)


async def _refuse_http(request: Request, error: Exception) -> Response:
    """Starlette's own refusals: no such path, no such method."""
    if not isinstance(error, HTTPException):
        raise error
    name = error.detail.lower().replace(" ", "-")
    headers = error.headers
    refusal = ProblemError(error.status_code, name, error.detail, headers=headers)
    return problem_response(refusal, call_of(request).request_id)
