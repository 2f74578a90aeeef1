import uuid
from datetime import UTC, datetime

import anyio
import msgspec
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from couponflow.config import DatabaseSettings
from couponflow.kernel.cursors import CursorInvalid
from couponflow.kernel.database import Connection, Database, open_database
from couponflow.kernel.dead_letters import (
    AttemptError,
    FailedAttempt,
    LetterCounts,
    LetterFilter,
    LetterGroup,
    LetterSummary,
    count_by_channel,
    count_letters,
    list_letters,
    show_letter,
    storable_json,
)
from tests.kernel.letters import DIED_AT, bury_all, dead_email, failed, letter, set_dead_at
from tests.samples import rows_of

ALL = "select channel, message_id, message, reason, attempts from dead_letters order by 1, 2"


def moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


async def found(database: Database, letter_filter: LetterFilter) -> list[str]:
    """The message ids of what a filter finds, and proof that counting agrees."""
    async with database.connection() as connection:
        page = await list_letters(connection, letter_filter, 100)
        counts = await count_letters(connection, letter_filter)
    assert page.next_cursor is None
    assert counts.total == sum(group.letters for group in counts.groups) == len(page.items)
    return sorted(item.message_id for item in page.items)


async def all_pages(connection: Connection, limit: int) -> list[list[LetterSummary]]:
    pages: list[list[LetterSummary]] = []
    cursor: str | None = None
    while True:
        page = await list_letters(connection, LetterFilter(), limit, cursor)
        pages.append(page.items)
        cursor = page.next_cursor
        if cursor is None:
            return pages


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
    await bury_all(
        database,
        letter(
            "id\0",
            message=message,
            reason="bad \0\ud800",
            correlation_id="\0",
            errors=[AttemptError(1, DIED_AT, "w\0", "e\0\udfff")],
        ),
    )
    assert await rows_of(database.url, ALL) == [
        ("clicks", "id\ufffd", {"user_agent": "a\ufffdb"}, "bad \ufffd?", 3)
    ]
    assert await rows_of(database.url, "select correlation_id, errors from dead_letters") == [
        ("\ufffd", [{"attempt": 1, "at": DIED_AT, "worker": "w\ufffd", "error": "e\ufffd?"}])
    ]


async def test_a_letter_without_reason_or_attempts_is_kept_too(database: Database) -> None:
    await bury_all(database, letter("a", reason="", attempts=0))
    assert await rows_of(database.url, ALL) == [("clicks", "a", {"a": 1}, "no reason was given", 1)]


@pytest.mark.parametrize(
    ("document", "stored"),
    [
        (b' {"b": 1.10, "a": [null]} ', ' {"b": 1.10, "a": [null]} '),
        (rb'"\u0000 \\u0000 \\\u0000 \\\\u0000"', r'"\ufffd \\u0000 \\\ufffd \\\\u0000"'),
        (b'"1e99999"', '"1e99999"'),
        (b"not json \0\xff", '"not json \\ufffd\ufffd"'),
        (b'"cut off', r'"\"cut off"'),
        (rb'"lone \ud800"', r'"\"lone \\ud800\""'),
        (b"1e99999", '"1e99999"'),
        (b"1e-99999", "0.0"),
        (b"", '""'),
    ],
)
def test_json_stays_as_it_is_and_all_else_becomes_text(document: bytes, stored: str) -> None:
    assert storable_json(document) == stored


async def test_whatever_arrives_can_be_stored(database_url: str) -> None:
    documents = st.one_of(
        st.binary(max_size=60),
        st.text(alphabet='"\\u0d8e19-+.[]{}: ,\n\t\x00', max_size=60).map(str.encode),
        st.integers(-(10**400), 10**400).map(lambda number: str(number).encode()),
        st.just(b"[" * 900 + b"]" * 900),
        st.just(b"[" * 100_000),
        st.just(b"0." + b"1" * 9_999 + b"e-9999"),
    )

    with psycopg.connect(database_url, autocommit=True) as connection:

        @given(document=documents)
        @settings(max_examples=300, deadline=None)
        def holds(document: bytes) -> None:
            connection.execute("select %s::jsonb", [storable_json(document)])

        await anyio.to_thread.run_sync(holds)


