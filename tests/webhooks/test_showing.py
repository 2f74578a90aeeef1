from collections.abc import Mapping

import psycopg
import pytest

from couponflow.kernel.clock import ManualClock
from couponflow.kernel.database import Database
from couponflow.webhooks.contract import Source, StoredEvent
from couponflow.webhooks.following import following
from couponflow.webhooks.redaction import REDACTED, Payload
from couponflow.webhooks.showing import ShownEvent, reveal_event, show_event
from tests.kernel.letters import letter
from tests.samples import rows_of
from tests.webhooks.webhook_rows import (
    IDS,
    SOURCES,
    LoggedRow,
    event,
    give_up,
    letter_of,
    log_events,
    make_dead,
)

pytestmark = pytest.mark.once

UNKNOWN_ID = "01920000-0000-7000-8000-000000000000"
AUDIT = "select actor, action, subject, details from audit_logs"
PRIVATE = {
    "query": "secret=s3&a=1",
    "headers": {"x-signature": "s3", "x-id": "7"},
    "body": b'{"count":1,"email":"ann@shop.example"}',
}


async def shown(
    database: Database, logged: LoggedRow, sources: Mapping[str, Source] = SOURCES
) -> ShownEvent:
    async with database.connection() as connection:
        found = await show_event(connection, sources, logged.id)
    assert found is not None
    return found


async def revealed(database: Database, webhook_id: str) -> ShownEvent | None:
    return await reveal_event(
        database, SOURCES, webhook_id, actor="cli:ann", clock=ManualClock(), ids=IDS
    )


def ids_following(logged: LoggedRow) -> list[str]:
    stored = StoredEvent(
        webhook_id=logged.id,
        event_type=logged.event_type,
        event_id=logged.event_id,
        method=logged.method,
        query=logged.query,
        headers=logged.headers,
        body=logged.body,
        received_at=logged.received_at,
    )
    return [each.message_id or "" for each in following(SOURCES["mailer"], stored)]


async def test_an_event_is_shown_without_secrets_and_personal_data(database: Database) -> None:
    logged = event(**PRIVATE)
    await log_events(database, logged)
    found = await shown(database, logged)
    assert (found.id, found.received_at, found.revealed) == (logged.id, logged.moment, False)
    assert found.query == f"secret={REDACTED}&a=1"
    assert found.headers == {"x-signature": REDACTED, "x-id": "7"}
    assert found.body == Payload(f'{{"count":1,"email":"{REDACTED}"}}', "json")
    assert await rows_of(database.url, AUDIT) == []


async def test_an_event_can_be_revealed_which_is_on_record(database: Database) -> None:
    logged = event(**PRIVATE)
    await log_events(database, logged)
    found = await revealed(database, logged.id)
    assert found is not None
    assert found.revealed
    assert (found.query, found.headers) == (PRIVATE["query"], PRIVATE["headers"])
    assert found.body == Payload('{"count":1,"email":"ann@shop.example"}', "text")
    assert await rows_of(database.url, AUDIT) == [
        ("cli:ann", "webhooks.reveal", logged.id, {"source": "mailer", "event_id": "evt_1"})
    ]


async def test_bytes_that_are_no_text_are_revealed_in_base64(database: Database) -> None:
    logged = event(body=b"\x00\xff")
    await log_events(database, logged)
    found = await revealed(database, logged.id)
    assert found is not None
    assert found.body == Payload("AP8=", "base64")
    assert (await shown(database, logged)).body == Payload("", "hidden")


async def test_nothing_is_revealed_that_cannot_be_put_on_record(database: Database) -> None:
    logged = event()
    await log_events(database, logged)
    async with database.connection() as connection:
        await connection.execute("alter table audit_logs add check (action = 'other')")
    with pytest.raises(psycopg.errors.CheckViolation):
        await revealed(database, logged.id)


async def test_an_event_that_is_not_there_is_none(database: Database) -> None:
    for webhook_id in (UNKNOWN_ID, "nobody"):
        async with database.connection() as connection:
            assert await show_event(connection, SOURCES, webhook_id) is None
        assert await revealed(database, webhook_id) is None
    assert await rows_of(database.url, AUDIT) == []


