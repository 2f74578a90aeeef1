import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import psycopg
import pytest

from couponflow.clicks.role import CHECK, ClicksParts, clicks_role
from couponflow.config import ClicksSettings, DatabaseSettings
from couponflow.kernel.channel import ChannelStatistics
from couponflow.kernel.channel_memory import MemoryChannel
from couponflow.kernel.clock import ManualClock
from couponflow.kernel.controls import ChannelControls, set_control
from couponflow.kernel.database import Database, open_database
from couponflow.kernel.health import HealthBoard
from couponflow.kernel.message_metrics import ChannelCounts
from couponflow.kernel.migrations import migrate
from couponflow.kernel.role import Stage
from couponflow.messages import Click
from tests.postgres_server import PostgresServer
from tests.samples import (
    PATIENCE_SECONDS,
    POLL_SECONDS,
    insert_catalogue,
    make_click,
    rows_of,
    until,
)

QUICK = ClicksSettings(flush_seconds=0.01, flush_rows=100, partitions_ahead_days=1)
IMPATIENT = DatabaseSettings(connect_timeout_seconds=0.3)


class FakeHandle:
    """The supervisor's side of a role."""

    def __init__(self) -> None:
        self.stopping = anyio.Event()
        self.up = anyio.Event()

    def started(self) -> None:
        self.up.set()


class Consuming:
    """A clicks role and everything it touches."""

    def __init__(self, database: Database, settings: ClicksSettings = QUICK) -> None:
        self.clock = clock = ManualClock()
        self.channel: MemoryChannel[Click] = MemoryChannel("clicks", 10_000, clock)
        self.metrics = ChannelCounts()
        self.health = HealthBoard(clock)
        self.controls = ChannelControls(database, random.Random(1), poll_seconds=POLL_SECONDS)
        self.handle = FakeHandle()
        self.ended = anyio.Event()
        self.role = clicks_role(
            ClicksParts(
                settings,
                "test",
                self.channel,
                self.controls,
                database,
                self.health,
                self.metrics,
                clock,
            )
        )

    async def run(self) -> None:
        await self.role.run(self.handle)
        self.ended.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the role; the block must end it, or leave a sealed channel that does."""
        with anyio.fail_after(PATIENCE_SECONDS):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.run)
                await self.handle.up.wait()
                yield
                self.channel.seal()

    async def publish(self, *numbers: int) -> None:
        await self.channel.publish([make_click(number) for number in numbers])

    async def statistics(self) -> ChannelStatistics:
        return await self.channel.statistics()

    def check(self) -> bool:
        return self.health.snapshot().checks[CHECK].ok


@pytest.fixture
async def stocked(database: Database) -> Database:
    async with database.connection() as connection:
        await insert_catalogue(connection)
    return database


@pytest.fixture
async def away_and_back(stoppable_postgres: PostgresServer) -> AsyncIterator[Database]:
    """A database, stocked, on a server that the test may stop."""
    await migrate(stoppable_postgres.url)
    async with await psycopg.AsyncConnection.connect(stoppable_postgres.url) as connection:
        await insert_catalogue(connection)
    async with open_database(stoppable_postgres.url, IMPATIENT) as opened:
        yield opened


async def count(url: str) -> object:
    return (await rows_of(url, "select count(*) from affiliate_clicks"))[0][0]


async def test_clicks_become_rows_and_are_acknowledged(stocked: Database) -> None:
    consuming = Consuming(stocked)
    async with consuming.running():
        handover = await consuming.channel.publish([make_click(n) for n in range(250)])
        await handover.taken()
        assert await count(stocked.url) == 250
    statistics = await consuming.statistics()
    assert (statistics.acknowledged, statistics.rejected) == (250, 0)
    assert (consuming.metrics.done, consuming.metrics.dead) == (250, 0)
    assert consuming.check()


async def test_the_role_works_until_its_channel_is_sealed_and_empty(stocked: Database) -> None:
    consuming = Consuming(stocked)
    assert (consuming.role.name, consuming.role.stage) == ("clicks", Stage.WORK)
    async with consuming.running():
        consuming.handle.stopping.set()
        await anyio.wait_all_tasks_blocked()
        assert not consuming.ended.is_set()
        await consuming.publish(*range(500))
        consuming.channel.seal()
        await consuming.ended.wait()
    assert await count(stocked.url) == 500


async def pause(database: Database, *, paused: bool) -> None:
    async with database.transaction() as connection:
        await set_control(connection, Click.channel, paused=paused, actor="a test")


async def test_a_paused_channel_is_left_alone_until_it_is_resumed(stocked: Database) -> None:
    consuming = Consuming(stocked)
    await pause(stocked, paused=True)
    async with consuming.running(), anyio.create_task_group() as tasks:
        tasks.start_soon(consuming.controls.run)
        await consuming.controls.until_paused(Click.channel)
        await consuming.publish(*range(50))
        await anyio.wait_all_tasks_blocked()
        assert await count(stocked.url) == 0
        await pause(stocked, paused=False)
        await until(lambda: consuming.metrics.done == 50)
        tasks.cancel_scope.cancel()
    assert await count(stocked.url) == 50


async def test_what_is_on_a_paused_channel_is_stored_when_the_role_stops(
    stocked: Database,
) -> None:
    consuming = Consuming(stocked)
    await pause(stocked, paused=True)
    async with consuming.running(), anyio.create_task_group() as tasks:
        tasks.start_soon(consuming.controls.run)
        await consuming.controls.until_paused(Click.channel)
        await consuming.publish(*range(50))
        consuming.handle.stopping.set()
        await until(lambda: consuming.metrics.done == 50)
        tasks.cancel_scope.cancel()
    assert await count(stocked.url) == 50


async def limit(database: Database, consuming: Consuming, rate: float | None) -> None:
    async with database.transaction() as connection:
        await set_control(connection, Click.channel, rate_per_second=rate, actor="a test")
    await until(lambda: consuming.controls.of(Click.channel).rate_per_second == rate)


@asynccontextmanager
async def at_a_rate(consuming: Consuming, database: Database, rate: float) -> AsyncIterator[None]:
    """Run the role once it is known how fast it may be."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consuming.controls.run)
        await limit(database, consuming, rate)
        async with consuming.running():
            yield
        tasks.cancel_scope.cancel()


