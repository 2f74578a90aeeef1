from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from pathlib import Path

import anyio
import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow

from couponflow.kernel.database import DatabaseAway
from couponflow.kernel.migrations import (
    LOCK_KEY,
    DatabaseNewerThanCode,
    Migration,
    MigrationChanged,
    MigrationFailed,
    MigrationFilesBroken,
    MigrationLocked,
    migrate,
    migration_status,
    read_migrations,
)

WriteFiles = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> WriteFiles:
    """Writes migration files, name by name, into one folder and returns it."""

    def write(**files: str) -> Path:
        for name, sql in files.items():
            (tmp_path / f"{name.removeprefix('m')}.sql").write_text(sql)
        return tmp_path

    return write


async def query(url: str, sql: str) -> list[TupleRow]:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        cursor = await connection.execute(sql.encode())
        return await cursor.fetchall()


async def recorded(url: str) -> list[str]:
    rows = await query(url, "select name from schema_migrations order by version")
    return [str(row[0]) for row in rows]


async def table_exists(url: str, name: str) -> bool:
    return await query(url, f"select to_regclass('{name}') is not null") == [(True,)]


def names(migrations: list[Migration]) -> list[str]:
    return [migration.name for migration in migrations]


async def test_pending_migrations_are_applied_in_order_and_once(
    empty_database_url: str, write: WriteFiles
) -> None:
    folder = write(
        m0001_first="create table steps (name text);",
        m0002_second="insert into steps values ('second'); insert into steps values ('again');",
    )
    assert names(await migrate(empty_database_url, folder=folder)) == ["0001_first", "0002_second"]
    assert await migrate(empty_database_url, folder=folder) == []
    assert await query(empty_database_url, "select name from steps") == [("second",), ("again",)]


async def test_only_what_is_new_is_applied_later(
    empty_database_url: str, write: WriteFiles
) -> None:
    await migrate(empty_database_url, folder=write(m0001_first="create table one (id int)"))
    folder = write(m0002_second="create table two (id int)")
    assert names(await migrate(empty_database_url, folder=folder)) == ["0002_second"]
    assert await recorded(empty_database_url) == ["0001_first", "0002_second"]


async def test_the_shipped_migrations_apply_to_an_empty_database(empty_database_url: str) -> None:
    shipped = read_migrations()
    assert names(await migrate(empty_database_url)) == names(shipped)
    assert await recorded(empty_database_url) == names(shipped)


async def test_status_tells_what_is_applied_and_what_is_pending(
    empty_database_url: str, write: WriteFiles
) -> None:
    await migrate(empty_database_url, folder=write(m0001_first="select 1"))
    folder = write(m0002_second="select 2")
    first, second = await migration_status(empty_database_url, folder=folder)
    assert (first.version, first.name) == (1, "0001_first")
    assert isinstance(first.applied_at, datetime)
    assert first.applied_at.utcoffset() == timedelta(0)
    assert (second.version, second.name, second.applied_at) == (2, "0002_second", None)


async def test_status_of_an_empty_database_changes_nothing(
    empty_database_url: str, write: WriteFiles
) -> None:
    states = await migration_status(empty_database_url, folder=write(m0001_first="select 1"))
    assert [state.applied_at for state in states] == [None]
    assert not await table_exists(empty_database_url, "schema_migrations")


async def test_two_daemons_that_migrate_at_once_both_succeed_and_one_applies(
    empty_database_url: str, write: WriteFiles
) -> None:
    folder = write(
        m0001_first="create table steps (id int); select pg_sleep(0.3);",
        m0002_second="insert into steps values (1)",
        # It waits for every snapshot in the database, a waiting daemon's included.
        m0003_third="-- transactional: false\ncreate index concurrently on steps (id)",
    )
    applied: list[int] = []

    async def daemon() -> None:
        applied.append(len(await migrate(empty_database_url, folder=folder)))

    async with anyio.create_task_group() as group:
        group.start_soon(daemon)
        group.start_soon(daemon)
    assert sorted(applied) == [0, 3]
    assert await query(empty_database_url, "select count(*) from steps") == [(1,)]


async def test_a_failing_migration_leaves_nothing_of_itself_and_keeps_those_before(
    empty_database_url: str, write: WriteFiles
) -> None:
    folder = write(
        m0001_first="create table one (id int)",
        m0002_second="create table two (id int); select 1 / 0;",
        m0003_third="create table three (id int)",
    )
    with pytest.raises(MigrationFailed, match=r"0002_second failed, nothing .* division by zero"):
        await migrate(empty_database_url, folder=folder)
    assert await recorded(empty_database_url) == ["0001_first"]
    existing = [await table_exists(empty_database_url, name) for name in ("one", "two", "three")]
    assert existing == [True, False, False]


