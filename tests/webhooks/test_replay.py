from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import anyio
import msgspec
import psycopg
import pytest

from couponflow.kernel.clock import ManualClock
from couponflow.kernel.cursors import CursorInvalid, cursor_after
from couponflow.kernel.database import Connection, Database
from couponflow.kernel.outbox import publish
from couponflow.messages import CHANNELS, EmailRequested, WebhookAccepted, message_decoder
from couponflow.webhooks import replay
from couponflow.webhooks.event_filter import ALL_REPLAYABLE, EventFilter
from couponflow.webhooks.inbox import Inbox
from couponflow.webhooks.replay import EventReplayReport, LeftEvent, replay_events
from tests.kernel.letters import bury_all, dead_email, letter, message_id
from tests.samples import rows_of
from tests.webhooks.webhook_rows import (
    IDS,
    SOURCES,
    LoggedRow,
    event,
    give_up,
    letter_of,
    log_events,
    log_one_of_each,
    make_dead,
)

pytestmark = pytest.mark.once

ACTOR = "cli:ann"
UNKNOWN_ID = "01920000-0000-7000-8000-000000000000"
ROUNDS = 5
ALL = EventFilter()
OUTBOX = "select correlation_id from outbox where dedup_key is not null order by correlation_id"
LETTERS = "select message_id from dead_letters order by message_id"
AUDIT = "select actor, action, subject, details from audit_logs order by action desc"
TABLES = [f"select * from {table} order by 1" for table in ("outbox", "dead_letters", "audit_logs")]


async def replay_all(
    database: Database,
    event_filter: EventFilter = ALL,
    *,
    limit: int | None = None,
    expected: int | None = None,
    cursor: str | None = None,
) -> EventReplayReport:
    return await replay_events(
        database,
        event_filter,
        actor=ACTOR,
        channels_known=CHANNELS,
        clock=ManualClock(),
        ids=IDS,
        limit=limit,
        expected=expected,
        cursor=cursor,
    )


def all_of(count: int) -> EventReplayReport:
    return EventReplayReport(
        replayed=count,
        refused=0,
        skipped=0,
        left=[],
        more=False,
        taken_up=[],
        not_found=[],
        next_cursor=None,
    )


async def column(database: Database, query: str) -> list[object]:
    return [row[0] for row in await rows_of(database.url, query)]


async def tables(database: Database) -> list[list[tuple[object, ...]]]:
    return [await rows_of(database.url, query) for query in TABLES]


@dataclass(frozen=True, slots=True)
class Attempt:
    """What a handler knows of an attempt, without the record that its message is done."""

    database: Database
    message_id: str = ""
    correlation_id: str = ""
    attempt: int = 1
    published_at: float = 0.0

    def transaction(self) -> AbstractAsyncContextManager[Connection]:
        return self.database.transaction()


async def log_several(database: Database, count: int) -> list[LoggedRow]:
    rows = [event(number) for number in range(count)]
    await log_events(database, *rows)
    return rows


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "REPLAY_BATCH", 3)


async def test_a_processed_event_is_told_again_under_a_new_id(database: Database) -> None:
    logged = event()
    await log_events(database, logged)
    assert await replay_all(database) == all_of(1)
    ((outbox_id, channel, text, correlation_id, key, attempts, due),) = await rows_of(
        database.url,
        "select id::text, channel, message::text, correlation_id, dedup_key, attempts,"
        " available_at <= now() from outbox",
    )
    assert outbox_id != logged.id
    assert (channel, correlation_id, key) == ("webhooks", logged.id, f"replay:{logged.id}")
    assert (attempts, due) == (0, True)
    told = message_decoder(CHANNELS["webhooks"]).decode(str(text))
    assert isinstance(told, WebhookAccepted)
    assert (told.webhook_id, told.source) == (logged.id, "mailer")
    assert told.received_at == pytest.approx(logged.received_at, abs=0.000_001)
    assert await rows_of(database.url, AUDIT) == [
        (
            ACTOR,
            "webhooks.replay",
            "all events",
            {
                "filter": {},
                "webhook_ids": [logged.id],
                "message_ids": [outbox_id],
                "letter_ids": [],
            },
        )
    ]


