from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256

import httpx2
import pytest

from couponflow.kernel.api_app import api_app
from couponflow.kernel.clock import ManualClock
from couponflow.kernel.database import Database
from couponflow.kernel.tokens import Identity, TokenRefused
from couponflow.webhooks import admin_http
from couponflow.webhooks.admin_http import webhook_routes
from tests.samples import rows_of
from tests.webhooks.webhook_rows import (
    IDS,
    SOURCES,
    event,
    give_up,
    letter_of,
    log_events,
    log_one_of_each,
    make_dead,
)

pytestmark = pytest.mark.once

PATH = "/api/v1/webhooks"
UNKNOWN_ID = "01920000-0000-7000-8000-000000000000"
OUTBOX = "select correlation_id from outbox where dedup_key is not null order by correlation_id"
AUDIT = "select actor, action from audit_logs order by action"


class FixedTokens:
    """Believes three tokens."""

    async def verify(self, token: str) -> Identity:
        match token:
            case "ann":
                return Identity("ann", frozenset({"admin"}))
            case "service":
                return Identity("service", frozenset({"service"}))
            case "shopper":
                return Identity("shopper", frozenset({"shopper"}))
            case _:
                raise TokenRefused("the token is not known")


@asynccontextmanager
async def calling(database: Database, token: str) -> AsyncIterator[httpx2.AsyncClient]:
    clock = ManualClock()
    app = api_app(
        webhook_routes(database, clock, IDS, SOURCES),
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


def problem(response: httpx2.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/problem+json"
    return response.status_code, response.json()["type"].rpartition(":")[2]


async def replayed_ids(database: Database) -> list[object]:
    return [row[0] for row in await rows_of(database.url, OUTBOX)]


async def test_pages_follow_one_another_to_the_end(
    client: httpx2.AsyncClient, database: Database
) -> None:
    rows = [event(number) for number in range(5)]
    await log_events(database, *rows)
    found: list[list[str]] = []
    parameters: dict[str, str | int] = {"limit": 2}
    while True:
        page = (await client.get(PATH, params=parameters)).json()
        found.append([item["id"] for item in page["items"]])
        if page["next_cursor"] is None:
            break
        parameters["cursor"] = page["next_cursor"]
    newest_first = [row.id for row in reversed(rows)]
    assert found == [newest_first[:2], newest_first[2:4], newest_first[4:]]


async def test_a_list_holds_no_payload(client: httpx2.AsyncClient, database: Database) -> None:
    logged = event(body=b'{"email":"ann@shop.example"}')
    await log_events(database, logged)
    assert (await client.get(PATH)).json()["items"] == [
        {
            "id": logged.id,
            "received_at": "2026-09-21T13:56:41.123456Z",
            "source": "mailer",
            "event_type": "mail.wanted",
            "event_id": "evt_1",
            "verdict": "verified",
            "status": "processed",
            "body_bytes": 28,
        }
    ]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("source=mailer", ["processed", "waiting", "dead", "refused"]),
        ("event_id=evt_3", ["dead"]),
        ("event_id=evt_9", []),
        ("type=mail.wanted&status=dead", ["dead"]),
        ("status=waiting", ["waiting"]),
        ("status=refused", ["refused"]),
        ("since=2026-09-21T13:56:43Z", ["dead", "refused"]),
        ("until=2026-09-21T19:26:42%2B05:30", ["processed"]),
        ("until=2026-09-21T19:26:42+05:30", ["processed"]),
        ("since=2h&until=2026-09-21T13:56:42", ["processed"]),
        ("since=5m", []),
        ("text=count", ["processed", "waiting", "dead", "refused"]),
        ("text=%00", []),
    ],
)
async def test_a_list_can_be_narrowed(
    client: httpx2.AsyncClient, database: Database, query: str, expected: list[str]
) -> None:
    logged = await log_one_of_each(database)
    items = (await client.get(f"{PATH}?{query}")).json()["items"]
    assert [item["id"] for item in items] == [logged[name].id for name in reversed(expected)]


