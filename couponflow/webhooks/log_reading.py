"""What is in `webhook_logs`: listed, counted, and one event as it came."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TypeVar

import msgspec
from psycopg.rows import TupleRow

from couponflow.kernel.cursors import cursor_after, place_of
from couponflow.kernel.database import Connection, load_queries
from couponflow.kernel.dead_letters import storable_text, uuid_of
from couponflow.webhooks.event_filter import (
    EventFilter,
    EventStatus,
    compose,
    filter_parameters,
)

T = TypeVar("T", bound=msgspec.Struct)

_queries = load_queries("webhooks")
_GROUPS_SHOWN = 20


class EventSummary(msgspec.Struct, frozen=True, kw_only=True):
    """An event as a list shows it: without its payload."""

    id: str
    received_at: datetime
    source: str
    event_type: str
    """Empty where it could not be read."""
    event_id: str
    verdict: str
    """`verified`, or why its sender was not believed."""
    status: EventStatus
    body_bytes: int


class EventPage(msgspec.Struct, frozen=True):
    """Some events, newest first, and where the next page begins; None at the end."""

    items: list[EventSummary]
    next_cursor: str | None


class EventGroup(msgspec.Struct, frozen=True):
    """How many events of a source and a type are equally far."""

    source: str
    event_type: str
    status: EventStatus
    events: int


class EventCounts(msgspec.Struct, frozen=True):
    """How many events match, and the largest groups among them."""

    total: int
    groups: list[EventGroup]
    not_found: list[str] = []
    """Ids that were asked for and no event has."""


class LoggedEvent(EventSummary, frozen=True, kw_only=True):
    """An event in full, as it is written down: with whatever secrets and personal data it has."""

    detail: str
    method: str
    query: str
    headers: Mapping[str, str]
    body: bytes
    """Of what was refused only the beginning."""
    body_sha256: str
    """In hex, of all of it."""
    address: str


class EventLetter(msgspec.Struct, frozen=True):
    """A dead letter of an event's story."""

    webhook_id: str
    id: str
    channel: str
    message_id: str
    reason: str
    dead_at: datetime


class GivenUpLetter(msgspec.Struct, frozen=True):
    """A dead letter of an event's story that an operator discarded; only `audit_logs` has it."""

    id: str
    channel: str
    message_id: str
    reason: str
    actor: str
    discarded_at: datetime


async def ask(
    connection: Connection, query: bytes, parameters: Mapping[str, object]
) -> list[TupleRow]:
    """Run what `compose` made, in a transaction of its own or within the caller's."""
    async with connection.transaction():
        await connection.execute(_queries["compile_nothing"])
        cursor = await connection.execute(query, parameters, prepare=False)
        return await cursor.fetchall()


async def list_events(
    connection: Connection, event_filter: EventFilter, limit: int, cursor: str | None = None
) -> EventPage:
    """A page of events, newest first; `cursor` is the `next_cursor` of the page before it.

    All pages together hold every event that was there at the first, none twice. Raises
    `CursorInvalid`.
    """
    before_at, before_id = place_of(cursor, things="webhooks")
    name = "list_events" if event_filter.source is None else "list_events_of_source"
    rows = await ask(
        connection,
        compose(name, event_filter),
        {
            **filter_parameters(event_filter),
            "before_at": before_at,
            "before_id": before_id,
            "limit": limit + 1,
        },
    )
    items = [_struct(EventSummary, row) for row in rows]
    last = items[limit - 1] if len(items) > limit else None
    return EventPage(items[:limit], cursor_after(last.received_at, last.id) if last else None)


async def count_events(
    connection: Connection, event_filter: EventFilter, cursor: str | None = None
) -> EventCounts:
    """How many events match, by source, type and status; at most 20 groups are named.

    `cursor` is the `next_cursor` of a replay, whose events and those before are left out. Raises
    `CursorInvalid`.
    """
    rows = await ask(
        connection,
        compose("count_events", event_filter),
        {
            **filter_parameters(event_filter),
            "after_id": place_of(cursor, things="replayed events")[1],
            "groups": _GROUPS_SHOWN,
        },
    )
    return EventCounts(
        rows[0][4] if rows else 0,
        [_struct(EventGroup, row[:4]) for row in rows],
        await ids_not_found(connection, event_filter),
    )


async def ids_not_found(connection: Connection, event_filter: EventFilter) -> list[str]:
    """The ids of a filter that no event has, as they were given."""
    given = {uuid_of(each): each for each in event_filter.ids or ()}
    if not given:
        return []
    wanted = [each for each in given if each is not None]
    cursor = await connection.execute(_queries["missing_events"], {"ids": wanted})
    missing = {row[0] for row in await cursor.fetchall()}
    return [text for each, text in given.items() if each is None or each in missing]


async def is_source_logged(connection: Connection, source: str) -> bool:
    """Whether anything was ever received as of this source, by whatever version."""
    parameters = {"source": storable_text(source)}
    cursor = await connection.execute(_queries["is_source_logged"], parameters)
    return await cursor.fetchone() == (True,)


async def events_named(connection: Connection, name: str, limit: int) -> list[EventSummary]:
    """The event of that id; else those that their senders call so, newest first."""
    if not name:
        return []
    for event_filter in (EventFilter(ids=(name,)), EventFilter(event_id=name)):
        page = await list_events(connection, event_filter, limit)
        if page.items:
            return page.items
    return []


async def read_logged_event(connection: Connection, webhook_id: str) -> LoggedEvent | None:
    """One event in full."""
    wanted = uuid_of(webhook_id)
    cursor = await connection.execute(compose("show_event"), {"id": wanted}, prepare=False)
    row = await cursor.fetchone()
    return None if row is None else _struct(LoggedEvent, row)


async def letters_of(connection: Connection, webhook_ids: Sequence[str]) -> list[EventLetter]:
    """The dead letters of events' stories, oldest first."""
    cursor = await connection.execute(_queries["letters_of_events"], {"ids": list(webhook_ids)})
    return [_struct(EventLetter, row) for row in await cursor.fetchall()]


async def given_up_letters(connection: Connection, webhook_id: str) -> list[GivenUpLetter]:
    """The letters of an event's story that operators discarded, oldest first."""
    cursor = await connection.execute(_queries["given_up_letters"], {"id": webhook_id})
    return [_struct(GivenUpLetter, row) for row in await cursor.fetchall()]


def _struct(kind: type[T], row: Sequence[object]) -> T:
    return msgspec.convert(dict(zip(kind.__struct_fields__, row, strict=True)), kind)
