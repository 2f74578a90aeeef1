import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import anyio
import pytest

from couponflow.config import DatabaseSettings
from couponflow.kernel.database import Connection, Database, DatabaseAway, open_database
from tests.fault_proxy import FaultProxy, fault_proxy, postgres_target
from tests.samples import PATIENCE_SECONDS, POLL_SECONDS, rows_of, until

pytestmark = pytest.mark.once

POOL_MAX = 4
SETTINGS = DatabaseSettings(
    pool_max=POOL_MAX, connect_timeout_seconds=0.6, statement_timeout_seconds=0.4
)
SILENCE_SECONDS = 0.4 + 0.6 + 0.6  # a statement's time, a connection's, and the probe's
MARGIN_SECONDS = 2.0
MANY = 1_000
"""Cuts, so that a connection that the pool makes meanwhile does not take the one that counts."""


@dataclass(frozen=True, slots=True)
class World:
    """A database behind a proxy, and the way around it."""

    url: str
    proxy: FaultProxy
    database: Database


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[World]:
    async with fault_proxy(*postgres_target(database_url)) as proxy:
        async with open_database(proxy.postgres_url(database_url), SETTINGS) as database:
            async with AsyncExitStack() as borrowed:
                connection = await borrow(borrowed, database)
                await connection.execute("create table notes (id int)")
            yield World(database_url, proxy, database)
        proxy.heal()
        await until(lambda: proxy.open_connections == 0)


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """The block ends soon after so long, and not by being cancelled."""
    started = time.monotonic()
    with anyio.fail_after(PATIENCE_SECONDS):
        yield
    assert time.monotonic() - started < seconds + MARGIN_SECONDS


async def query(database: Database) -> None:
    async with database.connection() as connection:
        await connection.execute("select 1")


async def all_can_be_lent(database: Database) -> None:
    async with AsyncExitStack() as borrowed:
        for _ in range(POOL_MAX):
            connection = await borrow(borrowed, database)
            await connection.execute("select 1")
        with pytest.raises(DatabaseAway, match=f"all {POOL_MAX} connections were in use"):
            await query(database)


async def borrow(borrowed: AsyncExitStack, database: Database) -> Connection:
    """A connection; on a busy machine to dial one may take longer than the database waits."""
    with anyio.fail_after(PATIENCE_SECONDS):
        while True:
            with contextlib.suppress(DatabaseAway):
                return await borrowed.enter_async_context(database.connection())
            await anyio.sleep(POLL_SECONDS)


async def is_whole(world: World) -> None:
    """Heal; then the pool is whole again, and the server has no session that nobody uses."""
    world.proxy.heal()
    with anyio.fail_after(PATIENCE_SECONDS):
        while not await world.database.reachable():  # noqa: ASYNC110 - it tells of nothing
            await anyio.sleep(POLL_SECONDS)
        await all_can_be_lent(world.database)
        sql = (
            "select count(*) from pg_stat_activity where application_name = 'couponflow'"
            " and datname = current_database()"
        )
        while await rows_of(world.url, sql) != [(POOL_MAX,)]:  # noqa: ASYNC110 - nor does this
            await anyio.sleep(POLL_SECONDS)


async def fault_in_a_query(world: World, fault: Callable[[FaultProxy], None]) -> None:
    async with world.database.connection() as connection:
        fault(world.proxy)
        await connection.execute("insert into notes values (1)")


async def fault_in_a_transaction(world: World, fault: Callable[[FaultProxy], None]) -> None:
    async with world.database.transaction() as connection:
        await connection.execute("insert into notes values (1)")
        fault(world.proxy)
        await connection.execute("insert into notes values (2)")


async def fault_in_a_copy(world: World, fault: Callable[[FaultProxy], None]) -> None:
    async with (
        world.database.connection() as connection,
        connection.cursor() as cursor,
        cursor.copy("copy notes from stdin") as copy,
    ):
        fault(world.proxy)
        for number in range(50_000):
            await copy.write(b"%d\n" % number)


