"""The outbox: what a business transaction wants said, written in the same commit.

    async with database.transaction() as connection:
        ...  # the change itself
        await publish(connection, EmailRequested(...), dedup_key=f"welcome:{user_id}")

Once that has committed, the message is delivered, at least once, until it is done or dead; the row
stays until then. Nothing is said if the transaction rolls back.

**Order.** Messages of a channel are handed over in the order of `available_at`, then of their ids,
which follow the time of publishing. Several are worked on at once and a failed one comes later
again, so two messages about one thing may overtake each other: a handler that minds writes states
that only move forward, or compares times.
"""

import functools
import uuid
from collections.abc import Sequence

import msgspec
import structlog

from couponflow.kernel.clock import END_OF_TIME, SystemClock
from couponflow.kernel.crash_points import crash_point
from couponflow.kernel.database import load_queries
from couponflow.kernel.database_connection import Connection
from couponflow.kernel.identifiers import Uuid7Generator
from couponflow.kernel.outbox_rows import float_or_none
from couponflow.messages import Message

NOTIFY_CHANNEL = "couponflow_outbox"
MESSAGE_BYTES_MAX = 1_000_000
"""A stream takes 1 MiB in one entry: the message in JSON, and what is known of it."""

_queries = load_queries("outbox")
_clock = SystemClock()
_ids = Uuid7Generator()


class Outgoing(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A message, and what is to be known of it."""

    message: Message
    available_at: float | None = None
    """When it may be handed over, in seconds since the epoch; None is now."""
    dedup_key: str | None = None
    """While a message of the channel with this key is not done, no other is written."""
    correlation_id: str | None = None
    """The story it belongs to; None takes the one on the current log lines, else begins one."""
    message_id: str | None = None
    """A UUID; None makes one."""


async def publish(
    connection: Connection,
    message: Message,
    *,
    available_at: float | None = None,
    dedup_key: str | None = None,
    correlation_id: str | None = None,
    message_id: str | None = None,
) -> str | None:
    """Write a message in the caller's transaction; see `Outgoing` for what may be said of it.

    Returns its id, or None when a message with the same `dedup_key` is not done yet. Raises
    `psycopg.errors.UniqueViolation` for a `message_id` that is in the outbox, and `ValueError` for
    one that is no UUID, for an `available_at` that never comes and for a message that does not fit
    its own type (constructors do not check) or is too large. Then nothing is written.
    """
    outgoing = Outgoing(
        message=message,
        available_at=available_at,
        dedup_key=dedup_key,
        correlation_id=correlation_id,
        message_id=message_id,
    )
    (written,) = await publish_many(connection, [outgoing])
    return written


async def publish_many(
    connection: Connection, outgoing: Sequence[Outgoing], *, unknown_only: bool = False
) -> list[str | None]:
    """Write several messages in one statement; the ids in their order, None for one left out.

    With `unknown_only` a message is also left out whose id is on its way, done or dead.
    """
    if not outgoing:
        return []
    for each in outgoing:
        _require_some_day(each.available_at)
    messages = [_checked_json(each.message) for each in outgoing]
    now = _clock.now()
    around = structlog.contextvars.get_contextvars().get("correlation_id")
    ids = [
        str(uuid.UUID(each.message_id)) if each.message_id else _ids.make(now) for each in outgoing
    ]
    cursor = await connection.execute(
        _queries["publish_unknown" if unknown_only else "publish"],
        {
            "ids": ids,
            "channels": [each.message.channel for each in outgoing],
            "messages": messages,
            "correlation_ids": [
                each.correlation_id or around or id_
                for each, id_ in zip(outgoing, ids, strict=True)
            ],
            "dedup_keys": [each.dedup_key for each in outgoing],
            "available_at": [float_or_none(each.available_at) for each in outgoing],
        },
    )
    written = {str(row[0]) for row in await cursor.fetchall()}
    crash_point("outbox.published")
    return [id_ if id_ in written else None for id_ in ids]


def _checked_json(message: Message) -> str:
    """The message in JSON, which whoever is handed it can read."""
    name = type(message).__name__
    try:
        encoded = msgspec.json.encode(message)
        _decoder(type(message)).decode(encoded)
    except (UnicodeEncodeError, msgspec.ValidationError) as error:
        raise ValueError(f"this {name} does not fit its type: {error}") from error
    if len(encoded) > MESSAGE_BYTES_MAX:
        raise ValueError(
            f"this {name} has {len(encoded):,} bytes in JSON; at most {MESSAGE_BYTES_MAX:,} fit: "
            "shorten its texts, or say where to find them"
        )
    return encoded.decode()


@functools.cache
def _decoder(message_type: type[Message]) -> msgspec.json.Decoder[Message]:
    return msgspec.json.Decoder(message_type)


def _require_some_day(available_at: float | None) -> None:
    if available_at is not None and not 0 <= available_at < END_OF_TIME:
        raise ValueError(
            f"available_at is {available_at}; it must be in seconds since the epoch, "
            "and before the year 9999"
        )
