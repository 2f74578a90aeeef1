from collections.abc import AsyncIterator
from dataclasses import dataclass

import anyio
import httpx2
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from couponflow.admin.http import AdminParts, admin_routes
from couponflow.kernel.channel_memory import MemoryChannel
from couponflow.kernel.clock import ManualClock
from couponflow.kernel.database import Database
from couponflow.kernel.ops import Queues
from couponflow.messages import CHANNELS, EmailRequested
from tests.kernel.api_client import (
    ADMITTED,
    REFUSED,
    SERVICE,
    Caller,
    app_with,
    bearer,
    client_of,
    problem_of,
    token,
)
from tests.samples import make_click, rows_of

EMAIL = {"to": "mira@example.com", "subject": "Hello", "text": "Your cashback is here."}
EMAIL_JSON = msgspec.json.encode(EMAIL)
ROUTES = [
    ("GET", "/api/v1/queue/stats", b""),
    ("POST", "/api/v1/queue/emails", EMAIL_JSON),
    ("POST", "/api/v1/queue/emails/pause", b""),
    ("POST", "/api/v1/queue/emails/resume", b""),
    ("POST", "/api/v1/queue/emails/limits", b'{"concurrency": 3}'),
    ("GET", "/api/v1/health/workers", b""),
]
EVERYTHING = (
    "select count(*) from outbox union all select count(*) from audit_logs"
    " union all select count(*) from channel_controls"
)
OUTBOX = (
    "select channel, message->>'to', correlation_id, dedup_key, available_at > now() from outbox"
)


@dataclass(frozen=True, slots=True)
class Administered:
    """The routes on a database of their own, a channel, and somebody who may call them."""

    client: httpx2.AsyncClient
    url: str
    channel: MemoryChannel[EmailRequested]
    clock: ManualClock

    async def push(
        self, body: bytes = EMAIL_JSON, query: str = "", **headers: str
    ) -> httpx2.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.post(
            f"/api/v1/queue/emails{query}", content=body, headers={**SERVICE, **named}
        )

    async def count(self, table: str) -> object:
        [(count,)] = await rows_of(self.url, f"select count(*) from {table}")
        return count


@pytest.fixture
async def administered(database: Database, database_url: str) -> AsyncIterator[Administered]:
    clock = ManualClock()
    channel: MemoryChannel[EmailRequested] = MemoryChannel("emails", 100, clock)
    parts = AdminParts(database, Queues([channel]), consumers=lambda: {"emails": 2})
    async with client_of(app_with(admin_routes(parts))) as client:
        yield Administered(client, database_url, channel, clock)


# Who may


@pytest.mark.parametrize("caller", REFUSED, ids=lambda caller: caller.name)
async def test_others_are_kept_out_of_every_route(
    administered: Administered, caller: Caller
) -> None:
    for method, path, body in ROUTES:
        headers = {**caller.headers(), "idempotency-key": "k"}
        response = await administered.client.request(method, path, content=body, headers=headers)
        assert (path, response.status_code) == (path, caller.status)
        assert problem_of(response).title in ("Unauthorized", "Forbidden")
        assert response.headers.get("www-authenticate", "") == caller.challenge
    assert await rows_of(administered.url, EVERYTHING) == [(0,), (0,), (0,)]


@pytest.mark.parametrize("caller", ADMITTED, ids=lambda caller: caller.name)
async def test_services_and_administrators_are_let_in(
    administered: Administered, caller: Caller
) -> None:
    statuses = [
        (
            await administered.client.request(method, path, content=body, headers=caller.headers())
        ).status_code
        for method, path, body in ROUTES
    ]
    assert statuses == [200, 202, 200, 200, 200, 200]
    assert await rows_of(administered.url, EVERYTHING) == [(1,), (4,), (1,)]


# Pushing


async def test_a_message_is_published_in_the_callers_story(administered: Administered) -> None:
    response = await administered.push(x_request_id="story-1")
    assert response.status_code == 202
    answer = response.json()
    assert answer["correlation_id"] == "story-1"
    assert await rows_of(administered.url, OUTBOX) == [
        ("emails", "mira@example.com", "story-1", None, False)
    ]
    assert await rows_of(administered.url, "select id::text from outbox") == [
        (answer["message_id"],)
    ]
    assert await rows_of(
        administered.url, "select actor, action, subject, details::text from audit_logs"
    ) == [
        ("api:test", "channel.push", "emails", '{"message_id": "%s"}' % answer["message_id"]),  # noqa: UP031
    ]


