"""Tables partitioned by time: partitions are made ahead of their time, and old ones dropped.

Each such table has a default partition `NAME_other`, so that a row is stored even in a period that
has no partition of its own.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Literal, assert_never

import msgspec
import psycopg
import structlog
from psycopg import sql

from couponflow.kernel.database import Connection, load_queries

_queries = load_queries("partitions")
_log = structlog.get_logger("couponflow.partitions")
_IN_THE_WAY = (psycopg.errors.CheckViolation, psycopg.errors.DuplicateTable)


class PartitionedTable(msgspec.Struct, frozen=True):
    """A table with a partition a period (UTC)."""

    name: str
    period: Literal["day", "month"]
    count: int
    """Partitions that are to be there: the current period's, and those after it."""

    def start_of(self, moment: datetime) -> datetime:
        """When the period of a moment begins."""
        day = moment.replace(hour=0, minute=0, second=0, microsecond=0)
        match self.period:
            case "day":
                return day
            case "month":
                return day.replace(day=1)
            case _:
                assert_never(self.period)

    def after(self, start: datetime) -> datetime:
        """When the period ends that begins at `start`."""
        days = {"day": 1, "month": 32}[self.period]
        return self.start_of(start + timedelta(days=days))

    def partition(self, start: datetime) -> str:
        suffix = {"day": "%Y_%m_%d", "month": "%Y_%m"}[self.period]
        return f"{self.name}_{start.strftime(suffix)}"

    def periods_from(self, now: float) -> Iterator[datetime]:
        start = self.start_of(datetime.fromtimestamp(now, UTC))
        for _ in range(self.count):
            yield start
            start = self.after(start)


async def ensure_partitions(
    connection: Connection, table: PartitionedTable, now: float
) -> list[str]:
    """Make the partitions of this period and of those to come; return those that were missing.

    Several daemons may call it at once. A period that cannot get its partition is logged and left:
    its rows go to the default partition, and nothing is lost.
    """
    missing = [
        start for start in table.periods_from(now) if not await _has(connection, table, start)
    ]
    made: list[str] = []
    for start in missing:
        try:
            async with connection.transaction():
                await connection.execute(_queries["lock_partitions"], {"table": table.name})
                if not await _has(connection, table, start):
                    await _create(connection, table, start)
                    made.append(table.partition(start))
        except _IN_THE_WAY as error:
            _tell(table, start, error)
        except psycopg.errors.LockNotAvailable as error:
            # The other periods need the same lock.
            _tell(table, start, error)
            break
        except psycopg.errors.InvalidObjectDefinition:
            # Somebody's wider partition takes the rows of that period.
            continue
    return made


async def drop_partitions(
    connection: Connection,
    table: PartitionedTable,
    now: float,
    keep_days: int,
    needed_from: datetime | None = None,
) -> list[str]:
    """Drop the partitions of periods that ended so many days before `now`; return their names.

    They ended that long ago by PostgreSQL's clock, too, and before `needed_from`. Only those with
    the names made here; rows in the default partition stay.
    """
    kept_from = await _kept_from(connection, now, keep_days, needed_from)
    cursor = await connection.execute(_queries["partitions"], {"table": table.name})
    dropped: list[str] = []
    for (name,) in await cursor.fetchall():
        start = _start_in(table, str(name))
        if start is None or table.after(start) > kept_from:
            continue
        try:
            async with connection.transaction():
                await connection.execute(_queries["wait_briefly"])
                await connection.execute(
                    sql.SQL("drop table if exists {}").format(sql.Identifier(name))
                )
        except psycopg.errors.LockNotAvailable as error:
            _tell(table, start, error)
            break
        dropped.append(name)
    return dropped


async def _kept_from(
    connection: Connection, now: float, days: int, needed_from: datetime | None
) -> datetime:
    cursor = await connection.execute(
        _queries["kept_from"], {"now": now, "days": days, "needed_from": needed_from}
    )
    ((moment,),) = await cursor.fetchall()
    return moment


def _start_in(table: PartitionedTable, name: str) -> datetime | None:
    suffix = {"day": "%Y_%m_%d", "month": "%Y_%m"}[table.period]
    try:
        return datetime.strptime(name, f"{table.name}_{suffix}").replace(tzinfo=UTC)
    except ValueError:
        return None


async def _has(connection: Connection, table: PartitionedTable, start: datetime) -> bool:
    names = {"table": table.name, "name": table.partition(start)}
    cursor = await connection.execute(_queries["has_partition"], names)
    return await cursor.fetchone() == (True,)


async def _create(connection: Connection, table: PartitionedTable, start: datetime) -> None:
    """Attach an empty table, which does not make readers and writers of other periods wait."""
    parent, name = sql.Identifier(table.name), sql.Identifier(table.partition(start))
    await connection.execute(_queries["wait_briefly"])
    await connection.execute(
        sql.SQL(
            "create table {} (like {} including defaults including constraints including indexes)"
        ).format(name, parent)
    )
    bounds = (sql.Literal(start.isoformat()), sql.Literal(table.after(start).isoformat()))
    await connection.execute(
        sql.SQL("alter table {} attach partition {} for values from ({}) to ({})").format(
            parent, name, *bounds
        )
    )


def _tell(table: PartitionedTable, start: datetime, error: psycopg.Error) -> None:
    _log.warning(
        "partition_not_made_or_dropped",
        partition=table.partition(start),
        error=str(error).partition("\n")[0],
        hint=_hint(table, error),
    )


def _hint(table: PartitionedTable, error: psycopg.Error) -> str:
    match error:
        case psycopg.errors.CheckViolation():
            return (
                f"{table.name}_other holds rows of that {table.period}; "
                "they stay there and can be read"
            )
        case psycopg.errors.DuplicateTable():
            return f"another table has that name; rename it or attach it to {table.name}"
        case _:
            return f"somebody reads or writes {table.name} for long; it is tried again"
