"""One connection to PostgreSQL: how it is dialled, what it is set to, and how its end is told."""

import contextlib
import math
from collections.abc import Iterator

import anyio
import msgspec
import psycopg
from psycopg import AsyncConnection
from psycopg.adapt import AdaptersMap
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow
from psycopg.types.json import set_json_dumps, set_json_loads

Connection = AsyncConnection[TupleRow]

# A peer that lost power says nothing: these notice it within half a minute.
_KEEPALIVE: dict[str, str | int] = {
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
IDLE_IN_TRANSACTION_SECONDS = 120
"""After so long PostgreSQL rolls back the transaction of a process that fell asleep in it, lest its
locks stay. Longer than handlers take."""
# What SQLSTATEs of errors that end a connection begin with: operator intervention, connection
# exception, idle in a transaction.
_ENDS_CONNECTION = ("57P", "08", "25P03")


class DatabaseAway(Exception):
    """PostgreSQL cannot be reached, or the connection broke while it was used.

    Try again later. After a break in a transaction nothing of it is kept, except when it broke in
    the commit itself: then it may have been kept or not. The operator checks that PostgreSQL runs
    and that DATABASE_URL is right.
    """


class DatabaseUrlBroken(ValueError):
    """DATABASE_URL is not a PostgreSQL connection URL. Its value is not shown: it holds secrets."""


class JsonByMsgspec:
    """An adaptation context of psycopg in which JSON goes through msgspec, and only there."""

    connection = None

    def __init__(self) -> None:
        self.adapters = AdaptersMap(psycopg.adapters)
        set_json_dumps(msgspec.json.encode, self)
        set_json_loads(msgspec.json.decode, self)


def conninfo_of(
    url: str, *, connect_timeout_seconds: float, statement_timeout_seconds: float
) -> str:
    """Return what to dial: `url` with couponflow's defaults for what it does not say itself."""
    try:
        given = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        raise DatabaseUrlBroken(
            "DATABASE_URL is not a PostgreSQL connection URL; it looks like "
            "postgresql://user:password@host:5432/couponflow"
        ) from None
    options = (
        f"-c TimeZone=UTC -c statement_timeout={math.ceil(statement_timeout_seconds * 1000)}"
        f" -c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION_SECONDS * 1000}"
        f" {given.pop('options', '')}"
    )
    defaults: dict[str, str | int] = {
        **_KEEPALIVE,
        "application_name": "couponflow",
        "connect_timeout": math.ceil(connect_timeout_seconds),
    }
    return make_conninfo("", **{**defaults, **given, "options": options.strip()})


async def connect(
    url: str, *, connect_timeout_seconds: float, statement_timeout_seconds: float
) -> Connection:
    """Open an autocommit connection outside the pool; `DatabaseAway` when there is none.

    A `statement_timeout_seconds` of 0 lets statements run for ever.
    """
    conninfo = conninfo_of(
        url,
        connect_timeout_seconds=connect_timeout_seconds,
        statement_timeout_seconds=statement_timeout_seconds,
    )
    try:
        with anyio.fail_after(connect_timeout_seconds):
            return await AsyncConnection.connect(conninfo, autocommit=True, context=JsonByMsgspec())
    except (psycopg.OperationalError, TimeoutError) as error:
        cause = str(error) or f"no answer in {connect_timeout_seconds:g} s"
        raise away(url, cause) from error


@contextlib.contextmanager
def broken_means_away(connection: Connection, url: str) -> Iterator[None]:
    """Turn the end of `connection` into `DatabaseAway`; let the errors of queries through."""
    try:
        yield
    except (
        psycopg.OperationalError,
        psycopg.InterfaceError,
        psycopg.errors.IdleInTransactionSessionTimeout,
    ) as error:
        if connection.closed or (error.sqlstate or "").startswith(_ENDS_CONNECTION):
            raise away(url, f"the connection broke: {error}") from error
        raise


def away(url: str, cause: str) -> DatabaseAway:
    """Make the error; it names the server and the database, never the password."""
    given = conninfo_to_dict(url)
    host = given.get("host") or given.get("hostaddr") or "the default host"
    database = given.get("dbname") or "the default one"
    return DatabaseAway(
        f"PostgreSQL is away (host {host}, database {database}): {cause.strip()}; "
        "check that it runs and that DATABASE_URL is right"
    )
