"""The outbox as relays and consumers see it: every change of hands of a row, in batches.

`handovers` is the fencing token: each call names the one it was given, and changes nothing where
the row has changed hands since.
"""

from collections.abc import Collection, Sequence
from typing import Literal

import msgspec

from couponflow.kernel.crash_points import crash_point
from couponflow.kernel.database import load_queries
from couponflow.kernel.database_connection import Connection
from couponflow.kernel.dead_letters import AttemptError, DeadLetter, bury, errors_json

PUT_OFF_SECONDS = 30.0
PUT_OFF_TIMES_MAX = 20
"""Ten minutes for a rolling upgrade: until then a message that only the new version can read is
handed to whoever comes, again and again."""

_queries = load_queries("outbox")


class OutboxRow(msgspec.Struct, frozen=True, gc=False):
    """A claimed row, as PostgreSQL gives it; in this order."""

    message_id: str
    message: str
    correlation_id: str
    published_at: float
    attempt: int
    handover: int
    lapsed: bool


class Token(msgspec.Struct, frozen=True, gc=False):
    """A message, and the hand-over that entitles to it."""

    message_id: str
    handover: int


class Begun(msgspec.Struct, frozen=True, gc=False):
    """An attempt that PostgreSQL counts now."""

    attempt: int
    handover: int
    lapsed: bool


