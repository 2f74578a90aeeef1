import math
import uuid

import msgspec
import psycopg
import pytest
import structlog
from psycopg import AsyncConnection

from couponflow.kernel.clock import END_OF_TIME
from couponflow.kernel.database import Database
from couponflow.kernel.outbox import (
    MESSAGE_BYTES_MAX,
    NOTIFY_CHANNEL,
    Outgoing,
    publish,
    publish_many,
)
from couponflow.messages import EmailRequested, Message, SmsRequested
from tests.kernel.outboxes import (
    CHANNEL,
    WORKER,
    claim,
    email,
    finish,
    message_id,
    register,
    select,
    sms,
    token_of,
)
from tests.samples import make_click

LATER = 4_000_000_000.0


async def waiting(database: Database) -> list[object]:
    return [row[0] for row in await select(database, "select id::text from outbox order by id")]


async def test_a_message_is_published_with_its_transaction(database: Database) -> None:
    async with database.transaction() as connection:
        published = await publish(connection, email())
        assert await waiting(database) == []
    assert published is not None
    assert uuid.UUID(published).version == 7
    assert await select(
        database,
        "select id::text, channel, message, correlation_id, dedup_key, attempts,"
        " published_at = available_at from outbox",
    ) == [
        (
            published,
            CHANNEL,
            {
                "type": "email.v1",
                "to": "s1@shop.example",
                "subject": "Hello",
                "text": "text 1",
                "html": "",
            },
            published,
            None,
            0,
            True,
        )
    ]


async def publish_and_fail(database: Database) -> None:
    async with database.transaction() as connection:
        await publish(connection, email())
        raise ZeroDivisionError


async def test_nothing_is_said_if_the_transaction_rolls_back(database: Database) -> None:
    with pytest.raises(ZeroDivisionError):
        await publish_and_fail(database)
    assert await waiting(database) == []


async def test_several_messages_are_published_in_their_order(database: Database) -> None:
    async with database.transaction() as connection:
        assert await publish_many(connection, []) == []
        written = await publish_many(
            connection, [Outgoing(message=email(1)), Outgoing(message=sms())]
        )
    assert await select(database, "select id::text, channel from outbox order by channel") == [
        (written[0], "emails"),
        (written[1], "sms"),
    ]


async def test_whole_and_broken_seconds_go_together(database: Database) -> None:
    times = (LATER, 4_000_000_001, None)
    outgoing = [Outgoing(message=email(), available_at=each) for each in times]
    async with database.transaction() as connection:
        assert None not in await publish_many(connection, outgoing)
    assert len(await waiting(database)) == 3


async def test_a_key_that_waits_already_is_not_published_again(database: Database) -> None:
    async with database.transaction() as connection:
        first = await publish(connection, email(1), dedup_key="welcome:1")
        assert first is not None
        assert await publish(connection, email(2), dedup_key="welcome:1") is None
        other = await publish(connection, email(3), dedup_key="welcome:3")
        # A key is of its channel.
        elsewhere = await publish(connection, sms(), dedup_key="welcome:1")
    assert await waiting(database) == sorted([first, str(other), str(elsewhere)])


async def test_of_two_with_a_key_in_one_call_the_first_is_published(database: Database) -> None:
    outgoing = [Outgoing(message=email(n), dedup_key="k", message_id=message_id(n)) for n in (1, 2)]
    async with database.transaction() as connection:
        assert await publish_many(connection, outgoing) == [message_id(1), None]
    assert await waiting(database) == [message_id(1)]


async def test_a_key_is_free_again_when_its_message_is_done(database: Database) -> None:
    await register(database, WORKER)
    async with database.transaction() as connection:
        await publish(connection, email(1), dedup_key="k")
    [row] = await claim(database)
    async with database.transaction() as connection:
        # At work is not done.
        assert await publish(connection, email(2), dedup_key="k") is None
    await finish(database, token_of(row))
    async with database.transaction() as connection:
        assert await publish(connection, email(2), dedup_key="k") is not None


async def test_a_message_for_later_waits(database: Database) -> None:
    async with database.transaction() as connection:
        await publish(connection, email(), available_at=LATER)
    assert await select(database, "select extract(epoch from available_at)::int8 from outbox") == [
        (4_000_000_000,)
    ]


@pytest.mark.parametrize("never", [math.inf, -math.inf, math.nan, -1.0, END_OF_TIME])
async def test_a_time_that_never_comes_is_refused(database: Database, never: float) -> None:
    with pytest.raises(ValueError, match=r"available_at is .*; it must be in seconds"):
        async with database.transaction() as connection:
            await publish(connection, email(), available_at=never)
    assert await waiting(database) == []


@pytest.mark.parametrize("never", ["infinity", "-infinity", "9999-01-01Z", "1969-12-31Z"])
async def test_the_table_refuses_a_time_that_never_comes(database: Database, never: str) -> None:
    async with database.transaction() as connection:
        await publish(connection, email(), available_at=END_OF_TIME - 1)
        await publish(connection, email(), available_at=0)
    with pytest.raises(psycopg.errors.CheckViolation, match="available_some_day"):
        async with database.connection() as connection:
            await connection.execute("update outbox set available_at = %s::timestamptz", [never])