async def test_each_event_is_dealt_with_by_its_status(database: Database) -> None:
    logged = await log_one_of_each(database)
    report = await replay_all(database)
    assert (report.replayed, report.refused, report.skipped) == (2, 1, 1)
    assert report.left == [
        LeftEvent(logged["waiting"].id, "mailer", "skipped", "it is on its way already"),
        LeftEvent(
            logged["refused"].id,
            "mailer",
            "refused",
            "it cannot be replayed: its sender was not believed (bad-signature)",
        ),
    ]
    assert await column(database, OUTBOX) == [logged["processed"].id]
    waiting = await column(database, "select id::text from outbox where dedup_key is null")
    assert set(waiting) == {logged["waiting"].id, logged["dead"].id}
    assert await column(database, LETTERS) == []


async def test_what_followed_from_an_event_and_was_done_does_not_follow_again(
    database: Database,
) -> None:
    logged = event(body=b'{"count":3}')
    await log_events(database, logged)
    inbox = Inbox(SOURCES)
    accepted = WebhookAccepted(
        webhook_id=logged.id, source=logged.source, received_at=logged.received_at
    )
    await inbox.pass_on(accepted, Attempt(database))
    followers = await column(database, "select id::text from outbox order by id")
    assert len(followers) == 3
    async with database.connection() as connection:
        # The first is done, the second is lost as nothing of ours loses one, the third waits, and
        # only because nobody can tell to what it belongs the event does not.
        await connection.execute("delete from outbox where id = any(%s::uuid[])", [followers[:2]])
        await connection.execute("update outbox set correlation_id = id::text")
        await connection.execute(
            "insert into processed_messages (message_id, channel, outcome)"
            " values (%s, 'emails', 'done')",
            followers[:1],
        )
    assert await replay_all(database) == all_of(1)
    ((text,),) = await rows_of(
        database.url, "select message::text from outbox where channel = 'webhooks'"
    )
    told = message_decoder(CHANNELS["webhooks"]).decode(str(text))
    assert isinstance(told, WebhookAccepted)
    await inbox.pass_on(told, Attempt(database))
    emails = "select id::text from outbox where channel = 'emails' order by id"
    assert await column(database, emails) == followers[1:]


async def test_all_that_can_be_replayed_was_believed_and_not_given_up(database: Database) -> None:
    await log_one_of_each(database)
    given_up = event(9)
    await log_events(database, given_up)
    await make_given_up(database, given_up)
    report = await replay_all(database, ALL_REPLAYABLE)
    assert (report.replayed, report.refused, report.skipped) == (2, 0, 1)


async def make_given_up(database: Database, logged: LoggedRow) -> None:
    own = letter_of(logged)
    await make_dead(database, own)
    await give_up(database, own)


async def test_what_an_operator_gave_up_is_replayed_only_if_it_is_named(database: Database) -> None:
    given_up, processed = event(1), event(2)
    await log_events(database, given_up, processed)
    await make_given_up(database, given_up)
    window = await replay_all(database, EventFilter(status="given-up"))
    assert (window.replayed, window.refused, window.taken_up) == (0, 1, [])
    assert "names its id" in window.left[0].reason
    assert await column(database, OUTBOX) == []
    named = await replay_all(database, EventFilter(ids=(given_up.id, processed.id)))
    assert (named.replayed, named.taken_up) == (2, [given_up.id])
    assert await column(database, OUTBOX) == [given_up.id, processed.id]
    async with database.connection() as connection:
        await connection.execute("delete from outbox")
    # Now it is as any other.
    assert (await replay_all(database, ALL_REPLAYABLE)).replayed == 2


async def test_an_event_that_its_sender_names_is_named(database: Database) -> None:
    given_up = event(1)
    await log_events(database, given_up)
    await make_given_up(database, given_up)
    report = await replay_all(database, EventFilter(event_id="evt_1"))
    assert report.taken_up == [given_up.id]


async def test_an_event_is_not_replayed_while_what_followed_from_it_waits(
    database: Database,
) -> None:
    logged = event()
    await log_events(database, logged)
    async with database.transaction() as connection:
        message = EmailRequested(to="a@b.example", subject="x", text="x")
        await publish(connection, message, correlation_id=logged.id)
    report = await replay_all(database)
    assert (report.replayed, report.skipped) == (0, 1)


