"""Transactions whose outcome is known, even when the connection breaks in the COMMIT.

A COMMIT whose answer is lost was carried out or not, and to try the transaction again may do its
work twice. PostgreSQL remembers which it was: every transaction here learns its id when it begins,
so that another connection can ask.
"""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

import anyio
import psycopg
import structlog
from psycopg.pq import TransactionStatus

from couponflow.kernel.database import Connection, Database, DatabaseAway, load_queries

_COMMIT_SHARE = 0.25  # of the deadline; the rest is for asking
_FIRST_WAIT_SECONDS = 0.05
_WAIT_MAX_SECONDS = 1.0
# After these the server may have committed: operator intervention, connection exception,
# completion unknown.
_OUTCOME_UNKNOWN = ("57P", "08", "40003")

_log = structlog.get_logger("couponflow.commit_outcome")
_queries = load_queries("commit_outcome")


class CommitUnknown(Exception):
    """The connection broke in a COMMIT, and PostgreSQL did not say in time what became of it.

    It is no `DatabaseAway`, because to try again may do the work twice. Look for what the
    transaction writes (a business key, a processed message) once PostgreSQL is back, and try
    again only if it is not there. The operator finds the transaction's id in the message and asks
    `select pg_xact_status('<id>')`; after a crash or a failover only the rows themselves tell.
    """


@dataclass(frozen=True, slots=True)
class _Begun:
    """What is needed to ask for the outcome later."""

    transaction_id: str
    counting_since: str
    """Ids are only unique as long as this stays the same: a crash forgets the latest ones."""


@contextlib.asynccontextmanager
async def certain_transaction(
    database: Database, *, deadline_seconds: float
) -> AsyncIterator[Connection]:
    """Borrow a connection for one transaction that writes, and know whether it was committed.

    The block ends normally when it was. `DatabaseAway` means that nothing was kept: try again.
    `CommitUnknown` means that PostgreSQL could not be asked within `deadline_seconds` of the
    block's end. An error of the block rolls back and passes through. The end of the transaction is
    shielded from cancellation. It costs no more round trips than `Database.transaction()`.
    """
    async with database.connection() as connection:
        begun = await _begin(connection)
        try:
            yield connection
        except BaseException:
            with contextlib.suppress(psycopg.Error):
                await connection.rollback()
            raise
        give_up_at = anyio.current_time() + deadline_seconds
        lost = await _commit(connection, deadline_seconds * _COMMIT_SHARE)
    # The connection is back in the pool now, whose last one it may have been.
    if lost is not None:
        await _settle(database, begun, lost, give_up_at)


async def _begin(connection: Connection) -> _Begun:
    cursor = await connection.execute(_queries["begin_certain"])
    cursor.nextset()
    ((transaction_id, counting_since),) = await cursor.fetchall()
    return _Begun(transaction_id, counting_since)


async def _commit(connection: Connection, seconds: float) -> str | None:
    """Commit, or return how the answer was lost; raises what PostgreSQL refused it for."""
    if connection.info.transaction_status == TransactionStatus.INERROR:
        await connection.rollback()
        raise psycopg.errors.InFailedSqlTransaction(
            "a statement of the transaction failed and its block hid the error, so nothing was "
            "kept; let the error pass, or run the statement in connection.transaction()"
        )
    with anyio.move_on_after(seconds, shield=True):
        try:
            await connection.commit()
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            if connection.closed or (error.sqlstate or "").startswith(_OUTCOME_UNKNOWN):
                return str(error).strip()
            raise
        return None
    await connection.close()
    return f"no answer to COMMIT in {seconds:g} s"


async def _settle(database: Database, begun: _Begun, lost: str, give_up_at: float) -> None:
    """Return if the transaction was committed; raise if it was not, or if nobody can tell."""
    outcome = "unknown"
    with anyio.CancelScope(deadline=give_up_at, shield=True):
        outcome = await _ask_until_settled(database, begun)
    _log.warning(
        "commit_answer_lost", transaction_id=begun.transaction_id, outcome=outcome, cause=lost
    )
    match outcome:
        case "committed":
            return
        case "aborted":
            raise DatabaseAway(
                f"the connection broke before the COMMIT ({lost}); nothing was kept, so try again"
            )
        case _:
            raise CommitUnknown(
                f"the answer to the COMMIT of transaction {begun.transaction_id} was lost ({lost}) "
                "and PostgreSQL could not be asked for it in time; look for what it wrote before "
                "trying again"
            )


async def _ask_until_settled(
    database: Database, begun: _Begun
) -> Literal["committed", "aborted", "unknown"]:
    wait = _FIRST_WAIT_SECONDS
    is_abandoned = False
    while True:
        with contextlib.suppress(DatabaseAway, psycopg.errors.QueryCanceled):
            async with database.connection() as connection:
                if is_abandoned:
                    await connection.execute(
                        _queries["end_abandoned_transaction"], {"id": begun.transaction_id}
                    )
                match await _ask(connection, begun):
                    case ("committed" | "aborted" | "unknown") as outcome:
                        return outcome
                    case "in progress":
                        is_abandoned = True
        await anyio.sleep(wait)
        wait = min(wait * 2, _WAIT_MAX_SECONDS)


async def _ask(
    connection: Connection, begun: _Begun
) -> Literal["committed", "aborted", "in progress", "unknown"]:
    try:
        cursor = await connection.execute(
            _queries["transaction_status"], {"id": begun.transaction_id}
        )
    except psycopg.errors.InvalidParameterValue:
        return "aborted"  # an id of the future: a crash forgot the transaction altogether
    row = await cursor.fetchone()
    match row:
        case ("committed", since):
            # After a crash the id may have been given to another transaction.
            return "committed" if since == begun.counting_since else "unknown"
        case ("aborted", _):
            return "aborted"
        case ("in progress", _):
            return "in progress"
        case _:
            return "unknown"  # PostgreSQL has forgotten, hundreds of millions of ids later
