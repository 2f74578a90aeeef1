from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime, timedelta
from ipaddress import IPv4Address
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from couponflow.clicks import store
from couponflow.kernel.database import Database
from couponflow.messages import Click
from tests.samples import (
    BROWSER,
    CLICKED_AT,
    MERCHANT_ID,
    OFFER_ID,
    OTHER_MERCHANT_ID,
    OTHER_OFFER_ID,
    USER_ID,
    insert_catalogue,
    make_click,
    rows_of,
)

Insert = Callable[..., Awaitable[int]]


@pytest.fixture
async def ready(database: Database) -> Database:
    """A database with a catalogue and a partition for the clicks of these tests."""
    async with database.connection() as connection:
        await insert_catalogue(connection)
        await store.create_partition(connection, date(2026, 9, 21))
    return database


async def insert_missing(database: Database, *clicks: Click) -> int:
    async with database.transaction() as connection:
        return await store.insert_missing_clicks(connection, clicks)


async def insert_new(database: Database, *clicks: Click) -> int:
    async with database.transaction() as connection:
        await store.insert_new_clicks(connection, clicks)
    return len(clicks)


def numbered(*numbers: int) -> list[Click]:
    return [make_click(number) for number in numbers]


async def counted(database: Database) -> tuple[object, ...]:
    """Rows, and the two sums that must equal them."""
    query = (
        "select (select count(*) from affiliate_clicks),"
        " (select coalesce(sum(clicks), 0) from click_minutes),"
        " (select coalesce(sum(clicks), 0) from click_totals)"
    )
    return (await rows_of(database.url, query))[0]


@pytest.fixture(params=[insert_new, insert_missing])
def insert(request: pytest.FixtureRequest) -> Insert:
    """Both ways to store what is new must do the same."""
    return request.param


async def test_offers_are_known_with_their_merchant(ready: Database) -> None:
    async with ready.connection() as connection:
        known = await store.known_offers(connection, [OFFER_ID, OTHER_OFFER_ID, USER_ID])
    assert known == {OFFER_ID: MERCHANT_ID, OTHER_OFFER_ID: OTHER_MERCHANT_ID}


async def test_a_click_is_stored_as_it_was(ready: Database, insert: Insert) -> None:
    click = make_click(referer="https://blog.example/", clicked_at=CLICKED_AT + 0.123456)
    assert await insert(ready, click) == 1
    at = datetime.fromtimestamp(CLICKED_AT, UTC).replace(microsecond=123456)
    ids = [UUID(text) for text in (click.click_id, MERCHANT_ID, OFFER_ID, USER_ID)]
    (row,) = await rows_of(ready.url, "select * from affiliate_clicks")
    stored_at, *rest = row[4:]
    assert row[:4] == tuple(ids)
    assert isinstance(stored_at, datetime)
    assert abs(stored_at - at) <= timedelta(microseconds=1)
    assert rest == [IPv4Address("192.0.2.1"), BROWSER, "https://blog.example/", "human"]


async def test_counters_are_kept_by_minute_merchant_and_verdict(
    ready: Database, insert: Insert
) -> None:
    clicks = [
        make_click(1),
        make_click(2, clicked_at=CLICKED_AT + 39.999999),
        make_click(3, clicked_at=CLICKED_AT + 40),
        make_click(4, verdict="bot"),
        make_click(5, offer_id=OTHER_OFFER_ID, merchant_id=OTHER_MERCHANT_ID),
    ]
    assert await insert(ready, *clicks) == 5
    first = datetime(2026, 9, 21, 14, 13, tzinfo=UTC)
    assert await rows_of(ready.url, "select * from click_minutes order by 1, 2") == [
        (first, "bot", 1),
        (first, "human", 3),
        (first + timedelta(minutes=1), "human", 1),
    ]
    assert await rows_of(ready.url, "select * from click_totals order by 1, 2") == [
        (UUID(MERCHANT_ID), "bot", 1),
        (UUID(MERCHANT_ID), "human", 3),
        (UUID(OTHER_MERCHANT_ID), "human", 1),
    ]


async def test_a_click_without_an_address_is_stored_without_one(
    ready: Database, insert: Insert
) -> None:
    await insert(ready, make_click(ip=""))
    assert await rows_of(ready.url, "select ip from affiliate_clicks") == [(None,)]


async def test_clicks_stored_before_are_left_and_not_counted_again(ready: Database) -> None:
    assert await insert_missing(ready, *numbered(1, 2)) == 2
    assert await insert_missing(ready, *numbered(2, 3)) == 1
    assert await insert_missing(ready, *numbered(3, 3, 4, 4)) == 1
    assert await insert_missing(ready, *numbered(1, 2, 3, 4)) == 0
    assert await counted(ready) == (4, 4, 4)


async def test_thought_to_be_new_but_stored_before_is_refused_whole(ready: Database) -> None:
    await insert_new(ready, make_click(1))
    with pytest.raises(psycopg.errors.UniqueViolation):
        await insert_new(ready, *numbered(2, 1))
    assert await counted(ready) == (1, 1, 1)


async def test_counters_agree_with_rows_of_odd_ids_too(ready: Database) -> None:
    """Another program may write an id in capitals, or one id at two moments."""
    odd = [
        make_click(1, click_id=make_click(10).click_id.upper()),
        make_click(2),
        make_click(2, clicked_at=CLICKED_AT + 60),
    ]
    assert await insert_missing(ready, *odd) == 3
    assert await counted(ready) == (3, 3, 3)