async def test_events_are_found_by_ids(client: httpx2.AsyncClient, database: Database) -> None:
    logged = await log_one_of_each(database)
    first, second = logged["processed"].id, logged["dead"].id
    items = (await client.get(f"{PATH}?id={first}&id={second}&id={UNKNOWN_ID}")).json()["items"]
    assert [item["id"] for item in items] == [second, first]


@pytest.mark.parametrize(
    "query",
    [
        *("limit=0", "limit=501", "limit=x", "fly=1", "source=a&source=b", "cursor=x"),
        *("since=yesterday", "until=2x", "cursor=%ff", "status=done", "status=replayable", "text="),
        *("id=nobody", "event_id=", "source=stripey", "since=2026-09-21&until=2026-09-20"),
        *("since=2h&until=3h", "since=2026-09-21&until=2026-09-21"),
    ],
)
async def test_a_wrong_query_is_refused(client: httpx2.AsyncClient, query: str) -> None:
    assert problem(await client.get(f"{PATH}?{query}")) == (422, "invalid-parameter")


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("status=bogus", "'bogus' is none of waiting, dead, given-up, processed, refused"),
        ("source=nobody", "no source is called 'nobody'"),
        ("source=nobody", "known are mailer"),
        ("id=evt_1", "'evt_1' is no id of an event, which is a UUID"),
    ],
)
async def test_a_refusal_says_what_would_be_right(
    client: httpx2.AsyncClient, query: str, detail: str
) -> None:
    assert detail in (await client.get(f"{PATH}?{query}")).json()["detail"]


async def test_a_source_that_is_gone_is_known_by_what_it_sent(
    client: httpx2.AsyncClient, database: Database
) -> None:
    logged = event(source="generic/closed")
    await log_events(database, logged)
    items = (await client.get(f"{PATH}?source=generic/closed")).json()["items"]
    assert [item["id"] for item in items] == [logged.id]


async def test_an_event_is_shown_redacted_and_revealed_on_record(
    client: httpx2.AsyncClient, database: Database
) -> None:
    logged = event(body=b'{"count":1,"email":"ann@shop.example"}', headers={"x-id": "7"})
    await log_events(database, logged)
    shown = await client.get(f"{PATH}/{logged.id}")
    assert shown.status_code == 200
    (follower,) = shown.json()["following"]
    assert (follower["message_type"], follower["state"]) == ("email.v1", "unknown")
    assert shown.json() == {
        "id": logged.id,
        "received_at": "2026-09-21T13:56:41.123456Z",
        "source": "mailer",
        "event_type": "mail.wanted",
        "event_id": "evt_1",
        "verdict": "verified",
        "status": "processed",
        "body_bytes": 38,
        "detail": "",
        "method": "POST",
        "query": "",
        "headers": {"x-id": "7"},
        "body": {"text": '{"count":1,"email":"[redacted]"}', "form": "json"},
        "body_bytes_kept": 38,
        "body_sha256": sha256(logged.body).hexdigest(),
        "address": "192.0.2.9",
        "revealed": False,
        "letters": [],
        "given_up": [],
        "following": [follower],
        "nothing_follows": "",
        "unreadable": "",
    }
    assert await rows_of(database.url, AUDIT) == []
    revealed = await client.get(f"{PATH}/{logged.id}?reveal=true")
    assert revealed.json()["body"] == {
        "text": '{"count":1,"email":"ann@shop.example"}',
        "form": "text",
    }
    assert await rows_of(database.url, AUDIT) == [("api:ann", "webhooks.reveal")]


@pytest.mark.parametrize("query", ["", "?reveal=true"])
@pytest.mark.parametrize("webhook_id", [UNKNOWN_ID, "nobody", "%00"])
async def test_an_event_that_is_not_there_is_404(
    client: httpx2.AsyncClient, webhook_id: str, query: str
) -> None:
    response = await client.get(f"{PATH}/{webhook_id}{query}")
    assert problem(response) == (404, "unknown-webhook")


