"""Both servers under real requests, those of well-behaved senders and those of broken ones."""

from collections import Counter
from urllib.parse import quote

import anyio
import msgspec
import pytest

from couponflow.config import DatabaseSettings
from couponflow.config_sources import Msg91Settings
from couponflow.kernel.database import Database, open_database
from couponflow.kernel.http import Listener, ServerName
from couponflow.webhooks.sources.msg91 import Msg91Source
from tests.kernel.http_clients import RawAnswer, exchange, read_answer, request
from tests.kernel.outboxes import select
from tests.samples import until
from tests.webhooks.deliveries import NOWHERE, SIGNATURE, counts, signature
from tests.webhooks.routes import (
    BODY_BYTES,
    PAGE,
    post,
    post_chunks,
    routes_parts,
    served,
)

pytestmark = pytest.mark.once

LARGE = b"x" * (BODY_BYTES + 1)
PART_OF_A_BODY = {
    "announced": post(body=b"an", length=3),
    "chunked": post_chunks(b"an", ended=False),
}
parts_of_bodies = pytest.mark.parametrize("raw", PART_OF_A_BODY.values(), ids=PART_OF_A_BODY.keys())


@pytest.fixture(params=["granian", "hypercorn"])
def server(request: pytest.FixtureRequest) -> ServerName:
    return request.param


def outcome(answer: RawAnswer) -> tuple[int, str]:
    """The status, and what it is about."""
    told = msgspec.json.decode(answer.body) if answer.body else {}
    if dict(answer.headers).get("content-type") == "application/problem+json":
        return answer.status, told["type"].rpartition(":")[2]
    return answer.status, told.get("status", "")


