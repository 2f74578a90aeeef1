from datetime import UTC, datetime

import psycopg
import pytest

from couponflow.kernel.audit_log import AUDIT_LOGS, AuditEntry, record, record_all
from couponflow.kernel.clock import ManualClock
from couponflow.kernel.database import Database
from couponflow.kernel.identifiers import Uuid7Generator
from couponflow.kernel.partitions import ensure_partitions
from tests.samples import rows_of

NOVEMBER = datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC).timestamp()
ROWS = "select actor, action, subject, details from audit_logs order by subject"


async def write(database: Database, subject: str) -> None:
    async with database.transaction() as connection:
        await record(
            connection, actor="cli:ann", action="channel.pause", subject=subject, details={"n": 1}
        )


async def execute(database: Database, statement: bytes) -> None:
    async with database.connection() as connection:
        await connection.execute(statement)


async def ensure(database: Database, now: float = NOVEMBER) -> list[str]:
    async with database.connection() as connection:
        return await ensure_partitions(connection, AUDIT_LOGS, now)


async def test_what_was_done_is_written_with_the_callers_transaction(database: Database) -> None:
    await write(database, "emails")
    async with database.transaction() as connection:
        await record(connection, actor="a", action="b", subject="c", details={})
        raise psycopg.Rollback
    assert await rows_of(database.url, ROWS) == [("cli:ann", "channel.pause", "emails", {"n": 1})]


async def test_ids_carry_the_time_and_many_can_be_written_at_once(database: Database) -> None:
    entries = [AuditEntry(actor="a\0", action="b", subject=s, details={"x": s}) for s in "12\0"]
    clock = ManualClock()
    async with database.transaction() as connection:
        await record_all(connection, entries, clock=clock, ids=Uuid7Generator())
        await record_all(connection, [])
    assert await rows_of(database.url, ROWS) == [
        ("a\ufffd", "b", "1", {"x": "1"}),
        ("a\ufffd", "b", "2", {"x": "2"}),
        ("a\ufffd", "b", "\ufffd", {"x": "\ufffd"}),
    ]
    prefixes = await rows_of(database.url, "select distinct left(id::text, 15) from audit_logs")
    milliseconds = f"{int(clock.now() * 1000):012x}"
    assert prefixes == [(f"{milliseconds[:8]}-{milliseconds[8:]}-7",)]


@pytest.mark.parametrize(
    "statement", [b"update audit_logs set actor = 'x'", b"delete from audit_logs"]
)
async def test_nothing_written_can_be_changed(database: Database, statement: bytes) -> None:
    await write(database, "in the default partition")
    await ensure(database, NOVEMBER)
    with pytest.raises(psycopg.errors.RestrictViolation, match="append only"):
        await execute(database, statement)
    assert len(await rows_of(database.url, ROWS)) == 1