class PutBack(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How a message goes back to wait."""

    token: Token
    after_seconds: float | None = None
    """None keeps its place in the order."""
    available_at: float | None = None
    """Wins over `after_seconds`; seconds since the epoch."""
    error: AttemptError | None = None
    forgiven: bool = False
    """The attempt does not count."""
    survived: bool = True
    """The worker is alive after the attempt, so the message is none that kills."""


class OutboxCounts(msgspec.Struct, frozen=True):
    """A channel's rows at one instant."""

    due: int
    later: int
    leased: int
    streamed: int
    oldest_due_seconds: float


async def claim(
    connection: Connection, channel: str, owner: str, limit: int, *, begun: bool
) -> list[OutboxRow]:
    """Take up to `limit` due messages, oldest first, for `owner`, who must hold a living lease.

    `begun` counts the attempt with it.
    """
    return await _claim(
        connection,
        "claim",
        {"channel": channel, "owner": owner, "limit": limit, "begun": begun},
    )


async def claim_lapsed(
    connection: Connection, channel: str, owner: str, *, begun: bool
) -> list[OutboxRow]:
    """Take one message over which a worker died, if `owner` has none at work on any channel.

    Two calls for one owner must not be under way at once: neither would see what the other takes.
    """
    return await _claim(
        connection, "claim_lapsed", {"channel": channel, "owner": owner, "begun": begun}
    )


async def _claim(
    connection: Connection, query: str, parameters: dict[str, str | int | bool]
) -> list[OutboxRow]:
    cursor = await connection.execute(_queries[query], parameters)
    # An UPDATE returns rows in no order.
    rows = sorted(await cursor.fetchall(), key=lambda row: (row[7], row[0]))
    if rows:
        crash_point("outbox.claimed")
    return [OutboxRow(*row[:7]) for row in rows]


async def seconds_to_next(connection: Connection, channel: str) -> float | None:
    """How long until a message of the channel is due, 0 if one is; None when none waits."""
    cursor = await connection.execute(_queries["seconds_to_next"], {"channel": channel})
    row = await cursor.fetchone()
    return row[0] if row else None


async def record_streamed(
    connection: Connection, tokens: Sequence[Token], entries: Sequence[str]
) -> None:
    """Note which stream entries carry the messages from now on."""
    await connection.execute(
        _queries["record_streamed"], {**_arrays(tokens), "entries": list(entries)}
    )


async def begin(
    connection: Connection, owner: str, tokens: Sequence[Token], again: Sequence[bool]
) -> dict[str, Begun]:
    """Record attempts by message id; what is missing from the answer is not `owner`'s to begin.

    `again` says of each that `owner` may have begun it before, and nobody works on it: the answer
    to the same call was lost, or its consumer crashed. It is begun then, and counts once.
    """
    if not owner:
        return {}
    cursor = await connection.execute(
        _queries["begin"], {"owner": owner, "again": list(again), **_arrays(tokens)}
    )
    return {row[0]: Begun(row[1], row[2], row[3]) for row in await cursor.fetchall()}


async def is_worker_alive(connection: Connection, owner: str) -> bool:
    """Tell whether `owner` may still begin messages."""
    if not owner:
        return False
    cursor = await connection.execute(_queries["is_worker_alive"], {"owner": owner})
    row = await cursor.fetchone()
    return bool(row and row[0])


async def hold(connection: Connection, tokens: Sequence[Token]) -> set[str]:
    """Lock begun messages until the caller's commit; the ids of those that are still its own."""
    cursor = await connection.execute(_queries["hold"], _arrays(tokens))
    return {row[0] for row in await cursor.fetchall()}


async def finish(
    connection: Connection, tokens: Sequence[Token], outcome: Literal["done", "discarded"]
) -> set[str]:
    """Let messages go for good; the ids of those that were still the caller's."""
    cursor = await connection.execute(_queries["finish"], {**_arrays(tokens), "outcome": outcome})
    return {row[0] for row in await cursor.fetchall()}


async def process(connection: Connection, message_id: str, channel: str) -> bool:
    """Remember that a message without a row is done; False if it was before."""
    cursor = await connection.execute(
        _queries["process"], {"id": message_id, "channel": channel, "outcome": "done"}
    )
    return await cursor.fetchone() is not None


async def put_back(connection: Connection, messages: Sequence[PutBack]) -> set[str]:
    """Give messages back to wait; the ids of those that were still the caller's."""
    cursor = await connection.execute(
        _queries["put_back"],
        {
            **_arrays([each.token for each in messages]),
            "available_at": [float_or_none(each.available_at) for each in messages],
            "after_seconds": [float_or_none(each.after_seconds) for each in messages],
            "errors": [_error_json(each.error) for each in messages],
            "forgiven": [int(each.forgiven) for each in messages],
            "survived": [each.survived for each in messages],
        },
    )
    return {row[0] for row in await cursor.fetchall()}


async def put_off(
    connection: Connection, owner: str, messages: Sequence[tuple[Token, AttemptError]]
) -> set[str]:
    """Give back what this version cannot read; the ids of what was not put off too often."""
    cursor = await connection.execute(
        _queries["put_off"],
        {
            **_arrays([token for token, _ in messages]),
            "errors": [_error_json(error) for _, error in messages],
            "owner": owner or None,
            "after_seconds": PUT_OFF_SECONDS,
            "times_max": PUT_OFF_TIMES_MAX,
        },
    )
    return {row[0] for row in await cursor.fetchall()}


async def is_known(connection: Connection, message_id: str) -> bool:
    """Tell whether a message is on its way, done or dead."""
    cursor = await connection.execute(_queries["is_known"], {"id": message_id})
    row = await cursor.fetchone()
    return bool(row and row[0])


async def adopt(
    connection: Connection,
    letter: DeadLetter,
    *,
    after_seconds: float,
    available_at: float | None,
    lapsed: bool,
) -> None:
    """Take in a message that came without a row, described like a dead one, to try it later."""
    await connection.execute(
        _queries["adopt"],
        {
            "id": letter.message_id,
            "channel": letter.channel,
            "message": letter.message.decode(),
            "correlation_id": letter.correlation_id,
            "attempts": letter.attempts,
            "errors": errors_json(letter.errors),
            "published_at": letter.published_at,
            "available_at": available_at,
            "after_seconds": after_seconds,
            "lapsed": lapsed,
        },
    )


async def bury_row(connection: Connection, token: Token, letter: DeadLetter) -> bool:
    """Turn a row into a dead letter, in the caller's transaction; False if it is another's now.

    The letter's errors are added to those of the row.
    """
    cursor = await connection.execute(
        _queries["take_out"], {"id": token.message_id, "handovers": token.handover}
    )
    row = await cursor.fetchone()
    if row is None:
        return False
    earlier = msgspec.convert(row[0], list[AttemptError])
    await bury(connection, [msgspec.structs.replace(letter, errors=[*earlier, *letter.errors])])
    return True


async def release_unknown(
    connection: Connection, channel: str, owner: str, in_hand: Collection[str]
) -> int:
    """Give back what `owner` has claimed of a channel without ever hearing of it; how many.

    The answer to a claim may be lost after it was carried out. `in_hand` is looked at when
    PostgreSQL has answered: what is begun meanwhile was put there before.
    """
    cursor = await connection.execute(_queries["owned"], {"channel": channel, "owner": owner})
    unknown = [
        PutBack(token=Token(message_id, handovers), forgiven=begun, survived=False)
        for message_id, handovers, begun in await cursor.fetchall()
        if message_id not in in_hand
    ]
    return len(await put_back(connection, unknown)) if unknown else 0


async def release_all(connection: Connection, owner: str) -> None:
    """Give back all that a worker which ends in order has left."""
    await connection.execute(_queries["release_all"], {"owner": owner})


async def free_lapsed(connection: Connection) -> int:
    """Free the messages of dead workers, in the caller's transaction; how many there were."""
    cursor = await connection.execute(_queries["free_lapsed"])
    if cursor.rowcount:
        crash_point("outbox.lapsed")
    return cursor.rowcount


async def streamed_page(
    connection: Connection, channel: str, after: str, limit: int
) -> list[tuple[Token, str]]:
    """The next messages by id that a stream is believed to carry, each with its entry."""
    cursor = await connection.execute(
        _queries["streamed_page"], {"channel": channel, "after": after, "limit": limit}
    )
    return [(Token(row[0], row[2]), row[1]) for row in await cursor.fetchall()]


async def reset_lost(connection: Connection, tokens: Sequence[Token]) -> int:
    """Make messages due again whose entries are gone; how many there were."""
    cursor = await connection.execute(_queries["reset_lost"], _arrays(tokens))
    if cursor.rowcount:
        crash_point("outbox.reset")
    return cursor.rowcount


async def count_due(connection: Connection, channel: str, limit: int) -> int:
    """How many messages of a channel are due, at most `limit`."""
    cursor = await connection.execute(_queries["count_due"], {"channel": channel, "limit": limit})
    row = await cursor.fetchone()
    return row[0] if row else 0


async def count_by_channel(connection: Connection) -> dict[str, OutboxCounts]:
    """What is in the outbox, by channel."""
    cursor = await connection.execute(_queries["count_by_channel"])
    return {row[0]: OutboxCounts(*row[1:]) for row in await cursor.fetchall()}


async def prune_processed(connection: Connection, days: int, limit: int) -> int:
    """Forget up to `limit` messages done more than `days` ago; how many there were."""
    cursor = await connection.execute(_queries["prune_processed"], {"days": days, "limit": limit})
    return cursor.rowcount


def _arrays(tokens: Sequence[Token]) -> dict[str, list[str] | list[int]]:
    return {
        "ids": [token.message_id for token in tokens],
        "handovers": [token.handover for token in tokens],
    }


def _error_json(error: AttemptError | None) -> str | None:
    return None if error is None else errors_json([error])


def float_or_none(seconds: float | None) -> float | None:
    """Make a float of what may be an int: psycopg sends no list that has both."""
    return None if seconds is None else float(seconds)
