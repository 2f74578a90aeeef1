from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import httpx2
import msgspec
import pytest

from couponflow.admin import dead_letters_http
from couponflow.admin.dead_letters_http import dead_letter_routes
from couponflow.kernel.api_app import api_app
from couponflow.kernel.clock import ManualClock
from couponflow.kernel.database import Database
from couponflow.kernel.tokens import Identity, TokenRefused
from couponflow.messages import CHANNELS
from tests.kernel.letters import (
    DIED_AT,
    IDS,
    bury_all,
    dead_email,
    email,
    failed,
    letter,
    message_id,
    set_dead_at,
)
from tests.samples import rows_of

PATH = "/api/v1/dead-letters"
UNKNOWN_ID = "01920000-0000-7000-8000-000000000000"
LETTERS = "select message_id from dead_letters order by message_id"
OUTBOX = "select id::text from outbox order by id"
AUDIT = "select actor, action from audit_logs order by id"


class FixedTokens:
    """Believes two tokens."""

    async def verify(self, token: str) -> Identity:
        match token:
            case "ann":
                return Identity("ann", frozenset({"admin"}))
            case "shopper":
                return Identity("shopper", frozenset({"shopper"}))
            case _:
                raise TokenRefused("the token is not known")


@asynccontextmanager
async def calling(database: Database, token: str) -> AsyncIterator[httpx2.AsyncClient]:
    clock = ManualClock()
    app = api_app(
        dead_letter_routes(database, clock, IDS, CHANNELS),
        tokens=FixedTokens(),
        clock=clock,
        make_id=lambda: IDS.make(clock.now()),
    )
    headers = {"authorization": f"Bearer {token}"}
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(
        transport=transport, base_url="http://test", headers=headers
    ) as client:
        yield client


@pytest.fixture
async def client(database: Database) -> AsyncIterator[httpx2.AsyncClient]:
    async with calling(database, "ann") as opened:
        yield opened


async def ids_in(database: Database, query: str) -> list[object]:
    return [row[0] for row in await rows_of(database.url, query)]


async def bury_three(database: Database) -> None:
    await bury_all(
        database,
        dead_email(1, reason="timed out"),
        dead_email(2, reason="refused"),
        letter("odd", message=b"garbage"),
    )


def problem(response: httpx2.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/problem+json"
    return response.status_code, response.json()["type"].rpartition(":")[2]


async def test_pages_follow_one_another_to_the_end(
    client: httpx2.AsyncClient, database: Database
) -> None:
    await bury_all(database, *(dead_email(number) for number in range(5)))
    sizes: list[int] = []
    found: set[str] = set()
    parameters: dict[str, Any] = {"limit": 2}
    while True:
        page = (await client.get(PATH, params=parameters)).json()
        sizes.append(len(page["items"]))
        found |= {item["message_id"] for item in page["items"]}
        if page["next_cursor"] is None:
            break
        parameters["cursor"] = page["next_cursor"]
    assert sizes == [2, 2, 1]
    assert found == {message_id(number) for number in range(5)}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("channel=emails", [message_id(1), message_id(2)]),
        ("type=email.v1&reason=REFUSED", [message_id(2)]),
        (f"id=odd&id={message_id(1)}", [message_id(1), "odd"]),
        ("since=2026-09-21T14:13:21Z", ["odd"]),
        ("until=2026-09-21T19:43:21%2B05:30", [message_id(1), message_id(2)]),
        ("until=2026-09-21T19:43:21+05:30", [message_id(1), message_id(2)]),
        ("correlation_id=%00", []),
    ],
)
async def test_a_list_can_be_narrowed(
    client: httpx2.AsyncClient, database: Database, query: str, expected: list[str]
) -> None:
    first, second, odd = dead_email(1), dead_email(2, reason="refused"), letter("odd")
    await bury_all(database, first, second, odd)
    await set_dead_at(database, [first, second], DIED_AT)
    await set_dead_at(database, [odd], DIED_AT + 1)
    items = (await client.get(f"{PATH}?{query}")).json()["items"]
    assert sorted(item["message_id"] for item in items) == expected


@pytest.mark.parametrize(
    "query",
    [
        *("limit=0", "limit=501", "limit=x", "fly=1", "channel=a&channel=b", "cursor=x"),
        *("since=yesterday", "since=2026-09-21T14:13:21", "cursor=%ff"),
    ],
)
async def test_a_wrong_query_is_refused(client: httpx2.AsyncClient, query: str) -> None:
    assert problem(await client.get(f"{PATH}?{query}")) == (422, "invalid-parameter")


async def test_a_letter_is_shown_whole(client: httpx2.AsyncClient, database: Database) -> None:
    buried = dead_email(errors=[failed(1)], correlation_id="story", published_at=DIED_AT)
    await bury_all(database, buried)
    await set_dead_at(database, [buried], DIED_AT)
    by_id = await client.get(f"{PATH}/{buried.id}")
    by_message_id = await client.get(f"{PATH}/{buried.message_id}")
    assert by_id.status_code == 200
    assert by_message_id.json() == by_id.json()
    assert by_id.json() == {
        "id": buried.id,
        "channel": "emails",
        "message_id": message_id(1),
        "message_type": "email.v1",
        "reason": "because",
        "attempts": 3,
        "correlation_id": "story",
        "published_at": "2026-09-21T14:13:20Z",
        "dead_at": "2026-09-21T14:13:20Z",
        "message": msgspec.json.decode(email()),
        "errors": [
            {
                "attempt": 1,
                "at": "2026-09-21T14:13:21Z",
                "worker": "worker-1",
                "error": "refused",
            }
        ],
    }


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("letter_id", [UNKNOWN_ID, "nobody", "%00"])
async def test_a_letter_that_is_not_there_is_404(
    client: httpx2.AsyncClient, method: str, letter_id: str
) -> None:
    response = await client.request(method, f"{PATH}/{letter_id}")
    assert problem(response) == (404, "unknown-dead-letter")


