from datetime import UTC, datetime

import pytest

from couponflow.kernel.cursors import CursorInvalid
from couponflow.kernel.database import Database
from couponflow.kernel.outbox import publish
from couponflow.messages import EmailRequested, WebhookAccepted
from couponflow.webhooks.event_filter import EventFilter, compose, filter_parameters
from couponflow.webhooks.log_reading import (
    EventCounts,
    EventGroup,
    EventPage,
    EventSummary,
    count_events,
    letters_of,
    list_events,
    read_logged_event,
)
from tests.kernel.letters import letter
from tests.webhooks.webhook_rows import (
    IDS,
    RECEIVED_AT,
    LoggedRow,
    event,
    letter_of,
    log_events,
    log_one_of_each,
    make_dead,
    make_waiting,
)

pytestmark = pytest.mark.once

UNKNOWN_ID = "01920000-0000-7000-8000-000000000000"
FILL = """
insert into webhook_logs (id, received_at, source, event_type, event_id, verdict, method, query,
                          headers, body, body_bytes, body_sha256, address)
select (lpad(to_hex((extract(epoch from at) * 1000)::bigint), 12, '0')
        || '7000a' || lpad(to_hex(n), 15, '0'))::uuid,
       at, case when n %% 10 = 0 then 'rare' else 'frequent' end, 'paid', 'evt_' || n, 'verified',
       'POST', '', '{}', 'body', 4, sha256('body'), ''
from (select n, %(start)s::timestamptz + n * interval '1 second' as at
      from generate_series(1, 20000) n) as made
"""


async def page_of(
    database: Database, event_filter: EventFilter, limit: int = 50, cursor: str | None = None
) -> EventPage:
    async with database.connection() as connection:
        return await list_events(connection, event_filter, limit, cursor)


async def ids_of(database: Database, event_filter: EventFilter) -> list[str]:
    return [each.id for each in (await page_of(database, event_filter)).items]


async def counts_of(database: Database, event_filter: EventFilter) -> EventCounts:
    async with database.connection() as connection:
        return await count_events(connection, event_filter)


async def statuses(database: Database) -> dict[str, str]:
    page = await page_of(database, EventFilter())
    return {each.id: each.status for each in page.items}


async def test_events_are_listed_newest_first_without_their_payload(database: Database) -> None:
    old, new = event(1), event(2, source="stripe", body=b"secret")
    await log_events(database, new, old)
    page = await page_of(database, EventFilter())
    assert [each.id for each in page.items] == [new.id, old.id]
    assert page.next_cursor is None
    assert page.items[0] == EventSummary(
        id=new.id,
        received_at=new.moment,
        source="stripe",
        event_type="mail.wanted",
        event_id="evt_2",
        verdict="verified",
        status="processed",
        body_bytes=6,
    )


async def test_a_status_is_where_the_messages_of_the_event_are(database: Database) -> None:
    logged = await log_one_of_each(database)
    assert await statuses(database) == {row.id: status for status, row in logged.items()}


async def test_a_replay_on_its_way_makes_an_event_wait_also_a_dead_one(database: Database) -> None:
    logged = await log_one_of_each(database)
    for row in (logged["processed"], logged["dead"]):
        message = WebhookAccepted(webhook_id=row.id, source="mailer", received_at=row.received_at)
        async with database.transaction() as connection:
            await publish(connection, message, dedup_key=f"replay:{row.id}", correlation_id=row.id)
    waiting = {logged[status].id for status in ("processed", "waiting", "dead")}
    assert set(await ids_of(database, EventFilter(status="waiting"))) == waiting
    assert await ids_of(database, EventFilter(status="dead")) == []
    assert await ids_of(database, EventFilter(status="processed")) == []


async def test_an_event_whose_follower_is_dead_is_dead(database: Database) -> None:
    logged = event()
    await log_events(database, logged)
    await make_dead(database, letter("follower", "orders", correlation_id=logged.id))
    assert await ids_of(database, EventFilter(status="dead")) == [logged.id]


