from collections.abc import AsyncIterator
from functools import partial

import anyio
import httpx2
import msgspec
import psycopg
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from structlog.testing import capture_logs

from couponflow.kernel.api import (
    ProblemError,
    actor_of,
    decode_body,
    json_response,
    read_body,
    read_query,
    request_id_of,
    require_role,
)
from couponflow.kernel.api_app import ApiLimits
from couponflow.kernel.database import DatabaseAway
from couponflow.kernel.http import ServerName, serve
from couponflow.kernel.identifiers import is_canonical_uuid
from couponflow.messages import EmailRequested
from tests.kernel.api_client import (
    ADMITTED,
    REFUSED,
    SECRET,
    SERVICE,
    Caller,
    app_with,
    bearer,
    client_of,
    problem_of,
    token,
)
from tests.kernel.http_clients import new_listener, read_answer, serving

LIMITS = ApiLimits(body_bytes=1_000, body_seconds=0.2, in_flight=2)


class Sums(msgspec.Struct, forbid_unknown_fields=True):
    numbers: list[int]


class Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: tuple[str, ...] = ()
    limit: int = 50
    since: str = ""
    text: str = ""


class Tried:
    """Endpoints that do what endpoints do, good and bad."""

    def __init__(self) -> None:
        self.changes = 0
        self.arrived = anyio.Event()
        self.released = anyio.Event()
        self.routes = [
            Route("/sum", self.sum, methods=["POST"]),
            Route("/change", require_role("service", "admin")(self.change), methods=["POST"]),
            Route("/story", self.story),
            Route("/slow", self.slow),
            Route("/health", self.story),
            Route("/broken", self.broken),
            Route("/halfway", self.halfway),
            Route("/away", self.away),
            Route("/stuck", self.stuck),
            Route("/gone", self.gone),
            Route("/careless", self.careless),
        ]

    async def sum(self, request: Request) -> Response:
        return json_response(200, {"sum": sum((await read_body(request, Sums)).numbers)})

    async def change(self, request: Request) -> Response:
        self.changes += 1
        return json_response(200, {"by": actor_of(request)})

    async def story(self, request: Request) -> Response:
        return json_response(
            200, {"id": request_id_of(request), **structlog.contextvars.get_contextvars()}
        )

    async def slow(self, request: Request) -> Response:
        self.arrived.set()
        await self.released.wait()
        return json_response(200, {})

    async def broken(self, request: Request) -> Response:
        raise RuntimeError("the password is hunter2")

    async def halfway(self, request: Request) -> Response:
        class Cut(Response):
            async def __call__(self, scope: object, receive: object, send: object) -> None:
                assert callable(send)
                await send({"type": "http.response.start", "status": 200, "headers": []})
                raise RuntimeError("cut")

        return Cut()

    async def away(self, request: Request) -> Response:
        raise DatabaseAway("PostgreSQL is away (host db-7, database shop)")

    async def stuck(self, request: Request) -> Response:
        raise psycopg.errors.QueryCanceled("canceling statement due to statement timeout")

    async def gone(self, request: Request) -> Response:
        raise ProblemError(
            410, "ended", "Ended", "It is over.", path="$.x", headers={"x-more": "y"}
        )

    async def careless(self, request: Request) -> Response:
        return json_response(200, {"by": actor_of(request)})


@pytest.fixture
async def tried() -> Tried:
    return Tried()


@pytest.fixture
async def client(tried: Tried) -> AsyncIterator[httpx2.AsyncClient]:
    async with client_of(app_with(tried.routes, LIMITS)) as opened:
        yield opened


# Request ids


async def test_a_request_without_an_id_gets_one(client: httpx2.AsyncClient) -> None:
    first, second = await client.get("/story"), await client.get("/story")
    request_id = first.headers["x-request-id"]
    assert is_canonical_uuid(request_id)
    assert first.json() == {
        "id": request_id,
        "request_id": request_id,
        "correlation_id": request_id,
    }
    assert second.headers["x-request-id"] != request_id


@pytest.mark.parametrize("given", ["checkout-17", "A:b.c_d-e", "1" * 128])
async def test_a_sane_id_is_kept(client: httpx2.AsyncClient, given: str) -> None:
    response = await client.get("/story", headers={"x-request-id": given})
    assert (response.headers["x-request-id"], response.json()["correlation_id"]) == (given, given)


@pytest.mark.parametrize("given", ["", " ", "a b", "1" * 129, "-a", "a\x7f", "ü", 'a"b', "{}"])
async def test_any_other_id_is_replaced(client: httpx2.AsyncClient, given: str) -> None:
    response = await client.get("/story", headers={b"x-request-id": given.encode("latin-1")})
    assert is_canonical_uuid(response.headers["x-request-id"])


