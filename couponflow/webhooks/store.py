"""The webhook tables: what intake writes and what the inbox reads."""

from collections.abc import Sequence
from datetime import datetime

import msgspec

from couponflow.kernel.database import Connection, load_queries
from couponflow.kernel.partitions import PartitionedTable
from couponflow.messages import MetricReported, WebhookAccepted
from couponflow.webhooks.contract import RefusalReason, StoredEvent

WEBHOOK_LOGS = PartitionedTable("webhook_logs", "day", 8)

_queries = load_queries("webhooks")


class EventRow(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A verified event on its way into `webhook_logs`."""

    webhook_id: str
    received_at: float
    source: str
    event_type: str
    event_id: str
    method: str
    query: str
    headers: str
    """A JSON object."""
    body: bytes
    body_sha256: bytes
    address: str
    message: str
    """The `WebhookAccepted` that passes it on, as JSON."""


class RefusalRow(msgspec.Struct, frozen=True, kw_only=True):
    """A delivery that was not believed."""

    webhook_id: str
    received_at: float
    source: str
    verdict: RefusalReason
    detail: str
    method: str
    query: str
    body: bytes
    """The beginning of it."""
    body_bytes: int
    body_sha256: bytes
    address: str


class _Described(msgspec.Struct, frozen=True, gc=False):
    """An event as the statement reads it; what is not text goes beside it."""

    id: str
    received_at: float
    source: str
    event_type: str
    event_id: str
    method: str
    query: str
    headers: msgspec.Raw
    address: str
    message: msgspec.Raw


_encode = msgspec.json.Encoder().encode


async def store_events(connection: Connection, rows: Sequence[EventRow]) -> set[str]:
    """Write events down with their messages, in one transaction; the ids of those that are new.

    An event that was taken before, or stands before it in `rows`, is left out. Raises
    `UnicodeEncodeError` for a text that is none.
    """
    # One JSON document costs a fraction of what an array a column does.
    described = [
        _Described(
            row.webhook_id,
            row.received_at,
            row.source,
            row.event_type,
            row.event_id,
            row.method,
            row.query,
            msgspec.Raw(row.headers.encode()),
            row.address,
            msgspec.Raw(row.message.encode()),
        )
        for row in rows
    ]
    cursor = await connection.execute(
        _queries["store"],
        {
            "events": _encode(described).decode(),
            "bodies": [row.body for row in rows],
            "hashes": b"".join([row.body_sha256 for row in rows]),
        },
    )
    return {row[0] for row in await cursor.fetchall()}


async def wake_relays(connection: Connection) -> None:
    """Tell whoever relays that messages are due; without it they look every now and then."""
    await connection.execute(_queries["wake_relays"])


async def store_refusals(connection: Connection, rows: Sequence[RefusalRow]) -> None:
    """Write down what was refused."""
    async with connection.cursor() as cursor:
        await cursor.executemany(
            _queries["store_refusal"], [msgspec.structs.asdict(row) for row in rows]
        )


async def read_events(
    connection: Connection, messages: Sequence[WebhookAccepted]
) -> dict[str, StoredEvent]:
    """Verified events by their id here; what is gone, or never was, is missing."""
    cursor = await connection.execute(
        _queries["read_events"],
        {
            "ids": [message.webhook_id for message in messages],
            "received_at": [message.received_at for message in messages],
        },
    )
    events = [
        msgspec.convert(dict(zip(StoredEvent.__struct_fields__, row, strict=True)), StoredEvent)
        for row in await cursor.fetchall()
    ]
    return {event.webhook_id: event for event in events}


async def latest_events(connection: Connection, sources: Sequence[str]) -> dict[str, datetime]:
    """When each source was last believed; those that never were are missing."""
    cursor = await connection.execute(_queries["latest_events"], {"sources": list(sources)})
    return {str(source): moment for source, moment in await cursor.fetchall() if moment}


async def oldest_waiting(connection: Connection) -> datetime | None:
    """When the oldest event came that is still to be passed on."""
    cursor = await connection.execute(_queries["oldest_waiting"])
    row = await cursor.fetchone()
    return row[0] if row else None


async def prune_events(connection: Connection, days: int, limit: int) -> int:
    """Forget the ids of old events, so many at most; how many were forgotten."""
    cursor = await connection.execute(_queries["prune_events"], {"days": days, "limit": limit})
    return cursor.rowcount


async def insert_metric(connection: Connection, message_id: str, metric: MetricReported) -> None:
    """Keep a measurement, once."""
    await connection.execute(
        _queries["insert_metric"],
        {
            "id": message_id,
            "name": metric.name,
            "value": metric.value,
            "labels": msgspec.json.encode(metric.labels).decode(),
            "measured_at": metric.measured_at,
        },
    )
