"""Which events of `webhook_logs` are meant: what an operator narrows lists and replays by."""

import uuid
from collections.abc import Iterable
from datetime import datetime
from typing import Literal, assert_never

import msgspec

from couponflow.kernel.database import load_queries
from couponflow.kernel.dead_letters import storable_text_or_none, uuid_of
from couponflow.kernel.moments import Moment

EventStatus = Literal["waiting", "dead", "given-up", "processed", "refused"]
"""Waiting: it, or what followed from it, is on its way or to be tried again. Dead: it, or what
followed, is a dead letter. Given up: an operator discarded such a letter, and has not replayed the
event since. Processed: verified and none of these. Refused: its sender was not believed."""

_REPLAYABLE: tuple[EventStatus, ...] = ("waiting", "dead", "processed")
_QUOTED_CHARACTERS = 80
_queries = load_queries("webhooks")


class FilterInvalid(ValueError):
    """A part of a filter means nothing; the text says why. Mend that part, or leave it out."""

    def __init__(self, part: str, text: str) -> None:
        super().__init__(text)
        self.part = part
        """As the filter calls it: `ids`, `since`, ..."""


class EventFilter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which events are meant: those that agree with all that is given; nothing given means all."""

    source: str | None = None
    event_type: str | None = None
    event_id: str | None = None
    """What its sender calls it."""
    status: EventStatus | Literal["replayable"] | None = None
    """Replayable is any but refused and given up."""
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

    @property
    def names_events(self) -> bool:
        """Whether somebody had these very events in mind, whatever else they match."""
        return self.ids is not None or self.event_id is not None

    def checked(self) -> "EventFilter":
        """The filter; raises `FilterInvalid` where a mistake would look like no events."""
        for each in self.ids or ():
            if uuid_of(each) is None:
                raise FilterInvalid(
                    "ids",
                    f"{quoted(each)} is no id of an event, which is a UUID; what its sender calls"
                    " it is its event id",
                )
        if self.event_id == "":
            raise FilterInvalid("event_id", "no sender calls an event by an empty text")
        if self.text == "":
            raise FilterInvalid("text", "every event holds an empty text")
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise FilterInvalid(
                "until",
                f"nothing comes between {self.since.isoformat()} and {self.until.isoformat()}: the"
                " end must be after the beginning",
            )
        return self

    def for_replay(self) -> "EventFilter":
        """The same without what is replayed only if it is asked for, by its status or its id."""
        if self.status is not None or self.names_events:
            return self
        return msgspec.structs.replace(self, status="replayable")

    def on_record(self) -> "EventFilter":
        """The same for `audit_logs`: without the text, which may be somebody's address."""
        return self if self.text is None else msgspec.structs.replace(self, text="...")

    def describe(self) -> str:
        """A line for people, and for `audit_logs` as well."""
        shown = self.on_record()
        given = {
            "source": shown.source,
            "type": shown.event_type,
            "event_id": shown.event_id,
            "status": shown.status,
            "since": None if shown.since is None else shown.since.isoformat(),
            "until": None if shown.until is None else shown.until.isoformat(),
            "text": shown.text,
            "ids": None if shown.ids is None else str(len(shown.ids)),
        }
        parts = [f"{name}={value}" for name, value in given.items() if value is not None]
        return " ".join(parts) or "all events"


ALL_REPLAYABLE = EventFilter().for_replay()
"""What `--all` means: neither who was not believed nor what an operator gave up is replayed."""


def source_unknown(source: str, known: Iterable[str]) -> FilterInvalid:
    """The error for a source that nobody ever heard of."""
    names = ", ".join(sorted(known))
    return FilterInvalid(
        "source",
        f"no source is called {quoted(source)}, and nothing was ever received from one; known are"
        f" {names}",
    )


def quoted(text: str) -> str:
    """The beginning of what somebody wrote, as an error can show it."""
    return repr(text[:_QUOTED_CHARACTERS])


def compose(query: str, event_filter: EventFilter | None = None) -> bytes:
    """A query with the parts that several share, and the condition of a filter.

    Run it by `ask`: the condition tests only what is given, and a plan that was made
    for any values would neither use an index nor leave partitions out.
    """
    asked = event_filter or EventFilter()
    parts = {
        b"{matching}": _queries["matching"],
        b"{called}": b"true" if asked.event_id is None else _queries["called"],
        b"{among}": _among(asked),
        b"{has_status}": _queries["has_status"],
        b"{summary}": _queries["event_summary"],
        b"{status}": _status("event_is_given_up", b"offset 0"),
        b"{status_of_many}": _status("one_of_many_is_given_up", b""),
    }
    return _filled(_queries[query], parts)


def _among(asked: EventFilter) -> bytes:
    match asked.status:
        case None:
            return b"true"
        case "waiting" | "dead" | "refused":
            return _queries[f"among_{asked.status}"]
        case "given-up":
            return _queries["among_given_up"]
        case "processed" | "replayable":
            return _queries["among_verified"]
        case _:
            assert_never(asked.status)


def _status(is_given_up: str, probe: bytes) -> bytes:
    """The status, found out as `probe` says.

    PostgreSQL estimates that a list may need it of every event there is, and would read all that
    waits or is dead into memory first, for a page. With an offset, even of 0, it may not.
    """
    parts = {
        b"{is_told}": _queries["event_is_told"],
        b"{is_followed}": _queries["event_is_followed"],
        b"{is_dead}": _queries["event_is_dead"],
        b"{is_given_up}": _queries[is_given_up],
        b"{probe}": probe,
    }
    return _filled(_queries["event_status"], parts)


def _filled(query: bytes, parts: dict[bytes, bytes]) -> bytes:
    for placeholder, part in parts.items():
        query = query.replace(placeholder, part)
    return query


def filter_parameters(
    event_filter: EventFilter,
) -> dict[str, str | bytes | datetime | list[uuid.UUID] | list[EventStatus] | None]:
    """The parameters of the condition of a filter."""
    ids, text = event_filter.ids, event_filter.text
    return {
        "source": storable_text_or_none(event_filter.source),
        "event_type": storable_text_or_none(event_filter.event_type),
        "event_id": storable_text_or_none(event_filter.event_id),
        "statuses": _statuses(event_filter),
        "since": event_filter.since,
        "until": event_filter.until,
        # A command line hands on bytes that are no text as surrogates.
        "text": None if text is None else text.encode(errors="surrogateescape"),
        "ids": None if ids is None else [found for each in ids if (found := uuid_of(each))],
    }


def _statuses(event_filter: EventFilter) -> list[EventStatus] | None:
    match event_filter.status:
        case None:
            return None
        case "replayable":
            return list(_REPLAYABLE)
        case status:
            return [status]
