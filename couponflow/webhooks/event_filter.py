"""Which events of `webhook_logs` are meant: what an operator narrows lists and replays by."""

import uuid
from datetime import datetime
from typing import Literal

import msgspec

from couponflow.kernel.database import load_queries
from couponflow.kernel.dead_letters import storable_text_or_none, uuid_of
from couponflow.kernel.moments import Moment

EventStatus = Literal["waiting", "dead", "processed", "refused"]
"""Waiting: its message, or that of a replay, is on its way. Dead: a message of its story is.
Processed: verified and neither. Refused: its sender was not believed."""

_queries = load_queries("webhooks")


class EventFilter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which events are meant: those that agree with all that is given; nothing given means all."""

    source: str | None = None
    event_type: str | None = None
    status: EventStatus | Literal["verified"] | None = None
    """Verified is any status but refused."""
    since: Moment | None = None
    """Received at this moment or later."""
    until: Moment | None = None
    """Received before this moment."""
    text: str | None = None
    """Somewhere in the body or the query string, to the byte."""
    ids: tuple[str, ...] | None = None

    @property
    def is_empty(self) -> bool:
        return self == EventFilter()

    def describe(self) -> str:
        """A line for people; it does not quote `text`, which may be somebody's address."""
        given = {
            "source": self.source,
            "type": self.event_type,
            "status": self.status,
            "since": None if self.since is None else self.since.isoformat(),
            "until": None if self.until is None else self.until.isoformat(),
            "text": None if self.text is None else "...",
            "ids": None if self.ids is None else str(len(self.ids)),
        }
        parts = [f"{name}={value}" for name, value in given.items() if value is not None]
        return " ".join(parts) or "all events"


ALL_VERIFIED = EventFilter(status="verified")
"""What `--all` means: whoever was not believed is not replayed."""


def compose(query: str, event_filter: EventFilter | None = None) -> bytes:
    """A query with the parts that several share, and the condition of a filter.

    Run it with `prepare=False`: the condition tests only what is given, and a plan that was made
    for any values would neither use an index nor leave partitions out.
    """
    of_status = b"true"
    if event_filter is not None and event_filter.status is not None:
        of_status = _queries[f"only_{event_filter.status}"]
    parts = {
        b"{matching}": _queries["matching"],
        b"{of_status}": of_status,
        b"{summary}": _queries["event_summary"],
        b"{status}": _queries["event_status"],
        b"{is_waiting}": _queries["event_waits"],
        b"{is_dead}": _queries["event_is_dead"],
    }
    composed = _queries[query]
    for placeholder, part in parts.items():
        composed = composed.replace(placeholder, part)
    return composed


def filter_parameters(
    event_filter: EventFilter,
) -> dict[str, str | bytes | datetime | list[uuid.UUID] | None]:
    """The parameters of the condition of a filter."""
    ids, text = event_filter.ids, event_filter.text
    return {
        "source": storable_text_or_none(event_filter.source),
        "event_type": storable_text_or_none(event_filter.event_type),
        "since": event_filter.since,
        "until": event_filter.until,
        # A command line hands on bytes that are no text as surrogates.
        "text": None if text is None else text.encode(errors="surrogateescape"),
        "ids": None if ids is None else [found for each in ids if (found := uuid_of(each))],
    }