CASES: dict[str, tuple[bytes, tuple[int, str]]] = {
    "delivery": (post(event_id="e1"), (200, "accepted")),
    "again": (post(event_id="e1"), (200, "duplicate")),
    "with a token": (post("/shop/token", event_id="e2"), (200, "accepted")),
    "with a slash": (post("/shop/", event_id="e3"), (200, "accepted")),
    "chunked": (post_chunks(b"chunk ", b"by chunk"), (200, "accepted")),
    "chunked again": (post_chunks(b"chunk by chunk"), (200, "duplicate")),
    "empty": (post(body=b""), (200, "accepted")),
    "empty and chunked": (post_chunks(), (200, "duplicate")),
    "as long as may be": (post(body=b"x" * BODY_BYTES), (200, "accepted")),
    "chunks as long as may be": (
        post_chunks(b"y" * (BODY_BYTES // 2), b"y" * (BODY_BYTES // 2)),
        (200, "accepted"),
    ),
    "any bytes": (post(body=bytes(range(256))), (200, "accepted")),
    "postback": (post("/net?a=1", b"", method="GET"), (200, "accepted")),
    "postback again": (post("/net?a=1", b""), (200, "duplicate")),
    "postback without a length": (
        request("/net?a=2", f"{SIGNATURE}: {signature(b'')}"),
        (200, "accepted"),
    ),
    "forged": (post(signed="0" * 64), (401, "not-verified")),
    "unsigned": (request("/shop", "content-length: 0", method="POST"), (401, "not-verified")),
    "old": (post(signed="old"), (401, "not-verified")),
    "too long": (post(body=LARGE), (413, "body-too-large")),
    "too many chunks": (post_chunks(LARGE), (413, "body-too-large")),
    "far too long": (post(body=b"", length=10**11), (413, "body-too-large")),
    "nobody's": (post("/mall"), (404, "unknown-source")),
    "nothing": (post("/"), (404, "unknown-source")),
    "capitals": (post("/Shop"), (404, "unknown-source")),
    "wrong method": (post(method="PUT"), (405, "method-not-allowed")),
    "get": (request("/shop"), (405, "method-not-allowed")),
    "get of a token": (request("/shop/token"), (405, "method-not-allowed")),
    "options": (request("/shop", method="OPTIONS"), (405, "method-not-allowed")),
    "health": (request("/health"), (200, "alive")),
    "not ready": (request("/ready"), (503, "not_ready")),
    "health of the queue": (request("/api/webhook"), (200, "alive")),
    "post to health": (post("/health"), (404, "unknown-source")),
}


async def test_each_request_is_answered_as_it_should_be(
    database: Database, server: ServerName
) -> None:
    parts = routes_parts(database)
    ids: list[str] = []
    async with served(server, parts) as listener:
        for name, (raw, expected) in CASES.items():
            answer = await exchange(listener, raw)
            assert outcome(answer) == expected, name
            if expected == (200, "accepted"):
                assert dict(answer.headers)["content-type"] == "application/json"
                ids.append(msgspec.json.decode(answer.body)["webhook_id"])
            elif expected == (200, "duplicate"):
                assert answer.body == b'{"status":"duplicate"}'
    assert await counts(database) == (len(ids),) * 3
    rows = await select(database, "select id::text from webhook_logs")
    assert {webhook_id for (webhook_id,) in rows} == set(ids)
    assert {gate.in_flight for gate in parts.gates.values()} == {0}


async def test_what_is_allowed_is_said(server: ServerName) -> None:
    async with served(server, routes_parts()) as listener:
        for path, allowed in (
            ("/shop", "POST"),
            ("/net/token", "GET, POST"),
            ("/api/webhook", "GET, POST"),
        ):
            answer = await exchange(listener, post(path, method="PATCH"))
            assert (answer.status, dict(answer.headers)["allow"]) == (405, allowed)


async def test_a_head_is_answered_without_a_body(server: ServerName) -> None:
    async with served(server, routes_parts()) as listener:
        for path, status in (
            *(("/health", 200), ("/ready", 503), ("/api/webhook", 200)),
            *(("/shop", 405), ("/mall", 404)),
        ):
            async with await anyio.connect_tcp(listener.host, listener.port) as stream:
                await stream.send(request(path, method="HEAD"))
                assert (await read_answer(stream, has_body=False)).status == status
                # Were there a body, it would stand before the next answer.
                await stream.send(request("/health"))
                assert (await read_answer(stream)).body == b'{"status":"alive"}'


async def test_it_is_ready_when_the_role_is(server: ServerName) -> None:
    parts = routes_parts()
    async with served(server, parts) as listener:
        assert (await exchange(listener, request("/ready"))).status == 503
        parts.health.report("role:webhooks", True)
        parts.health.report("webhook:shop", False, "silent")
        ready = await exchange(listener, request("/ready"))
        assert (ready.status, outcome(ready)) == (200, (200, "degraded"))
        assert b"webhook:shop" in ready.body


async def test_a_source_is_given_what_was_sent_as_it_was_sent(
    database: Database, server: ServerName
) -> None:
    parts = routes_parts(database, trusted_proxies=("127.0.0.1",))
    raw = post(
        "/shop/token;x?a=%20b&c=+&&",
        b"\0\xffann",
        "X-Event-Type: one",
        "X-Key:   two",
        "x-event-type: three",
        "X-Other: four",
        "x-forwarded-for: 198.51.100.9, 192.0.2.44",
    )
    async with served(server, parts) as listener:
        assert outcome(await exchange(listener, raw)) == (200, "accepted")
    (seen,) = parts.shop.seen
    assert (seen.method, seen.token, seen.query) == ("POST", "token;x", "a=%20b&c=+&&")
    assert seen.body == b"\0\xffann"
    assert {name: value for name, value in seen.headers.items() if name != "x-signature"} == {
        "x-event-type": "one,three",
        "x-key": "two",
    }
    assert (seen.address, seen.received_at) == ("192.0.2.44", parts.intake.clock.now())


async def test_a_secret_in_the_path_may_hold_any_characters(
    database: Database, server: ServerName
) -> None:
    secrets = ["plain", "a b", "a+b=", "50%41", "\u00fc", "a/b"]
    parts = routes_parts(database)
    for secret in secrets:
        settings = Msg91Settings(webhook_token=(secret,))
        parts.gates["shop"].source = Msg91Source(settings)
        async with served(server, parts) as listener:
            raw = post(f"/shop/{quote(secret, safe='')}", secret.encode())
            assert outcome(await exchange(listener, raw)) == (200, "accepted"), secret
            raw = post(f"/shop/{quote(secret[1:], safe='')}", secret.encode())
            assert (await exchange(listener, raw)).status in (401, 404), secret


async def test_events_come_one_after_the_other_on_a_connection(
    database: Database, server: ServerName
) -> None:
    parts = routes_parts(database)
    async with served(server, parts) as listener:
        stream = await anyio.connect_tcp(listener.host, listener.port)
        async with stream:
            for number in range(10):
                await stream.send(post(event_id=f"length {number}"))
                assert outcome(await read_answer(stream)) == (200, "accepted")
                await stream.send(post_chunks(f"chunk {number}".encode()))
                assert outcome(await read_answer(stream)) == (200, "accepted")
                await stream.send(post(signed="forged"))
                assert outcome(await read_answer(stream)) == (401, "not-verified")
    assert await counts(database) == (20, 20, 20)


async def test_a_burst_is_answered_each_once(database: Database, server: ServerName) -> None:
    parts = routes_parts(database, concurrency=1_000)
    told: Counter[tuple[int, str]] = Counter()

    async def sender(number: int) -> None:
        answer = await exchange(listener, post(event_id=f"e{number % 100}"))
        told[outcome(answer)] += 1

    async with served(server, parts) as listener, anyio.create_task_group() as senders:
        for number in range(200):
            senders.start_soon(sender, number)
    assert told == {(200, "accepted"): 100, (200, "duplicate"): 100}
    assert await counts(database) == (100, 100, 100)


# Bounds


async def last_outcome(listener: Listener, raw: bytes) -> tuple[int, str]:
    """What is answered on a connection that the server closes then."""
    async with await anyio.connect_tcp(listener.host, listener.port) as stream:
        await stream.send(raw)
        told = outcome(await read_answer(stream))
        with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
            await stream.receive()
        return told


@pytest.mark.parametrize(
    "raw",
    [post(body=b"", length=BODY_BYTES + 1), post_chunks(LARGE, ended=False)],
    ids=["announced", "chunked"],
)
async def test_a_body_that_is_too_large_is_not_waited_for(server: ServerName, raw: bytes) -> None:
    parts = routes_parts(body_seconds=60)
    async with served(server, parts) as listener:
        assert await last_outcome(listener, raw) == (413, "body-too-large")
        await until(lambda: parts.gates["shop"].in_flight == 0)
    assert parts.shop.seen == []


@parts_of_bodies
async def test_a_body_that_stops_arriving_is_given_up(server: ServerName, raw: bytes) -> None:
    parts = routes_parts(body_seconds=0.2)
    async with served(server, parts) as listener:
        begun_at = anyio.current_time()
        assert await last_outcome(listener, raw) == (408, "body-too-slow")
        assert 0.15 < anyio.current_time() - begun_at < 3
        assert parts.gates["shop"].in_flight == 0
        assert (await exchange(listener, request("/health"))).status == 200
    assert parts.shop.seen == []


async def test_a_sender_that_leaves_costs_nothing(database: Database, server: ServerName) -> None:
    parts = routes_parts(database, body_seconds=60, concurrency=1)
    gate = parts.gates["shop"]

    async def leave(raw: bytes) -> None:
        async with await anyio.connect_tcp(listener.host, listener.port) as stream:
            await stream.send(raw)
            await until(lambda: gate.in_flight == 1)
        await until(lambda: gate.in_flight == 0)

    async with served(server, parts) as listener:
        for name, raw in PART_OF_A_BODY.items():
            await leave(raw)
            await leave(raw)
            # What came of the body is nobody's word.
            assert parts.shop.seen == [], name
        async with await anyio.connect_tcp(listener.host, listener.port) as stream:
            await stream.send(post())
            await until(lambda: parts.outcomes().get("accepted") == 1)
        # Whoever left without an answer sends again.
        assert outcome(await exchange(listener, post())) == (200, "duplicate")
    assert parts.outcomes() == {"client-gone": 4, "accepted": 1, "duplicate": 1}
    assert await counts(database) == (1, 1, 1)


async def test_who_may_not_call_takes_no_place_and_is_not_read(
    database: Database, server: ServerName
) -> None:
    parts = routes_parts(database, allowed=["10.0.0.0/8"], body_seconds=60, concurrency=0)
    async with served(server, parts) as listener:
        for raw in (post(), *PART_OF_A_BODY.values()):
            assert outcome(await exchange(listener, raw)) == (403, "forbidden-address")
    assert parts.shop.seen == []
    await parts.intake.refusals.flush()
    told = await select(database, "select distinct verdict, body_bytes from webhook_logs")
    assert told == [("forbidden-address", 0)]


async def test_beyond_its_places_a_source_is_told_to_come_again(
    database: Database, server: ServerName
) -> None:
    parts = routes_parts(database, concurrency=2)
    announced, chunked = post(body=b"ann " * 5), post_chunks(b"ben " * 5)
    async with (
        served(server, parts) as listener,
        await anyio.connect_tcp(listener.host, listener.port) as first,
        await anyio.connect_tcp(listener.host, listener.port) as second,
    ):
        await first.send(announced[:-9])
        await second.send(chunked[:-9])
        await until(lambda: parts.gates["shop"].in_flight == 2)
        for raw in (post(), post_chunks(b"ann")):
            busy = await exchange(listener, raw)
            assert outcome(busy) == (503, "busy")
            assert dict(busy.headers)["retry-after"] == "1"
        # Whoever else calls has places of its own.
        assert outcome(await exchange(listener, post("/net", b"cid"))) == (200, "accepted")
        for stream, raw in ((first, announced), (second, chunked)):
            await stream.send(raw[-9:])
            assert outcome(await read_answer(stream)) == (200, "accepted")
        assert outcome(await exchange(listener, post(body=b"dan"))) == (200, "accepted")


async def test_more_than_the_rate_is_told_to_come_later(
    database: Database, server: ServerName
) -> None:
    parts = routes_parts(database, rate_per_second=1)
    async with served(server, parts) as listener:
        assert (await exchange(listener, post(signed="forged"))).status == 401
        assert outcome(await exchange(listener, post())) == (200, "accepted")
        limited = await exchange(listener, post())
        assert outcome(limited) == (429, "rate-limited")
        assert dict(limited.headers)["retry-after"] == "1"
        assert outcome(await exchange(listener, post("/net", b"cid"))) == (200, "accepted")
        parts.intake.clock.advance(1)
        assert outcome(await exchange(listener, post())) == (200, "duplicate")


async def test_while_postgresql_is_away_nothing_is_accepted(server: ServerName) -> None:
    settings = DatabaseSettings(connect_timeout_seconds=0.1)
    async with (
        open_database(NOWHERE, settings) as database,
        served(server, routes_parts(database)) as listener,
    ):
        for raw in (post(), post_chunks(b"ann")):
            answer = await exchange(listener, raw)
            assert outcome(answer) == (503, "not-stored")
            assert dict(answer.headers)["retry-after"] == "5"
        # What is wrong is told all the same.
        assert (await exchange(listener, post(signed="forged"))).status == 401


# Pages that may call


def preflight(path: str, origin: str) -> bytes:
    return request(
        path, f"origin: {origin}", "access-control-request-method: POST", method="OPTIONS"
    )


async def cors_of(listener: Listener, raw: bytes) -> tuple[int, dict[str, str]]:
    answer = await exchange(listener, raw)
    return answer.status, {
        name.removeprefix("access-control-"): value
        for name, value in answer.headers
        if name.startswith("access-control-") or name == "vary"
    }


async def test_only_pages_of_configured_origins_may_call(
    database: Database, server: ServerName
) -> None:
    allowed = {"allow-origin": PAGE, "vary": "origin"}
    async with served(server, routes_parts(database, cors=[PAGE])) as listener:
        status, told = await cors_of(listener, preflight("/api/webhook", PAGE))
        assert (status, told["allow-methods"]) == (204, "GET, POST")
        assert allowed.items() <= told.items()
        for body in (b"ann", b"ben"):
            raw = post("/api/webhook", body, f"origin: {PAGE}")
            assert await cors_of(listener, raw) == (200, allowed)
        forged = post("/api/webhook", b"ann", f"origin: {PAGE}", signed="forged")
        assert await cors_of(listener, forged) == (401, allowed)
        get = request("/api/webhook", f"origin: {PAGE}")
        assert await cors_of(listener, get) == (200, allowed)
        for origin in ("https://pages.example.net", "http://pages.example", "null", "*", ""):
            assert await cors_of(listener, preflight("/api/webhook", origin)) == (405, {})
            raw = post("/api/webhook", b"ann", f"origin: {origin}")
            assert await cors_of(listener, raw) == (200, {})
        assert await cors_of(listener, preflight("/shop", PAGE)) == (405, {})
        assert await cors_of(listener, post("/shop", b"ann", f"origin: {PAGE}")) == (200, {})
    async with served(server, routes_parts(database)) as listener:
        assert await cors_of(listener, preflight("/api/webhook", PAGE)) == (405, {})
        raw = post("/api/webhook", b"ann", f"origin: {PAGE}")
        assert await cors_of(listener, raw) == (200, {})
