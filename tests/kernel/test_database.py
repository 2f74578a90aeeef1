import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import anyio
import psycopg
import pytest
from psycopg.types.json import Jsonb

from couponflow.config import DatabaseSettings
from couponflow.kernel.database import (
    Connection,
    Database,
    DatabaseAway,
    DatabaseUrlBroken,
    open_database,
)
from tests.postgres_server import PostgresServer, postgres_server

IMPATIENT = DatabaseSettings(connect_timeout_seconds=0.3)


async def value(connection: Connection, sql: bytes) -> object:
    row = await (await connection.execute(sql)).fetchone()
    assert row is not None
    return row[0]


async def backend_pid(connection: Connection) -> object:
    return await value(connection, b"select pg_backend_pid()")


async def terminate(url: str, pid: object) -> None:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute("select pg_terminate_backend(%s, 5000)", [pid])


async def insert_and_fail(block: AbstractAsyncContextManager[Connection]) -> None:
    async with block as connection:
        await connection.execute("insert into notes values (1)")
        raise ZeroDivisionError


@asynccontextmanager
async def all_lent(database: Database, count: int) -> AsyncIterator[None]:
    """Borrow `count` connections at once."""
    async with AsyncExitStack() as borrowed:
        for _ in range(count):
            await borrowed.enter_async_context(database.connection())
        yield


@pytest.fixture
async def notes(database: Database) -> Database:
    async with database.connection() as connection:
        await connection.execute("create table notes (id int primary key)")
    return database


async def test_a_connection_is_in_utc_and_bears_our_name(database: Database) -> None:
    async with database.connection() as connection:
        assert await value(connection, b"show timezone") == "UTC"
        assert await value(connection, b"show application_name") == "couponflow"
        assert await value(connection, b"show statement_timeout") == "30s"
        then = await value(connection, b"select timestamptz '2026-01-02 03:04:05+05:30'")
        assert then == datetime(2026, 1, 1, 21, 34, 5, tzinfo=UTC)


async def test_what_the_url_says_itself_is_kept(database_url: str) -> None:
    url = f"{database_url} application_name=mine options='-c statement_timeout=7s -c work_mem=9MB'"
    async with (
        open_database(url, DatabaseSettings()) as database,
        database.connection() as connection,
    ):
        assert await value(connection, b"show application_name") == "mine"
        assert await value(connection, b"show statement_timeout") == "7s"
        assert await value(connection, b"show work_mem") == "9MB"
        assert await value(connection, b"show timezone") == "UTC"


async def test_json_goes_through_msgspec_here_and_nowhere_else(database: Database) -> None:
    at = datetime(2026, 1, 2, tzinfo=UTC)
    async with database.connection() as connection:
        # The standard library's json cannot write a datetime.
        cursor = await connection.execute("select %s", [Jsonb({"at": at})])
        assert await cursor.fetchone() == ({"at": "2026-01-02T00:00:00Z"},)
    async with await psycopg.AsyncConnection.connect(database.url) as other:
        with pytest.raises(TypeError, match="not JSON serializable"):
            await other.execute("select %s", [Jsonb({"at": at})])


async def test_a_connection_commits_each_statement(notes: Database) -> None:
    with pytest.raises(ZeroDivisionError):
        await insert_and_fail(notes.connection())
    async with notes.connection() as connection:
        assert await value(connection, b"select count(*) from notes") == 1


async def test_a_transaction_commits_on_success(notes: Database) -> None:
    async with notes.transaction() as connection:
        await connection.execute("insert into notes values (1)")
        async with notes.connection() as other:
            assert await value(other, b"select count(*) from notes") == 0
    async with notes.connection() as connection:
        assert await value(connection, b"select count(*) from notes") == 1


async def test_a_transaction_rolls_back_on_error(notes: Database) -> None:
    with pytest.raises(ZeroDivisionError):
        await insert_and_fail(notes.transaction())
    async with notes.connection() as connection:
        assert await value(connection, b"select count(*) from notes") == 0