async def test_keys_and_stories_of_other_things_disturb_no_status(database: Database) -> None:
    logged = await log_one_of_each(database)
    await make_dead(database, letter("a", correlation_id="story"), letter("b"))
    for key in ("replay:", "replay:nobody", "other"):
        async with database.transaction() as connection:
            message = WebhookAccepted(webhook_id=UNKNOWN_ID, source="x", received_at=1.0)
            await publish(connection, message, dedup_key=key)
    async with database.transaction() as connection:
        message = EmailRequested(to="a@b.example", subject="x", text="x")
        key = f"replay:{logged['processed'].id}"
        await publish(connection, message, dedup_key=key)
    for status in ("waiting", "dead", "processed", "refused"):
        assert await ids_of(database, EventFilter(status=status)) == [logged[status].id]
    assert len(await ids_of(database, EventFilter(status="verified"))) == 3


@pytest.fixture
async def assorted(database: Database) -> dict[str, LoggedRow]:
    rows = {
        "paid": event(1, source="stripe", event_type="paid", body=b'{"order":"cf-1"}'),
        "sent": event(2, event_type="sent", query="subid=cf-1"),
        "odd": event(3, body=b"\x00\xffcf-2\x00"),
    }
    await log_events(database, *rows.values())
    return rows


def at(number: float) -> datetime:
    return datetime.fromtimestamp(RECEIVED_AT + number, UTC)


@pytest.mark.parametrize(
    ("event_filter", "expected"),
    [
        (EventFilter(), ["odd", "sent", "paid"]),
        (EventFilter(source="stripe"), ["paid"]),
        (EventFilter(source="mailer", event_type="sent"), ["sent"]),
        (EventFilter(event_type="paid"), ["paid"]),
        (EventFilter(since=at(2)), ["odd", "sent"]),
        (EventFilter(until=at(2)), ["paid"]),
        (EventFilter(since=at(1.5), until=at(2.5), source="mailer"), ["sent"]),
        (EventFilter(text="cf-1"), ["sent", "paid"]),
        (EventFilter(text="CF-1"), []),
        (EventFilter(text="\udcffcf-2\0"), ["odd"]),
        (EventFilter(source="\0", event_type="\udcff"), []),
        (EventFilter(ids=("nobody", UNKNOWN_ID)), []),
    ],
)
async def test_a_list_and_its_count_can_be_narrowed(
    database: Database,
    assorted: dict[str, LoggedRow],
    event_filter: EventFilter,
    expected: list[str],
) -> None:
    assert await ids_of(database, event_filter) == [assorted[name].id for name in expected]
    assert (await counts_of(database, event_filter)).total == len(expected)


async def test_events_are_found_by_their_ids(
    database: Database, assorted: dict[str, LoggedRow]
) -> None:
    wanted = (assorted["paid"].id.upper(), assorted["odd"].id)
    assert await ids_of(database, EventFilter(ids=wanted)) == [
        assorted["odd"].id,
        assorted["paid"].id,
    ]
    assert await ids_of(database, EventFilter(ids=wanted, source="stripe")) == [assorted["paid"].id]


@pytest.mark.parametrize("event_filter", [EventFilter(), EventFilter(source="mailer")])
async def test_pages_follow_one_another_to_the_end_while_new_events_come(
    database: Database, event_filter: EventFilter
) -> None:
    # Several of one moment and several days.
    moments = [0.0, 0.0, 0.0, 1.0, 100_000.0, 100_000.0, 200_000.0]
    rows = [event(1, id=IDS.make(RECEIVED_AT + at), received_at=RECEIVED_AT + at) for at in moments]
    await log_events(database, *rows)
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = await page_of(database, event_filter, 2, cursor)
        found += [each.id for each in page.items]
        await log_events(database, event(300_000 + len(found)))
        cursor = page.next_cursor
        if cursor is None:
            break
    assert found == sorted((row.id for row in rows), reverse=True)


@pytest.mark.parametrize(
    "cursor", ["", "x", "\udcff", "MjAyNi0wOS0yMSAwMTkyMDAwMC0wMDAwLTcwMDAtODAwMC0wMDAwMDAwMDAwMDA"]
)
async def test_a_cursor_that_no_list_returned_is_refused(database: Database, cursor: str) -> None:
    with pytest.raises(CursorInvalid, match="without"):
        await page_of(database, EventFilter(), 2, cursor)