async def test_the_story_is_the_one_on_the_log_lines(database: Database) -> None:
    async with database.transaction() as connection:
        with structlog.contextvars.bound_contextvars(correlation_id="story-7"):
            around = await publish(connection, email(1))
            said = await publish(connection, email(2), correlation_id="story-8")
        begun = await publish(connection, email(3))
    assert await select(
        database, "select id::text, correlation_id from outbox order by correlation_id desc"
    ) == [(said, "story-8"), (around, "story-7"), (begun, begun)]


async def test_an_id_of_ones_own_is_kept_in_canonical_text(database: Database) -> None:
    own = message_id(0xABC)
    async with database.transaction() as connection:
        assert await publish(connection, email(), message_id=own.upper()) == own
    assert await waiting(database) == [own]


async def publish_two(database: Database) -> None:
    async with database.transaction() as connection:
        await publish(connection, email(2))
        await publish(connection, email(3), message_id=message_id(1))


async def test_an_id_that_is_in_the_outbox_is_refused(database: Database) -> None:
    async with database.transaction() as connection:
        await publish(connection, email(1), message_id=message_id(1))
    with pytest.raises(psycopg.errors.UniqueViolation):
        await publish_two(database)
    with pytest.raises(ValueError, match="badly formed"):
        async with database.transaction() as connection:
            await publish(connection, email(2), message_id="seven")
    assert await waiting(database) == [message_id(1)]


async def test_what_json_can_say_is_kept(database: Database) -> None:
    said = EmailRequested(to="a@b.example", subject="A \U0001f600", text="\t\\u0000\x7f\n")
    async with database.transaction() as connection:
        await publish(connection, said)
    await register(database, WORKER)
    [row] = await claim(database)
    assert msgspec.json.decode(row.message, type=EmailRequested) == said


LARGE = msgspec.structs.replace(make_click(1), user_agent="x" * (MESSAGE_BYTES_MAX + 1))


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (EmailRequested(to="nobody", subject="s", text="t"), r"EmailRequested .* `\$\.to`"),
        (EmailRequested(to="a@b\n", subject="s", text="t"), r"EmailRequested .* `\$\.to`"),
        (EmailRequested(to="a@b", subject="s\nBcc: c@d", text="t"), r"`\$\.subject`"),
        (EmailRequested(to="a@b", subject="s", text="\0"), r"`\$\.text`"),
        (EmailRequested(to="a@b", subject="s", text="x" * 60_001), r"`\$\.text`"),
        (EmailRequested(to="a@b", subject="s", text="\ud800"), "EmailRequested .* surrogates"),
        (SmsRequested(to="12", text="t"), r"SmsRequested .* `\$\.to`"),
        (LARGE, r"Click has 1,000,\d{3} bytes in JSON; at most 1,000,000 fit"),
    ],
    ids=["address", "line break", "header", "nul", "long text", "surrogate", "number", "bytes"],
)
async def test_what_nobody_could_read_is_refused_and_nothing_is_written(
    database: Database, message: Message, problem: str
) -> None:
    async with database.transaction() as connection:
        with pytest.raises(ValueError, match=problem):
            await publish_many(connection, [Outgoing(message=email()), Outgoing(message=message)])
        with pytest.raises(ValueError, match=problem):
            await publish(connection, message)
    assert await waiting(database) == []


async def test_a_message_may_be_as_large_as_it_is_said(database: Database) -> None:
    room = MESSAGE_BYTES_MAX - len(msgspec.json.encode(msgspec.structs.replace(LARGE, referer="")))
    largest = msgspec.structs.replace(
        LARGE, user_agent="x" * (MESSAGE_BYTES_MAX + 1 + room), referer=""
    )
    assert len(msgspec.json.encode(largest)) == MESSAGE_BYTES_MAX
    async with database.transaction() as connection:
        written = await publish(connection, largest)
    assert await waiting(database) == [written]


async def notifications_of(database: Database, *transactions: list[Outgoing]) -> int:
    """How often the relay is told of transactions with these messages."""
    async with await AsyncConnection.connect(database.url, autocommit=True) as listener:
        await listener.execute(f"listen {NOTIFY_CHANNEL}".encode())
        for outgoing in transactions:
            async with database.transaction() as connection:
                for each in outgoing:
                    await publish_many(connection, [each])
        return len([each async for each in listener.notifies(timeout=0.2)])


async def test_the_relay_is_told_once_a_transaction(database: Database) -> None:
    three = [Outgoing(message=email(n)) for n in range(3)]
    assert await notifications_of(database, three, three) == 2


async def test_nobody_is_told_of_what_is_due_later_or_left_out(database: Database) -> None:
    first = [Outgoing(message=email(), dedup_key="k")]
    again = [Outgoing(message=email(), dedup_key="k")]
    later = [Outgoing(message=email(), available_at=LATER)]
    assert await notifications_of(database, first, again, later) == 1
