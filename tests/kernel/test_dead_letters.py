import msgspec

from couponflow.kernel.database import Database
from couponflow.kernel.dead_letters import DeadLetter, bury, count_by_channel
from couponflow.kernel.identifiers import Uuid7Generator
from tests.samples import rows_of

IDS = Uuid7Generator()
ALL = "select channel, message_id, message, reason, attempts from dead_letters order by 1, 2"


def letter(message_id: str, channel: str = "clicks", **changes: str | bytes | int) -> DeadLetter:
    made = DeadLetter(
        id=IDS.make(1_790_000_000.0),
        channel=channel,
        message_id=message_id,
        message=b'{"a":1}',
        reason="because",
        attempts=3,
    )
    return msgspec.structs.replace(made, **changes)


async def bury_all(database: Database, *letters: DeadLetter) -> None:
    async with database.transaction() as connection:
        await bury(connection, letters)


async def test_letters_are_kept_with_their_reason(database: Database) -> None:
    await bury_all(database, letter("a"), letter("b", channel="emails", attempts=1))
    assert await rows_of(database.url, ALL) == [
        ("clicks", "a", {"a": 1}, "because", 3),
        ("emails", "b", {"a": 1}, "because", 1),
    ]


async def test_a_message_that_comes_again_is_left_as_it_is(database: Database) -> None:
    await bury_all(database, letter("a"))
    await bury_all(database, letter("a", reason="another"), letter("a", channel="emails"))
    rows = await rows_of(database.url, ALL)
    assert [(row[0], row[3]) for row in rows] == [("clicks", "because"), ("emails", "because")]


async def test_a_letter_may_hold_what_postgresql_does_not(database: Database) -> None:
    message = msgspec.json.encode({"user_agent": "a\0b"})
    await bury_all(database, letter("id\0", message=message, reason="bad \0"))
    assert await rows_of(database.url, ALL) == [
        ("clicks", "id\ufffd", {"user_agent": "a\ufffdb"}, "bad \ufffd", 3)
    ]


async def test_letters_are_counted_by_channel(database: Database) -> None:
    async with database.connection() as connection:
        assert await count_by_channel(connection) == {}
    await bury_all(database, letter("a"), letter("b"), letter("c", channel="emails"))
    async with database.connection() as connection:
        assert await count_by_channel(connection) == {"clicks": 2, "emails": 1}


async def test_no_letters_are_no_work(database: Database) -> None:
    await bury_all(database)
    assert await rows_of(database.url, ALL) == []
