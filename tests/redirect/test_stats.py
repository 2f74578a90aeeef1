from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import anyio
import msgspec
import psycopg
import pytest

from couponflow.config import DatabaseSettings
from couponflow.kernel.clock import ManualClock
from couponflow.kernel.database import Database, DatabaseAway, open_database
from couponflow.kernel.migrations import migrate
from couponflow.redirect.stats import FRESH_SECONDS, Stats, StatsReader
from tests.postgres_server import PostgresServer
from tests.samples import (
    CLICKED_AT,
    MERCHANT_ID,
    OFFER_ID,
    OTHER_MERCHANT_ID,
    OTHER_OFFER_ID,
    USER_ID,
    insert_catalogue,
)

NOW = datetime.fromtimestamp(CLICKED_AT, UTC)
THIS_HOUR = datetime(2026, 9, 21, 14, tzinfo=UTC)


async def add_clicks(
    connection: psycopg.AsyncConnection,
    moments: Sequence[datetime],
    verdict: str = "human",
    offer_id: str = OFFER_ID,
    merchant_id: str = MERCHANT_ID,
) -> None:
    """Write clicks and their counters as the clicks role does."""
    await connection.execute(
        "create table if not exists test_clicks partition of affiliate_clicks"
        " for values from ('2026-01-01') to ('2027-01-01')"
    )
    for moment in moments:
        await connection.execute(
            "insert into affiliate_clicks (external_click_id, merchant_id, offer_id, user_id,"
            " clicked_at, user_agent, referer, verdict)"
            " values (gen_random_uuid(), %s, %s, %s, %s, '', '', %s)",
            [merchant_id, offer_id, USER_ID, moment, verdict],
        )
        await connection.execute(
            "insert into click_minutes values (date_trunc('minute', %s, 'UTC'), %s, 1)"
            " on conflict (minute, verdict) do update set clicks = click_minutes.clicks + 1",
            [moment, verdict],
        )
        await connection.execute(
            "insert into click_totals values (%s, %s, 1)"
            " on conflict (merchant_id, verdict) do update set clicks = click_totals.clicks + 1",
            [merchant_id, verdict],
        )


async def test_an_empty_database_is_all_zeros(database: Database) -> None:
    stats = await StatsReader(database, ManualClock()).read()
    assert (stats.total, stats.last_hour, stats.stale) == (0, 0, False)
    assert stats.by_verdict == {"human": 0, "bot": 0, "prefetch": 0, "duplicate": 0}
    assert [hour.clicks for hour in stats.by_hour] == [0] * 24
    assert (stats.top_offers, stats.top_merchants) == ([], [])
    assert stats.as_of == NOW.isoformat()


async def test_the_figures_are_those_of_the_rows(database: Database) -> None:
    async with database.connection() as connection:
        await insert_catalogue(connection)
        await add_clicks(connection, [NOW, NOW - timedelta(hours=2), NOW - timedelta(days=30)])
        await add_clicks(connection, [NOW] * 2, "bot")
        await add_clicks(
            connection,
            [NOW - timedelta(hours=5)] * 4,
            "duplicate",
            OTHER_OFFER_ID,
            OTHER_MERCHANT_ID,
        )
        await add_clicks(connection, [NOW - timedelta(days=2)] * 9, "prefetch")
    stats = await StatsReader(database, ManualClock()).read()
    assert stats.total == 18
    assert stats.by_verdict == {"human": 3, "bot": 2, "prefetch": 9, "duplicate": 4}
    assert stats.last_hour == 3
    assert (
        msgspec.to_builtins(stats.top_offers)
        == [
            {"offer_id": OTHER_OFFER_ID, "title": "An offer", "merchant": "aabazaar", "clicks": 4},
            {"offer_id": OFFER_ID, "title": "An offer", "merchant": "zenmart", "clicks": 4},
        ][::-1]
    )
    assert msgspec.to_builtins(stats.top_merchants) == [
        {"merchant": "zenmart", "name": "Zenmart", "clicks": 14},
        {"merchant": "aabazaar", "name": "Aabazaar", "clicks": 4},
    ]