async def test_clicks_are_stored_no_faster_than_the_rate(stocked: Database) -> None:
    consuming = Consuming(stocked)
    async with at_a_rate(consuming, stocked, 50.0):
        await consuming.publish(*range(20))
        # A tenth of a second's worth is a batch; the next waits until the clock has moved.
        for earned in (5, 10, 15):
            await until(lambda wanted=earned: consuming.metrics.done == wanted)
            await until_received(consuming, 5)
            assert await count(stocked.url) == earned
            consuming.clock.advance(0.1)
        await until(lambda: consuming.metrics.done == 20)


async def until_received(consuming: Consuming, clicks: int) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        while (await consuming.statistics()).in_flight != clicks:  # noqa: ASYNC110
            await anyio.sleep(POLL_SECONDS)


async def test_a_batch_that_waits_for_its_rate_heeds_another(stocked: Database) -> None:
    consuming = Consuming(stocked)
    async with at_a_rate(consuming, stocked, 0.001):
        await consuming.publish(1, 2, 3)
        await until(lambda: consuming.metrics.done == 1)
        await until_received(consuming, 1)
        await limit(stocked, consuming, None)
        await until(lambda: consuming.metrics.done == 3)


async def test_a_batch_that_waits_for_its_rate_is_given_back_by_a_pause(
    stocked: Database,
) -> None:
    consuming = Consuming(stocked)
    async with at_a_rate(consuming, stocked, 0.001):
        await consuming.publish(1, 2)
        await until(lambda: consuming.metrics.done == 1)
        await until_received(consuming, 1)
        await pause(stocked, paused=True)
        await until_received(consuming, 0)
        assert (await consuming.statistics()).depth == 1
        await limit(stocked, consuming, None)
        await pause(stocked, paused=False)
        await until(lambda: consuming.metrics.done == 2)


