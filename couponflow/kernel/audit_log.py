"""What people and programs changed by hand, written where it cannot be edited: `audit_logs`."""

from collections.abc import Mapping, Sequence

import msgspec

from couponflow.kernel.clock import Clock, SystemClock
from couponflow.kernel.database import Connection, load_queries
from couponflow.kernel.dead_letters import storable_json, storable_text
from couponflow.kernel.identifiers import Uuid7Generator
from couponflow.kernel.partitions import PartitionedTable

_queries = load_queries("audit_log")
_CLOCK = SystemClock()
_IDS = Uuid7Generator()

AUDIT_LOGS = PartitionedTable("audit_logs", "month", 3)


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
