"""The PostgreSQL a command works with: the configured one, or the embedded one."""

import contextlib
from collections.abc import AsyncIterator

import anyio
import structlog

from couponflow.config import Settings
from couponflow.kernel.database import Database, DatabaseAway, open_database
from couponflow.kernel.embedded_postgres import embedded_postgres
from couponflow.kernel.migrations import migrate

_log = structlog.get_logger("couponflow.database")


@contextlib.asynccontextmanager
async def open_postgres(settings: Settings) -> AsyncIterator[Database]:
    """Open the database as it is; its schema is whatever it is."""
    async with contextlib.AsyncExitStack() as stack:
        url = settings.database.url
        if not url:
            url = await stack.enter_async_context(embedded_postgres(settings.var_path / "postgres"))
        yield await stack.enter_async_context(open_database(url, settings.database))


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
