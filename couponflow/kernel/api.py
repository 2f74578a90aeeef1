"""What endpoints of the JSON API are written with: bodies, queries, answers, refusals, who asks.

    async def pause(request: Request) -> Response:
        wanted = await read_body(request, Wanted)
        ...
        raise ProblemError(404, "unknown-channel", "Unknown channel", "there is no channel 'x'")
        ...
        return json_response(200, Paused(by=actor_of(request)))

    Route("/api/v1/x", require_role("service", "admin")(pause), methods=["POST"])

`api_app.py` turns what they raise into problem details, and bounds what they are given.
"""

import functools
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from couponflow.kernel.tokens import Identity, Role, TokenRefused, TokenVerifier

T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)
Endpoint = Callable[[Request], Awaitable[Response]]

ANONYMOUS = "anonymous"
_CALL = "couponflow.call"
_AT = re.compile(r" - at `(\$[^`]*)`$")
_SPACE_FOR_PLUS = re.compile(r" (?=\d\d:\d\d$)")
_MISSING_FIELD = re.compile(r"missing required field `([^`]*)`")


class ProblemError(Exception):
    """An endpoint refuses a request; the caller is answered with problem details.

    `name` ends the problem's stable `type`; `detail` says what is wrong and how to mend it.
    """

    def __init__(
        self,
        status: int,
        name: str,
        title: str,
        detail: str = "",
        *,
        path: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{status} {title}: {detail}")
        self.status = status
        self.name = name
        self.title = title
        self.detail = detail
        self.path = path
        self.headers = dict(headers or {})


@dataclass(slots=True)
class Call:
    """What is known of one request beside the request itself."""

    request_id: str
    tokens: TokenVerifier
    identity: Identity | None = None
    """Who asks, once `require_role` has looked."""

    @property
    def actor(self) -> str:
        return f"api:{self.identity.subject}" if self.identity else ANONYMOUS


def put_call(scope: Scope, call: Call) -> None:
    scope[_CALL] = call


def call_of(request: Request) -> Call:
    """The call that belongs to a request of an `api_app`."""
    call = request.scope[_CALL]
    if not isinstance(call, Call):
        raise TypeError(f"the scope holds a {type(call).__name__} where its call should be")
    return call


def request_id_of(request: Request) -> str:
    """The id of the request, which is also the correlation id of what follows from it."""
    return call_of(request).request_id


def actor_of(request: Request) -> str:
    """Who asks, as audit logs name them: `api:` and the token's subject.

    Only for endpoints behind `require_role`.
    """
    call = call_of(request)
    if call.identity is None:
        raise LookupError(f"nobody was authenticated for {request.url.path}: use require_role")
    return call.actor


def require_role(*roles: Role) -> Callable[[Endpoint], Endpoint]:
    """Let an endpoint be called only with a bearer token that has one of the roles.

    401 without a valid token, 403 with one that has none of them.
    """

    def decorate(endpoint: Endpoint) -> Endpoint:
        @functools.wraps(endpoint)
        async def guarded(request: Request) -> Response:
            call = call_of(request)
            call.identity = await _identify(request, call.tokens)
            if call.identity.roles.isdisjoint(roles):
                raise ProblemError(
                    403,
                    "forbidden",
                    "Forbidden",
                    f"this needs a token with the role {' or '.join(roles)}",
                )
            return await endpoint(request)

        return guarded

    return decorate


async def _identify(request: Request, tokens: TokenVerifier) -> Identity:
    given = request.headers.getlist("authorization")
    if not given:
        raise _unauthorized("send a header Authorization: Bearer, with a token", challenge="Bearer")
    scheme, _, token = given[0].partition(" ")
    if len(given) > 1 or scheme.lower() != "bearer":
        raise _unauthorized("send one header Authorization: Bearer", challenge="Bearer")
    try:
        return await tokens.verify(token.strip())
    except TokenRefused as error:
        raise _unauthorized(str(error), challenge='Bearer error="invalid_token"') from error


def _unauthorized(detail: str, *, challenge: str) -> ProblemError:
    headers = {"www-authenticate": challenge}
    return ProblemError(401, "unauthorized", "Unauthorized", detail, headers=headers)


def json_response(
    status: int, content: object, headers: Mapping[str, str] | None = None
) -> Response:
    """Answer with a struct, or whatever msgspec encodes, as JSON."""
    encoded = msgspec.json.encode(content)
    return Response(encoded, status, headers, media_type="application/json")


async def read_body(request: Request, body_type: type[T]) -> T:
    """Decode the request's JSON; what does not fit is the caller's to mend: 400 or 422."""
    return decode_body(await request.body(), body_type)


def decode_body(body: bytes, body_type: type[T]) -> T:
    """Decode JSON that came from outside; raises `ProblemError`."""
    try:
        return msgspec.json.decode(body, type=body_type)
    except msgspec.ValidationError as error:
        raise invalid_body(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProblemError(
            400, "malformed-json", "Malformed JSON", f"the body is not JSON: {error}"
        ) from error


def invalid_body(text: str, path: str = "") -> ProblemError:
    """The refusal of JSON that does not fit; the path is read from msgspec's text if not given."""
    found = _AT.search(text)
    path = path or (found[1] if found else "$")
    missing = _MISSING_FIELD.search(text)
    if missing:
        path = f"{path}.{missing[1]}"
    detail = text if found else f"{text} - at `{path}`"
    return ProblemError(422, "invalid-body", "The body does not fit", detail, path=path)


def read_query(query: QueryParams, query_type: type[S]) -> S:
    """Decode a query in which only `id` may be given several times; raises `ProblemError`."""
    given: dict[str, str | list[str]] = {}
    for name in query:
        values = query.getlist(name)
        if name == "id":
            given[name] = values
        elif len(values) > 1:
            raise invalid_query(f"{name[:80]!r} is given twice")
        else:
            # The plus sign of an offset may have become a space on its way.
            moment = name in ("since", "until")
            given[name] = _SPACE_FOR_PLUS.sub("+", values[0]) if moment else values[0]
    try:
        return msgspec.convert(given, query_type, strict=False)
    except (msgspec.ValidationError, OverflowError) as error:
        raise invalid_query(str(error)) from error


def invalid_query(detail: str) -> ProblemError:
    """The refusal of a query that does not fit."""
    return ProblemError(422, "invalid-parameter", "A parameter is wrong", detail)
