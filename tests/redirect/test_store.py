from datetime import UTC, datetime

import psycopg

from couponflow.kernel.database import Database
from couponflow.redirect import store
from tests.samples import (
    MERCHANT_ID,
    OFFER_ID,
    OTHER_MERCHANT_ID,
    OTHER_OFFER_ID,
    TEMPLATE,
    insert_catalogue,
    insert_merchant,
    insert_offer,
)

URL = "https://shop.example/a?b=c"
FOREVER = float("inf")
OfferRow = tuple[str, str, str, float, float]


async def offers(
    connection: psycopg.AsyncConnection, since: int, *merchant_ids: str
) -> list[OfferRow]:
    return sorted([row async for row in store.offers_since(connection, since, merchant_ids)])


async def test_a_merchant_is_read_as_it_was_written(database: Database) -> None:
    async with database.connection() as connection:
        await insert_merchant(connection, fallback_url="https://shop.example/")
    async with database.transaction() as connection:
        assert await store.merchants_since(connection, 0) == [
            store.MerchantRow(MERCHANT_ID, "zenmart", "Zenmart", TEMPLATE, "https://shop.example/")
        ]


async def test_times_become_seconds_and_a_withdrawn_offer_has_ended(database: Database) -> None:
    at = datetime(2026, 9, 21, tzinfo=UTC)
    third = "01920000-0000-7000-8000-0000000000c3"
    async with database.connection() as connection:
        await insert_merchant(connection)
        await insert_offer(connection)
        await insert_offer(connection, OTHER_OFFER_ID, starts_at=at)
        await insert_offer(connection, third, expires_at=at, active=False)
    async with database.transaction() as connection:
        assert await offers(connection, 0) == [
            (OFFER_ID, MERCHANT_ID, URL, -FOREVER, FOREVER),
            (OTHER_OFFER_ID, MERCHANT_ID, URL, at.timestamp(), FOREVER),
            (third, MERCHANT_ID, URL, -FOREVER, -FOREVER),
        ]


async def test_only_what_changed_since_a_horizon_is_read_again(database: Database) -> None:
    async with database.connection() as connection:
        await insert_catalogue(connection)
    async with database.transaction() as connection:
        horizon = await store.begin_snapshot(connection)
        assert await store.merchants_since(connection, horizon) == []
        assert await offers(connection, horizon) == []
        of_merchant = await offers(connection, horizon, OTHER_MERCHANT_ID)
        assert [row[0] for row in of_merchant] == [OTHER_OFFER_ID]


async def test_a_snapshot_sees_one_moment(database: Database) -> None:
    async with database.transaction() as connection:
        await store.begin_snapshot(connection)
        async with database.connection() as other:
            await insert_catalogue(other)
        assert await offers(connection, 0) == []
    async with database.transaction() as connection:
        assert len(await offers(connection, 0)) == 2


async def test_many_offers_come_a_page_at_a_time_and_complete(database: Database) -> None:
    async with database.connection() as connection:
        await insert_merchant(connection)
        await connection.execute(
            "insert into offers (id, merchant_id, title, url)"
            " select gen_random_uuid(), %s, 'An offer', 'https://shop.example/' || n"
            " from generate_series(1, 2500) n",
            [MERCHANT_ID],
        )
    async with database.transaction() as connection:
        urls = {row[2] for row in await offers(connection, 0)}
    assert urls == {f"https://shop.example/{number}" for number in range(1, 2501)}
