from pathlib import Path

import pytest

from couponflow.kernel.audit import AuditScope, run_audit
from couponflow.kernel.clock import SystemClock
from couponflow.kernel.database import Database
from couponflow.kernel.dead_letter_replay import discard
from couponflow.kernel.dead_letters import LetterFilter
from couponflow.kernel.identifiers import Uuid7Generator
from couponflow.webhooks.audit import INVARIANTS
from couponflow.webhooks.store import EventRow, store_events
from tests.kernel.letters import bury_all, letter
from tests.webhooks.deliveries import event_row

pytestmark = pytest.mark.once

ANSWERED, ONCE = (invariant.name for invariant in INVARIANTS)
HOUR_SECONDS = 3_600.0


async def offenders(database: Database, done_days: int = 7) -> dict[str, list[dict[str, str]]]:
    findings = await run_audit(INVARIANTS, AuditScope(database, Path(), done_days=done_days))
    return {finding.name: finding.offenders for finding in findings if not finding.ok}


async def execute(database: Database, statement: str, *parameters: str) -> None:
    async with database.connection() as connection:
        await connection.execute(statement.encode(), parameters)


async def receive(database: Database, event_id: str, hours_ago: float = 0.0) -> EventRow:
    moment = SystemClock().now() - hours_ago * HOUR_SECONDS
    row = event_row(event_id, received_at=moment)
    async with database.transaction() as connection:
        await store_events(connection, [row])
    return row


async def lose(database: Database, row: EventRow) -> None:
    await execute(database, "delete from outbox where id = %s", row.webhook_id)


async def forget(database: Database, row: EventRow) -> None:
    """Let the same event be taken for new."""
    await execute(database, "delete from webhook_events where event_id = %s", row.event_id)


async def finish(database: Database, row: EventRow) -> None:
    await lose(database, row)
    await execute(
        database, "insert into processed_messages values (%s, 'webhooks', 'done')", row.webhook_id
    )


async def give_up(database: Database, row: EventRow) -> None:
    await lose(database, row)
    await bury_all(database, letter(row.webhook_id, "webhooks", message=row.message.encode()))


async def test_events_that_wait_or_have_ended_are_answered_for(database: Database) -> None:
    await receive(database, "waiting")
    await finish(database, await receive(database, "done"))
    await give_up(database, await receive(database, "discarded"))
    clock, ids = SystemClock(), Uuid7Generator()
    await discard(database, LetterFilter(), actor="cli:asha", clock=clock, ids=ids)
    await give_up(database, await receive(database, "dead"))
    assert await offenders(database) == {}


async def test_an_event_whose_message_is_nowhere_is_found(database: Database) -> None:
    await receive(database, "waiting")
    row = await receive(database, "lost")
    await lose(database, row)
    found = {"webhook_id": row.webhook_id, "source": "shop", "event_id": "lost"}
    assert await offenders(database) == {ANSWERED: [found]}
    # A letter of another channel answers for nothing.
    await bury_all(database, letter(row.webhook_id, "emails"))
    assert await offenders(database) == {ANSWERED: [found]}


async def test_of_what_may_have_been_forgotten_nothing_is_asked(database: Database) -> None:
    for event_id, hours_ago in (("young", 22.9), ("week", 166.9), ("old", 167.1)):
        await lose(database, await receive(database, event_id, hours_ago))

    async def missed(done_days: int) -> set[str]:
        found = await offenders(database, done_days)
        return {row["event_id"] for row in found.get(ANSWERED, [])}

    assert await missed(7) == {"young", "week"}
    assert await missed(1) == {"young"}


async def test_an_event_that_was_taken_twice_is_found(database: Database) -> None:
    await receive(database, "once")
    for event_id, hours_ago in (("twice", 47.9), ("long ago", 48.1)):
        await forget(database, await receive(database, event_id, hours_ago))
        await receive(database, event_id)
    found = {"source": "shop", "event_id": "twice", "times": "2"}
    assert await offenders(database) == {ONCE: [found]}
