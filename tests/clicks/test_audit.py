from datetime import date
from pathlib import Path

import pytest

from couponflow.clicks import store
from couponflow.clicks.audit import INVARIANTS
from couponflow.kernel.audit import AuditScope, Finding, run_audit
from couponflow.kernel.database import Database
from tests.samples import (
    CLICKED_AT,
    MERCHANT_ID,
    OTHER_OFFER_ID,
    USER_ID,
    insert_catalogue,
    make_click,
)

MINUTES = "click-minutes-agree"
TOTALS = "click-totals-agree"
OFFERS = "clicks-have-their-offer"


@pytest.fixture
async def ready(database: Database) -> Database:
    """Three clicks, counted as they should be."""
    async with database.connection() as connection:
        await insert_catalogue(connection)
        await store.create_partition(connection, date(2026, 9, 21))
    async with database.transaction() as connection:
        await store.insert_new_clicks(connection, [make_click(number) for number in range(3)])
    return database


async def broken(database: Database) -> dict[str, Finding]:
    findings = await run_audit(INVARIANTS, AuditScope(database, Path()))
    assert [finding.name for finding in findings] == [MINUTES, TOTALS, OFFERS]
    return {finding.name: finding for finding in findings if not finding.ok}


async def execute(database: Database, statement: bytes, *values: str) -> None:
    async with database.connection() as connection:
        await connection.execute(statement, values)


async def test_what_the_writer_stores_passes(ready: Database) -> None:
    assert await broken(ready) == {}


async def test_an_empty_database_passes(database: Database) -> None:
    assert await broken(database) == {}


async def test_a_row_that_vanished_is_found_by_both_counters(ready: Database) -> None:
    await execute(
        ready, b"delete from affiliate_clicks where external_click_id = %s", make_click(1).click_id
    )
    found = await broken(ready)
    assert set(found) == {MINUTES, TOTALS}
    assert found[MINUTES].offenders == [
        {
            "minute": "2026-09-21 14:13:00+00:00",
            "verdict": "human",
            "rows_clicks": "2",
            "counted_clicks": "3",
        }
    ]
    assert found[TOTALS].offenders == [
        {
            "merchant_id": MERCHANT_ID,
            "verdict": "human",
            "rows_clicks": "2",
            "counted_clicks": "3",
        }
    ]


async def test_a_counter_without_rows_is_found(ready: Database) -> None:
    await execute(ready, b"insert into click_minutes values ('2026-09-21 00:00Z', 'bot', 7)")
    found = await broken(ready)
    assert set(found) == {MINUTES}
    assert found[MINUTES].offenders[0]["rows_clicks"] == "0"


async def test_rows_without_a_counter_are_found(ready: Database) -> None:
    await execute(ready, b"delete from click_totals")
    found = await broken(ready)
    assert set(found) == {TOTALS}
    assert found[TOTALS].offenders[0]["counted_clicks"] == "0"


async def drop_day(database: Database) -> None:
    await execute(database, b"drop table affiliate_clicks_2026_09_21")


async def insert(database: Database, day: int, number: int) -> None:
    """Make the partition of a day in September and store a click in it."""
    async with database.connection() as connection:
        await store.create_partition(connection, date(2026, 9, day))
    at = CLICKED_AT + (day - 21) * 86_400
    async with database.transaction() as connection:
        await store.insert_new_clicks(connection, [make_click(number, clicked_at=at)])


async def test_a_dropped_partition_breaks_nothing(ready: Database) -> None:
    await drop_day(ready)
    assert await broken(ready) == {}
    await insert(ready, 22, 10)
    assert await broken(ready) == {}


async def test_a_partition_made_anew_after_a_drop_breaks_nothing(ready: Database) -> None:
    await drop_day(ready)
    await insert(ready, 21, 10)
    assert await broken(ready) == {}


async def test_after_a_drop_the_days_that_are_left_are_still_checked(ready: Database) -> None:
    await drop_day(ready)
    await insert(ready, 22, 10)
    await execute(ready, b"delete from affiliate_clicks")
    assert set(await broken(ready)) == {MINUTES}


async def test_after_a_drop_counters_lower_than_rows_are_still_found(ready: Database) -> None:
    await drop_day(ready)
    await insert(ready, 21, 10)
    await execute(ready, b"delete from click_totals")
    await execute(ready, b"delete from click_minutes")
    assert set(await broken(ready)) == {MINUTES, TOTALS}


@pytest.mark.parametrize("offer_id", [OTHER_OFFER_ID, USER_ID])
async def test_a_click_on_an_offer_of_nobody_or_of_another_merchant_is_found(
    ready: Database, offer_id: str
) -> None:
    click_id = make_click(1).click_id
    await execute(
        ready,
        b"update affiliate_clicks set offer_id = %s where external_click_id = %s",
        offer_id,
        click_id,
    )
    found = await broken(ready)
    assert set(found) == {OFFERS}
    assert found[OFFERS].offenders == [
        {"external_click_id": click_id, "offer_id": offer_id, "merchant_id": MERCHANT_ID}
    ]