async def test_hours_are_whole_hours_and_the_last_is_the_current_one(database: Database) -> None:
    first_hour = THIS_HOUR - timedelta(hours=23)
    moments = [
        first_hour - timedelta(seconds=1),
        first_hour,
        first_hour + timedelta(minutes=59, seconds=59),
        first_hour + timedelta(hours=1),
        THIS_HOUR - timedelta(seconds=1),
        THIS_HOUR,
        NOW,
    ]
    async with database.connection() as connection:
        await insert_catalogue(connection)
        await add_clicks(connection, moments)
    stats = await StatsReader(database, ManualClock()).read()
    assert [hour.clicks for hour in stats.by_hour] == [2, 1, *[0] * 20, 1, 2]
    assert stats.by_hour[0].hour == "2026-09-20T15:00:00+00:00"
    assert stats.by_hour[-1].hour == "2026-09-21T14:00:00+00:00"


async def test_the_last_hour_is_sixty_whole_minutes_and_the_current_one(
    database: Database,
) -> None:
    this_minute = NOW.replace(second=0)
    moments = [
        this_minute - timedelta(minutes=60, seconds=1),
        this_minute - timedelta(minutes=60),
        this_minute - timedelta(seconds=1),
        NOW,
    ]
    async with database.connection() as connection:
        await insert_catalogue(connection)
        await add_clicks(connection, moments)
    assert (await StatsReader(database, ManualClock()).read()).last_hour == 3


async def test_figures_are_kept_while_they_are_fresh(database: Database) -> None:
    clock = ManualClock()
    reader = StatsReader(database, clock)
    assert (await reader.read()).total == 0
    async with database.connection() as connection:
        await insert_catalogue(connection)
        await add_clicks(connection, [NOW])
    clock.advance(FRESH_SECONDS * 0.9)
    assert (await reader.read()).total == 0
    clock.advance(FRESH_SECONDS * 0.2)
    assert (await reader.read()).total == 1


class SlowReader(StatsReader):
    """Its query takes three seconds of the clock."""

    def __init__(self, database: Database, clock: ManualClock) -> None:
        super().__init__(database, clock)
        self._manual_clock = clock
        self.queries = 0

    async def _query(self) -> Stats:
        self.queries += 1
        self._manual_clock.advance(3.0)
        return await super()._query()


async def test_a_slow_query_is_not_repeated_before_its_cost_is_made_up_for(
    database: Database,
) -> None:
    clock = ManualClock()
    reader = SlowReader(database, clock)
    await reader.read()
    clock.advance(5.9)
    await reader.read()
    assert reader.queries == 1
    clock.advance(0.2)
    await reader.read()
    assert reader.queries == 2


async def test_many_who_ask_at_once_cost_one_query(database: Database) -> None:
    reader = SlowReader(database, ManualClock())
    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(reader.read)
    assert reader.queries == 1


async def test_while_postgresql_is_away_the_figures_last_seen_are_marked_stale(
    stoppable_postgres: PostgresServer,
) -> None:
    await migrate(stoppable_postgres.url)
    settings = DatabaseSettings(connect_timeout_seconds=0.3)
    clock = ManualClock()
    async with open_database(stoppable_postgres.url, settings) as database:
        async with database.connection() as connection:
            await insert_catalogue(connection)
            await add_clicks(connection, [NOW])
        reader = StatsReader(database, clock)
        fresh = await reader.read()
        await stoppable_postgres.stop()
        clock.advance(60)
        assert await reader.read() == msgspec.structs.replace(fresh, stale=True)
        await stoppable_postgres.start()
        clock.advance(60)
        again = await reader.read()
        assert (again.total, again.stale) == (1, False)


async def test_without_earlier_figures_an_outage_is_an_error(
    stoppable_postgres: PostgresServer,
) -> None:
    await stoppable_postgres.stop()
    settings = DatabaseSettings(connect_timeout_seconds=0.2)
    async with open_database(stoppable_postgres.url, settings) as database:
        with pytest.raises(DatabaseAway):
            await StatsReader(database, ManualClock()).read()
