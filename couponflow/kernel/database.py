"""PostgreSQL as the roles see it: a pool that survives outages, and one error to catch."""

import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Self

import anyio
import psycopg
import structlog
from psycopg import AsyncConnection, AsyncCursor
from psycopg.abc import RV, AdaptContext, ConnParam, PQGen
from psycopg.rows import AsyncRowFactory, TupleRow
from psycopg_pool import AsyncConnectionPool, PoolTimeout, TooManyRequests

from couponflow.config import DatabaseSettings
from couponflow.kernel.database_connection import (
    Connection,
    DatabaseAway,
    DatabaseUrlBroken,
    JsonByMsgspec,
    away,
    broken_means_away,
    connect,
    conninfo_of,
)
from couponflow.kernel.notifications import Notifications, listening
from couponflow.kernel.queries import Queries, load_queries

__all__ = [
    "Connection",
    "Database",
    "DatabaseAway",
    "DatabaseUrlBroken",
    "Notifications",
    "Queries",
    "load_queries",
    "open_database",
]

# The pool doubles its wait from one second, and gives a connection up after this long. Whenever it
# does, it is told to start anew, which makes this the longest wait once PostgreSQL is back.
_RECONNECT_SECONDS = 0.5
_WAITING_MAX = 1000
_GIVE_BACK_SECONDS = 5.0
_WAIT_INTERVAL_SECONDS = 0.1  # psycopg's own
_CLOSE_SECONDS = 1.0  # for dialling under way, which nobody will use any more

# The pool warns at every attempt, several a second. Database says once that PostgreSQL is away,
# and once that it is back.
logging.getLogger("psycopg.pool").setLevel(logging.ERROR)

_log = structlog.get_logger("couponflow.database")


