import contextlib
import os
import signal
from collections.abc import AsyncIterator

import anyio
import psycopg
import pytest

from couponflow.config import DatabaseSettings
from couponflow.kernel.commit_outcome import CommitUnknown, certain_transaction
from couponflow.kernel.database import Database, DatabaseAway, open_database
from tests.fault_proxy import FaultProxy, fault_proxy, postgres_target
from tests.postgres_server import PostgresServer
from tests.samples import PATIENCE_SECONDS, POLL_SECONDS, rows_of, until

pytestmark = pytest.mark.once

COMMIT = b"COMMIT\0"
ROUNDS = 20
SOON_SECONDS = 0.3
SETTINGS = DatabaseSettings(pool_max=1, connect_timeout_seconds=SOON_SECONDS)


@contextlib.asynccontextmanager
async def proxied(url: str) -> AsyncIterator[tuple[FaultProxy, Database]]:
    """A database behind a proxy, with a table of effects that may hold the same one twice."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute("create table effects (round int not null)")
        await connection.execute("checkpoint")  # so that a crash does not forget it
    async with (
        fault_proxy(*postgres_target(url)) as proxy,
        open_database(proxy.postgres_url(url), SETTINGS) as database,
    ):
        yield proxy, database


async def effects(url: str) -> list[object]:
    return [number for (number,) in await rows_of(url, "select round from effects order by 1")]


async def write(database: Database, number: int, deadline_seconds: float = 10) -> None:
    async with certain_transaction(database, deadline_seconds=deadline_seconds) as connection:
        await connection.execute("insert into effects values (%s)", [number])


async def write_until_kept(database: Database, number: int, deadline_seconds: float = 10) -> int:
    """Try again for as long as nothing was kept; return how many tries came as far as COMMIT.

    A busy machine may take longer to connect than these tests wait, which says nothing of commits.
    """
    tries = 0
    with anyio.fail_after(PATIENCE_SECONDS):
        while True:
            try:
                await write(database, number, deadline_seconds)
            except DatabaseAway as error:
                tries += "before the COMMIT" in str(error)
                continue
            return tries + 1


async def test_a_block_that_ends_well_is_committed(database_url: str) -> None:
    async with proxied(database_url) as (_, database):
        await write(database, 1)
        await write(database, 2)
    assert await effects(database_url) == [1, 2]


async def write_and_fail(database: Database) -> None:
    async with certain_transaction(database, deadline_seconds=1) as connection:
        await connection.execute("insert into effects values (1)")
        raise ZeroDivisionError


async def test_an_error_of_the_block_rolls_back_and_passes_through(database_url: str) -> None:
    async with proxied(database_url) as (_, database):
        with pytest.raises(ZeroDivisionError):
            await write_and_fail(database)
        assert await effects(database_url) == []
        await write(database, 2)
    assert await effects(database_url) == [2]


async def test_a_commit_that_is_refused_raises_what_it_was_refused_for(database_url: str) -> None:
    async with proxied(database_url) as (_, database):
        async with database.connection() as connection:
            await connection.execute(
                "create table notes (id int unique deferrable initially deferred)"
            )
        with pytest.raises(psycopg.errors.UniqueViolation):
            async with certain_transaction(database, deadline_seconds=1) as connection:
                await connection.execute("insert into notes values (1), (1)")
        assert await rows_of(database_url, "select * from notes") == []
        await write(database, 1)


async def write_and_hide_an_error(database: Database) -> None:
    async with certain_transaction(database, deadline_seconds=1) as connection:
        await connection.execute("insert into effects values (1)")
        with contextlib.suppress(psycopg.errors.DivisionByZero):
            await connection.execute("select 1/0")


async def test_an_error_that_the_block_hides_is_no_commit(database_url: str) -> None:
    async with proxied(database_url) as (_, database):
        with pytest.raises(psycopg.errors.InFailedSqlTransaction, match="nothing was kept"):
            await write_and_hide_an_error(database)
        assert await effects(database_url) == []
        async with certain_transaction(database, deadline_seconds=1) as connection:
            await connection.execute("insert into effects values (2)")
            with pytest.raises(psycopg.errors.DivisionByZero):
                async with connection.transaction():
                    await connection.execute("select 1/0")
    assert await effects(database_url) == [2]


async def test_a_connection_that_breaks_in_the_block_is_database_away(database_url: str) -> None:
    async with proxied(database_url) as (proxy, database):
        proxy.cut_after(b"insert into effects")
        with pytest.raises(DatabaseAway, match="the connection broke"):
            await write(database, 1)
        assert await effects(database_url) == []
        await write(database, 2)
    assert await effects(database_url) == [2]


async def test_a_commit_whose_answer_is_lost_ends_well(database_url: str) -> None:
    async with proxied(database_url) as (proxy, database):
        for number in range(ROUNDS):
            proxy.cut_after(COMMIT)
            assert await write_until_kept(database, number) == 1
            assert proxy.seen.is_set()
        assert proxy.cuts == ROUNDS
    assert await effects(database_url) == list(range(ROUNDS))


async def test_a_commit_whose_answer_is_cut_short_ends_well(database_url: str) -> None:
    async with proxied(database_url) as (proxy, database):
        for number in range(ROUNDS):
            proxy.cut_after(COMMIT, "to_client", drop_pattern=number % 2 == 0)
            assert await write_until_kept(database, number) == 1
            assert proxy.seen.is_set()
    assert await effects(database_url) == list(range(ROUNDS))


async def test_a_commit_that_never_arrives_keeps_nothing_and_may_be_tried_again(
    database_url: str,
) -> None:
    async with proxied(database_url) as (proxy, database):
        proxy.cut_after(COMMIT, drop_pattern=True)
        with pytest.raises(DatabaseAway, match="nothing was kept"):
            await write(database, -1)
        for number in range(ROUNDS):
            proxy.cut_after(COMMIT, drop_pattern=True)
            assert await write_until_kept(database, number) == 2
            assert proxy.seen.is_set()
    assert await effects(database_url) == list(range(ROUNDS))


@pytest.mark.parametrize("hold", [False, True])
async def test_a_network_that_stalls_at_the_commit_and_heals_loses_and_doubles_nothing(
    database_url: str, hold: bool
) -> None:
    async with proxied(database_url) as (proxy, database):
        for number in range(ROUNDS):
            proxy.stall_after(COMMIT, hold_pattern=hold)
            async with anyio.create_task_group() as group:
                group.start_soon(write_until_kept, database, number)
                await proxy.seen.wait()
                proxy.heal()
    assert await effects(database_url) == list(range(ROUNDS))


@pytest.mark.parametrize("hold", [False, True])
async def test_a_network_that_stalls_longer_than_a_commit_may_take_loses_and_doubles_nothing(
    database_url: str, hold: bool
) -> None:
    async with proxied(database_url) as (proxy, database):
        for number in range(ROUNDS // 2):
            proxy.stall_after(COMMIT, hold_pattern=hold)
            async with anyio.create_task_group() as group:
                group.start_soon(write_until_kept, database, number, 2)
                await proxy.seen.wait()
                accepted = proxy.accepted
                await until(lambda before=accepted: proxy.accepted > before)
                proxy.heal()
    assert await effects(database_url) == list(range(ROUNDS // 2))


@pytest.mark.parametrize(("hold", "tries"), [(False, 1), (True, 2)])
async def test_an_abandoned_transaction_is_ended_so_that_its_outcome_is_known(
    database_url: str, hold: bool, tries: int
) -> None:
    async with proxied(database_url) as (proxy, database):
        proxy.freeze_after(COMMIT, hold_pattern=hold)
        assert await write_until_kept(database, 1, 2) == tries
        assert proxy.seen.is_set()
        # The network still keeps the session's end from the server.
        held = "select count(*) from pg_stat_activity where state = 'idle in transaction'"
        assert await rows_of(database_url, held) == [(0,)]
    assert await effects(database_url) == [1]


async def test_a_server_that_restarts_at_the_commit_loses_and_doubles_nothing(
    stoppable_postgres: PostgresServer,
) -> None:
    url = stoppable_postgres.url
    async with proxied(url) as (proxy, database):
        for number in range(ROUNDS):
            proxy.cut_after(COMMIT, drop_pattern=number % 2 == 0)
            async with anyio.create_task_group() as group:
                group.start_soon(write_until_kept, database, number)
                await proxy.seen.wait()
                await stoppable_postgres.stop()
                await stoppable_postgres.start()
        assert await effects(url) == list(range(ROUNDS))


async def crash(url: str) -> None:
    """Kill a session of the server, which then forgets what is not on disk and starts anew."""
    async with await psycopg.AsyncConnection.connect(url) as connection:
        os.kill(connection.info.backend_pid, signal.SIGKILL)
        with pytest.raises(psycopg.OperationalError):
            await connection.execute("select pg_sleep(20)")


async def test_after_a_crash_a_commit_is_not_taken_for_that_of_another_transaction(
    stoppable_postgres: PostgresServer,
) -> None:
    url = stoppable_postgres.url
    async with proxied(url) as (proxy, database):
        proxy.stall_after(COMMIT, hold_pattern=True)
        raised: list[Exception] = []

        async def go() -> None:
            try:
                await write(database, 1)
            except (CommitUnknown, DatabaseAway) as error:
                raised.append(error)

        async with anyio.create_task_group() as group:
            group.start_soon(go)
            await proxy.seen.wait()
            await crash(url)
            await until_it_answers(url)
            async with await psycopg.AsyncConnection.connect(url) as connection:
                await connection.execute("create table others (id int)")
                for _ in range(20):
                    await connection.execute("insert into others values (1)")
                    await connection.commit()
            proxy.heal()
        assert len(raised) == 1
        assert await effects(url) == []


async def until_it_answers(url: str) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(url):
                    return
            except psycopg.OperationalError:
                await anyio.sleep(POLL_SECONDS)


async def test_an_outcome_that_cannot_be_asked_for_is_stated_unknown(database_url: str) -> None:
    async with proxied(database_url) as (proxy, database):
        proxy.stall_after(COMMIT)
        with anyio.fail_after(PATIENCE_SECONDS):
            with pytest.raises(
                CommitUnknown, match=r"COMMIT of transaction \d+ was lost"
            ) as raised:
                await write(database, 1, SOON_SECONDS)
        assert not isinstance(raised.value, DatabaseAway)
        proxy.heal()
        await write(database, 2)
    assert await effects(database_url) == [1, 2]


async def test_a_cancellation_during_the_commit_does_not_hide_its_outcome(
    database_url: str,
) -> None:
    async with proxied(database_url) as (proxy, database):
        proxy.stall_after(COMMIT)
        ended_well: list[int] = []

        async def go(scope: anyio.CancelScope) -> None:
            with scope:
                await write(database, 1)
                ended_well.append(1)

        async with anyio.create_task_group() as group:
            scope = anyio.CancelScope()
            group.start_soon(go, scope)
            await proxy.seen.wait()
            scope.cancel()
            proxy.heal()
        assert ended_well == [1]
        await write(database, 2)
    assert await effects(database_url) == [1, 2]


async def test_a_cancelled_block_keeps_nothing_and_gives_its_connection_back(
    database_url: str,
) -> None:
    async with proxied(database_url) as (_, database):
        with anyio.move_on_after(SOON_SECONDS):
            async with certain_transaction(database, deadline_seconds=10) as connection:
                await connection.execute("insert into effects values (1)")
                await anyio.sleep_forever()
        await write(database, 2)
    assert await effects(database_url) == [2]
