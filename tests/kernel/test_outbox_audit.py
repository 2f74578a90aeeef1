from pathlib import Path

from couponflow.kernel.audit import AuditScope, Finding, run_audit
from couponflow.kernel.database import Database
from couponflow.kernel.outbox_audit import INVARIANTS
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

ONE_PLACE, OWNER = (invariant.name for invariant in INVARIANTS)


async def audit(database: Database) -> dict[str, Finding]:
    findings = await run_audit(INVARIANTS, AuditScope(database, Path()))
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
