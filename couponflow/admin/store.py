"""The SQL of the admin API: taking messages in, and looking at channels and workers."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal

import msgspec
import psycopg

from couponflow.admin.submissions import IdempotentId, Submission, idempotent_id
from couponflow.kernel import audit_log
from couponflow.kernel.api import ProblemError
from couponflow.kernel.database import Connection, Database, load_queries
from couponflow.kernel.outbox import Outgoing, publish, publish_many

PUSH_ACTION = "channel.push"
_ATTEMPTS = 3
_queries = load_queries("admin")

WorkerState = Literal["alive", "late", "missing"]


class Submitted(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a caller is told of a message that was taken in, now or before."""

    message_id: str
    correlation_id: str | None
    """None for a message done long enough ago that nobody remembers."""
    deduplicated: bool = False
    """A message with the same `dedup_key` waited already; it is the one named here."""


class Worker(msgspec.Struct, frozen=True):
    """A daemon that works on messages, as PostgreSQL knows it."""

    id: str
    name: str
    roles: list[str]
    version: str
    started_at: datetime
    seen_at: datetime
    seconds_since_seen: float
    jobs_done: int
    jobs_per_minute: float
    state: WorkerState


async def submit(database: Database, submission: Submission) -> tuple[Submitted, bool]:
    """Publish a message, unless its idempotency key was used for it already.

    Says what was or had been taken in, and whether it had been. Raises `ProblemError` for a key
    that was used for something else.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            async with database.transaction() as connection:
                return await _submit(connection, submission)
        except psycopg.errors.UniqueViolation:
            # Somebody put the message back between our look and our write: look again.
            if attempt == _ATTEMPTS:
                raise
    raise AssertionError("the last attempt returns or raises")


async def _submit(connection: Connection, submission: Submission) -> tuple[Submitted, bool]:
    key = submission.idempotency_key
    wanted = None if key is None else idempotent_id(submission, key)
    if wanted is not None:
        earlier = await _find_submission(connection, submission, wanted)
        if earlier is not None:
            return earlier, True
    message_id = await publish(
        connection,
        submission.message,
        available_at=submission.options.available_at,
        dedup_key=submission.options.dedup_key,
        correlation_id=submission.correlation_id,
        message_id=wanted.message_id if wanted else None,
    )
    if message_id is None:
        return await _find_duplicate(connection, submission), False
    await record_push(
        connection, submission.actor, submission.message.channel, {"message_id": message_id}
    )
    return Submitted(message_id, submission.correlation_id or message_id), False


async def _find_submission(
    connection: Connection, submission: Submission, wanted: IdempotentId
) -> Submitted | None:
    await connection.execute(_queries["lock_idempotency_key"], {"key": wanted.lock})
    cursor = await connection.execute(
        _queries["find_submission"],
        {"channel": submission.message.channel, "low": wanted.low, "high": wanted.high},
    )
    row = await cursor.fetchone()
    if row is None:
        return None
    message_id, correlation_id = row
    if message_id != wanted.message_id:
        raise ProblemError(
            422,
            "idempotency-key-reused",
            "The Idempotency-Key was used before",
            "it was sent with another message, time or dedup_key; use a new key for a new message",
        )
    return Submitted(message_id, correlation_id)


async def _find_duplicate(connection: Connection, submission: Submission) -> Submitted:
    cursor = await connection.execute(
        _queries["find_duplicate"],
        {
            "channel": submission.message.channel,
            "dedup_key": submission.options.dedup_key,
        },
    )
    row = await cursor.fetchone()
    if row is None:
        raise ProblemError(
            503,
            "busy",
            "Service Unavailable",
            "the message with this dedup_key was done just now; send yours again",
            headers={"retry-after": "1"},
        )
    return Submitted(*row, deduplicated=True)


async def submit_many(
    connection: Connection, actor: str, channel: str, outgoing: Sequence[Outgoing]
) -> int:
    """Publish a batch in the caller's transaction; how many were not left out as duplicates.

    Their ids are recorded in one row: a batch is as large as such a row should be.
    """
    ids = [written for written in await publish_many(connection, outgoing) if written is not None]
    if ids:
        await record_push(connection, actor, channel, {"message_ids": ids})
    return len(ids)


async def record_push(
    connection: Connection, actor: str, channel: str, details: Mapping[str, str | list[str]]
) -> None:
    """Note in `audit_logs` who pushed, and the ids, by which `couponflow audit` misses the lost.

    Never what: messages hold people's addresses.
    """
    await audit_log.record(
        connection, actor=actor, action=PUSH_ACTION, subject=channel, details=details
    )


async def list_workers(connection: Connection, missing_seconds: float) -> list[Worker]:
    """Every worker that has not left in order."""
    cursor = await connection.execute(
        _queries["list_workers"], {"missing_seconds": missing_seconds}
    )
    return [Worker(*row) for row in await cursor.fetchall()]
