"""Messages, workers and envelopes that the tests of the outbox start from."""

from collections.abc import Sequence

import anyio

from couponflow.kernel import outbox_rows
from couponflow.kernel.database import Database
from couponflow.kernel.envelope import Envelope
from couponflow.kernel.outbox import Outgoing, publish_many
from couponflow.kernel.outbox_rows import Begun, OutboxRow, PutBack, Token
from couponflow.messages import EmailRequested, Message, SmsRequested
from tests.samples import CLICKED_AT, PATIENCE_SECONDS, POLL_SECONDS

CHANNEL = "emails"
WORKER = "01920000-0000-7000-b000-000000000001"
OTHER_WORKER = "01920000-0000-7000-b000-000000000002"


def message_id(number: int) -> str:
    return f"01920000-0000-7000-a000-{number:012x}"


def email(number: int = 1) -> EmailRequested:
    return EmailRequested(to=f"s{number}@shop.example", subject="Hello", text=f"text {number}")


def sms(number: int = 1) -> SmsRequested:
    return SmsRequested(to="+919876543210", text=f"text {number}")


def envelope(
    message: Message | None = None,
    *,
    number: int = 1,
    attempt: int = 1,
    handover: int = 0,
    begun: bool = False,
) -> Envelope:
    return Envelope(
        message_id=message_id(number),
        message=email(number) if message is None else message,
        correlation_id=f"story-{number}",
        published_at=CLICKED_AT,
        attempt=attempt,
        handover=handover,
        begun=begun,
    )


async def publish_emails(
    database: Database, count: int, *, available_at: float | None = None
) -> list[str]:
    """Publish emails 1 to `count` under known ids."""
    outgoing = [
        Outgoing(message=email(n), message_id=message_id(n), available_at=available_at)
        for n in range(1, count + 1)
    ]
    async with database.transaction() as connection:
        written = await publish_many(connection, outgoing)
    return [each for each in written if each is not None]


async def register(database: Database, worker_id: str, *, lease_seconds: float = 30.0) -> None:
    async with database.connection() as connection:
        await connection.execute(
            "insert into workers (id, name, roles, version, lease_until)"
            " values (%s, %s, '{email}', '1', now() + %s * interval '1 second')",
            [worker_id, f"host:{worker_id[-1]}", lease_seconds],
        )


async def expire(database: Database, worker_id: str) -> None:
    """Let a worker be taken for dead."""
    async with database.connection() as connection:
        await connection.execute("update workers set expired_at = now() where id = %s", [worker_id])


async def claim(
    database: Database,
    limit: int = 100,
    *,
    owner: str = WORKER,
    begun: bool = True,
    channel: str = CHANNEL,
) -> list[OutboxRow]:
    async with database.connection() as connection:
        return await outbox_rows.claim(connection, channel, owner, limit, begun=begun)


async def claim_lapsed(
    database: Database, *, owner: str = WORKER, begun: bool = True
) -> list[OutboxRow]:
    async with database.connection() as connection:
        return await outbox_rows.claim_lapsed(connection, CHANNEL, owner, begun=begun)


async def begin(
    database: Database, tokens: Sequence[Token], *, owner: str = WORKER, again: bool = False
) -> dict[str, Begun]:
    async with database.connection() as connection:
        return await outbox_rows.begin(connection, owner, tokens, [again] * len(tokens))


async def stream(database: Database, tokens: Sequence[Token]) -> None:
    """Note that a stream carries the messages, each under its id's last digits."""
    entries = [f"{token.message_id[-4:]}-0" for token in tokens]
    async with database.connection() as connection:
        await outbox_rows.record_streamed(connection, tokens, entries)


async def finish(database: Database, *tokens: Token) -> set[str]:
    async with database.connection() as connection:
        return await outbox_rows.finish(connection, tokens, "done")


async def put_back(database: Database, *messages: PutBack) -> set[str]:
    async with database.connection() as connection:
        return await outbox_rows.put_back(connection, messages)


async def free_lapsed(database: Database) -> int:
    async with database.transaction() as connection:
        return await outbox_rows.free_lapsed(connection)


async def select(database: Database, query: str) -> list[tuple[object, ...]]:
    async with database.connection() as connection:
        return await (await connection.execute(query.encode())).fetchall()


async def places(database: Database) -> list[tuple[object, ...]]:
    """All that the outbox holds, but for times and messages."""
    return await select(
        database,
        "select id::text, owner::text, begun, stream_entry, attempts, handovers, lapsed, errors"
        " from outbox order by id",
    )


def token_of(row: OutboxRow) -> Token:
    return Token(row.message_id, row.handover)


def ids_of(rows: Sequence[OutboxRow]) -> list[str]:
    return [row.message_id for row in rows]


async def until_rows(database: Database, query: str, *rows: tuple[object, ...]) -> None:
    """Return once a query answers so, which must be soon."""
    with anyio.fail_after(PATIENCE_SECONDS):
        while await select(database, query) != [*rows]:  # noqa: ASYNC110 - it sets no event
            await anyio.sleep(POLL_SECONDS)
