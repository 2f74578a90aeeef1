from datetime import UTC, datetime

import pytest

from couponflow.kernel.cursors import CursorInvalid, cursor_after
from couponflow.kernel.database import Database
from couponflow.webhooks.event_filter import EventFilter, compose, filter_parameters
from couponflow.webhooks.log_reading import (
    EventCounts,
    EventGroup,
    EventPage,
    EventSummary,
    ask,
    count_events,
    events_named,
    is_source_logged,
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

FILL_OUTBOX = """
insert into outbox (id, channel, message, correlation_id)
select gen_random_uuid(), 'orders', '{}', id::text from webhook_logs order by id limit 10000
"""
FILL_AUDIT_LOGS = """
insert into audit_logs (id, actor, action, subject, details)
select gen_random_uuid(), 'cli:ann', 'dead_letters.discard', '',
       json_build_object('letter', json_build_object('correlation_id', id))
from webhook_logs order by id limit 10000
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


async def test_a_count_can_go_on_after_a_place(database: Database) -> None:
    rows = [event(number) for number in range(3)]
    await log_events(database, *rows)
    place = cursor_after(rows[0].moment, rows[0].id)
    async with database.connection() as connection:
        assert (await count_events(connection, EventFilter(), place)).total == 2
        with pytest.raises(CursorInvalid):
            await count_events(connection, EventFilter(), "x")


async def test_ids_that_no_event_has_are_counted_as_not_found(database: Database) -> None:
    logged = event()
    await log_events(database, logged)
    asked = EventFilter(ids=(logged.id.upper(), UNKNOWN_ID.upper(), "nobody"), source="stripe")
    counts = await counts_of(database, asked)
    # What does not match for another reason is there.
    assert (counts.total, counts.not_found) == (0, [UNKNOWN_ID.upper(), "nobody"])
    assert (await counts_of(database, EventFilter())).not_found == []


async def test_a_source_that_anything_was_received_from_is_logged(database: Database) -> None:
    await log_events(database, event(source="old", verdict="stale"))
    async with database.connection() as connection:
        assert await is_source_logged(connection, "old")
        assert not await is_source_logged(connection, "ol")
        assert not await is_source_logged(connection, "\0\udcff")


async def remember(database: Database, *logged: LoggedRow) -> None:
    """Have it known, as intake does, that these events were taken."""
    async with database.transaction() as connection, connection.cursor() as cursor:
        await cursor.executemany(
            "insert into webhook_events (source, event_id, webhook_id, received_at)"
            " values (%s, %s, %s, %s)",
            [(each.source, each.event_id, each.id, each.moment) for each in logged],
        )


async def test_events_are_found_by_what_their_senders_call_them(database: Database) -> None:
    ours, theirs = event(1, event_id="evt_x"), event(2, event_id="evt_x", source="stripe")
    forgotten, other = event(3, event_id="evt_old"), event(4)
    await log_events(database, ours, theirs, forgotten, other)
    await remember(database, ours, theirs, other)
    by_id = EventFilter(event_id="evt_x")
    assert await ids_of(database, by_id) == [theirs.id, ours.id]
    assert (await counts_of(database, by_id)).total == 2
    assert await ids_of(database, EventFilter(event_id="evt_x", source="stripe")) == [theirs.id]
    assert await ids_of(database, EventFilter(event_id="evt_old")) == [forgotten.id]
    assert await ids_of(database, EventFilter(event_id="evt")) == []


async def test_a_name_is_an_id_of_ours_before_it_is_one_of_a_sender(database: Database) -> None:
    ours = event(1)
    theirs, namesake = event(2, event_id=ours.id), event(3, event_id="evt_x")
    refused = event(4, verdict="stale", event_id="")
    twin = event(5, event_id="evt_x", source="stripe")
    await log_events(database, ours, theirs, namesake, refused, twin)
    for name, expected in (
        (ours.id, [ours]),
        ("evt_x", [twin, namesake]),
        ("nobody", []),
        ("", []),
        ("\0\udcff", []),
    ):
        async with database.connection() as connection:
            found = await events_named(connection, name, 10)
        assert [each.id for each in found] == [each.id for each in expected]


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


async def plan_of(
    database: Database, query: str, event_filter: EventFilter, *, analyze: bool = False
) -> str:
    places = {"before_at": None, "before_id": None, "after_id": None, "limit": 51, "groups": 20}
    async with database.connection() as connection:
        cursor = await connection.execute(
            (b"explain analyze " if analyze else b"explain ") + compose(query, event_filter),
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


async def test_a_page_asks_no_table_for_all_that_waits_is_dead_or_was_given_up(
    many: Database,
) -> None:
    async with many.connection() as connection:
        await connection.execute(FILL_OUTBOX)
        await connection.execute(FILL_AUDIT_LOGS)
        await connection.execute("vacuum analyze outbox, dead_letters, audit_logs")
    for query, event_filter in (
        ("list_events", EventFilter()),
        ("list_events", EventFilter(status="processed")),
        ("events_to_replay", EventFilter(status="replayable")),
        ("events_are_left", EventFilter(status="replayable")),
    ):
        plan = await plan_of(many, query, event_filter)
        assert "using outbox_followers" in plan
        assert "audit_logs_other_expr_idx" in plan
        for table in ("outbox", "audit_logs_other"):
            assert f"Seq Scan on {table} " not in plan


async def test_nothing_is_compiled_for_a_page_and_all_else_is_as_before(
    database: Database,
) -> None:
    async with database.connection() as connection:
        await connection.execute("set jit = on")
        assert await ask(connection, b"show jit", {}) == [("off",)]
        cursor = await connection.execute("show jit")
        assert await cursor.fetchone() == ("on",)


async def test_an_id_of_a_sender_that_is_remembered_is_not_looked_for_among_all(
    many: Database,
) -> None:
    async with many.connection() as connection:
        await connection.execute(
            "insert into webhook_events select source, event_id, id, received_at from webhook_logs"
        )
        await connection.execute("vacuum analyze webhook_events")
    remembered = EventFilter(event_id="evt_77")
    for query in ("list_events", "count_events", "events_to_replay"):
        plan = await plan_of(many, query, remembered, analyze=True)
        assert "Index Cond: (id = ANY" in plan
        scans = [line for line in plan.splitlines() if "Seq Scan on webhook_logs_22" in line]
        assert all("never executed" in line for line in scans)


async def test_days_that_are_not_asked_for_are_not_read(many: Database) -> None:
    narrowed = EventFilter(
        since=datetime(2026, 9, 22, tzinfo=UTC), until=datetime(2026, 9, 23, tzinfo=UTC)
    )
    for query in ("list_events", "events_to_replay"):
        plan = await plan_of(many, query, narrowed)
        assert "webhook_logs_22" in plan
        assert "webhook_logs_21" not in plan
        assert "webhook_logs_23" not in plan