async def test_the_text_that_events_were_looked_for_by_is_not_on_record(
    database: Database,
) -> None:
    await log_events(database, event(body=b'{"email":"ann@shop.example"}'))
    report = await replay_all(database, EventFilter(source="mailer", text="ann@shop.example"))
    assert report.replayed == 1
    ((subject, recorded, details),) = await rows_of(
        database.url, "select subject, details -> 'filter', details::text from audit_logs"
    )
    assert subject == "source=mailer text=..."
    assert recorded == {"source": "mailer", "text": "..."}
    assert "ann" not in str(details)


async def test_ids_that_no_event_has_are_named(database: Database) -> None:
    logged = event()
    await log_events(database, logged)
    report = await replay_all(database, EventFilter(ids=(UNKNOWN_ID, logged.id)))
    assert (report.replayed, report.not_found) == (1, [UNKNOWN_ID])


async def test_a_replay_is_not_doubled_while_it_is_on_its_way(database: Database) -> None:
    await log_several(database, 2)
    assert await replay_all(database) == all_of(2)
    before = await tables(database)
    again = await replay_all(database)
    assert (again.replayed, again.skipped) == (0, 2)
    assert {each.reason for each in again.left} == {"it is on its way already"}
    assert await tables(database) == before


async def test_the_dead_letters_of_a_dead_event_are_replayed_as_letters(database: Database) -> None:
    logged, other = event(1), event(2)
    await log_events(database, logged, other)
    own = letter_of(logged)
    follower = dead_email(1, correlation_id=logged.id)
    await make_dead(database, own, follower)
    await bury_all(database, dead_email(2, correlation_id="another story"))
    assert await replay_all(database, EventFilter(ids=(logged.id,))) == all_of(1)
    assert await column(database, LETTERS) == [message_id(2)]
    assert await rows_of(
        database.url, "select id::text, channel, correlation_id from outbox order by id"
    ) == [(message_id(1), "emails", logged.id), (logged.id, "webhooks", logged.id)]
    (by_event, by_letter) = await rows_of(database.url, AUDIT)
    assert by_event[:3] == (ACTOR, "webhooks.replay", "ids=1")
    assert by_letter[:2] == (ACTOR, "dead_letters.replay")
    details = msgspec.convert(by_event[3], dict[str, object])
    assert details["webhook_ids"] == []
    assert set(msgspec.convert(details["letter_ids"], list[str])) == {own.id, follower.id}


async def test_a_dead_event_that_would_only_die_again_is_refused(database: Database) -> None:
    hopeless, half = event(1), event(2)
    await log_events(database, hopeless, half)
    await make_dead(
        database,
        letter("odd", "emails", message=b"garbage", correlation_id=hopeless.id),
        letter("odd too", "emails", message=b"garbage", correlation_id=half.id),
        dead_email(1, correlation_id=half.id),
    )
    report = await replay_all(database)
    assert (report.replayed, report.refused) == (1, 1)
    assert (report.left[0].id, report.left[0].outcome) == (hopeless.id, "refused")
    assert "no message of the channel" in report.left[0].reason
    assert await column(database, LETTERS) == ["odd", "odd too"]


async def test_a_dead_event_whose_message_was_done_is_skipped(database: Database) -> None:
    logged = event()
    await log_events(database, logged)
    await make_dead(database, letter_of(logged))
    async with database.connection() as connection:
        await connection.execute(
            "insert into processed_messages (message_id, channel, outcome) values (%s, '', 'done')",
            [logged.id],
        )
    report = await replay_all(database)
    assert (report.replayed, report.skipped) == (0, 1)
    assert report.left[0].reason == "its message was done already; discard the letter"


async def test_letters_that_somebody_else_replays_are_left_to_them(database: Database) -> None:
    logged = event()
    await log_events(database, logged)
    own = letter_of(logged)
    await make_dead(database, own)
    async with database.transaction() as other:
        await other.execute("select from dead_letters where id = %s for update", [own.id])
        report = await replay_all(database)
    assert (report.replayed, report.skipped) == (0, 1)
    assert report.left[0].reason == "somebody else deals with its dead letters"
    assert await column(database, LETTERS) == [logged.id]


