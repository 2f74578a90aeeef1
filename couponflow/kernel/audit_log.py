"""What people and programs changed by hand, written where it cannot be edited: `audit_logs`."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta

import msgspec
import psycopg
import structlog
from psycopg import sql

from couponflow.kernel.clock import Clock, SystemClock
from couponflow.kernel.database import Connection, load_queries
from couponflow.kernel.dead_letters import storable_json, storable_text
from couponflow.kernel.identifiers import Uuid7Generator

_queries = load_queries("audit_log")
_log = structlog.get_logger("couponflow.audit_log")
_CLOCK = SystemClock()
_IDS = Uuid7Generator()
_MONTHS = 3
_IN_THE_WAY = (psycopg.errors.CheckViolation, psycopg.errors.DuplicateTable)


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that somebody did."""

    actor: str
    """`cli:` and the account, or `api:` and the token's subject."""
    action: str
    """What was done, as `dead_letters.replay`."""
    subject: str
    """To what."""
    details: Mapping[str, object] = {}
    """All that is needed to tell later what it meant; anything msgspec encodes."""


async def record(
    connection: Connection,
    *,
    actor: str,
    action: str,
    subject: str,
    details: Mapping[str, object],
    clock: Clock = _CLOCK,
    ids: Uuid7Generator = _IDS,
) -> None:
    """Write down what is done in the caller's transaction: both are kept, or neither."""
    entry = AuditEntry(actor=actor, action=action, subject=subject, details=details)
    await record_all(connection, [entry], clock=clock, ids=ids)


async def record_all(
    connection: Connection,
    entries: Sequence[AuditEntry],
    *,
    clock: Clock = _CLOCK,
    ids: Uuid7Generator = _IDS,
) -> None:
    """The same for many at once."""
    now = clock.now()
    async with connection.cursor() as cursor:
        await cursor.executemany(
            _queries["record"],
            [
                {
                    "id": ids.make(now),
                    "actor": storable_text(entry.actor),
                    "action": entry.action,
                    "subject": storable_text(entry.subject),
                    "details": storable_json(msgspec.json.encode(entry.details)),
                }
                for entry in entries
            ],
        )


async def ensure_partitions(connection: Connection, now: float) -> list[str]:
    """Make the partitions of this and the next two months (UTC); return those that were missing.

    Several daemons may call it at once. A month that cannot get its partition is logged and left:
    its rows go to `audit_logs_other`, and nothing is lost.
    """
    missing = [month for month in _months_from(now) if not await _has(connection, month)]
    made: list[str] = []
    for month in missing:
        try:
            async with connection.transaction():
                await connection.execute(_queries["lock_partitions"])
                if not await _has(connection, month):
                    await _create(connection, month)
                    made.append(_name(month))
        except _IN_THE_WAY as error:
            _tell(month, error)
        except psycopg.errors.LockNotAvailable as error:
            # The other months need the same lock.
            _tell(month, error)
            break
        except psycopg.errors.InvalidObjectDefinition:
            # Somebody's wider partition takes the rows of that month.
            continue
    return made


def _months_from(now: float) -> Iterator[datetime]:
    month = datetime.fromtimestamp(now, UTC).replace(
        day=1, hour=0, minute=0, second=0, microsecond=0
    )
    for _ in range(_MONTHS):
        yield month
        month = _next(month)


def _next(month: datetime) -> datetime:
    return (month + timedelta(days=32)).replace(day=1)


def _name(month: datetime) -> str:
    return f"audit_logs_{month:%Y_%m}"


async def _has(connection: Connection, month: datetime) -> bool:
    cursor = await connection.execute(_queries["has_partition"], {"name": _name(month)})
    return await cursor.fetchone() == (True,)


async def _create(connection: Connection, month: datetime) -> None:
    """Attach an empty table, which does not make readers and writers of other months wait."""
    name = sql.Identifier(_name(month))
    first, end = month.isoformat(), _next(month).isoformat()
    await connection.execute(_queries["wait_briefly"])
    await connection.execute(
        sql.SQL(
            "create table {} (like audit_logs"
            " including defaults including constraints including indexes)"
        ).format(name)
    )
    await connection.execute(
        sql.SQL("alter table audit_logs attach partition {} for values from ({}) to ({})").format(
            name, sql.Literal(first), sql.Literal(end)
        )
    )


def _tell(month: datetime, error: psycopg.Error) -> None:
    _log.warning(
        "audit_logs_partition_not_made",
        partition=_name(month),
        error=str(error).partition("\n")[0],
        hint=_hint(error),
    )


def _hint(error: psycopg.Error) -> str:
    match error:
        case psycopg.errors.CheckViolation():
            return "audit_logs_other holds rows of that month; they stay there and can be read"
        case psycopg.errors.DuplicateTable():
            return "another table has that name; rename it or attach it to audit_logs"
        case _:
            return "somebody reads or writes audit_logs_other for long; it is tried again"
