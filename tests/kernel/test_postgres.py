from pathlib import Path

import anyio
import psycopg
import pytest

from couponflow.config import DatabaseSettings, Settings
from couponflow.kernel.database import DatabaseAway
from couponflow.kernel.postgres import (
    DatabaseMissing,
    SchemaNotCurrent,
    open_current_postgres,
    open_existing_postgres,
    open_postgres,
    open_unchanged_postgres,
)
from tests.postgres_server import PostgresServer, reachable_folder
from tests.samples import PATIENCE_SECONDS, rows_of

TABLES = "select count(*) from pg_tables where schemaname = 'public'"


def settings_for(url: str, connect_timeout_seconds: float = 5.0) -> Settings:
    database = DatabaseSettings(url=url, connect_timeout_seconds=connect_timeout_seconds)
    return Settings(database=database)


async def test_a_configured_database_is_opened_as_it_is(empty_database_url: str) -> None:
    async with open_postgres(settings_for(empty_database_url)) as database:
        assert database.url == empty_database_url
        assert await database.reachable()
    assert await rows_of(empty_database_url, TABLES) == [(0,)]


async def test_a_current_database_has_its_schema(empty_database_url: str) -> None:
    for _ in range(2):
        async with (
            open_current_postgres(settings_for(empty_database_url)) as database,
            database.connection() as connection,
        ):
            await connection.execute("select count(*) from affiliate_clicks")


async def test_a_server_that_is_away_is_an_error_at_once(
    stoppable_postgres: PostgresServer,
) -> None:
    await stoppable_postgres.stop()
    settings = settings_for(stoppable_postgres.url, connect_timeout_seconds=0.2)
    with anyio.fail_after(5), pytest.raises(DatabaseAway):
        async with open_current_postgres(settings):
            pytest.fail("it is away")


async def test_a_server_that_comes_in_time_is_waited_for(
    stoppable_postgres: PostgresServer,
) -> None:
    await stoppable_postgres.stop()
    settings = settings_for(stoppable_postgres.url, connect_timeout_seconds=0.2)
    opened = anyio.Event()

    async def open_it() -> None:
        async with open_current_postgres(settings, wait_seconds=PATIENCE_SECONDS) as database:
            assert await database.reachable()
            opened.set()

    with anyio.fail_after(PATIENCE_SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(open_it)
            await anyio.wait_all_tasks_blocked()
            assert not opened.is_set()
            await stoppable_postgres.start()
    assert opened.is_set()


async def test_without_a_url_the_embedded_server_in_the_var_folder_is_used() -> None:
    with reachable_folder() as folder:
        async with open_current_postgres(Settings(var_dir=str(folder))) as database:
            assert (folder / "postgres" / "PG_VERSION").exists()
            async with await psycopg.AsyncConnection.connect(database.url) as connection:
                await connection.execute("select count(*) from offers")
            url = database.url
        with pytest.raises(psycopg.OperationalError):
            await psycopg.AsyncConnection.connect(url)


async def test_a_database_that_stays_unchanged_must_be_current(
    database_url: str, empty_database_url: str
) -> None:
    async with open_unchanged_postgres(settings_for(database_url)) as database:
        assert database.url == database_url
    with pytest.raises(SchemaNotCurrent, match=r"0001_catalogue, .*couponflow migrate"):
        async with open_unchanged_postgres(settings_for(empty_database_url)):
            pytest.fail("nothing was migrated")
    assert await rows_of(empty_database_url, TABLES) == [(0,)]


async def test_an_embedded_server_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    var = tmp_path / "var"
    with pytest.raises(DatabaseMissing, match="DATABASE_URL is not set"):
        async with open_existing_postgres(Settings(var_dir=str(var))):
            pytest.fail("there is none")
    assert not var.exists()
