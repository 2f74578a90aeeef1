from datetime import UTC, datetime

import anyio
import psycopg
import pytest
from structlog.testing import capture_logs

from couponflow.kernel.audit_log import AuditEntry, ensure_partitions, record, record_all
from couponflow.kernel.clock import ManualClock
from couponflow.kernel.database import Database
from couponflow.kernel.identifiers import Uuid7Generator
from tests.samples import rows_of

NOVEMBER = datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC).timestamp()
NAMES = ["audit_logs_2026_11", "audit_logs_2026_12", "audit_logs_2027_01"]
ROWS = "select actor, action, subject, details from audit_logs order by subject"
PARTITIONS = """
    select c.relname::text, pg_get_expr(c.relpartbound, c.oid)
    from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = 'audit_logs'::regclass order by 1"""
OTHER = ("audit_logs_other", "DEFAULT")


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
        return await ensure_partitions(connection, now)


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


async def test_three_months_get_a_partition_once(database: Database) -> None:
    assert await ensure(database) == NAMES
    assert await ensure(database) == []
    assert await ensure(database, NOVEMBER + 1) == ["audit_logs_2027_02"]
    partitions = await rows_of(database.url, PARTITIONS)
    assert [name for name, _ in partitions] == [*NAMES, "audit_logs_2027_02", "audit_logs_other"]
    assert partitions[1][1] == (
        "FOR VALUES FROM ('2026-12-01 00:00:00+00') TO ('2027-01-01 00:00:00+00')"
    )


async def test_rows_go_to_their_month_and_stay_append_only(database: Database) -> None:
    await ensure(database)
    await execute(
        database,
        b"insert into audit_logs values "
        b"(gen_random_uuid(), '2026-12-31 23:59:59Z', 'a', 'b', 'c', '{}')",
    )
    assert await rows_of(database.url, "select count(*) from audit_logs_2026_12") == [(1,)]
    with pytest.raises(psycopg.errors.RestrictViolation, match="append only"):
        await execute(database, b"delete from audit_logs_2026_12")


async def test_daemons_that_start_together_make_each_partition_once(database: Database) -> None:
    made: list[str] = []
    go = anyio.Event()

    async def daemon() -> None:
        async with database.connection() as connection:
            await go.wait()
            made.extend(await ensure_partitions(connection, NOVEMBER))

    async with anyio.create_task_group() as group:
        for _ in range(6):
            group.start_soon(daemon)
        await anyio.wait_all_tasks_blocked()
        go.set()
    assert sorted(made) == NAMES


OBSTACLES = [
    (
        b"insert into audit_logs values "
        b"(gen_random_uuid(), '2026-12-24 00:00Z', 'a', 'b', 'c', '{}')",
        "audit_logs_other holds rows of that month",
    ),
    (b"create table audit_logs_2026_12 (a int)", "another table has that name"),
]


@pytest.mark.parametrize(("obstacle", "hint"), OBSTACLES)
async def test_a_month_that_cannot_be_made_is_told_and_left(
    database: Database, obstacle: bytes, hint: str
) -> None:
    await execute(database, obstacle)
    rows = await rows_of(database.url, ROWS)
    with capture_logs() as logs:
        assert await ensure(database) == [NAMES[0], NAMES[2]]
    (told,) = logs
    assert (told["log_level"], told["partition"]) == ("warning", "audit_logs_2026_12")
    assert hint in told["hint"]
    assert await rows_of(database.url, ROWS) == rows


async def test_somebodys_wider_partition_is_as_good(database: Database) -> None:
    await execute(
        database,
        b"create table year_2026 partition of audit_logs "
        b"for values from ('2026-01-01Z') to ('2027-01-01Z')",
    )
    with capture_logs() as logs:
        assert await ensure(database) == [NAMES[2]]
    assert logs == []


async def test_a_long_reader_does_not_hold_up_the_daemon(database: Database) -> None:
    async with database.transaction() as reader:
        await reader.execute("select count(*) from audit_logs_other")
        with capture_logs() as logs:
            assert await ensure(database) == []
    assert [told["partition"] for told in logs] == NAMES[:1]
    assert await rows_of(database.url, PARTITIONS) == [OTHER]
    assert await ensure(database) == NAMES
