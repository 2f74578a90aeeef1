"""Writing clicks into PostgreSQL."""

from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta

import anyio
import psycopg
from psycopg import sql

from couponflow.kernel.database import load_queries
from couponflow.messages import Click

_queries = load_queries("clicks")
_ROWS_BETWEEN_CHECKPOINTS = 250
"""About half a millisecond of Python: how long the event loop is kept from others."""


async def known_offers(
    connection: psycopg.AsyncConnection, offer_ids: Iterable[str]
) -> dict[str, str]:
    """The merchant of each offer that exists."""
    cursor = await connection.execute(_queries["known_offers"], {"offer_ids": list(offer_ids)})
    return {offer_id: merchant_id async for offer_id, merchant_id in cursor}


async def insert_clicks(connection: psycopg.AsyncConnection, clicks: Sequence[Click]) -> int:
    """Store clicks and count them, in the caller's transaction; return how many were new.

    Clicks already stored are left as they are, so that a batch may be sent any number of times.
    Raises psycopg's `DataError` or `IntegrityError` if a single one of them cannot be stored.
    """
    await connection.execute(_queries["create_staging"])
    async with (
        connection.cursor() as cursor,
        cursor.copy(_queries["copy_to_staging"]) as copy,
    ):
        for number, click in enumerate(clicks, 1):
            await copy.write_row(_row(click))
            if not number % _ROWS_BETWEEN_CHECKPOINTS:
                await anyio.lowlevel.checkpoint()
    counted = await connection.execute(_queries["take_from_staging"])
    row = await counted.fetchone()
    if row is None:
        raise AssertionError("count(*) gives one row")
    return int(row[0])


def _row(click: Click) -> tuple[str | None, ...]:
    return (
        click.click_id,
        click.merchant_id,
        click.offer_id,
        click.user_id,
        datetime.fromtimestamp(click.clicked_at, UTC).isoformat(),
        click.ip or None,
        click.user_agent,
        click.referer,
        click.verdict,
    )


async def partition_days(connection: psycopg.AsyncConnection) -> set[date]:
    """The days (UTC) that `affiliate_clicks` has a partition for."""
    cursor = await connection.execute(_queries["partition_days"])
    return {date.fromisoformat(text) async for (text,) in cursor}


async def create_partition(connection: psycopg.AsyncConnection, day: date) -> None:
    """Make a day's partition unless it is there; safe when several daemons do it at once."""
    first = datetime(day.year, day.month, day.day, tzinfo=UTC)
    statement = sql.SQL(
        "create table if not exists {} partition of affiliate_clicks for values from ({}) to ({})"
    ).format(
        sql.Identifier(f"affiliate_clicks_{day:%Y_%m_%d}"),
        sql.Literal(first.isoformat()),
        sql.Literal((first + timedelta(days=1)).isoformat()),
    )
    await connection.execute(statement)