async def test_letters_are_counted_by_channel(database: Database) -> None:
    async with database.connection() as connection:
        assert await count_by_channel(connection) == {}
    await bury_all(database, letter("a"), letter("b"), letter("c", channel="emails"))
    async with database.connection() as connection:
        assert await count_by_channel(connection) == {"clicks": 2, "emails": 1}


async def test_no_letters_are_no_work(database: Database) -> None:
    await bury_all(database)
    assert await rows_of(database.url, ALL) == []


@pytest.mark.parametrize(
    ("letter_filter", "expected"),
    [
        (LetterFilter(), ["a", "b", "c\ufffd"]),
        (LetterFilter(channel="emails"), ["b"]),
        (LetterFilter(reason_contains="TIMED out"), ["a", "b"]),
        (LetterFilter(reason_contains="100%"), ["c\ufffd"]),
        (LetterFilter(reason_contains="_"), []),
        (LetterFilter(message_type="email.v1"), ["b"]),
        (LetterFilter(correlation_id="story"), ["c\ufffd"]),
        (LetterFilter(since=moment(200)), ["b", "c\ufffd"]),
        (LetterFilter(until=moment(200)), ["a"]),
        (LetterFilter(since=moment(200), until=moment(200.000001)), ["b"]),
        (LetterFilter(ids=("a", "c\0")), ["a", "c\ufffd"]),
        (LetterFilter(ids=("01920000-0000-7000-8000-00000000000B",)), ["b"]),
        (LetterFilter(ids=()), []),
        (LetterFilter(channel="clicks", ids=("a", "b")), ["a"]),
        (LetterFilter(channel="\0"), []),
    ],
)
async def test_a_filter_finds_what_agrees_with_all_of_it(
    database: Database, letter_filter: LetterFilter, expected: list[str]
) -> None:
    letters = [
        letter("a", reason="It timed out after 3 s"),
        letter(
            "b",
            "emails",
            id="01920000-0000-7000-8000-00000000000b",
            message=b'{"type":"email.v1"}',
            reason="timed out",
        ),
        letter("c\0", message=b"garbage", reason="100% wrong", correlation_id="story"),
    ]
    await bury_all(database, *letters)
    for number, each in enumerate(letters, 1):
        await set_dead_at(database, [each], 100.0 * number)
    assert await found(database, letter_filter) == expected


async def test_counts_name_the_largest_groups_and_the_whole_number(database: Database) -> None:
    await bury_all(
        database,
        *(letter(f"a{number}", reason=f"reason {number:02}") for number in range(25)),
        *(letter(f"b{number}", "emails", reason="same") for number in range(3)),
    )
    async with database.connection() as connection:
        counts = await count_letters(connection, LetterFilter())
        nothing = await count_letters(connection, LetterFilter(channel="sms"))
    assert (counts.total, len(counts.groups)) == (28, 20)
    assert counts.groups[:2] == [
        LetterGroup("emails", "same", 3),
        LetterGroup("clicks", "reason 00", 1),
    ]
    assert nothing == LetterCounts(0, [])


async def test_a_list_is_newest_first_and_says_what_each_is(database: Database) -> None:
    old, new = letter("a", message=b"garbage"), dead_email(published_at=DIED_AT - 9)
    await bury_all(database, new)
    await bury_all(database, old)
    await set_dead_at(database, [old], DIED_AT)
    await set_dead_at(database, [new], DIED_AT + 1)
    async with database.connection() as connection:
        page = await list_letters(connection, LetterFilter(), 10)
    assert [(item.id, item.message_type) for item in page.items] == [
        (new.id, "email.v1"),
        (old.id, ""),
    ]
    assert page.items[0] == LetterSummary(
        id=new.id,
        channel="emails",
        message_id=new.message_id,
        message_type="email.v1",
        reason="because",
        attempts=3,
        correlation_id="",
        published_at=moment(DIED_AT - 9),
        dead_at=moment(DIED_AT + 1),
    )