async def test_an_event_is_shown_by_what_its_sender_calls_it(
    client: httpx2.AsyncClient, database: Database
) -> None:
    logged, twin = event(1), event(2)
    await log_events(database, logged, twin)
    assert (await client.get(f"{PATH}/evt_1")).json()["id"] == logged.id
    revealed = await client.get(f"{PATH}/evt_1?reveal=true")
    assert (revealed.json()["id"], revealed.json()["revealed"]) == (logged.id, True)
    await log_events(database, event(3, event_id="evt_1", source="stripe"))
    several = await client.get(f"{PATH}/evt_1")
    assert problem(several) == (409, "ambiguous-webhook")
    assert logged.id in several.json()["detail"]
    assert twin.id not in several.json()["detail"]


@pytest.mark.parametrize("query", ["reveal=perhaps", "reveal=true&reveal=true", "show=1"])
async def test_what_cannot_be_asked_of_an_event_is_refused(
    client: httpx2.AsyncClient, query: str
) -> None:
    response = await client.get(f"{PATH}/{UNKNOWN_ID}?{query}")
    assert problem(response) == (422, "invalid-parameter")


@pytest.mark.parametrize(
    "body",
    [
        {"filter": {"status": "processed", "since": "2h"}},
        {"all": True, "expected": 1},
        {"filter": {"source": "mailer", "until": "2026-09-21T13:56:42Z"}},
    ],
)
async def test_events_are_replayed(
    client: httpx2.AsyncClient, database: Database, body: dict[str, object]
) -> None:
    logged = await log_one_of_each(database)
    response = await client.post(f"{PATH}/replay", json=body)
    assert (response.status_code, response.json()["replayed"]) == (200, 1)
    assert response.json()["more"] == ("all" in body)
    assert await replayed_ids(database) == [logged["processed"].id]
    assert await rows_of(database.url, AUDIT) == [("api:ann", "webhooks.replay")]


async def test_what_cannot_be_replayed_is_named(
    client: httpx2.AsyncClient, database: Database
) -> None:
    logged = await log_one_of_each(database)
    ids = [logged["refused"].id, logged["waiting"].id, UNKNOWN_ID]
    response = await client.post(f"{PATH}/replay", json={"ids": ids})
    assert response.json() == {
        "replayed": 0,
        "refused": 1,
        "skipped": 1,
        "left": [
            {
                "id": logged["waiting"].id,
                "source": "mailer",
                "outcome": "skipped",
                "reason": "it is on its way already",
            },
            {
                "id": logged["refused"].id,
                "source": "mailer",
                "outcome": "refused",
                "reason": "it cannot be replayed: its sender was not believed (bad-signature)",
            },
        ],
        "more": False,
        "taken_up": [],
        "not_found": [UNKNOWN_ID],
        "next_cursor": None,
    }
    assert await rows_of(database.url, AUDIT) == []


async def test_a_request_replays_no_more_than_it_can(
    client: httpx2.AsyncClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_http, "EVENTS_A_REQUEST", 2)
    await log_events(database, *(event(number) for number in range(3)))
    response = await client.post(f"{PATH}/replay", json={"all": True})
    assert (response.json()["replayed"], response.json()["more"]) == (2, True)
    assert len(await replayed_ids(database)) == 2


async def test_repeated_requests_replay_all_there_is(
    client: httpx2.AsyncClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_http, "EVENTS_A_REQUEST", 2)
    rows = [event(number) for number in range(5)]
    # What is not believed takes nobody's place.
    refused = [event(number, verdict="stale", event_id="") for number in (-3, -2, -1)]
    await log_events(database, *refused, *rows)
    body: dict[str, object] = {"filter": {"source": "mailer"}}
    matching = []
    while True:
        dry = await client.post(f"{PATH}/replay", json={**body, "dry_run": True})
        matching.append(dry.json()["matching"]["total"])
        answer = (await client.post(f"{PATH}/replay", json=body)).json()
        assert (answer["refused"], answer["skipped"]) == (0, 0)
        if not answer["more"]:
            break
        body["after"] = answer["next_cursor"]
    assert matching == [5, 3, 1]
    assert await replayed_ids(database) == [row.id for row in rows]


