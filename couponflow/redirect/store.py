"""What the redirector reads from PostgreSQL: the catalogue, and the counters for /stats."""

from collections.abc import AsyncGenerator, Sequence
from datetime import datetime

import anyio
import msgspec
import psycopg

from couponflow.kernel.database import load_queries

_queries = load_queries("redirect")
_ROWS_A_FETCH = 1_000
_CLOSE_SECONDS = 5.0


class MerchantRow(msgspec.Struct, frozen=True):
    merchant_id: str
    slug: str
    name: str
    tracking_template: str
    fallback_url: str | None


async def begin_snapshot(connection: psycopg.AsyncConnection) -> int:
    """Make the transaction see one moment, and return that moment's horizon.

    A later look `since` that horizon misses no change, however its transaction was timed.
    """
    await connection.execute("set transaction isolation level repeatable read, read only")
    cursor = await connection.execute(_queries["horizon"])
    row = await cursor.fetchone()
    if row is None:
        raise AssertionError("a select without from gives one row")
    return int(row[0])


async def merchants_since(connection: psycopg.AsyncConnection, since: int) -> list[MerchantRow]:
    cursor = await connection.execute(_queries["merchants_since"], {"since": str(since)})
    return [MerchantRow(*row) async for row in cursor]


async def offers_since(
    connection: psycopg.AsyncConnection, since: int, merchant_ids: Sequence[str]
) -> AsyncGenerator[tuple[str, str, str, float, float], None]:
    """Offer id, merchant id, URL, start and end (seconds since the epoch), a page at a time.

    Close the generator (`aclosing`) if it is not read to its end.
    """
    cursor = connection.cursor(name="offers_since")
    cursor.itersize = _ROWS_A_FETCH
    try:
        await cursor.execute(
            _queries["offers_since"], {"since": str(since), "merchant_ids": list(merchant_ids)}
        )
        async for offer_id, merchant_id, url, starts_at, ends_at in cursor:
            yield offer_id, merchant_id, url, starts_at, ends_at
    finally:
        with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
            await cursor.close()


class TopOffer(msgspec.Struct, frozen=True):
    offer_id: str
    title: str
    merchant: str
    clicks: int


class TopMerchant(msgspec.Struct, frozen=True):
    merchant: str
    name: str
    clicks: int


async def clicks_by_verdict(connection: psycopg.AsyncConnection) -> dict[str, int]:
    cursor = await connection.execute(_queries["stats_totals"])
    return {verdict: clicks async for verdict, clicks in cursor}


async def clicks_by_minute(connection: psycopg.AsyncConnection, since: datetime) -> dict[int, int]:
    """Clicks of each minute from `since` on, by the minute's start in seconds since the epoch."""
    cursor = await connection.execute(_queries["stats_minutes"], {"since": since})
    return {minute: clicks async for minute, clicks in cursor}


async def top_merchants(connection: psycopg.AsyncConnection) -> list[TopMerchant]:
    cursor = await connection.execute(_queries["stats_top_merchants"])
    return [TopMerchant(*row) async for row in cursor]


async def top_offers(connection: psycopg.AsyncConnection, since: datetime) -> list[TopOffer]:
    cursor = await connection.execute(_queries["stats_top_offers"], {"since": since})
    return [TopOffer(*row) async for row in cursor]
