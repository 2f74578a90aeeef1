"""Bringing the database's schema to what the code expects, in numbered steps."""

import contextlib
import hashlib
import re
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from pathlib import Path

import anyio
import msgspec
import psycopg
from psycopg.rows import class_row

from couponflow.kernel.database_connection import (
    Connection,
    broken_means_away,
    connect,
)
from couponflow.kernel.resources import resource_path

LOCK_KEY = 0x636F75706F6E
"""The advisory lock held while migrating: "coupon" in ASCII, which nobody else locks."""

_LOCK_POLL_SECONDS = 0.1
_CONNECT_SECONDS = 10.0
# A statement that waits for a table's lock makes everybody after it wait, too: rather fail.
_LIMIT_TABLE_LOCKS = "set lock_timeout = '60s'"
_FILE_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
_NOT_TRANSACTIONAL = b"-- transactional: false"
_REFUSED = (psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction)
_CREATE_TABLE = """
    create table if not exists schema_migrations (
        version    integer primary key,
        name       text not null,
        sha256     text not null,
        applied_at timestamptz not null default now()
    )"""


class MigrationFilesBroken(Exception):
    """The files in `sql/migrations` are not numbered 0001, 0002, ... without gap or repetition.

    It is a fault of the installation or of a merge: no database was touched.
    """


class DatabaseNewerThanCode(Exception):
    """The database has a migration that this code does not know: a newer couponflow made it.

    Run that version, or restore a backup from before it.
    """


class MigrationChanged(Exception):
    """A migration that was applied is not what the file of its number says now.

    Restore the file as it was, and put the change into a new migration.
    """


class MigrationFailed(Exception):
    """PostgreSQL refused a migration. The message says which, why, and what is left of it."""


class MigrationLocked(Exception):
    """Another process has been migrating this database for longer than we wait."""


class Migration(msgspec.Struct, frozen=True):
    """One numbered step, as its file has it."""

    version: int
    name: str
    """The file's name without `.sql`."""
    sql: bytes
    sha256: str
    transactional: bool


class MigrationState(msgspec.Struct, frozen=True):
    """One step, and when this database took it."""

    version: int
    name: str
    applied_at: datetime | None
    """None while it is pending."""


class _Recorded(msgspec.Struct, frozen=True):
    version: int
    name: str
    sha256: str
    applied_at: datetime


async def migrate(
    url: str, *, folder: Path | None = None, lock_seconds: float = 300.0
) -> list[Migration]:
    """Apply what is pending, in order, and return it; several processes may do so at once.

    One of them applies, the others wait up to `lock_seconds` for it and find nothing left to do.
    A migration is one transaction together with its record, unless its first line says
    `-- transactional: false`; it then holds a single statement that can be run again, since it
    may be applied without being recorded. Raises `DatabaseAway`, `MigrationFilesBroken`,
    `DatabaseNewerThanCode`, `MigrationChanged`, `MigrationFailed` and `MigrationLocked`.
    """
    migrations = read_migrations(folder)
    async with _session(url) as connection:
        await _lock(connection, lock_seconds)
        await connection.execute(_LIMIT_TABLE_LOCKS)
        recorded = await _recorded(connection)
        _check(migrations, recorded)
        done = {record.version for record in recorded}
        pending = [migration for migration in migrations if migration.version not in done]
        if pending and not recorded:
            # Only now: it asks for the right to create even when the table is there.
            await connection.execute(_CREATE_TABLE)
        for migration in pending:
            await _apply(connection, migration)
    return pending


async def migration_status(url: str, *, folder: Path | None = None) -> list[MigrationState]:
    """Return every migration with when it was applied; changes nothing.

    Raises what `migrate` raises, except that it never applies or waits.
    """
    migrations = read_migrations(folder)
    async with _session(url) as connection:
        recorded = await _recorded(connection)
    _check(migrations, recorded)
    applied = {record.version: record.applied_at for record in recorded}
    return [
        MigrationState(migration.version, migration.name, applied.get(migration.version))
        for migration in migrations
    ]