async def test_a_failed_migration_can_be_mended_and_applied(
    empty_database_url: str, write: WriteFiles
) -> None:
    with pytest.raises(MigrationFailed):
        await migrate(empty_database_url, folder=write(m0001_first="selekt"))
    folder = write(m0001_first="select 1")
    assert names(await migrate(empty_database_url, folder=folder)) == ["0001_first"]


async def test_a_migration_outside_a_transaction_says_that_a_part_may_stay(
    empty_database_url: str, write: WriteFiles
) -> None:
    folder = write(m0001_first="-- transactional: false\nvacuum no_such_table")
    with pytest.raises(MigrationFailed, match="a part may have been kept"):
        await migrate(empty_database_url, folder=folder)
    assert await recorded(empty_database_url) == []


async def test_a_database_newer_than_the_code_is_refused(
    empty_database_url: str, write: WriteFiles, tmp_path: Path
) -> None:
    folder = write(m0001_first="select 1", m0002_second="select 2")
    await migrate(empty_database_url, folder=folder)
    (tmp_path / "0002_second.sql").unlink()
    for act in (migrate, migration_status):
        with pytest.raises(DatabaseNewerThanCode, match=r"0002_second.*only up to 0001"):
            await act(empty_database_url, folder=folder)


async def test_a_changed_migration_is_refused_and_nothing_after_it_is_applied(
    empty_database_url: str, write: WriteFiles
) -> None:
    await migrate(empty_database_url, folder=write(m0001_first="select 1"))
    folder = write(m0001_first="select 2", m0002_second="create table two (id int)")
    for act in (migrate, migration_status):
        with pytest.raises(MigrationChanged, match="0001_first"):
            await act(empty_database_url, folder=folder)
    assert not await table_exists(empty_database_url, "two")


@pytest.mark.parametrize(
    "files",
    [
        {"m0002_second": ""},
        {"m0001_first": "", "m0003_third": ""},
        {"m0001_first": "", "m0001_other": ""},
        {"m0001_First": ""},
        {"m1_first": ""},
    ],
    ids=["starts late", "gap", "duplicate", "capitals", "short number"],
)
async def test_files_that_are_not_numbered_one_by_one_are_refused(
    empty_database_url: str, write: WriteFiles, files: dict[str, str]
) -> None:
    with pytest.raises(MigrationFilesBroken, match="should be called 000"):
        await migrate(empty_database_url, folder=write(**files))
    assert not await table_exists(empty_database_url, "schema_migrations")


async def test_the_wait_for_another_daemon_has_a_deadline(
    empty_database_url: str, write: WriteFiles
) -> None:
    folder = write(m0001_first="select 1")
    async with await psycopg.AsyncConnection.connect(empty_database_url) as other:
        await other.execute("select pg_advisory_lock(%s)", [LOCK_KEY])
        with pytest.raises(MigrationLocked, match=r"for 0\.3 s"):
            await migrate(empty_database_url, folder=folder, lock_seconds=0.3)
    assert not await table_exists(empty_database_url, "schema_migrations")


async def test_the_lock_is_free_after_a_failure(empty_database_url: str, write: WriteFiles) -> None:
    with pytest.raises(MigrationFailed):
        await migrate(empty_database_url, folder=write(m0001_first="select 1 / 0"))
    assert await query(empty_database_url, f"select pg_try_advisory_lock({LOCK_KEY})") == [(True,)]


async def test_a_database_that_is_away_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(DatabaseAway):
        await migrate(f"postgresql:///postgres?host={tmp_path}")


@pytest.fixture
async def url_of_a_reader(empty_database_url: str) -> AsyncIterator[str]:
    """The address of a user who may read the applied migrations, and nothing else."""
    async with await psycopg.AsyncConnection.connect(
        empty_database_url, autocommit=True
    ) as connection:
        await connection.execute("create role reader login")
        await migrate(empty_database_url)
        await connection.execute("grant select on schema_migrations to reader")
        yield make_conninfo(empty_database_url, user="reader")
        await connection.execute("drop owned by reader")
        await connection.execute("drop role reader")


async def test_a_user_with_few_rights_finds_a_current_schema_current(url_of_a_reader: str) -> None:
    assert await migrate(url_of_a_reader) == []


async def test_a_user_who_may_not_read_the_migrations_is_told_what_to_do(
    empty_database_url: str, url_of_a_reader: str
) -> None:
    async with await psycopg.AsyncConnection.connect(empty_database_url) as connection:
        await connection.execute("revoke select on schema_migrations from reader")
    for act in (migrate, migration_status):
        with pytest.raises(MigrationFailed, match=r"permission denied .* as the database's owner"):
            await act(url_of_a_reader)


async def test_a_read_only_database_is_refused_with_the_way_out(
    empty_database_url: str, write: WriteFiles
) -> None:
    url = make_conninfo(empty_database_url, options="-c default_transaction_read_only=on")
    with pytest.raises(MigrationFailed, match="set DATABASE_URL to the primary"):
        await migrate(url, folder=write(m0001_first="select 1"))
    assert not await table_exists(empty_database_url, "schema_migrations")