async def test_pages_together_are_all_letters_and_none_twice(database_url: str) -> None:
    def holds_for(microseconds: list[int], limit: int) -> None:
        async def check() -> None:
            async with open_database(database_url, DatabaseSettings(pool_min=1)) as database:
                await replace_letters(database, microseconds)
                async with database.connection() as connection:
                    pages = await all_pages(connection, limit)
            items = [item for page in pages for item in page]
            places = [(item.dead_at, uuid.UUID(item.id)) for item in items]
            assert len(set(places)) == len(microseconds)
            assert places == sorted(places, reverse=True)
            assert [len(page) for page in pages[:-1]] == [limit] * (len(pages) - 1)

        anyio.run(check)

    @given(
        # Many share a moment, and some differ in the last microsecond only.
        microseconds=st.lists(st.integers(0, 3), max_size=12),
        limit=st.integers(1, 5),
    )
    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def holds(microseconds: list[int], limit: int) -> None:
        holds_for(microseconds, limit)

    await anyio.to_thread.run_sync(holds)


async def replace_letters(database: Database, microseconds: list[int]) -> None:
    async with database.connection() as connection:
        await connection.execute("delete from dead_letters")
    letters = [letter(str(number)) for number in range(len(microseconds))]
    await bury_all(database, *letters)
    for each, microsecond in zip(letters, microseconds, strict=True):
        await set_dead_at(database, [each], DIED_AT + microsecond / 1e6)


async def test_letters_that_die_between_two_pages_shift_none(database: Database) -> None:
    old = [letter(str(number)) for number in range(5)]
    await bury_all(database, *old)
    async with database.connection() as connection:
        first = await list_letters(connection, LetterFilter(), 2)
        await bury_all(database, letter("new"))
        second = await list_letters(connection, LetterFilter(), 10, first.next_cursor)
    ids = [item.message_id for item in (*first.items, *second.items)]
    assert sorted(ids) == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("cursor", ["", "x", "\0", "\ud800", "bm8gY3Vyc29y", "é"])
async def test_a_cursor_of_somebodys_own_is_refused(database: Database, cursor: str) -> None:
    async with database.connection() as connection:
        with pytest.raises(CursorInvalid, match="begin without"):
            await list_letters(connection, LetterFilter(), 2, cursor)


async def test_a_letter_is_shown_with_every_attempt(database: Database) -> None:
    buried = dead_email(errors=[failed(1), failed(2, "timed out")], correlation_id="story")
    await bury_all(database, buried)
    async with database.connection() as connection:
        by_id = await show_letter(connection, buried.id.upper())
        by_message_id = await show_letter(connection, buried.message_id)
        unknown = await show_letter(connection, "nobody")
    assert by_id is not None
    assert by_message_id == by_id
    assert unknown is None
    assert (by_id.id, by_id.correlation_id) == (buried.id, "story")
    assert msgspec.json.decode(by_id.message) == msgspec.json.decode(buried.message)
    assert by_id.errors == [
        FailedAttempt(1, moment(DIED_AT + 1), "worker-1", "refused"),
        FailedAttempt(2, moment(DIED_AT + 2), "worker-1", "timed out"),
    ]


async def test_of_a_message_id_in_two_channels_the_latest_letter_is_shown(
    database: Database,
) -> None:
    older, newer = letter("a"), letter("a", "emails")
    await bury_all(database, newer)
    await bury_all(database, older)
    await set_dead_at(database, [older], DIED_AT)
    async with database.connection() as connection:
        shown = await show_letter(connection, "a")
    assert shown is not None
    assert shown.channel == "emails"
