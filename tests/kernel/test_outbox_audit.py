from pathlib import Path

import msgspec
import pytest

from couponflow.kernel.audit import AuditScope, Finding, run_audit
from couponflow.kernel.clock import SystemClock
from couponflow.kernel.database import Database
from couponflow.kernel.dead_letter_replay import discard, replay
from couponflow.kernel.dead_letters import LetterFilter
from couponflow.kernel.identifiers import Uuid7Generator
from couponflow.kernel.outbox_audit import INVARIANTS
from couponflow.messages import CHANNELS
from tests.kernel.letters import bury_all, dead_email
from tests.kernel.outboxes import (
    CHANNEL,
    OTHER_WORKER,
    WORKER,
    claim,
    message_id,
    publish_emails,
    register,
)

ONE_PLACE, OWNER, SOMEWHERE = (invariant.name for invariant in INVARIANTS)


async def audit(database: Database, *, done_days: int = 7) -> dict[str, Finding]:
    findings = await run_audit(INVARIANTS, AuditScope(database, Path(), done_days=done_days))
    return {finding.name: finding for finding in findings}


async def execute(database: Database, statement: str, *parameters: str) -> None:
    async with database.connection() as connection:
        await connection.execute(statement.encode(), parameters)


async def process(database: Database, number: int) -> None:
    await execute(
        database,
        "insert into processed_messages values (%s, %s, 'done')",
        message_id(number),
        CHANNEL,
    )


async def test_messages_that_are_where_they_should_be_are_no_offence(database: Database) -> None:
    await register(database, WORKER)
    await publish_emails(database, 3)
    await claim(database, 1)
    await process(database, 4)
    await bury_all(database, dead_email(5))
    assert all(finding.ok for finding in (await audit(database)).values())


async def test_a_message_in_two_places_is_found(database: Database) -> None:
    await publish_emails(database, 3)
    await process(database, 1)
    await bury_all(database, dead_email(2), dead_email(4))
    await process(database, 4)
    finding = (await audit(database))[ONE_PLACE]
    assert not finding.ok
    assert sorted((row["message_id"], row["places"]) for row in finding.offenders) == [
        (message_id(1), "outbox and processed_messages"),
        (message_id(2), "dead_letters and outbox"),
        (message_id(4), "dead_letters and processed_messages"),
    ]


async def own_by_the_dead(database: Database) -> None:
    """One message of an unknown worker, and one of a worker that died ten minutes ago."""
    await register(database, OTHER_WORKER)
    await publish_emails(database, 2)
    await claim(database, owner=OTHER_WORKER)
    await execute(
        database, "update outbox set owner = gen_random_uuid() where id = %s", message_id(1)
    )
    await execute(database, "update workers set lease_until = now() - interval '10 minutes'")


async def test_a_message_without_a_living_owner_is_found(database: Database) -> None:
    await own_by_the_dead(database)
    await register(database, WORKER)
    # Whoever has just come could not free them yet.
    assert (await audit(database))[OWNER].ok
    await execute(
        database,
        "update workers set started_at = now() - interval '6 minutes' where id = %s",
        WORKER,
    )
    finding = (await audit(database))[OWNER]
    assert not finding.ok
    assert sorted((row["id"], row["channel"]) for row in finding.offenders) == [
        (message_id(1), CHANNEL),
        (message_id(2), CHANNEL),
    ]
    assert "host:2" in {row["owner"] for row in finding.offenders}


async def test_nobody_is_at_fault_while_no_worker_lives(database: Database) -> None:
    await own_by_the_dead(database)
    assert (await audit(database))[OWNER].ok


async def record_pushes(
    database: Database, *details: dict[str, object], hours_ago: float = 0.0
) -> None:
    async with database.connection() as connection:
        for each in details:
            await connection.execute(
                "insert into audit_logs values (gen_random_uuid(),"
                " now() - %s * interval '1 hour', 'cli:asha', 'channel.push', 'emails', %s::jsonb)",
                [hours_ago, msgspec.json.encode(each).decode()],
            )


async def vanished(database: Database, *, done_days: int = 7) -> list[tuple[str, str, str]]:
    finding = (await audit(database, done_days=done_days))[SOMEWHERE]
    assert finding.ok == (not finding.offenders)
    return [(row["message_id"], row["action"], row["actor"]) for row in finding.offenders]


async def test_a_pushed_message_that_was_deleted_is_found(database: Database) -> None:
    await publish_emails(database, 4)
    await record_pushes(
        database,
        {"message_id": message_id(1)},
        {"message_ids": [message_id(2), message_id(3)]},
        {"message_id": message_id(4)},
    )
    assert await vanished(database) == []
    await execute(database, "delete from outbox where id in (%s, %s)", message_id(1), message_id(3))
    assert await vanished(database) == [
        (message_id(1), "channel.push", "cli:asha"),
        (message_id(3), "channel.push", "cli:asha"),
    ]


async def replay_or_discard(database: Database, *, discarding: bool) -> None:
    clock, ids = SystemClock(), Uuid7Generator()
    if discarding:
        await discard(database, LetterFilter(), actor="cli:asha", clock=clock, ids=ids)
    else:
        await replay(
            database,
            LetterFilter(),
            actor="cli:asha",
            channels_known=CHANNELS,
            clock=clock,
            ids=ids,
        )


async def test_a_replayed_message_that_was_deleted_is_found(database: Database) -> None:
    await bury_all(database, dead_email(1), dead_email(2))
    await record_pushes(database, {"message_ids": [message_id(2)]})
    assert await vanished(database) == []
    await replay_or_discard(database, discarding=False)
    assert await vanished(database) == []
    await execute(database, "delete from outbox")
    assert await vanished(database) == [
        (message_id(1), "dead_letters.replay", "cli:asha"),
        (message_id(2), "dead_letters.replay", "cli:asha"),
    ]


async def test_what_is_done_or_was_given_up_has_not_vanished(database: Database) -> None:
    await bury_all(database, dead_email(1))
    await process(database, 2)
    await record_pushes(database, {"message_ids": [message_id(1), message_id(2)]})
    await replay_or_discard(database, discarding=True)
    assert await vanished(database) == []
    await execute(database, "delete from processed_messages")
    assert [found for found, _, _ in await vanished(database)] == [message_id(2)]


@pytest.mark.parametrize(
    ("done_days", "hours_ago", "found"),
    [(7, 143.9, 1), (7, 144.1, 0), (365, 144.1, 0), (1, 22.9, 1), (1, 23.1, 0)],
)
async def test_what_may_have_been_forgotten_since_is_not_missed(
    database: Database, done_days: int, hours_ago: float, found: int
) -> None:
    await record_pushes(database, {"message_id": message_id(1)}, hours_ago=hours_ago)
    assert len(await vanished(database, done_days=done_days)) == found


async def test_no_more_than_a_screenful_is_shown_and_old_rows_without_ids_are_passed_over(
    database: Database,
) -> None:
    many: list[object] = [message_id(number) for number in range(30)]
    await record_pushes(database, {"message_ids": many}, {"messages": 1_203}, {})
    assert len(await vanished(database)) == 20
