from datetime import UTC, date, datetime, timedelta

import anyio
import pytest

from couponflow.clicks import store
from couponflow.clicks.partitions import OLDEST_DAYS, PartitionMissing, Partitions
from couponflow.kernel.clock import ManualClock
from couponflow.kernel.database import Database
from tests.samples import CLICKED_AT

TODAY = date(2026, 9, 21)
DAY_SECONDS = 86_400


async def days(database: Database) -> list[date]:
    async with database.connection() as connection:
        return sorted(await store.partition_days(connection))


async def test_partitions_are_made_for_today_and_the_days_ahead(database: Database) -> None:
    partitions = Partitions(database, ManualClock(), 3)
    for _ in range(2):
        await partitions.make_ahead()
    assert await days(database) == [TODAY + timedelta(days=n) for n in range(4)]


async def test_the_next_day_adds_one(database: Database) -> None:
    clock = ManualClock()
    partitions = Partitions(database, clock, 2)
    await partitions.make_ahead()
    clock.advance(DAY_SECONDS)
    await partitions.make_ahead()
    assert await days(database) == [TODAY + timedelta(days=n) for n in range(4)]


async def test_clicks_of_other_days_get_theirs(database: Database) -> None:
    partitions = Partitions(database, ManualClock(), 2)
    midnight = datetime(2026, 9, 22, tzinfo=UTC).timestamp()
    await partitions.make_for([midnight - 0.001, midnight, CLICKED_AT - 300 * DAY_SECONDS])
    assert await days(database) == [date(2025, 11, 25), TODAY, date(2026, 9, 22)]


async def test_what_another_daemon_made_is_found(database: Database) -> None:
    await Partitions(database, ManualClock(), 2).make_ahead()
    await Partitions(database, ManualClock(), 3).make_ahead()
    assert len(await days(database)) == 4


async def test_many_daemons_may_make_the_same_day_at_once(database: Database) -> None:
    async with anyio.create_task_group() as tasks:
        for _ in range(6):
            tasks.start_soon(Partitions(database, ManualClock(), 3).make_ahead)
    assert len(await days(database)) == 4


async def test_a_table_in_the_way_is_named(database: Database) -> None:
    async with database.connection() as connection:
        await connection.execute("create table affiliate_clicks_2026_09_21 (detached int)")
    with pytest.raises(PartitionMissing, match="another table is called affiliate_clicks_2026_09"):
        await Partitions(database, ManualClock(), 0).make_ahead()
    assert await days(database) == []


async def test_a_wider_partition_of_somebody_takes_its_days(database: Database) -> None:
    async with database.connection() as connection:
        await connection.execute(
            "create table september partition of affiliate_clicks"
            " for values from ('2026-09-01 00:00Z') to ('2026-10-01 00:00Z')"
        )
    await Partitions(database, ManualClock(), 1).make_ahead()
    assert await days(database) == [date(2026, 9, 1)]


@pytest.mark.parametrize(
    ("moment", "plausible"),
    [
        (CLICKED_AT, True),
        (CLICKED_AT - OLDEST_DAYS * DAY_SECONDS, True),
        (CLICKED_AT - OLDEST_DAYS * DAY_SECONDS - 1, False),
        (CLICKED_AT + 7 * DAY_SECONDS, True),
        (CLICKED_AT + 7 * DAY_SECONDS + 1, False),
        (0.0, False),
        (float("nan"), False),
        (float("inf"), False),
    ],
)
async def test_only_a_moment_that_may_be_a_clicks_is_plausible(
    database: Database, moment: float, plausible: bool
) -> None:
    partitions = Partitions(database, ManualClock(), 7)
    assert partitions.are_plausible([CLICKED_AT, moment]) is plausible