async def test_what_a_batch_changes_and_its_record_stand_or_fall_together(
    database: Database, small_batches: None
) -> None:
    rows = await log_several(database, 5)
    async with database.connection() as connection:
        # The fourth event is in the second batch.
        await connection.execute(
            f"alter table audit_logs add check (not details::text like '%{rows[3].id}%')".encode()
        )
    with pytest.raises(psycopg.errors.CheckViolation):
        await replay_all(database)
    assert await column(database, OUTBOX) == [row.id for row in rows[:3]]
    ((recorded,),) = await rows_of(database.url, "select details -> 'webhook_ids' from audit_logs")
    assert recorded == [row.id for row in rows[:3]]


@pytest.mark.parametrize(("limit", "expected"), [(4, None), (None, 4), (9, 4), (4, 9)])
async def test_no_more_events_than_agreed_are_touched_and_the_oldest_first(
    database: Database, small_batches: None, limit: int | None, expected: int | None
) -> None:
    rows = await log_several(database, 6)
    report = await replay_all(database, limit=limit, expected=expected)
    cursor = cursor_after(rows[3].moment, rows[3].id)
    assert report == msgspec.structs.replace(all_of(4), more=True, next_cursor=cursor)
    assert await column(database, OUTBOX) == [row.id for row in rows[:4]]
    none = await replay_all(database, expected=0)
    assert none == msgspec.structs.replace(all_of(0), more=True)
    assert (await replay_all(database, expected=6)).more is False
    assert await column(database, OUTBOX) == [row.id for row in rows]


async def test_a_replay_goes_on_where_the_one_before_ended(
    database: Database, small_batches: None
) -> None:
    rows = await log_several(database, 11)
    replayed: list[int] = []
    cursor: str | None = None
    while True:
        report = await replay_all(database, limit=4, cursor=cursor)
        # Those before are on their way; they do not count again.
        assert report.skipped == 0
        replayed.append(report.replayed)
        if not report.more:
            break
        nothing = await replay_all(database, limit=0, cursor=report.next_cursor)
        assert (nothing.more, nothing.next_cursor) == (True, report.next_cursor)
        cursor = report.next_cursor
    assert replayed == [4, 4, 3]
    assert report.next_cursor is None
    assert await column(database, OUTBOX) == [row.id for row in rows]
    with pytest.raises(CursorInvalid, match="replayed events"):
        await replay_all(database, cursor="x")


async def test_more_letters_than_a_batch_holds_are_replayed(
    database: Database, small_batches: None
) -> None:
    logged = event()
    await log_events(database, logged)
    await make_dead(
        database,
        *(letter(f"odd {n}", "emails", message=b"x", correlation_id=logged.id) for n in range(3)),
        *(dead_email(n, correlation_id=logged.id) for n in range(5)),
    )
    assert await replay_all(database) == all_of(1)
    assert await column(database, "select id::text from outbox order by id") == [
        message_id(n) for n in range(5)
    ]


async def test_progress_tells_how_many_events_were_dealt_with(
    database: Database, small_batches: None
) -> None:
    await log_several(database, 5)
    told: list[int] = []
    await replay_events(
        database,
        ALL,
        actor=ACTOR,
        channels_known=CHANNELS,
        clock=ManualClock(),
        ids=IDS,
        progress=told.append,
    )
    assert told == [3, 5]


async def test_replays_released_together_publish_each_event_once(
    database: Database, small_batches: None
) -> None:
    for round_ in range(ROUNDS):
        rows = [event(round_ * 10 + number) for number in range(10)]
        await log_events(database, *rows)
        selected = EventFilter(ids=tuple(row.id for row in rows))
        go = anyio.Event()
        reports: list[EventReplayReport] = []

        async def work(
            go: anyio.Event, selected: EventFilter, reports: list[EventReplayReport]
        ) -> None:
            await go.wait()
            reports.append(await replay_all(database, selected))

        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(work, go, selected, reports)
            await anyio.wait_all_tasks_blocked()
            go.set()
        assert sum(report.replayed for report in reports) == 10
        assert sum(report.skipped for report in reports) == 10
    assert len(await column(database, OUTBOX)) == ROUNDS * 10
