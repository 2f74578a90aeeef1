"""Calling an `api_app` in the test's own process, as whoever a test wants to be."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx2
import jwt
import msgspec
from starlette.routing import Route
from starlette.types import ASGIApp

from couponflow.config import ApiSettings, Settings
from couponflow.kernel.api_app import ApiLimits, api_app
from couponflow.kernel.clock import SystemClock
from couponflow.kernel.identifiers import Uuid7Generator
from couponflow.kernel.problems import CONTENT_TYPE
from couponflow.kernel.tokens import Role, TokenVerifier, open_tokens

SECRET = "a secret of the tests, long enough to sign with"
CLOCK = SystemClock()
_IDS = Uuid7Generator()


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """A problem as a client reads it."""

    type: str
    title: str
    status: int
    detail: str = ""
    path: str = ""
    request_id: str = ""


def tokens() -> TokenVerifier:
    return open_tokens(Settings(api=ApiSettings(jwt_secret=SECRET)), CLOCK)


def token(role: Role, *, secret: str = SECRET, seconds: int = 600, subject: str = "test") -> str:
    claims = {"sub": subject, "role": role, "exp": int(CLOCK.now()) + seconds}
    return jwt.encode(claims, secret, algorithm="HS256")


def bearer(given: str) -> dict[str, str]:
    return {"authorization": f"Bearer {given}"}


SERVICE = bearer(token("service"))


def make_id() -> str:
    return _IDS.make(CLOCK.now())


def app_with(routes: Sequence[Route], limits: ApiLimits | None = None) -> ASGIApp:
    return api_app(routes, tokens=tokens(), clock=CLOCK, make_id=make_id, limits=limits)


@asynccontextmanager
async def client_of(app: ASGIApp) -> AsyncGenerator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://api.example") as client:
        yield client


def problem_of(response: httpx2.Response) -> Told:
    """The problem in an answer, which must be one and name the request."""
    assert response.headers["content-type"] == CONTENT_TYPE
    problem = msgspec.json.decode(response.content, type=Told)
    assert problem.status == response.status_code
    assert problem.request_id == response.headers["x-request-id"]
    return problem


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody who tries their luck."""

    name: str
    headers: Callable[[], dict[str, str]]
    status: int
    """What they are told where the roles `service` and `admin` are wanted; 0 if let in."""
    challenge: str = field(default="")


def _unsigned() -> str:
    header = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0"
    return f"{header}.{token('admin').split('.')[1]}."


INVALID = 'Bearer error="invalid_token"'
CALLERS = (
    Caller("anonymous", dict, 401, "Bearer"),
    Caller("basic", lambda: {"authorization": "Basic YTpi"}, 401, "Bearer"),
    Caller("expired", lambda: bearer(token("admin", seconds=-60)), 401, INVALID),
    Caller("forged", lambda: bearer(token("admin", secret=SECRET[::-1])), 401, INVALID),
    Caller("unsigned", lambda: bearer(_unsigned()), 401, INVALID),
    Caller("nonsense", lambda: bearer("x"), 401, INVALID),
    Caller("shopper", lambda: bearer(token("shopper")), 403),
    Caller("merchant", lambda: bearer(token("merchant")), 403),
    Caller("service", lambda: bearer(token("service")), 0),
    Caller("admin", lambda: bearer(token("admin")), 0),
)
REFUSED = tuple(caller for caller in CALLERS if caller.status)
ADMITTED = tuple(caller for caller in CALLERS if not caller.status)