BREAKS: list[Callable[[FaultProxy], None]] = [
    FaultProxy.refuse,
    FaultProxy.reset,
    FaultProxy.stall,
    lambda proxy: proxy.cut_after(b"insert"),
    lambda proxy: proxy.cut_after_bytes(3, count=MANY),
    lambda proxy: proxy.cut_after_bytes(0, "to_client", count=MANY),
]
BREAK_NAMES = ["refuse", "reset", "stall", "cut_pattern", "cut_bytes", "cut_answer"]


@pytest.mark.parametrize("fault", BREAKS, ids=BREAK_NAMES)
async def test_a_fault_in_a_query_is_database_away(
    world: World, fault: Callable[[FaultProxy], None]
) -> None:
    async with within(SILENCE_SECONDS):
        with pytest.raises(DatabaseAway, match="the connection broke"):
            await fault_in_a_query(world, fault)
    await is_whole(world)


@pytest.mark.parametrize("fault", BREAKS, ids=BREAK_NAMES)
async def test_a_fault_in_a_transaction_is_database_away_and_keeps_nothing(
    world: World, fault: Callable[[FaultProxy], None]
) -> None:
    async with within(SILENCE_SECONDS):
        with pytest.raises(DatabaseAway, match="the connection broke"):
            await fault_in_a_transaction(world, fault)
    await is_whole(world)
    assert await rows_of(world.url, "select id from notes") == []


@pytest.mark.parametrize(
    "fault",
    [
        FaultProxy.refuse,
        FaultProxy.reset,
        FaultProxy.stall,
        lambda proxy: proxy.cut_after(b"12345\n"),
        lambda proxy: proxy.cut_after_bytes(100_000, count=MANY),
    ],
    ids=["refuse", "reset", "stall", "cut_pattern", "cut_bytes"],
)
async def test_a_fault_in_a_copy_is_database_away_and_keeps_nothing(
    world: World, fault: Callable[[FaultProxy], None]
) -> None:
    async with within(2 * SILENCE_SECONDS):
        with pytest.raises(DatabaseAway, match="the connection broke"):
            await fault_in_a_copy(world, fault)
    await is_whole(world)
    assert await rows_of(world.url, "select count(*) from notes") == [(0,)]


@pytest.mark.parametrize("fault", BREAKS[:3], ids=BREAK_NAMES[:3])
async def test_no_connection_is_had_during_a_fault_and_then_all_are(
    world: World, fault: Callable[[FaultProxy], None]
) -> None:
    await all_can_be_lent(world.database)
    fault(world.proxy)
    for _ in range(2):
        async with within(SETTINGS.connect_timeout_seconds):
            with pytest.raises(DatabaseAway):
                await query(world.database)
        assert not await world.database.reachable()
    await is_whole(world)


async def test_connections_that_are_all_lent_when_the_network_stalls_come_back(
    world: World,
) -> None:
    raised: list[DatabaseAway] = []
    lent = 0

    async def use() -> None:
        nonlocal lent
        try:
            async with world.database.transaction() as connection:
                lent += 1
                await stalled.wait()
                await connection.execute("select 1")
        except DatabaseAway as error:
            raised.append(error)

    stalled = anyio.Event()
    async with within(SILENCE_SECONDS), anyio.create_task_group() as group:
        for _ in range(POOL_MAX):
            group.start_soon(use)
        await until(lambda: lent == POOL_MAX)
        world.proxy.stall()
        stalled.set()
    assert len(raised) == POOL_MAX
    await is_whole(world)


async def test_a_rollback_that_hears_nothing_costs_no_place_in_the_pool(
    database_url: str,
) -> None:
    patient_with_statements = DatabaseSettings(pool_max=1, connect_timeout_seconds=0.6)
    async with (
        fault_proxy(*postgres_target(database_url)) as proxy,
        open_database(proxy.postgres_url(database_url), patient_with_statements) as database,
    ):
        async with within(5), database.connection() as connection:
            await connection.execute("begin")
            proxy.stall()
        proxy.heal()
        with anyio.fail_after(PATIENCE_SECONDS):
            while not await database.reachable():  # noqa: ASYNC110 - it tells of nothing
                await anyio.sleep(POLL_SECONDS)