async def test_what_became_of_the_messages_that_followed_is_shown(database: Database) -> None:
    logged = event(body=b'{"count":6}')
    waiting, done, discarded, dead, unknown, given_up, *_ = ids_following(logged)
    await log_events(database, logged)
    async with database.transaction() as connection:
        await connection.execute(
            "insert into outbox (id, channel, message, correlation_id)"
            " values (%s, 'emails', '{}', '')",
            [waiting],
        )
        await connection.execute(
            "insert into processed_messages (message_id, channel, outcome)"
            " values (%s, 'emails', 'done'), (%s, 'emails', 'discarded')",
            [done, discarded],
        )
    # The same id on another channel is another message.
    await make_dead(
        database,
        letter(dead, "emails", reason="no ann@shop.example", correlation_id=logged.id),
        letter(unknown, "sms"),
    )
    hopeless = [
        letter(given_up, "emails", reason="no ben@shop.example", correlation_id=logged.id),
        letter(unknown, "orders", correlation_id=logged.id),
        letter(done, "emails", correlation_id=logged.id),
    ]
    await make_dead(database, *hopeless)
    await give_up(database, *hopeless)
    found = await shown(database, logged)
    assert [(each.id, each.state, each.reason) for each in found.following] == [
        (waiting, "waiting", ""),
        (done, "done", ""),
        (discarded, "discarded", ""),
        (dead, "dead", "no a***@shop.example"),
        (unknown, "unknown", ""),
        (given_up, "given-up", "no b***@shop.example"),
    ]
    assert {(each.channel, each.message_type) for each in found.following} == {
        ("emails", "email.v1")
    }
    assert [(each.message_id, each.reason) for each in found.letters] == [
        (dead, "no a***@shop.example")
    ]
    gone = {each.id: each for each in found.given_up}
    assert gone.keys() == {each.id for each in hopeless}
    first = gone[hopeless[0].id]
    assert (first.channel, first.message_id, first.actor) == ("emails", given_up, "cli:bob")
    assert first.reason == "no b***@shop.example"
    raw = await revealed(database, logged.id)
    assert raw is not None
    assert raw.letters[0].reason == raw.following[3].reason == "no ann@shop.example"
    assert raw.following[5].reason == "no ben@shop.example"
    assert "no ben@shop.example" in {each.reason for each in raw.given_up}


async def test_an_event_that_its_source_cannot_read_says_why(database: Database) -> None:
    logged = event(body=b"{}")
    await log_events(database, logged)
    await make_dead(database, letter_of(logged, "it cannot be read"))
    found = await shown(database, logged)
    assert (found.status, found.following) == ("dead", [])
    assert found.unreadable.startswith("a***@shop.example cannot be read: Object missing")
    assert [each.reason for each in found.letters] == ["it cannot be read"]


async def test_where_nothing_follows_it_says_why(database: Database) -> None:
    logged, refused, empty = event(1), event(2, verdict="stale"), event(3, body=b'{"count":0}')
    unreadable = event(4, body=b"{}")
    await log_events(database, logged, refused, empty, unreadable)
    assert (await shown(database, logged)).nothing_follows == ""
    assert len((await shown(database, logged)).following) == 1
    for row, sources, why in (
        (logged, {}, "no source mailer is configured here"),
        (refused, SOURCES, "its sender was not believed"),
        (empty, SOURCES, "couponflow does not act on what it tells (mailer mail.wanted)"),
        (unreadable, SOURCES, "its source cannot read it"),
    ):
        found = await shown(database, row, sources)
        assert (found.following, found.nothing_follows) == ([], why)


async def test_how_much_of_a_body_is_kept_is_told(database: Database) -> None:
    whole, cut = event(1), event(2, verdict="stale", body=b"x" * 256)
    await log_events(database, whole, cut)
    async with database.connection() as connection:
        await connection.execute(
            "update webhook_logs set body_bytes = 4096 where id = %s", [cut.id]
        )
    found = await shown(database, whole)
    assert (found.body_bytes, found.body_bytes_kept) == (11, 11)
    found = await shown(database, cut)
    assert (found.body_bytes, found.body_bytes_kept) == (4096, 256)