async def test_a_message_with_its_type_is_taken_too(administered: Administered) -> None:
    assert (await administered.push(b'{"type":"email.v1",' + EMAIL_JSON[1:])).status_code == 202


async def test_a_message_may_wait_and_be_the_only_one(administered: Administered) -> None:
    query = "?available_at=2100-01-31T18:30:00%2B05:30&dedup_key=welcome:7"
    first = await administered.push(query=query)
    second = await administered.push(query=query.replace("%2B", "+"))
    assert (first.status_code, second.status_code) == (202, 202)
    assert second.json() == {**first.json(), "deduplicated": True}
    assert "deduplicated" not in first.json()
    rows = await rows_of(
        administered.url, "select dedup_key, extract(epoch from available_at)::bigint from outbox"
    )
    assert rows == [("welcome:7", 4_105_083_600)]
    assert await administered.count("audit_logs") == 1


@pytest.mark.parametrize(
    ("body", "status", "path"),
    [
        (b"", 400, ""),
        (b"nonsense", 400, ""),
        (b"[]", 422, "$"),
        (b"{}", 422, "$.to"),
        (msgspec.json.encode({**EMAIL, "to": "nobody"}), 422, "$.to"),
        (msgspec.json.encode({**EMAIL, "to": 7}), 422, "$.to"),
        (msgspec.json.encode({**EMAIL, "to": "a@b\n"}), 422, "$.to"),
        (msgspec.json.encode({**EMAIL, "subject": ""}), 422, "$.subject"),
        (msgspec.json.encode({**EMAIL, "subject": "a\r\nBcc: b@c"}), 422, "$.subject"),
        (msgspec.json.encode({**EMAIL, "text": "a\0"}), 422, "$.text"),
        (msgspec.json.encode({**EMAIL, "html": "a\0"}), 422, "$.html"),
        (msgspec.json.encode({**EMAIL, "cc": "a@b"}), 422, "$.cc"),
        (msgspec.json.encode({**EMAIL, "type": "sms.v1"}), 422, "$.type"),
        (msgspec.json.encode({**EMAIL, "text": "x" * 200_001}), 422, "$.text"),
        (msgspec.json.encode({**EMAIL, "text": "x" * 1_100_000}), 413, ""),
    ],
)
async def test_a_message_must_fit_the_channel(
    administered: Administered, body: bytes, status: int, path: str
) -> None:
    response = await administered.push(body)
    problem = problem_of(response)
    assert (response.status_code, problem.path) == (status, path)
    assert not path or f"`{path}`" in problem.detail
    assert await rows_of(administered.url, EVERYTHING) == [(0,), (0,), (0,)]


@pytest.mark.parametrize(
    "query",
    [
        "?available_at=tomorrow",
        "?available_at=2030-01-01T00:00:00",
        "?available_at=2030-01-01",
        "?available_at=99999999999",
        "?available_at=9999-12-31T23:59:59-12:00",
        "?available_at=0001-01-01T00:00:00%2B14:00",
        "?available_at=1969-12-31T23:59:59Z",
        "?available_at=",
        "?dedup_key=",
        "?dedup_key=a%00b",
        "?dedup_key=" + "x" * 256,
        "?dedup_key=a&dedup_key=b",
        "?avaliable_at=2030-01-01T00:00:00Z",
    ],
)
async def test_a_parameter_that_is_wrong_is_refused(administered: Administered, query: str) -> None:
    response = await administered.push(query=query)
    assert problem_of(response).type == "urn:couponflow:problem:invalid-parameter"
    assert (response.status_code, await administered.count("outbox")) == (422, 0)


async def test_an_unknown_channel_is_answered_with_those_there_are(
    administered: Administered,
) -> None:
    for end in ("", "/pause", "/resume", "/limits"):
        response = await administered.client.post(
            f"/api/v1/queue/fax{end}", content=b'{"concurrency": 1}', headers=SERVICE
        )
        problem = problem_of(response)
        assert (problem.status, problem.type) == (404, "urn:couponflow:problem:unknown-channel")
        assert (
            problem.detail == f"there is no channel 'fax'; there are: {', '.join(sorted(CHANNELS))}"
        )
    assert await rows_of(administered.url, EVERYTHING) == [(0,), (0,), (0,)]


# Pushing again


