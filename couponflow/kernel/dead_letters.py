"""Messages that could not be processed, kept for an operator with the reason."""

from collections.abc import Sequence

import msgspec
import psycopg

from couponflow.kernel.database import load_queries

_queries = load_queries("dead_letters")


class DeadLetter(msgspec.Struct, frozen=True):
    """One message that will not be tried again by itself."""

    id: str
    channel: str
    message_id: str
    message: bytes
    """The message as JSON."""
    reason: str
    attempts: int


async def bury(connection: psycopg.AsyncConnection, letters: Sequence[DeadLetter]) -> None:
    """Write letters down in the caller's transaction; a message already there is left as it is."""
    async with connection.cursor() as cursor:
        await cursor.executemany(
            _queries["bury"],
            [
                {
                    "id": letter.id,
                    "channel": letter.channel,
                    # PostgreSQL holds no NUL, and a NUL is a likely reason for being here.
                    "message_id": letter.message_id.replace("\0", "\ufffd"),
                    "message": letter.message.decode().replace("\\u0000", "\\ufffd"),
                    "reason": letter.reason.replace("\0", "\ufffd"),
                    "attempts": letter.attempts,
                }
                for letter in letters
            ],
        )


async def count_by_channel(connection: psycopg.AsyncConnection) -> dict[str, int]:
    """How many letters wait for an operator, by channel."""
    cursor = await connection.execute(_queries["count_by_channel"])
    return {channel: count async for channel, count in cursor}