async def test_a_long_statement_without_a_timeout_is_not_taken_for_silence(world: World) -> None:
    async with world.database.transaction() as connection:
        await connection.execute("set local statement_timeout = 0")
        cursor = await connection.execute("select 42 from pg_sleep(2)")
        assert await cursor.fetchall() == [(42,)]


async def test_a_connection_that_alone_falls_silent_is_database_away(world: World) -> None:
    world.proxy.freeze_after(b"insert", hold_pattern=True)
    async with within(SILENCE_SECONDS):
        with pytest.raises(DatabaseAway, match=r"no answer in 1 s"):
            await fault_in_a_query(world, lambda proxy: None)
    assert await world.database.reachable()
    await is_whole(world)
    assert await rows_of(world.url, "select id from notes") in ([], [(1,)])


@pytest.mark.parametrize(
    "fault",
    [lambda proxy: proxy.delay(0.02), lambda proxy: proxy.throttle(20_000)],
    ids=["delay", "throttle"],
)
async def test_a_slow_network_is_no_outage(
    world: World, fault: Callable[[FaultProxy], None]
) -> None:
    fault(world.proxy)
    for _ in range(3):
        await fault_in_a_transaction(world, lambda proxy: None)
    await is_whole(world)
    assert await rows_of(world.url, "select count(*) from notes") == [(6,)]


async def listen_for_ever(world: World, listening: anyio.Event, heard: anyio.Event) -> None:
    """As the roles do: listen anew whenever the connection broke."""
    while True:
        try:
            async with world.database.listen("news") as notifications:
                listening.set()
                while True:
                    if await notifications.wait(PATIENCE_SECONDS):
                        heard.set()
        except DatabaseAway:
            await anyio.sleep(POLL_SECONDS)


@pytest.mark.parametrize(
    "fault",
    [FaultProxy.refuse, FaultProxy.reset, lambda proxy: proxy.cut_after(b"news", "to_client")],
    ids=["refuse", "reset", "cut"],
)
async def test_a_listener_that_listens_anew_hears_again(
    world: World, fault: Callable[[FaultProxy], None]
) -> None:
    async def notify() -> None:
        await rows_of(world.url, "select pg_notify('news', '')")

    listening, heard = anyio.Event(), anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(listen_for_ever, world, listening, heard)
        with anyio.fail_after(PATIENCE_SECONDS):
            await listening.wait()
            accepted = world.proxy.accepted
            fault(world.proxy)
            await notify()
            if world.proxy.cuts == 0:
                world.proxy.pass_through()
            await until(lambda: world.proxy.accepted > accepted)
            while not heard.is_set():
                await notify()
                await anyio.sleep(POLL_SECONDS)
        group.cancel_scope.cancel()
    await is_whole(world)


async def test_a_thousand_cancelled_acquires_leave_the_pool_whole(world: World) -> None:
    await all_can_be_lent(world.database)

    cancelled = 0

    async def acquire(seconds: float) -> None:
        nonlocal cancelled
        with anyio.move_on_after(seconds) as scope:
            await query(world.database)
        cancelled += scope.cancelled_caught

    world.proxy.delay(0.002)
    while cancelled < 1_000:
        async with anyio.create_task_group() as group:
            for number in range(100):
                # From before the pool is asked, through the test of the connection, to its return.
                group.start_soon(acquire, number * 0.0005)
    await is_whole(world)


async def test_acquires_cancelled_during_an_outage_leave_the_pool_whole(world: World) -> None:
    await all_can_be_lent(world.database)
    world.proxy.stall()
    async with anyio.create_task_group() as group:
        for number in range(100):
            group.start_soon(acquire_impatiently, world.database, number * 0.005)
    await is_whole(world)


async def acquire_impatiently(database: Database, seconds: float) -> None:
    with anyio.move_on_after(seconds):
        with pytest.raises(DatabaseAway):
            await query(database)