def read_migrations(folder: Path | None = None) -> list[Migration]:
    """Read the migrations of `folder`, `sql/migrations` by default, in order."""
    folder = resource_path("sql", "migrations") if folder is None else folder
    migrations: list[Migration] = []
    for expected, file in enumerate(sorted(folder.glob("*.sql")), start=1):
        match = _FILE_NAME.fullmatch(file.name)
        if match is None or int(match[1]) != expected:
            raise MigrationFilesBroken(
                f"{file} should be called {expected:04}_what_it_does.sql: migrations are numbered "
                "from 0001 without gap or repetition, in lower case"
            )
        sql = file.read_bytes()
        digest = hashlib.sha256(sql).hexdigest()
        transactional = not sql.startswith(_NOT_TRANSACTIONAL)
        migrations.append(Migration(expected, file.stem, sql, digest, transactional))
    return migrations


@contextlib.asynccontextmanager
async def _session(url: str) -> AsyncIterator[Connection]:
    connection = await connect(
        url, connect_timeout_seconds=_CONNECT_SECONDS, statement_timeout_seconds=0
    )
    try:
        with broken_means_away(connection, url):
            yield connection
    except _REFUSED as error:
        raise MigrationFailed(
            f"PostgreSQL does not let this user see to the schema: {str(error).strip()}; "
            f"{_mend(error)}"
        ) from error
    finally:
        await connection.close()  # and with it ends the lock


async def _lock(connection: Connection, lock_seconds: float) -> None:
    """Ask again and again, for a session that waits in PostgreSQL holds a snapshot.

    `create index concurrently` in the session that migrates would wait for that snapshot, and so
    each for the other.
    """
    try:
        with anyio.fail_after(lock_seconds):
            while True:
                cursor = await connection.execute("select pg_try_advisory_lock(%s)", [LOCK_KEY])
                if await cursor.fetchone() == (True,):
                    return
                await anyio.sleep(_LOCK_POLL_SECONDS)
    except TimeoutError as error:
        raise MigrationLocked(
            f"another process has been migrating this database for {lock_seconds:g} s; wait until "
            "it is done, or find it in pg_locks by locktype = 'advisory' and end it"
        ) from error


async def _recorded(connection: Connection) -> list[_Recorded]:
    cursor = await connection.execute("select to_regclass('schema_migrations') is not null")
    if await cursor.fetchone() != (True,):
        return []
    async with connection.cursor(row_factory=class_row(_Recorded)) as records:
        await records.execute(
            "select version, name, sha256, applied_at from schema_migrations order by version"
        )
        return await records.fetchall()


def _check(migrations: Sequence[Migration], recorded: Sequence[_Recorded]) -> None:
    known = {migration.version: migration for migration in migrations}
    for record in recorded:
        migration = known.get(record.version)
        if migration is None:
            raise DatabaseNewerThanCode(
                f"the database has migration {record.name}, and this couponflow knows only up to "
                f"{len(migrations):04}: run the couponflow that made it, or a newer one"
            )
        if (migration.name, migration.sha256) != (record.name, record.sha256):
            raise MigrationChanged(
                f"migration {record.name} was applied at {record.applied_at:%Y-%m-%d %H:%M:%S} "
                f"UTC, and sql/migrations/{migration.name}.sql is no longer what was applied: "
                "restore the file, and put the change into a new migration"
            )


async def _apply(connection: Connection, migration: Migration) -> None:
    try:
        if migration.transactional:
            async with connection.transaction():
                await connection.execute(migration.sql)
                await _record(connection, migration)
        else:
            await connection.execute(migration.sql)
            await _record(connection, migration)
    except psycopg.Error as error:
        if connection.closed:
            raise
        left = "nothing of it was kept" if migration.transactional else "a part may have been kept"
        raise MigrationFailed(
            f"migration {migration.name} failed, {left}: {str(error).strip()}; {_mend(error)}"
        ) from error


def _mend(error: psycopg.Error) -> str:
    match error:
        case psycopg.errors.InsufficientPrivilege():
            return (
                "run `couponflow migrate` as the database's owner, and let that user grant this "
                "one the rights it lacks"
            )
        case psycopg.errors.ReadOnlySqlTransaction():
            return (
                "this server or session is read-only: set DATABASE_URL to the primary, and "
                "migrate there"
            )
        case _:
            return "mend the cause and migrate again"


async def _record(connection: Connection, migration: Migration) -> None:
    await connection.execute(
        "insert into schema_migrations (version, name, sha256) values (%s, %s, %s)",
        [migration.version, migration.name, migration.sha256],
    )