async def test_an_error_of_a_query_stays_what_it_is(notes: Database) -> None:
    with pytest.raises(psycopg.errors.UniqueViolation):
        async with notes.transaction() as connection:
            await connection.execute("insert into notes values (1), (1)")
    async with notes.connection() as connection:
        with pytest.raises(psycopg.errors.InvalidTextRepresentation):
            await connection.execute("select 'x'::int")
        assert await value(connection, b"select count(*) from notes") == 0


async def test_a_statement_over_its_time_is_cancelled_and_the_connection_stays(
    database_url: str,
) -> None:
    settings = DatabaseSettings(statement_timeout_seconds=0.05, pool_max=1)
    async with open_database(database_url, settings) as database:
        async with database.connection() as connection:
            before = await backend_pid(connection)
        with pytest.raises(psycopg.errors.QueryCanceled):
            async with database.connection() as connection:
                await connection.execute("select pg_sleep(20)")
        async with database.connection() as connection:
            assert await backend_pid(connection) == before


async def test_a_cancelled_block_gives_its_connection_back(database_url: str) -> None:
    settings = DatabaseSettings(pool_max=1)
    async with open_database(database_url, settings) as database:
        for _ in range(3):
            with anyio.move_on_after(0.05) as scope:
                async with database.transaction() as connection:
                    await connection.execute("select pg_sleep(20)")
            assert scope.cancelled_caught
        assert await database.reachable()


async def test_opening_needs_no_server_and_then_says_what_is_wrong(tmp_path: Path) -> None:
    url = f"postgresql://someone:secret@/shop?host={tmp_path}"
    async with open_database(url, IMPATIENT) as database:
        assert database.url == url
        started = time.monotonic()
        with pytest.raises(DatabaseAway) as raised:
            async with database.connection():
                pytest.fail("there is no server")
        assert 0.25 < time.monotonic() - started < 3
        assert not await database.reachable()
    message = str(raised.value)
    assert message.startswith(f"PostgreSQL is away (host {tmp_path}, database shop): ")
    assert "No such file or directory" in message
    assert "DATABASE_URL" in message
    assert "secret" not in message


async def test_a_url_that_cannot_be_read_is_refused_without_showing_it() -> None:
    with pytest.raises(DatabaseUrlBroken) as refused:
        async with open_database("postgres//user:secret@host", DatabaseSettings()):
            pytest.fail("it was opened")
    assert "secret" not in str(refused.value)
    assert "postgresql://user:password@host:5432/couponflow" in str(refused.value)


async def test_when_all_connections_are_lent_the_error_says_so(database_url: str) -> None:
    settings = DatabaseSettings(pool_max=2, connect_timeout_seconds=0.3)
    async with open_database(database_url, settings) as database:
        async with all_lent(database, 2):
            with pytest.raises(DatabaseAway, match=r"all 2 connections were in use for 0\.3 s"):
                async with database.connection():
                    pytest.fail("there is no third")
        assert await database.reachable()


async def test_a_database_opened_during_an_outage_works_once_the_server_is_up() -> None:
    async with postgres_server() as server:
        await server.start()
        await server.stop()
        async with open_database(server.url, IMPATIENT) as database:
            assert not await database.reachable()
            await server.start()
            with anyio.fail_after(2):
                while not await database.reachable():
                    pass


async def test_after_an_outage_a_connection_is_had_within_a_second(
    stoppable_postgres: PostgresServer,
) -> None:
    settings = DatabaseSettings(connect_timeout_seconds=1.6)
    async with open_database(stoppable_postgres.url, settings) as database:
        async with all_lent(database, 5):
            pass
        await stoppable_postgres.stop()
        for _ in range(2):  # longer than any wait of the pool that doubles
            assert not await database.reachable()
        await stoppable_postgres.start()
        with anyio.fail_after(1.5):
            async with all_lent(database, 5):
                pass


