"""How far events are: read from where the messages of their stories are, and from what operators
did."""

from collections.abc import Sequence

import pytest

from couponflow.kernel.audit_log import record
from couponflow.kernel.database import Database
from couponflow.kernel.outbox import publish
from couponflow.messages import EmailRequested, WebhookAccepted
from couponflow.webhooks.event_filter import EventFilter
from couponflow.webhooks.log_reading import (
    EventCounts,
    EventGroup,
    count_events,
    given_up_letters,
    list_events,
)
from tests.kernel.letters import letter
from tests.webhooks.webhook_rows import (
    LoggedRow,
    event,
    give_up,
    letter_of,
    log_events,
    log_one_of_each,
    make_dead,
)

pytestmark = pytest.mark.once

UNKNOWN_ID = "01920000-0000-7000-8000-000000000000"
GIVEN_UP = EventFilter(status="given-up")
PROCESSED = EventFilter(status="processed")
WAITING = EventFilter(status="waiting")


async def ids_of(database: Database, event_filter: EventFilter) -> list[str]:
    async with database.connection() as connection:
        page = await list_events(connection, event_filter, 50)
    return [each.id for each in page.items]


async def counts_of(database: Database, event_filter: EventFilter) -> EventCounts:
    async with database.connection() as connection:
        return await count_events(connection, event_filter)


async def statuses(database: Database) -> dict[str, str]:
    async with database.connection() as connection:
        page = await list_events(connection, EventFilter(), 50)
    return {each.id: each.status for each in page.items}


async def publish_follower(database: Database, logged: LoggedRow) -> str:
    """Have a message of the event's story on its way."""
    async with database.transaction() as connection:
        message = EmailRequested(to="a@b.example", subject="x", text="x")
        message_id = await publish(connection, message, correlation_id=logged.id)
    assert message_id is not None
    return message_id


async def record_replay(database: Database, webhook_ids: Sequence[str]) -> None:
    """Have it on record that events were published anew, as if that were done by now."""
    async with database.transaction() as connection:
        await record(
            connection,
            actor="cli:ann",
            action="webhooks.replay",
            subject="ids=1",
            details={"webhook_ids": webhook_ids},
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
    assert len(await ids_of(database, EventFilter(status="replayable"))) == 3


async def test_an_event_waits_while_a_message_that_followed_from_it_does(
    database: Database,
) -> None:
    logged, other = event(1), event(2)
    await log_events(database, logged, other)
    follower = await publish_follower(database, logged)
    assert await statuses(database) == {logged.id: "waiting", other.id: "processed"}
    assert await ids_of(database, WAITING) == [logged.id]
    assert await ids_of(database, PROCESSED) == [other.id]
    assert (await counts_of(database, WAITING)).total == 1
    async with database.connection() as connection:
        await connection.execute("delete from outbox where id = %s", [follower])
    assert await ids_of(database, WAITING) == []


async def test_a_dead_message_counts_for_more_than_others_that_wait(database: Database) -> None:
    logged = event()
    await log_events(database, logged)
    await publish_follower(database, logged)
    await make_dead(database, letter("follower", "orders", correlation_id=logged.id))
    assert await ids_of(database, EventFilter(status="dead")) == [logged.id]
    assert await ids_of(database, WAITING) == []
    assert (await counts_of(database, WAITING)).total == 0


async def test_an_event_is_given_up_with_a_letter_until_it_is_replayed(database: Database) -> None:
    own, followed, other = event(1), event(2), event(3)
    await log_events(database, own, followed, other)
    letters = [
        letter_of(own),
        letter("follower", "orders", correlation_id=followed.id),
        letter("odd", correlation_id="another story"),
    ]
    await make_dead(database, *letters)
    await give_up(database, *letters)
    assert await ids_of(database, GIVEN_UP) == [followed.id, own.id]
    assert await ids_of(database, PROCESSED) == [other.id]
    assert await ids_of(database, EventFilter(status="replayable")) == [other.id]
    assert (await counts_of(database, GIVEN_UP)).groups == [
        EventGroup("mailer", "mail.wanted", "given-up", 2)
    ]
    assert (await counts_of(database, EventFilter(status="replayable"))).total == 1
    await record_replay(database, [UNKNOWN_ID, own.id])
    assert await ids_of(database, GIVEN_UP) == [followed.id]
    assert (await counts_of(database, GIVEN_UP)).total == 1
    assert await ids_of(database, PROCESSED) == [other.id, own.id]
    # The last word of an operator counts.
    again = letter_of(own)
    await make_dead(database, again)
    assert (await statuses(database))[own.id] == "dead"
    await give_up(database, again)
    assert await ids_of(database, GIVEN_UP) == [followed.id, own.id]
    async with database.connection() as connection:
        (standing,) = await given_up_letters(connection, own.id)
    assert (standing.id, standing.channel, standing.message_id) == (again.id, "webhooks", own.id)
    assert (standing.reason, standing.actor) == ("no such order", "cli:bob")


async def test_what_is_on_its_way_or_dead_is_not_given_up_yet(database: Database) -> None:
    waiting, dead = event(1), event(2)
    await log_events(database, waiting, dead)
    letters = [letter_of(waiting), letter_of(dead)]
    await make_dead(database, *letters)
    await give_up(database, *letters)
    await publish_follower(database, waiting)
    await make_dead(database, letter("follower", "orders", correlation_id=dead.id))
    assert await statuses(database) == {waiting.id: "waiting", dead.id: "dead"}
    assert await ids_of(database, GIVEN_UP) == []
    assert len(await ids_of(database, EventFilter(status="replayable"))) == 2
