"""Hearing what other sessions of PostgreSQL NOTIFY."""

import contextlib
from collections.abc import AsyncIterator

import anyio
from psycopg.sql import SQL, Identifier

from couponflow.kernel.database_connection import Connection, broken_means_away, connect


class Notifications:
    """The notifications of one channel, heard on a connection of their own."""

    def __init__(self, connection: Connection, url: str) -> None:
        self._connection = connection
        self._url = url

    async def wait(self, timeout_seconds: float) -> bool:
        """Wait for a notification; tell whether one came within `timeout_seconds`.

        Those that arrived since the last call count, and several at once are one. Raises
        `DatabaseAway` when the connection breaks: what was notified from then on is lost, so listen
        anew and look for yourself at what may have changed.
        """
        heard = False
        with broken_means_away(self._connection, self._url):
            async for _ in self._connection.notifies(timeout=timeout_seconds, stop_after=1):
                heard = True
        return heard


@contextlib.asynccontextmanager
async def listening(
    url: str, channel_name: str, connect_timeout_seconds: float
) -> AsyncIterator[Notifications]:
    """Listen on `channel_name` while the block runs; raises `DatabaseAway` like `Notifications`."""
    connection = await connect(
        url, connect_timeout_seconds=connect_timeout_seconds, statement_timeout_seconds=0
    )
    try:
        with broken_means_away(connection, url), anyio.fail_after(connect_timeout_seconds):
            await connection.execute(SQL("listen {}").format(Identifier(channel_name)))
        yield Notifications(connection, url)
    finally:
        await connection.close()