async def test_a_restart_is_not_noticed_between_two_blocks(
    stoppable_postgres: PostgresServer,
) -> None:
    async with open_database(stoppable_postgres.url, DatabaseSettings()) as database:
        async with all_lent(database, 8):
            pass
        await stoppable_postgres.stop()
        await stoppable_postgres.start()
        with anyio.fail_after(1.5):
            async with database.connection() as connection:
                assert await value(connection, b"select 1") == 1


async def test_who_waits_during_the_outage_is_served_when_it_ends(
    stoppable_postgres: PostgresServer,
) -> None:
    settings = DatabaseSettings(connect_timeout_seconds=10)
    async with open_database(stoppable_postgres.url, settings) as database:
        async with all_lent(database, 3):
            pass
        await stoppable_postgres.stop()
        served: list[bool] = []

        async def ask() -> None:
            served.append(await database.reachable())

        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            await stoppable_postgres.start()
        assert served == [True] * 20


async def test_a_connection_that_breaks_in_a_block_is_database_away(database: Database) -> None:
    async def query_after_the_break() -> None:
        async with database.connection() as connection:
            await terminate(database.url, await backend_pid(connection))
            await connection.execute("select 1")

    with pytest.raises(DatabaseAway, match="the connection broke"):
        await query_after_the_break()
    assert await database.reachable()


async def test_a_transaction_that_breaks_is_database_away_and_keeps_nothing(
    notes: Database,
) -> None:
    async def break_before_the_commit() -> None:
        async with notes.transaction() as connection:
            await connection.execute("insert into notes values (1)")
            await terminate(notes.url, await backend_pid(connection))

    with pytest.raises(DatabaseAway, match="the connection broke"):
        await break_before_the_commit()
    async with notes.connection() as connection:
        assert await value(connection, b"select count(*) from notes") == 0


async def test_a_server_that_stops_under_a_query_is_database_away(
    stoppable_postgres: PostgresServer,
) -> None:
    async with open_database(stoppable_postgres.url, IMPATIENT) as database:

        async def query() -> None:
            with pytest.raises(DatabaseAway, match="the connection broke"):
                async with database.connection() as connection:
                    await connection.execute("select pg_sleep(20)")

        async with anyio.create_task_group() as group:
            group.start_soon(query)
            await query_runs(stoppable_postgres.url)
            await stoppable_postgres.stop()


async def query_runs(url: str) -> None:
    sql = b"select count(*) from pg_stat_activity where query = 'select pg_sleep(20)'"
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        with anyio.fail_after(10):
            while await value(connection, sql) != 1:
                pass


async def test_a_listener_hears_what_is_notified(database: Database) -> None:
    async with database.listen("Some channel") as notifications, database.connection() as other:
        assert not await notifications.wait(0.01)
        await other.execute('notify "Some channel"')
        assert await notifications.wait(10)
        assert not await notifications.wait(0.01)


async def test_a_listener_hears_what_came_while_it_did_not_wait(database: Database) -> None:
    async with database.listen("news") as notifications, database.connection() as other:
        for payload in ("a", "b", "c"):
            await other.execute("select pg_notify('news', %s)", [payload])
        assert await notifications.wait(10)


async def test_a_cancelled_wait_loses_nothing(database: Database) -> None:
    async with database.listen("news") as notifications, database.connection() as other:
        with anyio.move_on_after(0.02):
            await notifications.wait(10)
        await other.execute("notify news")
        assert await notifications.wait(10)


async def test_a_listener_whose_connection_breaks_is_told(
    stoppable_postgres: PostgresServer,
) -> None:
    async with (
        open_database(stoppable_postgres.url, IMPATIENT) as database,
        database.listen("news") as notifications,
        anyio.create_task_group() as group,
    ):
        group.start_soon(stoppable_postgres.stop)
        with pytest.raises(DatabaseAway, match="the connection broke"):
            await notifications.wait(20)


async def test_listening_to_a_server_that_is_away_is_database_away(tmp_path: Path) -> None:
    url = f"postgresql:///shop?host={tmp_path}"
    async with open_database(url, IMPATIENT) as database:
        with pytest.raises(DatabaseAway):
            async with database.listen("news"):
                pytest.fail("there is no server")