async def test_every_request_is_logged_with_its_story(client: httpx2.AsyncClient) -> None:
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logs:
        await client.post("/change?token=secret", headers={**SERVICE, "x-request-id": "r1"})
        await client.get("/nothing", headers={"x-request-id": "r2"})
    changed, missed = logs
    assert changed.pop("seconds") >= 0
    assert changed == {
        "event": "request",
        "log_level": "info",
        "method": "POST",
        "path": "/change",
        "status": 200,
        "actor": "api:test",
        "request_id": "r1",
        "correlation_id": "r1",
    }
    assert (missed["status"], missed["actor"], missed["request_id"]) == (404, "anonymous", "r2")
    assert structlog.contextvars.get_contextvars() == {}


# Problems


@pytest.mark.parametrize(
    ("method", "path", "status", "name"),
    [
        ("GET", "/nothing", 404, "not-found"),
        ("GET", "/story/", 404, "not-found"),
        ("DELETE", "/sum", 405, "method-not-allowed"),
    ],
)
async def test_what_is_not_there_is_a_problem(
    client: httpx2.AsyncClient, method: str, path: str, status: int, name: str
) -> None:
    response = await client.request(method, path)
    assert response.status_code == status
    assert problem_of(response).type == f"urn:couponflow:problem:{name}"


async def test_a_refusal_says_all_that_the_endpoint_said(client: httpx2.AsyncClient) -> None:
    response = await client.get("/gone")
    problem = problem_of(response)
    assert (problem.type, problem.title) == ("urn:couponflow:problem:ended", "Ended")
    assert (problem.status, problem.detail, problem.path) == (410, "It is over.", "$.x")
    assert response.headers["x-more"] == "y"


async def test_a_fault_of_ours_is_logged_and_not_shown(client: httpx2.AsyncClient) -> None:
    with capture_logs() as logs:
        response = await client.get("/broken")
    assert problem_of(response).status == 500
    assert b"hunter2" not in response.content
    failed, access = logs
    assert (failed["event"], failed["log_level"]) == ("request_failed", "error")
    assert str(failed["exc_info"]) == "the password is hunter2"
    assert access["status"] == 500


async def test_an_answer_that_breaks_off_is_not_called_whole(client: httpx2.AsyncClient) -> None:
    with capture_logs() as logs, pytest.raises(RuntimeError, match="cut"):
        await client.get("/halfway")
    assert [entry["event"] for entry in logs] == ["request_failed"]


async def test_a_database_away_is_worth_another_try(client: httpx2.AsyncClient) -> None:
    response = await client.get("/away")
    assert problem_of(response).type == "urn:couponflow:problem:database-away"
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert b"db-7" not in response.content


async def test_a_statement_that_took_too_long_is_worth_another_try(
    client: httpx2.AsyncClient,
) -> None:
    with capture_logs() as logs:
        response = await client.get("/stuck")
    assert problem_of(response).type == "urn:couponflow:problem:database-refused"
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert [entry["event"] for entry in logs] == ["request_refused_by_database", "request"]


async def test_nobody_is_named_where_nobody_was_looked_at(client: httpx2.AsyncClient) -> None:
    with capture_logs():
        response = await client.get("/careless", headers=SERVICE)
    assert problem_of(response).status == 500


# Who may


@pytest.mark.parametrize("caller", REFUSED, ids=lambda caller: caller.name)
async def test_others_are_kept_out(
    client: httpx2.AsyncClient, tried: Tried, caller: Caller
) -> None:
    response = await client.post("/change", headers=caller.headers())
    assert response.status_code == problem_of(response).status == caller.status
    assert response.headers.get("www-authenticate", "") == caller.challenge
    assert SECRET not in response.text
    assert tried.changes == 0


@pytest.mark.parametrize("caller", ADMITTED, ids=lambda caller: caller.name)
async def test_those_with_a_role_are_let_in(
    client: httpx2.AsyncClient, tried: Tried, caller: Caller
) -> None:
    response = await client.post("/change", headers=caller.headers())
    assert (response.status_code, response.json()) == (200, {"by": "api:test"})
    assert tried.changes == 1


async def test_two_tokens_are_none(client: httpx2.AsyncClient, tried: Tried) -> None:
    headers = [*bearer(token("shopper")).items(), *bearer(token("admin")).items()]
    response = await client.post("/change", headers=headers)
    assert (response.status_code, tried.changes) == (401, 0)


# Bodies


async def test_a_body_becomes_a_struct(client: httpx2.AsyncClient) -> None:
    assert (await client.post("/sum", content=b'{"numbers": [1, 2]}')).json() == {"sum": 3}


