"""Messages that could not be processed, kept for an operator with the reason: bury, find, show."""

import re
import uuid
from collections.abc import Sequence
from datetime import datetime

import msgspec

from couponflow.kernel.clock import END_OF_TIME
from couponflow.kernel.cursors import cursor_after, place_of
from couponflow.kernel.database import Connection, load_queries
from couponflow.kernel.moments import Moment

_queries = load_queries("dead_letters")
_NUL_ESCAPE = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")
# More than PostgreSQL's numeric holds begins beyond these; strings that look so do no harm.
_LONG_NUMBER = re.compile(r"[eE][+-]?\d{4}|\d{1000}")
_GROUPS_SHOWN = 20


class AttemptError(msgspec.Struct, frozen=True):
    """What one attempt failed with; attempt 0 is a replay, which is part of the story."""

    attempt: int
    at: float
    """Seconds since the epoch."""
    worker: str
    error: str


class DeadLetter(msgspec.Struct, frozen=True):
    """One message that will not be tried again by itself."""

    id: str
    channel: str
    message_id: str
    message: bytes
    """The message as JSON; or whatever came instead."""
    reason: str
    attempts: int
    correlation_id: str = ""
    published_at: float | None = None
    """Seconds since the epoch, where it is known."""
    errors: list[AttemptError] = []


class LetterFilter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which letters are meant: those that agree with all that is given; nothing given means all."""

    channel: str | None = None
    reason_contains: str | None = None
    """In whatever case."""
    message_type: str | None = None
    correlation_id: str | None = None
    since: Moment | None = None
    """Dead at this moment or later."""
    until: Moment | None = None
    """Dead before this moment."""
    ids: tuple[str, ...] | None = None
    """Ids of letters or of their messages."""

    @property
    def is_empty(self) -> bool:
        return self == LetterFilter()


class LetterSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A letter as a list shows it."""

    id: str
    channel: str
    message_id: str
    message_type: str
    """Empty for what is no message."""
    reason: str
    attempts: int
    correlation_id: str
    published_at: datetime | None
    dead_at: datetime


class FailedAttempt(msgspec.Struct, frozen=True):
    """An `AttemptError` with its moment as people and programs read it."""

    attempt: int
    at: datetime
    worker: str
    error: str


class Letter(LetterSummary, frozen=True, kw_only=True):
    """A letter in full."""

    message: msgspec.Raw
    """The message as JSON; a text for what was no JSON."""
    errors: list[FailedAttempt]


class LetterPage(msgspec.Struct, frozen=True):
    """Some letters, newest first, and where the next page begins; None at the end."""

    items: list[LetterSummary]
    next_cursor: str | None


class LetterGroup(msgspec.Struct, frozen=True):
    """How many letters of a channel died of the same reason."""

    channel: str
    reason: str
    letters: int


class LetterCounts(msgspec.Struct, frozen=True):
    """How many letters match, and the largest groups among them."""

    total: int
    groups: list[LetterGroup]


async def bury(connection: Connection, letters: Sequence[DeadLetter]) -> None:
    """Write letters down in the caller's transaction; a message already there is left as it is.

    Whatever a letter holds, it can be stored. A message that was replayed is not there any more,
    so it becomes a new letter when it dies again.
    """
    async with connection.cursor() as cursor:
        await cursor.executemany(
            _queries["bury"],
            [
                {
                    "id": letter.id,
                    "channel": letter.channel,
                    "message_id": storable_text(letter.message_id),
                    "message": storable_json(letter.message),
                    "reason": storable_text(letter.reason) or "no reason was given",
                    "attempts": max(1, letter.attempts),
                    "correlation_id": storable_text(letter.correlation_id),
                    "published_at": _storable_time(letter.published_at),
                    "errors": errors_json(letter.errors),
                }
                for letter in letters
            ],
        )


def _storable_time(seconds: float | None) -> float | None:
    """A time that can also be read back; any other is forgotten."""
    return seconds if seconds is not None and 0 <= seconds < END_OF_TIME else None


async def count_by_channel(connection: Connection) -> dict[str, int]:
    """How many letters wait for an operator, by channel."""
    cursor = await connection.execute(_queries["count_by_channel"])
    return {channel: count async for channel, count in cursor}