async def test_a_role_that_stops_stores_everything_whatever_the_rate(stocked: Database) -> None:
    consuming = Consuming(stocked)
    async with at_a_rate(consuming, stocked, 0.001):
        await consuming.publish(*range(300))
        await until(lambda: consuming.metrics.done == 1)
        await until_received(consuming, 1)
        consuming.handle.stopping.set()
        await until(lambda: consuming.metrics.done == 300)
    assert await count(stocked.url) == 300


async def test_a_batch_is_bounded_by_size_and_time(stocked: Database) -> None:
    settings = ClicksSettings(flush_seconds=600, flush_rows=100, partitions_ahead_days=1)
    consuming = Consuming(stocked, settings)
    async with consuming.running():
        await consuming.publish(*range(150))
        await until(lambda: consuming.metrics.done == 100)
        await anyio.wait_all_tasks_blocked()
        assert consuming.metrics.done == 100
        await consuming.publish(*range(150, 200))
        await until(lambda: consuming.metrics.done == 200)


async def test_a_bad_click_does_not_hold_up_its_batch(stocked: Database) -> None:
    consuming = Consuming(stocked)
    async with consuming.running():
        clicks = [make_click(1), make_click(2, ip="nowhere"), make_click(3)]
        handover = await consuming.channel.publish(clicks)
        await handover.taken()
    assert (consuming.metrics.done, consuming.metrics.dead) == (2, 1)
    assert await rows_of(stocked.url, "select message_id from dead_letters") == [
        (make_click(2).click_id,)
    ]


async def test_clicks_wait_until_their_partition_can_be_made(stocked: Database) -> None:
    async with stocked.connection() as connection:
        await connection.execute("create table affiliate_clicks_2026_09_21 (detached int)")
    consuming = Consuming(stocked)
    async with consuming.running():
        await consuming.publish(1, 2)
        await until(lambda: consuming.metrics.retry > 0)
        async with stocked.connection() as connection:
            await connection.execute("drop table affiliate_clicks_2026_09_21")
        await until(lambda: consuming.metrics.done == 2)
    assert consuming.metrics.dead == 0


async def test_partitions_are_made_ahead_without_any_click(stocked: Database) -> None:
    consuming = Consuming(stocked)
    query = "select count(*) from pg_inherits where inhparent = 'affiliate_clicks'::regclass"
    async with consuming.running():
        with anyio.fail_after(PATIENCE_SECONDS):
            while await rows_of(stocked.url, query) != [(2,)]:  # noqa: ASYNC110
                await anyio.sleep(POLL_SECONDS)


async def test_through_an_outage_clicks_wait_and_none_is_lost(
    away_and_back: Database, stoppable_postgres: PostgresServer
) -> None:
    consuming = Consuming(away_and_back)
    async with consuming.running():
        await consuming.publish(1)
        await until(lambda: consuming.metrics.done == 1)
        await stoppable_postgres.stop()
        await consuming.publish(*range(2, 302))
        await until(lambda: consuming.metrics.retry > 0)
        assert not consuming.check()
        assert (await consuming.statistics()).acknowledged == 1
        await stoppable_postgres.start()
        await until(lambda: consuming.metrics.done == 301)
        await until(consuming.check)
    assert await count(stoppable_postgres.url) == 301
    assert (await consuming.statistics()).acknowledged == 301


async def test_told_to_stop_during_an_outage_it_gives_its_batch_back(
    away_and_back: Database, stoppable_postgres: PostgresServer
) -> None:
    consuming = Consuming(away_and_back)
    async with consuming.running():
        await stoppable_postgres.stop()
        await consuming.publish(1, 2, 3)
        await until(lambda: consuming.metrics.retry > 0)
        consuming.handle.stopping.set()
        await consuming.ended.wait()
    statistics = await consuming.statistics()
    assert (statistics.acknowledged, statistics.depth, statistics.in_flight) == (0, 3, 0)
    await stoppable_postgres.start()
    assert await count(stoppable_postgres.url) == 0


async def test_a_role_begun_again_takes_what_the_last_one_left(stocked: Database) -> None:
    consuming = Consuming(stocked)
    await consuming.publish(1, 2)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consuming.run)
        await consuming.handle.up.wait()
        tasks.cancel_scope.cancel()
    async with consuming.running():
        await until(lambda: consuming.metrics.done + consuming.metrics.duplicate == 2)
    assert await count(stocked.url) == 2