async def test_the_same_key_publishes_once(administered: Administered) -> None:
    first = await administered.push(idempotency_key="k1", x_request_id="first")
    again = await administered.push(
        EMAIL_JSON.replace(b",", b", "), idempotency_key="k1", x_request_id="again"
    )
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json() == first.json() == {**first.json(), "correlation_id": "first"}
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert await rows_of(administered.url, EVERYTHING) == [(1,), (1,), (0,)]


@pytest.mark.parametrize(
    ("move", "remembered"),
    [
        ("insert into processed_messages select id, channel, 'done' from outbox", False),
        (
            "insert into dead_letters (id, channel, message_id, message, reason, attempts,"
            " correlation_id) select gen_random_uuid(), channel, id::text, message, 'x', 3,"
            " correlation_id from outbox",
            True,
        ),
    ],
)
async def test_a_key_is_remembered_wherever_its_message_is(
    administered: Administered, database: Database, move: str, remembered: bool
) -> None:
    first = (await administered.push(idempotency_key="k1", x_request_id="r1")).json()
    async with database.transaction() as connection:
        await connection.execute(move.encode())
        await connection.execute("delete from outbox")
    again = await administered.push(idempotency_key="k1")
    assert (again.status_code, again.json()["message_id"]) == (202, first["message_id"])
    assert again.json()["correlation_id"] == ("r1" if remembered else None)
    other = await administered.push(EMAIL_JSON.replace(b"Hello", b"Bye"), idempotency_key="k1")
    assert other.status_code == 422
    assert await administered.count("outbox") == 0


@pytest.mark.parametrize(
    ("body", "query"),
    [
        (EMAIL_JSON.replace(b"Hello", b"Bye"), ""),
        (EMAIL_JSON, "?dedup_key=d"),
        (EMAIL_JSON, "?available_at=2100-01-01T00:00:00Z"),
    ],
)
async def test_a_key_is_for_one_message(
    administered: Administered, body: bytes, query: str
) -> None:
    await administered.push(idempotency_key="k1")
    response = await administered.push(body, query, idempotency_key="k1")
    assert problem_of(response).type == "urn:couponflow:problem:idempotency-key-reused"
    assert response.status_code == 422
    assert await rows_of(administered.url, EVERYTHING) == [(1,), (1,), (0,)]


async def test_keys_of_two_callers_have_nothing_to_do_with_each_other(
    administered: Administered,
) -> None:
    mine = await administered.push(idempotency_key="k1")
    theirs = await administered.push(
        idempotency_key="k1", authorization=bearer(token("service", subject="x"))["authorization"]
    )
    assert mine.json()["message_id"] != theirs.json()["message_id"]
    assert await administered.count("outbox") == 2


@pytest.mark.parametrize("bodies", [[EMAIL_JSON], [EMAIL_JSON, EMAIL_JSON.replace(b"H", b"J")]])
async def test_whoever_sends_a_key_at_once_publishes_once(
    administered: Administered, bodies: list[bytes]
) -> None:
    responses: list[httpx2.Response] = []

    async def push(body: bytes) -> None:
        responses.append(await administered.push(body, idempotency_key="k1"))

    async with anyio.create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(push, bodies[number % len(bodies)])
    taken = {response.json()["message_id"] for response in responses if response.is_success}
    refused = [response.status_code for response in responses if not response.is_success]
    assert len(taken) == 1
    assert refused == [422] * (5 if len(bodies) == 2 else 0)
    assert await rows_of(administered.url, EVERYTHING) == [(1,), (1,), (0,)]


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb", "ü\x80"])
async def test_a_key_must_be_plain(administered: Administered, key: str) -> None:
    response = await administered.client.post(
        "/api/v1/queue/emails",
        content=EMAIL_JSON,
        headers=[
            (b"authorization", SERVICE["authorization"].encode()),
            (b"idempotency-key", key.encode("latin-1")),
        ],
    )
    assert (problem_of(response).status, await administered.count("outbox")) == (422, 0)


# Steering


async def test_a_channel_is_paused_and_resumed(administered: Administered) -> None:
    query = "select channel, paused, changed_by from channel_controls"
    paused = await administered.client.post("/api/v1/queue/emails/pause", headers=SERVICE)
    assert await rows_of(administered.url, query) == [("emails", True, "api:test")]
    resumed = await administered.client.post("/api/v1/queue/emails/resume", headers=SERVICE)
    assert await rows_of(administered.url, query) == [("emails", False, "api:test")]
    unlimited = {"channel": "emails", "rate_per_second": None, "concurrency": None}
    assert paused.json() == {**unlimited, "paused": True}
    assert resumed.json() == {**unlimited, "paused": False}
    assert await administered.count("audit_logs") == 2