async def test_a_letter_is_discarded_alone_and_once(
    client: httpx2.AsyncClient, database: Database
) -> None:
    await bury_three(database)
    gone = await client.delete(f"{PATH}/odd")
    assert (gone.status_code, gone.json()["discarded"]) == (200, 1)
    assert problem(await client.delete(f"{PATH}/odd")) == (404, "unknown-dead-letter")
    assert await ids_in(database, LETTERS) == [message_id(1), message_id(2)]
    assert await rows_of(database.url, AUDIT) == [("api:ann", "dead_letters.discard")]


async def test_letters_are_replayed_by_filter(
    client: httpx2.AsyncClient, database: Database
) -> None:
    await bury_three(database)
    body = {"filter": {"channel": "emails", "since": "2020-01-01T00:00:00Z"}}
    response = await client.post(f"{PATH}/replay", json=body)
    assert (response.status_code, response.json()) == (
        200,
        {"replayed": 2, "refused": 0, "skipped": 0, "left": [], "more": False},
    )
    assert await ids_in(database, OUTBOX) == [message_id(1), message_id(2)]
    assert await rows_of(database.url, AUDIT) == [("api:ann", "dead_letters.replay")]


async def test_what_cannot_be_replayed_is_named(
    client: httpx2.AsyncClient, database: Database
) -> None:
    await bury_three(database)
    response = await client.post(f"{PATH}/replay", json={"ids": ["odd"]})
    (left,) = response.json()["left"]
    assert (left["message_id"], left["outcome"]) == ("odd", "refused")
    assert await ids_in(database, OUTBOX) == []


@pytest.mark.parametrize(("action", "count"), [("replay", "replayed"), ("discard", "discarded")])
async def test_no_more_letters_than_agreed_are_touched(
    client: httpx2.AsyncClient, database: Database, action: str, count: str
) -> None:
    await bury_all(database, *(dead_email(number) for number in range(5)))
    response = await client.post(f"{PATH}/{action}", json={"all": True, "expected": 3})
    assert (response.json()[count], response.json()["more"]) == (3, True)
    assert len(await ids_in(database, LETTERS)) == 2


async def test_a_request_touches_no_more_than_it_can(
    client: httpx2.AsyncClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters_http, "LETTERS_A_REQUEST", 2)
    await bury_three(database)
    response = await client.post(f"{PATH}/discard", json={"all": True})
    assert response.json() == {"discarded": 2, "more": True}
    assert len(await ids_in(database, LETTERS)) == 1


@pytest.mark.parametrize("action", ["replay", "discard"])
async def test_a_dry_run_counts_and_changes_nothing(
    client: httpx2.AsyncClient, database: Database, action: str
) -> None:
    await bury_three(database)
    body = {"filter": {"reason": "TIMED"}, "dry_run": True}
    response = await client.post(f"{PATH}/{action}", json=body)
    assert response.json() == {
        "dry_run": True,
        "matching": {
            "total": 1,
            "groups": [{"channel": "emails", "reason": "timed out", "letters": 1}],
        },
    }
    assert len(await ids_in(database, LETTERS)) == 3
    assert await rows_of(database.url, AUDIT) == []


@pytest.mark.parametrize("action", ["replay", "discard"])
@pytest.mark.parametrize(
    "body",
    [
        {},
        {"filter": {}},
        {"filter": {"channel": None}},
        {"all": False},
        {"all": True, "ids": ["odd"]},
        {"ids": []},
        {"ids": ["odd"], "expected": -1},
        {"ids": ["odd"], "force": True},
        {"filter": {"chanel": "emails"}},
        {"filter": {"channel": "emails", "since": "2026-09-21T14:13:21"}},
        [],
    ],
)
async def test_a_body_that_means_no_letters_or_says_too_much_is_refused(
    client: httpx2.AsyncClient, database: Database, action: str, body: object
) -> None:
    await bury_three(database)
    assert problem(await client.post(f"{PATH}/{action}", json=body)) == (422, "invalid-body")
    assert len(await ids_in(database, LETTERS)) == 3
    assert await rows_of(database.url, AUDIT) == []


@pytest.mark.parametrize(("token", "status"), [("shopper", 403), ("stranger", 401)])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", PATH),
        ("GET", f"{PATH}/odd"),
        ("DELETE", f"{PATH}/odd"),
        ("POST", f"{PATH}/replay"),
        ("POST", f"{PATH}/discard"),
    ],
)
async def test_only_operators_and_services_are_let_in(
    database: Database, token: str, status: int, method: str, path: str
) -> None:
    await bury_three(database)
    body = b'{"all":true}' if method == "POST" else None
    async with calling(database, token) as client:
        response = await client.request(method, path, content=body)
    assert problem(response)[0] == status
    assert len(await ids_in(database, LETTERS)) == 3


async def test_moments_are_told_with_their_offset(
    client: httpx2.AsyncClient, database: Database
) -> None:
    await bury_three(database)
    items = (await client.get(PATH)).json()["items"]
    moments = [datetime.fromisoformat(item["dead_at"]) for item in items]
    assert [moment.tzinfo for moment in moments] == [UTC] * 3