async def test_a_transaction_that_fails_keeps_neither_rows_nor_counters(ready: Database) -> None:
    async def insert_and_fail() -> None:
        async with ready.transaction() as connection:
            await store.insert_new_clicks(connection, [make_click(1)])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await insert_and_fail()
    assert await counted(ready) == (0, 0, 0)


UNSTORABLE: tuple[dict[str, str | float], ...] = (
    {"user_agent": "a\0b"},
    {"referer": "\0"},
    {"ip": "nowhere"},
    {"click_id": "no-uuid"},
    {"user_id": ""},
    {"verdict": "alien"},
    {"merchant_id": USER_ID},
    {"clicked_at": CLICKED_AT - 86_400},
)


async def test_one_click_that_cannot_be_stored_stores_none(ready: Database, insert: Insert) -> None:
    for changes in UNSTORABLE:
        with pytest.raises((psycopg.DataError, psycopg.IntegrityError)):
            await insert(ready, make_click(1), make_click(2, **changes), make_click(3))
        assert await counted(ready) == (0, 0, 0), changes
    assert await insert(ready, *numbered(1, 3)) == 2


texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(fields=st.lists(st.tuples(texts, texts), min_size=1, max_size=8))
async def test_any_text_is_stored_as_it_is(ready: Database, fields: list[tuple[str, str]]) -> None:
    """Tabs, newlines and backslashes mean something to COPY."""
    clicks = [
        make_click(number, user_agent=user_agent, referer=referer)
        for number, (user_agent, referer) in enumerate(fields)
    ]
    async with ready.transaction() as connection:
        await connection.execute("truncate affiliate_clicks")
        await store.insert_new_clicks(connection, clicks)
        cursor = await connection.execute(
            "select user_agent, referer from affiliate_clicks order by external_click_id"
        )
        assert await cursor.fetchall() == fields


async def test_a_partition_made_twice_is_refused_and_stays(ready: Database) -> None:
    async with ready.connection() as connection:
        await store.create_partition(connection, date(2026, 12, 31))
        with pytest.raises(psycopg.errors.DuplicateTable):
            await store.create_partition(connection, date(2026, 12, 31))
        assert await store.partition_days(connection) == {date(2026, 9, 21), date(2026, 12, 31)}


async def test_a_partition_has_the_constraints_of_its_table(ready: Database) -> None:
    query = (
        "select conname::text, contype::text, coninhcount > 0 from pg_constraint"
        " where conrelid = 'affiliate_clicks_2026_09_21'::regclass and contype in ('c', 'p')"
        " order by 1"
    )
    assert await rows_of(ready.url, query) == [
        ("affiliate_clicks_2026_09_21_pkey", "p", True),
        ("affiliate_clicks_verdict_check", "c", True),
    ]


async def test_a_partition_is_made_while_somebody_reads_and_writes(ready: Database) -> None:
    async with ready.transaction() as reading, ready.connection() as connection:
        await store.insert_new_clicks(reading, [make_click(1)])
        await reading.execute("select * from affiliate_clicks")
        await store.create_partition(connection, date(2026, 12, 31))
        assert len(await store.partition_days(connection)) == 2
    assert await counted(ready) == (1, 1, 1)


async def test_a_partition_waits_a_second_for_its_lock_and_no_longer(ready: Database) -> None:
    async with ready.transaction() as locking, ready.connection() as connection:
        await locking.execute("lock table affiliate_clicks in share update exclusive mode")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            await store.create_partition(connection, date(2026, 12, 31))
        assert await store.partition_days(connection) == {date(2026, 9, 21)}


async def test_a_default_partition_is_of_no_day(ready: Database) -> None:
    async with ready.connection() as connection:
        await connection.execute("create table others partition of affiliate_clicks default")
        assert await store.partition_days(connection) == {date(2026, 9, 21)}


async def test_a_column_added_meanwhile_does_not_matter(ready: Database, insert: Insert) -> None:
    assert await insert(ready, make_click(1)) == 1
    async with ready.connection() as connection:
        await connection.execute(
            "alter table affiliate_clicks add column country text not null default 'none'"
        )
    assert await insert(ready, make_click(2)) == 1
    assert await insert_missing(ready, *numbered(1, 2, 3)) == 1
    assert await counted(ready) == (3, 3, 3)


async def test_the_staging_table_is_gone_with_its_transaction(ready: Database) -> None:
    async with ready.connection() as connection:
        for number in range(8):  # more often than it takes psycopg to prepare a statement
            async with connection.transaction():
                await store.insert_missing_clicks(connection, numbered(number, number + 1))
            cursor = await connection.execute("select to_regclass('pg_temp.click_staging')")
            assert await cursor.fetchone() == (None,)
    assert await counted(ready) == (9, 9, 9)


@pytest.mark.parametrize(("setting", "used"), [("off", "on"), ("remote_apply", "remote_apply")])
async def test_a_commit_waits_for_the_disk_and_leaves_stricter_settings(
    ready: Database, setting: str, used: str
) -> None:
    async with ready.connection() as connection:
        await connection.execute(f"set synchronous_commit = {setting}".encode())
        for insert_clicks in (store.insert_new_clicks, store.insert_missing_clicks):
            async with connection.transaction(force_rollback=True):
                await insert_clicks(connection, [make_click(1)])
                cursor = await connection.execute("show synchronous_commit")
                assert await cursor.fetchone() == (used,)
        cursor = await connection.execute("show synchronous_commit")
        assert await cursor.fetchone() == (setting,)