async def list_letters(
    connection: Connection, letter_filter: LetterFilter, limit: int, cursor: str | None = None
) -> LetterPage:
    """A page of letters, newest first; `cursor` is the `next_cursor` of the page before it.

    All pages together hold every letter that was there at the first, none twice. Raises
    `CursorInvalid`.
    """
    before_at, before_id = place_of(cursor, things="dead letters")
    found = await connection.execute(
        matching("list_letters"),
        {
            **filter_parameters(letter_filter),
            "before_at": before_at,
            "before_id": before_id,
            "limit": limit + 1,
        },
    )
    items = [_summary(row) for row in await found.fetchall()]
    last = items[limit - 1] if len(items) > limit else None
    return LetterPage(items[:limit], cursor_after(last.dead_at, last.id) if last else None)


async def count_letters(connection: Connection, letter_filter: LetterFilter) -> LetterCounts:
    """How many letters match, by channel and reason; at most 20 groups are named."""
    cursor = await connection.execute(
        matching("count_letters"),
        {**filter_parameters(letter_filter), "groups": _GROUPS_SHOWN},
    )
    rows = await cursor.fetchall()
    return LetterCounts(rows[0][3] if rows else 0, [LetterGroup(*row[:3]) for row in rows])


async def show_letter(connection: Connection, letter_id: str) -> Letter | None:
    """One letter in full, by its own id, or the latest by the id of its message."""
    parameters = filter_parameters(LetterFilter(ids=(letter_id,)))
    cursor = await connection.execute(matching("show_letter"), parameters)
    row = await cursor.fetchone()
    if row is None:
        return None
    return Letter(
        **msgspec.structs.asdict(_summary(row)),
        message=msgspec.Raw(row[9]),
        errors=msgspec.convert(row[10], list[FailedAttempt], strict=False),
    )


def matching(query: str) -> bytes:
    """A query with the condition that `filter_parameters` fills."""
    return _queries[query].replace(b"{matching}", _queries["matching"])


def filter_parameters(
    letter_filter: LetterFilter,
) -> dict[str, str | datetime | list[str] | list[uuid.UUID] | None]:
    """The parameters of the condition in `matching`."""
    ids = letter_filter.ids
    return {
        "channel": storable_text_or_none(letter_filter.channel),
        "reason_contains": storable_text_or_none(letter_filter.reason_contains),
        "message_type": storable_text_or_none(letter_filter.message_type),
        "correlation_id": storable_text_or_none(letter_filter.correlation_id),
        "since": letter_filter.since,
        "until": letter_filter.until,
        "ids": None if ids is None else [found for each in ids if (found := uuid_of(each))],
        "message_ids": None if ids is None else [storable_text(each) for each in ids],
    }


def uuid_of(text: str) -> uuid.UUID | None:
    """The id that a text is, if it is one: no row has any other."""
    try:
        return uuid.UUID(text)
    except ValueError:
        return None


def storable_text(text: str) -> str:
    """The text without what PostgreSQL cannot hold, which is a likely reason for a death."""
    if text.isascii() and "\0" not in text:
        return text
    return text.encode(errors="replace").decode().replace("\0", "\ufffd")


def storable_text_or_none(text: str | None) -> str | None:
    return None if text is None else storable_text(text)


def storable_json(document: bytes) -> str:
    """JSON for PostgreSQL: the document as it is, or as a JSON string if it is not JSON.

    NULs and invalid UTF-8 become U+FFFD; a number beyond PostgreSQL's numeric becomes a double.
    """
    try:
        decoded: object = msgspec.json.decode(document)
        text = document.decode()
        if _LONG_NUMBER.search(text):
            text = msgspec.json.encode(decoded).decode()
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        text = msgspec.json.encode(document.decode(errors="replace")).decode()
    return _NUL_ESCAPE.sub(r"\1\\ufffd", text)


def errors_json(errors: Sequence[AttemptError]) -> str:
    """Errors as `outbox.errors` and `dead_letters.errors` hold them."""
    clean = [
        AttemptError(each.attempt, each.at, storable_text(each.worker), storable_text(each.error))
        for each in errors
    ]
    return msgspec.json.encode(clean).decode()


def _summary(row: Sequence[object]) -> LetterSummary:
    names = LetterSummary.__struct_fields__
    return msgspec.convert(dict(zip(names, row, strict=False)), LetterSummary)
