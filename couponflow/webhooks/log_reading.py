"""What is in `webhook_logs`: listed, counted, and one event as it came."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TypeVar

import msgspec

from couponflow.kernel.cursors import cursor_after, place_of
from couponflow.kernel.database import Connection, load_queries
from couponflow.kernel.dead_letters import uuid_of
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


async def list_events(
    connection: Connection, event_filter: EventFilter, limit: int, cursor: str | None = None
) -> EventPage:
    """A page of events, newest first; `cursor` is the `next_cursor` of the page before it.

    All pages together hold every event that was there at the first, none twice. Raises
    `CursorInvalid`.
    """
    before_at, before_id = place_of(cursor, things="webhooks")
    name = "list_events" if event_filter.source is None else "list_events_of_source"
    found = await connection.execute(
        compose(name, event_filter),
        {
            **filter_parameters(event_filter),
            "before_at": before_at,
            "before_id": before_id,
            "limit": limit + 1,
        },
        prepare=False,
    )
    items = [_struct(EventSummary, row) for row in await found.fetchall()]
    last = items[limit - 1] if len(items) > limit else None
    return EventPage(items[:limit], cursor_after(last.received_at, last.id) if last else None)


async def count_events(connection: Connection, event_filter: EventFilter) -> EventCounts:
    """How many events match, by source, type and status; at most 20 groups are named."""
    cursor = await connection.execute(
        compose("count_events", event_filter),
        {**filter_parameters(event_filter), "groups": _GROUPS_SHOWN},
        prepare=False,
    )
    rows = await cursor.fetchall()
    return EventCounts(rows[0][4] if rows else 0, [_struct(EventGroup, row[:4]) for row in rows])


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


def _struct(kind: type[T], row: Sequence[object]) -> T:
    return msgspec.convert(dict(zip(kind.__struct_fields__, row, strict=True)), kind)
