"""One event as an operator sees it: what came, and what became of what followed from it."""

import base64
from collections.abc import Mapping
from datetime import datetime
from typing import Literal

import msgspec

from couponflow.kernel.audit_log import record
from couponflow.kernel.clock import Clock
from couponflow.kernel.database import Connection, Database, load_queries
from couponflow.kernel.identifiers import Uuid7Generator
from couponflow.kernel.outbox import Outgoing
from couponflow.webhooks.contract import EventUnreadable, Source, StoredEvent
from couponflow.webhooks.following import following
from couponflow.webhooks.log_reading import (
    EventLetter,
    EventSummary,
    GivenUpLetter,
    LoggedEvent,
    given_up_letters,
    letters_of,
    read_logged_event,
)
from couponflow.webhooks.redaction import (
    Payload,
    redact_body,
    redact_headers,
    redact_query,
    redact_text,
)

MessageState = Literal["waiting", "done", "discarded", "dead", "given-up", "unknown"]
"""Discarded by its handler, given up by an operator who discarded its letter. Unknown: it was never
published, or it was done longer ago than `[outbox] done_days`."""

_queries = load_queries("webhooks")


class FollowingMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message that the source makes of an event, and what became of it."""

    id: str
    channel: str
    message_type: str
    state: MessageState
    reason: str = ""
    """Why it is, or was, dead."""


class ShownLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter of the event's story."""

    id: str
    channel: str
    message_id: str
    reason: str
    dead_at: datetime


class ShownEvent(EventSummary, frozen=True, kw_only=True):
    """An event in full."""

    detail: str
    """Why its sender was not believed."""
    method: str
    query: str
    headers: dict[str, str]
    body: Payload
    body_bytes_kept: int
    """Of what was refused only the beginning is kept."""
    body_sha256: str
    address: str
    revealed: bool
    """Whether it is shown as it came, with secrets and personal data."""
    letters: list[ShownLetter]
    given_up: list[GivenUpLetter]
    following: list[FollowingMessage]
    nothing_follows: str = ""
    """Why no message follows from it, where none does."""
    unreadable: str = ""
    """Why its source cannot read it."""


async def show_event(
    connection: Connection, sources: Mapping[str, Source], webhook_id: str
) -> ShownEvent | None:
    """One event, without secrets and personal data."""
    event = await read_logged_event(connection, webhook_id)
    return None if event is None else await _shown(connection, sources, event, reveal=False)


async def reveal_event(
    database: Database,
    sources: Mapping[str, Source],
    webhook_id: str,
    *,
    actor: str,
    clock: Clock,
    ids: Uuid7Generator,
) -> ShownEvent | None:
    """One event as it came; that somebody saw it so is in `audit_logs` before they do."""
    async with database.transaction() as connection:
        event = await read_logged_event(connection, webhook_id)
        if event is None:
            return None
        shown = await _shown(connection, sources, event, reveal=True)
        await record(
            connection,
            actor=actor,
            action="webhooks.reveal",
            subject=event.id,
            details={"source": event.source, "event_id": event.event_id},
            clock=clock,
            ids=ids,
        )
    return shown


async def _shown(
    connection: Connection, sources: Mapping[str, Source], event: LoggedEvent, *, reveal: bool
) -> ShownEvent:
    follow = _following(sources, event)
    given_up = await given_up_letters(connection, event.id)
    letters = await letters_of(connection, [event.id])
    summary = {name: getattr(event, name) for name in EventSummary.__struct_fields__}
    return ShownEvent(
        **summary,
        detail=_reason(event.detail, reveal=reveal),
        method=event.method,
        query=event.query if reveal else redact_query(event.query),
        headers=dict(event.headers) if reveal else redact_headers(event.headers),
        body=_as_it_came(event.body) if reveal else redact_body(event.body),
        body_bytes_kept=len(event.body),
        body_sha256=event.body_sha256,
        address=event.address,
        revealed=reveal,
        letters=[_letter(each, reveal=reveal) for each in letters],
        given_up=[_given_up(each, reveal=reveal) for each in given_up],
        following=await _states(connection, follow.messages, given_up, reveal=reveal),
        nothing_follows=follow.nothing_since,
        unreadable=_reason(follow.unreadable, reveal=reveal),
    )


class _Follow(msgspec.Struct, frozen=True):
    """The messages that follow, else why there are none."""

    messages: list[Outgoing] = []
    nothing_since: str = ""
    unreadable: str = ""


def _following(sources: Mapping[str, Source], event: LoggedEvent) -> _Follow:
    if event.verdict != "verified":
        return _Follow(nothing_since="its sender was not believed")
    source = sources.get(event.source)
    if source is None:
        return _Follow(nothing_since=f"no source {event.source} is configured here")
    stored = StoredEvent(
        webhook_id=event.id,
        event_type=event.event_type,
        event_id=event.event_id,
        method=event.method,
        query=event.query,
        headers=event.headers,
        body=event.body,
        received_at=event.received_at.timestamp(),
    )
    try:
        messages = following(source, stored)
    except EventUnreadable as error:
        return _Follow(nothing_since="its source cannot read it", unreadable=str(error))
    if not messages:
        called = f"{event.source} {event.event_type}".strip()
        return _Follow(nothing_since=f"couponflow does not act on what it tells ({called})")
    return _Follow(messages)


async def _states(
    connection: Connection,
    outgoing: list[Outgoing],
    given_up: list[GivenUpLetter],
    *,
    reveal: bool,
) -> list[FollowingMessage]:
    ids = [each.message_id for each in outgoing]
    channels = [each.message.channel for each in outgoing]
    cursor = await connection.execute(
        _queries["message_states"], {"ids": ids, "channels": channels}
    )
    found: dict[str, tuple[MessageState, str]] = {
        message_id: (state, reason) async for message_id, state, reason in cursor
    }
    discarded = {(each.channel, each.message_id): each.reason for each in given_up}
    shown: list[FollowingMessage] = []
    for each in outgoing:
        key = (each.message.channel, each.message_id or "")
        state, reason = found.get(key[1], ("unknown", ""))
        if state == "unknown" and key in discarded:
            state, reason = "given-up", discarded[key]
        shown.append(
            FollowingMessage(
                id=each.message_id or "",
                channel=each.message.channel,
                message_type=str(each.message.__struct_config__.tag),
                state=state,
                reason=_reason(reason, reveal=reveal),
            )
        )
    return shown


def _letter(letter: EventLetter, *, reveal: bool) -> ShownLetter:
    return ShownLetter(
        id=letter.id,
        channel=letter.channel,
        message_id=letter.message_id,
        reason=_reason(letter.reason, reveal=reveal),
        dead_at=letter.dead_at,
    )


def _given_up(letter: GivenUpLetter, *, reveal: bool) -> GivenUpLetter:
    return msgspec.structs.replace(letter, reason=_reason(letter.reason, reveal=reveal))


def _reason(text: str, *, reveal: bool) -> str:
    return text if reveal else redact_text(text)


def _as_it_came(body: bytes) -> Payload:
    try:
        return Payload(body.decode(), "text")
    except UnicodeDecodeError:
        return Payload(base64.b64encode(body).decode(), "base64")