class Database:
    """A pool of connections that is dialled anew, for ever, whenever PostgreSQL has been away.

    Sessions are in UTC and JSON goes through msgspec. A statement that runs longer than
    `statement_timeout_seconds` raises `psycopg.errors.QueryCanceled`. The error of a query is
    raised as psycopg raises it; the error of a connection is always `DatabaseAway`. It is that too
    when the network falls silent: there is no answer for `connect_timeout_seconds` longer than a
    statement may take, and PostgreSQL does not say on another connection that it is still at work.
    """

    def __init__(self, url: str, settings: DatabaseSettings) -> None:
        self._url = url
        self._timeout_seconds = settings.connect_timeout_seconds
        self._size_max = max(settings.pool_min, settings.pool_max)
        self._borrowed = 0
        self._away = False
        self._dialling = _Dialling(url, settings)
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            conninfo_of(
                url,
                connect_timeout_seconds=settings.connect_timeout_seconds,
                statement_timeout_seconds=settings.statement_timeout_seconds,
            ),
            connection_class=self._dialling.connection_class(),
            kwargs={"autocommit": True, "context": JsonByMsgspec()},
            min_size=settings.pool_min,
            max_size=self._size_max,
            open=False,
            max_waiting=_WAITING_MAX,
            reconnect_timeout=_RECONNECT_SECONDS,
            reconnect_failed=_start_anew,
        )

    @property
    def url(self) -> str:
        return self._url

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Borrow an autocommit connection, tested just before; raises `DatabaseAway`.

        It is raised after `connect_timeout_seconds` without a connection, and in the block when
        the connection breaks.
        """
        connection = await self._borrow()
        try:
            with broken_means_away(connection, self._url):
                yield connection
        finally:
            self._borrowed -= 1
            await self._give_back(connection)

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """Borrow a connection for one transaction: committed on success, rolled back on error."""
        async with self.connection() as connection, connection.transaction():
            yield connection

    async def reachable(self) -> bool:
        """Tell whether PostgreSQL answers, within `connect_timeout_seconds`."""
        try:
            async with self.connection():
                return True
        except DatabaseAway:
            return False

    def listen(self, channel_name: str) -> AbstractAsyncContextManager[Notifications]:
        """Hear what is notified on `channel_name`, on a connection outside the pool.

            async with database.listen("couponflow_catalogue") as notifications:
                ...  # look once at what may have changed before this moment
                while ...:
                    if await notifications.wait(timeout_seconds=5):
                        ...

        Entering and waiting raise `DatabaseAway`.
        """
        return listening(self._url, channel_name, self._timeout_seconds)

    async def open(self) -> None:
        await self._pool.open()

    async def close(self) -> None:
        with anyio.CancelScope(shield=True):
            await self._pool.close(timeout=_CLOSE_SECONDS)

    async def _borrow(self) -> Connection:
        try:
            with anyio.fail_after(self._timeout_seconds):
                while True:
                    connection = await self._pool.getconn(self._timeout_seconds)
                    if await self._works(connection):
                        break
        except (PoolTimeout, TooManyRequests, TimeoutError) as error:
            raise self._no_connection() from error
        self._borrowed += 1
        if self._away:
            self._away = False
            _log.info("database_back")
        return connection

    async def _works(self, connection: Connection) -> bool:
        """Test a connection from the pool; one that fails is given back, to be replaced.

        The pool can test by itself, but then waits a second or more between one broken connection
        and the next, and after a restart of PostgreSQL all of them are broken.
        """
        works = False
        try:
            with contextlib.suppress(psycopg.Error):
                await self._pool.check_connection(connection)
                works = True
        finally:
            if not works:
                await self._give_back(connection)
        return works

    async def _give_back(self, connection: Connection) -> None:
        # A connection that is not given back is missing from the pool for ever.
        with anyio.move_on_after(_GIVE_BACK_SECONDS, shield=True):
            await self._pool.putconn(connection)

    def _no_connection(self) -> DatabaseAway:
        if self._borrowed >= self._size_max:
            return DatabaseAway(
                f"all {self._size_max} connections were in use for {self._timeout_seconds:g} s; "
                "look for slow statements, or raise [database] pool_max"
            )
        error = away(self._url, self._dialling.error or "it does not answer")
        if not self._away:
            self._away = True
            _log.warning("database_away", error=str(error))
        return error


@contextlib.asynccontextmanager
async def open_database(url: str, settings: DatabaseSettings) -> AsyncIterator[Database]:
    """Open the database for the block; PostgreSQL need not be up yet.

    Raises `DatabaseUrlBroken` for a URL that cannot be read.
    """
    database = Database(url, settings)
    await database.open()
    try:
        yield database
    finally:
        await database.close()


class _Dialling:
    """How a pool makes connections, and why the latest could not be made: the pool only logs it."""

    def __init__(self, url: str, settings: DatabaseSettings) -> None:
        self.error = ""
        self.silence_seconds = settings.statement_timeout_seconds + settings.connect_timeout_seconds
        self._url = url
        self._connect_timeout_seconds = settings.connect_timeout_seconds

    async def is_at_work(self, backend_pid: int) -> bool:
        """Ask on another connection whether a session still works on what it was sent."""
        seconds = self._connect_timeout_seconds
        with anyio.move_on_after(seconds), contextlib.suppress(DatabaseAway, psycopg.Error):
            other = await connect(
                self._url, connect_timeout_seconds=seconds, statement_timeout_seconds=seconds
            )
            async with other:
                found = await other.execute(
                    "select from pg_stat_activity where pid = %s and state = 'active'"
                    " and wait_event is distinct from 'ClientRead'",
                    [backend_pid],
                )
                return await found.fetchone() is not None
        return False

    def connection_class(self) -> type[Connection]:
        dialling = self

        class PooledConnection(AsyncConnection[TupleRow]):
            @classmethod
            async def connect(
                cls,
                conninfo: str = "",
                *,
                autocommit: bool = False,
                prepare_threshold: int | None = 5,
                context: AdaptContext | None = None,
                row_factory: AsyncRowFactory[TupleRow] | None = None,
                cursor_factory: type[AsyncCursor[TupleRow]] | None = None,
                **kwargs: ConnParam,
            ) -> Self:
                try:
                    connection = await super().connect(
                        conninfo,
                        autocommit=autocommit,
                        prepare_threshold=prepare_threshold,
                        context=context,
                        row_factory=row_factory,
                        cursor_factory=cursor_factory,
                        **kwargs,
                    )
                except psycopg.Error as error:
                    dialling.error = str(error)
                    raise
                dialling.error = ""
                return connection

            async def wait(
                self,
                gen: PQGen[RV],
                interval: float = _WAIT_INTERVAL_SECONDS,
                timeout: float | None = None,  # noqa: ASYNC109 - as psycopg has it
            ) -> RV:
                """Everything that waits for the server waits here."""
                if timeout is not None:
                    return await super().wait(gen, interval, timeout)
                while True:
                    try:
                        return await super().wait(gen, interval, dialling.silence_seconds)
                    except psycopg.errors._WaitTimeout:
                        # A statement may have lifted its timeout, and then take hours.
                        if await dialling.is_at_work(self.info.backend_pid):
                            continue
                    await self.close()
                    raise psycopg.OperationalError(
                        f"no answer in {dialling.silence_seconds:g} s"
                    ) from None

        return PooledConnection


async def _start_anew(pool: AsyncConnectionPool[Connection]) -> None:
    """Let the pool dial again at once, now that it has given a connection up."""
    await pool.check()