async def test_refused_events_are_looked_at_if_they_are_asked_for(
    client: httpx2.AsyncClient, database: Database
) -> None:
    logged = await log_one_of_each(database)
    body = {"filter": {"status": "refused"}}
    answer = (await client.post(f"{PATH}/replay", json=body)).json()
    assert (answer["replayed"], answer["refused"]) == (0, 1)
    assert answer["left"][0]["id"] == logged["refused"].id
    assert answer["left"][0]["reason"].startswith("it cannot be replayed")


async def test_what_was_given_up_is_replayed_only_if_it_is_named(
    client: httpx2.AsyncClient, database: Database
) -> None:
    logged = await log_one_of_each(database)
    dead = letter_of(event(5, id=logged["processed"].id))
    await make_dead(database, dead)
    await give_up(database, dead)
    window = await client.post(f"{PATH}/replay", json={"filter": {"source": "mailer"}})
    assert (window.json()["replayed"], window.json()["refused"]) == (1, 0)
    assert await replayed_ids(database) == []
    named = await client.post(f"{PATH}/replay", json={"ids": [dead.message_id]})
    assert (named.json()["replayed"], named.json()["taken_up"]) == (1, [dead.message_id])
    assert await replayed_ids(database) == [dead.message_id]


async def test_a_dry_run_counts_and_changes_nothing(
    client: httpx2.AsyncClient, database: Database
) -> None:
    await log_one_of_each(database)
    response = await client.post(f"{PATH}/replay", json={"all": True, "dry_run": True})
    group = {"source": "mailer", "event_type": "mail.wanted", "events": 1}
    assert response.json() == {
        "dry_run": True,
        "matching": {
            "total": 3,
            "groups": [{**group, "status": each} for each in ("dead", "processed", "waiting")],
            "not_found": [],
        },
    }
    assert await replayed_ids(database) == []
    assert await rows_of(database.url, AUDIT) == []


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({}, "$"),
        ({"filter": {}}, "$"),
        ({"filter": {"source": None}}, "$"),
        ({"all": False}, "$"),
        ({"all": True, "ids": ["odd"]}, "$"),
        ({"ids": []}, "$.ids"),
        ({"ids": ["odd"], "expected": -1}, "$.expected"),
        ({"ids": ["odd"], "force": True}, "$"),
        ({"filter": {"sources": "stripe"}}, "$.filter"),
        ({"filter": {"since": "yesterday"}}, "$.filter.since"),
        ({"filter": {"since": "2h", "until": "3h"}}, "$.filter.until"),
        ({"filter": {"status": "replayable"}}, "$.filter.status"),
        ({"filter": {"source": "nobody"}}, "$.filter.source"),
        ({"filter": {"event_id": ""}}, "$.filter.event_id"),
        ({"ids": ["evt_1"]}, "$.ids"),
        ({"all": True, "after": "x"}, "$.after"),
        ({"all": True, "after": "x", "dry_run": True}, "$.after"),
        ({"filter": {"text": ""}}, "$.filter.text"),
        ([], "$"),
    ],
)
async def test_a_body_that_means_no_events_or_says_too_much_is_refused(
    client: httpx2.AsyncClient, database: Database, body: object, path: str
) -> None:
    await log_one_of_each(database)
    response = await client.post(f"{PATH}/replay", json=body)
    assert problem(response) == (422, "invalid-body")
    assert response.json()["path"] == path
    assert await replayed_ids(database) == []


@pytest.mark.parametrize(("token", "status"), [("service", 403), ("shopper", 403), ("nobody", 401)])
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", PATH), ("GET", f"{PATH}/{UNKNOWN_ID}?reveal=true"), ("POST", f"{PATH}/replay")],
)
async def test_only_admins_are_let_in(
    database: Database, token: str, status: int, method: str, path: str
) -> None:
    await log_events(database, event())
    body = b'{"all":true}' if method == "POST" else None
    async with calling(database, token) as client:
        response = await client.request(method, path, content=body)
    assert problem(response)[0] == status
    assert await replayed_ids(database) == []
    assert await rows_of(database.url, AUDIT) == []