@pytest.mark.parametrize(
    ("body", "status", "name", "path"),
    [
        (b"", 400, "malformed-json", ""),
        (b"{", 400, "malformed-json", ""),
        (b'{"numbers": []}\xff', 400, "malformed-json", ""),
        (b"[" * 900, 422, "invalid-body", "$"),
        (b"[]", 422, "invalid-body", "$"),
        (b"{}", 422, "invalid-body", "$.numbers"),
        (b'{"numbers": [1, "2"]}', 422, "invalid-body", "$.numbers[1]"),
        (b'{"numbers": [], "more": 1}', 422, "invalid-body", "$"),
    ],
)
async def test_a_body_that_does_not_fit_is_refused(
    client: httpx2.AsyncClient, body: bytes, status: int, name: str, path: str
) -> None:
    response = await client.post("/sum", content=body)
    problem = problem_of(response)
    assert (problem.status, problem.type) == (status, f"urn:couponflow:problem:{name}")
    assert problem.path == path
    assert not path or f"`{path}`" in problem.detail


@given(st.one_of(st.binary(), st.text().map(str.encode), st.just(b"[" * 100_000)))
def test_no_body_at_all_is_a_fault_of_ours(body: bytes) -> None:
    with pytest.raises(ProblemError) as refused:
        decode_body(body, EmailRequested)
    assert refused.value.status in (400, 422)


def test_a_query_becomes_a_struct() -> None:
    query = QueryParams("id=a&id=b&limit=3&since=2026-09-21T19:26+05:30&text=at+05:30")
    assert read_query(query, Asked) == Asked(
        id=("a", "b"), limit=3, since="2026-09-21T19:26+05:30", text="at 05:30"
    )
    assert read_query(QueryParams("since=2026-09-21T19:26%2B05:30"), Asked).since[-6:] == "+05:30"


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("limit=x", "Expected `int`, got `str` - at `$.limit`"),
        ("fly=1", "Object contains unknown field `fly`"),
        ("text=a&text=b", "'text' is given twice"),
    ],
)
def test_a_query_that_does_not_fit_is_refused(query: str, detail: str) -> None:
    with pytest.raises(ProblemError) as refused:
        read_query(QueryParams(query), Asked)
    problem = refused.value
    assert (problem.status, problem.name) == (422, "invalid-parameter")
    assert problem.detail == detail


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_is_bounded(client: httpx2.AsyncClient, chunked: bool) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(200):
            yield b" " * 100

    response = await client.post("/sum", content=chunks() if chunked else b" " * 1_001)
    assert problem_of(response).type == "urn:couponflow:problem:body-too-large"
    assert response.status_code == 413


@pytest.mark.parametrize("server", ["granian", "hypercorn"])
async def test_a_body_that_never_ends_is_given_up(tried: Tried, server: ServerName) -> None:
    listener = new_listener(server)
    app = app_with(tried.routes, LIMITS)
    async with (
        serving(partial(serve, app), listener),
        await anyio.connect_tcp(listener.host, listener.port) as stream,
    ):
        await stream.send(b"POST /sum HTTP/1.1\r\nhost: a\r\ncontent-length: 20\r\n\r\n{")
        answer = await read_answer(stream)
    assert answer.status == 408
    assert msgspec.json.decode(answer.body)["type"] == "urn:couponflow:problem:body-too-slow"


@pytest.mark.parametrize("server", ["granian", "hypercorn"])
async def test_both_servers_answer_alike(tried: Tried, server: ServerName) -> None:
    listener = new_listener(server)
    async with (
        serving(partial(serve, app_with(tried.routes, LIMITS)), listener),
        httpx2.AsyncClient(verify=False, base_url=listener.local_url) as web,
    ):
        assert (await web.post("/change", headers=SERVICE)).json() == {"by": "api:test"}
        assert problem_of(await web.post("/change")).status == 401
        assert problem_of(await web.get("/nothing")).status == 404
        assert problem_of(await web.post("/sum", content=b" " * 1_001)).status == 413
        with capture_logs():
            assert problem_of(await web.get("/broken")).status == 500
        assert (await web.post("/sum", content=b'{"numbers": [5]}')).json() == {"sum": 5}


# Too much at once


async def test_too_many_at_once_are_sent_away(client: httpx2.AsyncClient, tried: Tried) -> None:
    statuses: list[int] = []

    async def ask_slow() -> None:
        statuses.append((await client.get("/slow")).status_code)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask_slow)
        tasks.start_soon(ask_slow)
        await tried.arrived.wait()
        await anyio.wait_all_tasks_blocked()
        refused = await client.get("/story")
        alive = await client.get("/health")
        tried.released.set()
    assert problem_of(refused).type == "urn:couponflow:problem:busy"
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert (alive.status_code, statuses) == (200, [200, 200])
    assert (await client.get("/story")).status_code == 200


async def test_a_place_is_free_again_when_its_request_was_cancelled(
    client: httpx2.AsyncClient, tried: Tried
) -> None:
    for _ in range(3):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.get, "/slow")
            tasks.start_soon(client.get, "/slow")
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
    assert (await client.get("/story")).status_code == 200
