from datetime import UTC, datetime, timedelta

import anyio
import psycopg
import pytest
from structlog.testing import capture_logs

from couponflow.kernel.audit_log import AUDIT_LOGS
from couponflow.kernel.clock import SystemClock
from couponflow.kernel.database import Database
from couponflow.kernel.partitions import PartitionedTable, drop_partitions, ensure_partitions
from tests.samples import rows_of

NOVEMBER = datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC).timestamp()
LONG_AGO = datetime(2020, 11, 30, 23, 59, 59, tzinfo=UTC).timestamp()
DAY_SECONDS = 86_400.0
A_DAY = timedelta(days=1)
NAMES = ["audit_logs_2026_11", "audit_logs_2026_12", "audit_logs_2027_01"]
DAYS = PartitionedTable("webhook_logs", "day", 3)
ROWS = "select actor, action, subject, details from audit_logs order by subject"
PARTITIONS = """
    select c.relname::text, pg_get_expr(c.relpartbound, c.oid)
    from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = 'audit_logs'::regclass order by 1"""
OTHER = ("audit_logs_other", "DEFAULT")


async def execute(database: Database, statement: bytes) -> None:
    async with database.connection() as connection:
        await connection.execute(statement)


async def ensure(database: Database, now: float = NOVEMBER) -> list[str]:
    async with database.connection() as connection:
        return await ensure_partitions(connection, AUDIT_LOGS, now)


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
            made.extend(await ensure_partitions(connection, AUDIT_LOGS, NOVEMBER))

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


async def test_a_day_can_be_a_period_and_old_days_are_dropped(database: Database) -> None:
    async with database.connection() as connection:
        made = await ensure_partitions(connection, DAYS, LONG_AGO)
        assert made == [f"webhook_logs_2020_{day}" for day in ("11_30", "12_01", "12_02")]
        await connection.execute("create table webhook_logs_2020_11_01 (a int)")
        kept_from = datetime(2020, 12, 2, 12, tzinfo=UTC)
        now = kept_from.timestamp() + 90 * DAY_SECONDS
        assert await drop_partitions(connection, DAYS, now, 90, kept_from - A_DAY) == made[:1]
        assert await drop_partitions(connection, DAYS, now, 90, kept_from + A_DAY) == made[1:2]
        assert await drop_partitions(connection, DAYS, now, 90) == []
        await connection.execute("select from webhook_logs_2020_11_01")


async def test_no_clock_that_is_ahead_drops_what_is_young(database: Database) -> None:
    async with database.connection() as connection:
        now = SystemClock().now()
        old = await ensure_partitions(connection, DAYS, now - 9 * DAY_SECONDS)
        young = await ensure_partitions(connection, DAYS, now)
        # By the other clock they are not that old, whichever of the two it is.
        assert await drop_partitions(connection, DAYS, now - 30 * DAY_SECONDS, 5) == []
        assert await drop_partitions(connection, DAYS, now + 100 * DAY_SECONDS, 5) == old
    names = await rows_of(database.url, PARTITIONS.replace("audit_logs", "webhook_logs"))
    assert [name for name, _ in names] == [*young, "webhook_logs_other"]


async def test_a_table_that_is_read_is_dropped_another_time(database: Database) -> None:
    now = LONG_AGO + 10 * DAY_SECONDS
    async with database.connection() as connection:
        await ensure_partitions(connection, DAYS, LONG_AGO)
        async with database.transaction() as reader:
            await reader.execute("select count(*) from webhook_logs")
            with capture_logs() as logs:
                assert await drop_partitions(connection, DAYS, now, 1) == []
        assert [told["log_level"] for told in logs] == ["warning"]
        assert len(await drop_partitions(connection, DAYS, now, 1)) == 3