async def test_counts_name_the_largest_groups(database: Database) -> None:
    assert await counts_of(database, EventFilter()) == EventCounts(0, [])
    await log_events(database, event(1), event(2), *(event(n, source=f"s{n}") for n in range(25)))
    waiting = event(99, source="stripe")
    await log_events(database, waiting)
    await make_waiting(database, waiting)
    counts = await counts_of(database, EventFilter())
    assert (counts.total, len(counts.groups)) == (28, 20)
    assert counts.groups[0] == EventGroup("mailer", "mail.wanted", "processed", 2)
    assert (await counts_of(database, EventFilter(source="stripe"))).groups == [
        EventGroup("stripe", "mail.wanted", "waiting", 1)
    ]


async def test_an_event_is_read_as_it_was_written_down(database: Database) -> None:
    logged = event(
        query="a=1", headers={"x-id": "7"}, body=b"\x00\xff", verdict="stale", detail="an hour old"
    )
    await log_events(database, logged)
    async with database.connection() as connection:
        read = await read_logged_event(connection, logged.id)
        assert await read_logged_event(connection, UNKNOWN_ID) is None
        assert await read_logged_event(connection, "nobody") is None
    assert read is not None
    assert (read.id, read.received_at, read.status) == (logged.id, logged.moment, "refused")
    assert (read.verdict, read.detail, read.method) == ("stale", "an hour old", "POST")
    assert (read.query, read.headers, read.body) == ("a=1", {"x-id": "7"}, b"\x00\xff")
    assert read.body_sha256.startswith("06eb7d6a69ee19e5fbdf749018d3d2abfa04bcbd1365db312eb86dc7")
    assert read.address == "192.0.2.9"


async def test_letters_are_found_by_the_events_of_their_stories(database: Database) -> None:
    first, second = event(1), event(2)
    await log_events(database, first, second)
    own, follower = letter_of(first, "off"), letter("f", "orders", correlation_id=first.id)
    await make_dead(database, own)
    await make_dead(database, follower, letter_of(second))
    async with database.connection() as connection:
        letters = await letters_of(connection, [first.id, UNKNOWN_ID])
    assert [(each.id, each.webhook_id) for each in letters] == [
        (own.id, first.id),
        (follower.id, first.id),
    ]
    assert (letters[0].channel, letters[0].message_id) == ("webhooks", first.id)
    assert letters[0].reason == "off"


@pytest.fixture
async def many(database: Database) -> Database:
    """Twenty thousand events on two days."""
    async with database.connection() as connection:
        for day in ("2026-09-21", "2026-09-22", "2026-09-23"):
            await connection.execute(
                f"create table webhook_logs_{day[-2:]} partition of webhook_logs for values"
                f" from ('{day}') to (date '{day}' + 1)".encode()
            )
        await connection.execute(FILL, {"start": datetime(2026, 9, 21, 21, tzinfo=UTC)})
        await connection.execute("analyze webhook_logs")
    return database


async def plan_of(database: Database, query: str, event_filter: EventFilter) -> str:
    places = {"before_at": None, "before_id": None, "after_id": None, "limit": 51, "groups": 20}
    async with database.connection() as connection:
        cursor = await connection.execute(
            b"explain " + compose(query, event_filter),
            {**filter_parameters(event_filter), **places},
            prepare=False,
        )
        return "\n".join([row[0] async for row in cursor])


async def test_no_list_reads_all_there_is(many: Database) -> None:
    plain = await plan_of(many, "list_events", EventFilter())
    of_source = await plan_of(many, "list_events_of_source", EventFilter(source="rare"))
    assert "webhook_logs_22_pkey" in plain
    assert "webhook_logs_22_source_received_at_idx" in of_source
    for plan in (plain, of_source):
        assert "Seq Scan on webhook_logs_22" not in plan


async def test_few_that_wait_or_are_dead_are_not_looked_for_among_all(many: Database) -> None:
    for event_filter in (EventFilter(status="waiting"), EventFilter(status="dead")):
        for query in ("list_events", "events_to_replay", "count_events"):
            plan = await plan_of(many, query, event_filter)
            assert "Seq Scan on webhook_logs_22" not in plan
            assert "Index Cond: (id = ANY" in plan


async def test_days_that_are_not_asked_for_are_not_read(many: Database) -> None:
    narrowed = EventFilter(
        since=datetime(2026, 9, 22, tzinfo=UTC), until=datetime(2026, 9, 23, tzinfo=UTC)
    )
    for query in ("list_events", "events_to_replay"):
        plan = await plan_of(many, query, narrowed)
        assert "webhook_logs_22" in plan
        assert "webhook_logs_21" not in plan
        assert "webhook_logs_23" not in plan