async def test_limits_are_set_kept_and_taken_away(administered: Administered) -> None:
    async def limit(body: bytes) -> tuple[object, object]:
        response = await administered.client.post(
            "/api/v1/queue/sms/limits", content=body, headers=SERVICE
        )
        answer = response.json()
        return answer["rate_per_second"], answer["concurrency"]

    assert await limit(b'{"rate_per_second": 2.5, "concurrency": 3}') == (2.5, 3)
    assert await limit(b'{"concurrency": 4}') == (2.5, 4)
    assert await limit(b'{"rate_per_second": null}') == (None, 4)
    assert await rows_of(
        administered.url, "select rate_per_second, concurrency from channel_controls"
    ) == [(None, 4)]


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"null",
        b'{"rate_per_second": 0}',
        b'{"rate_per_second": -1}',
        b'{"rate_per_second": 1e400}',
        b'{"rate_per_second": "2"}',
        b'{"concurrency": 0}',
        b'{"concurrency": 1.5}',
        b'{"concurrency": 1000000000000}',
        b'{"concurrency": 1, "paused": true}',
    ],
)
async def test_a_limit_that_makes_no_sense_is_refused(
    administered: Administered, body: bytes
) -> None:
    response = await administered.client.post(
        "/api/v1/queue/sms/limits", content=body, headers=SERVICE
    )
    assert problem_of(response).status in (400, 422)
    assert await rows_of(administered.url, EVERYTHING) == [(0,), (0,), (0,)]


async def test_clicks_have_a_rate_but_no_concurrency(administered: Administered) -> None:
    path = "/api/v1/queue/clicks/limits"
    refused = await administered.client.post(path, content=b'{"concurrency": 3}', headers=SERVICE)
    problem = problem_of(refused)
    assert (refused.status_code, problem.type) == (422, "urn:couponflow:problem:invalid-body")
    assert "the channel clicks has no concurrency" in problem.detail
    assert await rows_of(administered.url, EVERYTHING) == [(0,), (0,), (0,)]
    taken = await administered.client.post(
        path, content=b'{"rate_per_second": 5, "concurrency": null}', headers=SERVICE
    )
    assert taken.json() == {
        "channel": "clicks",
        "paused": False,
        "rate_per_second": 5.0,
        "concurrency": None,
    }


async def test_a_message_that_no_stream_takes_is_refused(administered: Administered) -> None:
    click = msgspec.json.encode(make_click(1, user_agent="x" * 1_000_000))
    response = await administered.client.post(
        "/api/v1/queue/clicks", content=click, headers=SERVICE
    )
    assert (response.status_code, problem_of(response).path) == (422, "$")
    assert "larger than 1,000,000 bytes" in problem_of(response).detail
    assert await rows_of(administered.url, EVERYTHING) == [(0,), (0,), (0,)]


# Whatever is sent

ODD_TEXT = st.text(max_size=40)
ODD_HEADER = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\0"), max_size=40)
ODD_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ODD_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ODD_TEXT, inner, max_size=3),
    max_leaves=8,
)
ODD_BODY = (
    st.binary(max_size=200)
    | ODD_JSON.map(msgspec.json.encode)
    | st.builds(
        lambda field, value: msgspec.json.encode({**EMAIL, field: value}),
        st.sampled_from(["to", "subject", "text", "html", "type", "more"]),
        ODD_JSON,
    )
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    route=st.sampled_from([(method, path) for method, path, _ in ROUTES]),
    body=ODD_BODY,
    query=st.dictionaries(st.sampled_from(["available_at", "dedup_key", "x"]), ODD_TEXT),
    headers=st.dictionaries(
        st.sampled_from(["idempotency-key", "x-request-id", "content-type", "accept"]), ODD_HEADER
    ),
)
async def test_nothing_that_is_sent_is_a_fault_of_ours(
    administered: Administered,
    route: tuple[str, str],
    body: bytes,
    query: dict[str, str],
    headers: dict[str, str],
) -> None:
    pairs = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    pairs.append((b"authorization", SERVICE["authorization"].encode()))
    method, path = route
    response = await administered.client.request(
        method, path, content=body, params=query, headers=pairs
    )
    assert response.status_code < 500
