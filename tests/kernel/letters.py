"""Dead letters that many tests start from."""

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from couponflow.kernel.database import Database
from couponflow.kernel.dead_letters import AttemptError, DeadLetter, bury
from couponflow.kernel.identifiers import Uuid7Generator
from couponflow.messages import EmailRequested

IDS = Uuid7Generator()
DIED_AT = 1_790_000_000.0


def email(number: int = 1) -> bytes:
    """A well-formed message of the channel `emails`."""
    return msgspec.json.encode(
        EmailRequested(to=f"s{number}@shop.example", subject="Hello", text=f"text {number}")
    )


def message_id(number: int) -> str:
    return f"01920000-0000-7000-a000-{number:012x}"


def letter(
    message_id: str,
    channel: str = "clicks",
    **changes: str | bytes | float | list[AttemptError] | None,
) -> DeadLetter:
    made = DeadLetter(
        id=IDS.make(DIED_AT),
        channel=channel,
        message_id=message_id,
        message=b'{"a":1}',
        reason="because",
        attempts=3,
    )
    return msgspec.structs.replace(made, **changes)


def dead_email(number: int = 1, **changes: str | float | list[AttemptError]) -> DeadLetter:
    """A letter that can be replayed."""
    return letter(message_id(number), "emails", message=email(number), **changes)


def failed(attempt: int, error: str = "refused") -> AttemptError:
    return AttemptError(attempt, DIED_AT + attempt, "worker-1", error)


async def bury_all(database: Database, *letters: DeadLetter) -> None:
    async with database.transaction() as connection:
        await bury(connection, letters)


async def set_dead_at(database: Database, letters: Sequence[DeadLetter], dead_at: float) -> None:
    """Let letters have died at another moment than their burial."""
    async with database.connection() as connection:
        await connection.execute(
            "update dead_letters set dead_at = %s where id = any(%s::uuid[])",
            [datetime.fromtimestamp(dead_at, UTC), [each.id for each in letters]],
        )
