"""The PostgreSQL a command works with: the configured one, or the embedded one."""

import contextlib
from collections.abc import AsyncIterator

import anyio
import structlog

from couponflow.config import Settings
from couponflow.kernel.database import Database, DatabaseAway, open_database
from couponflow.kernel.embedded_postgres import embedded_postgres
from couponflow.kernel.migrations import migrate, migration_status

_log = structlog.get_logger("couponflow.database")


class DatabaseMissing(Exception):
    """No DATABASE_URL is set, and the var folder holds no PostgreSQL that could be looked at.

    Set DATABASE_URL, or COUPONFLOW_VAR_DIR to the daemon's folder.
    """


class SchemaNotCurrent(Exception):
    """Migrations are pending, and the command is one that changes nothing.

    Run `couponflow migrate` first.
    """


@contextlib.asynccontextmanager
async def open_postgres(settings: Settings) -> AsyncIterator[Database]:
    """Open the database as it is; its schema is whatever it is.

    Without a configured one, the embedded one is started, and made if it is not there.
    """
    async with contextlib.AsyncExitStack() as stack:
        url = settings.database.url
        if not url:
            url = await stack.enter_async_context(embedded_postgres(settings.var_path / "postgres"))
        yield await stack.enter_async_context(open_database(url, settings.database))


@contextlib.asynccontextmanager
async def open_existing_postgres(settings: Settings) -> AsyncIterator[Database]:
    """Open the database as it is; raises `DatabaseMissing` rather than make an embedded one."""
    data = settings.var_path / "postgres"
    if not settings.database.url and not (data / "PG_VERSION").exists():
        raise DatabaseMissing(
            f"there is no database to look at: DATABASE_URL is not set, and {data} holds no "
            "PostgreSQL; set DATABASE_URL, or COUPONFLOW_VAR_DIR to the daemon's folder, or make "
            "a database with `couponflow migrate`"
        )
    async with open_postgres(settings) as database:
        yield database


@contextlib.asynccontextmanager
async def open_unchanged_postgres(settings: Settings) -> AsyncIterator[Database]:
    """Open a database whose schema is current, for commands that change nothing.

    Raises `DatabaseMissing`, `SchemaNotCurrent`, and what `migration_status` raises.
    """
    async with open_existing_postgres(settings) as database:
        states = await migration_status(database.url)
        pending = [state.name for state in states if state.applied_at is None]
        if pending:
            raise SchemaNotCurrent(
                f"the database's schema is not current ({', '.join(pending)} pending), and this "
                "command changes nothing: run `couponflow migrate` first"
            )
        yield database


@contextlib.asynccontextmanager
async def open_current_postgres(
    settings: Settings, *, wait_seconds: float = 0.0
) -> AsyncIterator[Database]:
    """Open the database and bring its schema up to date.

    A server that cannot be reached is waited for up to `wait_seconds`, then `DatabaseAway` is
    raised. Raises what `migrate` raises, too.
    """
    async with open_postgres(settings) as database:
        give_up_at = anyio.current_time() + wait_seconds
        while True:
            try:
                applied = await migrate(database.url)
            except DatabaseAway as error:
                if anyio.current_time() >= give_up_at:
                    raise
                _log.warning("waiting for PostgreSQL", error=str(error))
                await anyio.sleep(1)
            else:
                break
        for migration in applied:
            _log.info("migration applied", version=migration.version, name=migration.name)
        yield database
