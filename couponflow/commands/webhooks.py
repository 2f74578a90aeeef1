"""`couponflow webhooks`: looking at what outside services told us, and sending it again."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import click
import msgspec
from rich.table import Table

from couponflow.commands.acting import Action, act_on_matching, print_replayed
from couponflow.commands.columns import aligned
from couponflow.commands.moments import moment_given
from couponflow.commands.operator import operator
from couponflow.commands.plain_text import escaped, print_plain
from couponflow.commands.support import (
    WRONG_USAGE,
    fail,
    out,
    print_json,
    read_settings,
    run_async,
)
from couponflow.config import SENDER_SECTIONS, Settings
from couponflow.kernel.clock import Clock, SystemClock
from couponflow.kernel.cursors import CursorInvalid, place_of
from couponflow.kernel.database import Database
from couponflow.kernel.identifiers import Uuid7Generator
from couponflow.kernel.postgres import open_unchanged_postgres
from couponflow.kernel.replays import Progress
from couponflow.messages import CHANNELS
from couponflow.webhooks.contract import Source
from couponflow.webhooks.event_filter import (
    EventFilter,
    EventStatus,
    FilterInvalid,
    source_unknown,
)
from couponflow.webhooks.log_reading import (
    EventCounts,
    EventSummary,
    count_events,
    events_named,
    is_source_logged,
    list_events,
)
from couponflow.webhooks.replay import EventReplayReport, replay_events
from couponflow.webhooks.showing import ShownEvent, reveal_event, show_event
from couponflow.webhooks.sources.registry import known_sources

_NAMED_SHOWN = 50


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says of which events are meant."""

    ids: tuple[str, ...] = ()
    everything: bool = False
    source: str | None = None
    type: str | None = None
    event_id: str | None = None
    status: EventStatus | None = None
    since: str | None = None
    until: str | None = None
    text: str | None = None

    def event_filter(self, clock: Clock) -> EventFilter:
        """The same as a filter; raises click's `BadParameter` for what is none."""
        asked = EventFilter(
            source=self.source,
            event_type=self.type,
            event_id=self.event_id,
            status=self.status,
            since=moment_given("--since", self.since, clock),
            until=moment_given("--until", self.until, clock),
            text=self.text,
            ids=self.ids or None,
        )
        try:
            return asked.checked()
        except FilterInvalid as error:
            raise click.BadParameter(str(error), param_hint=_option(error)) from error


class Listed(msgspec.Struct, frozen=True):
    """The newest events that match, whether there are more, and where those begin."""

    items: list[EventSummary]
    more: bool
    next_cursor: str | None


def list_command(
    config: Path | None,
    which: Mapping[str, object],
    limit: int,
    cursor: str | None,
    *,
    as_json: bool,
) -> None:
    """List what the options say; `which` is a `Selection` as click gives it."""
    event_filter = msgspec.convert(which, Selection).event_filter(SystemClock())
    try:
        place_of(cursor, things="events")
    except CursorInvalid as error:
        raise click.BadParameter(str(error), param_hint="--cursor") from error
    settings = read_settings(config, quiet=True)
    _require_source(event_filter.source, settings)
    listed = run_async(partial(_list, settings, event_filter, limit, cursor))
    if as_json:
        print_json(listed)
        return
    if listed.items:
        _print_list(listed.items)
    else:
        out.print("No events match.")
    if listed.next_cursor is not None:
        print_plain(f"... and more; raise --limit, or go on with --cursor {listed.next_cursor}")


def _option(error: FilterInvalid) -> str:
    return "ID" if error.part == "ids" else f"--{error.part.replace('_', '-')}"


def _require_source(source: str | None, settings: Settings) -> None:
    """End the command for a source that there is not and never was."""
    known = (*SENDER_SECTIONS, *(f"generic/{name}" for name in settings.generic_webhooks))
    if source is None or source in known or run_async(partial(_is_logged, settings, source)):
        return
    error = source_unknown(source, known)
    fail(f"{_option(error)}: {error}", WRONG_USAGE)


async def _is_logged(settings: Settings, source: str) -> bool:
    async with open_unchanged_postgres(settings) as database, database.connection() as connection:
        return await is_source_logged(connection, source)


def _print_list(events: list[EventSummary]) -> None:
    """A line for each, and what it is called on one below, both whole: ids are for copying."""
    rows = [
        (
            event.id,
            f"{event.received_at:%Y-%m-%d %H:%M:%S}",
            event.status,
            f"{event.body_bytes:,}",
        )
        for event in events
    ]
    headings, *lines = aligned(
        ("id", "received (UTC)", "status", "bytes"), rows, numbers=("bytes",)
    )
    print_plain(headings)
    for event, line in zip(events, lines, strict=True):
        print_plain(line)
        verdict = "" if event.verdict == "verified" else event.verdict
        called = (event.source, verdict, event.event_type, event.event_id)
        print_plain("  " + "  ".join(filter(None, called)))


async def _list(
    settings: Settings, event_filter: EventFilter, limit: int, cursor: str | None
) -> Listed:
    async with open_unchanged_postgres(settings) as database, database.connection() as connection:
        page = await list_events(connection, event_filter, limit, cursor)
    return Listed(page.items, page.next_cursor is not None, page.next_cursor)


def show_command(config: Path | None, name: str, *, reveal: bool, as_json: bool) -> None:
    """Show the event of that id, else the one that its sender calls so."""
    settings = read_settings(config, quiet=True)
    try:
        sources = known_sources(settings)
    except ValueError as error:
        fail(str(error), WRONG_USAGE)
    found = run_async(partial(_show, settings, sources, name, reveal=reveal))
    if isinstance(found, ShownEvent):
        if as_json:
            print_json(found)
        else:
            _print_event(found)
    elif found:
        if as_json:
            print_json(found)
        else:
            _print_list(found)
        fail(f"senders call several events {name}; show one of them by its own id")
    else:
        fail(f"no event has the id {name}, nor did a sender call any so")


async def _show(
    settings: Settings, sources: Mapping[str, Source], name: str, *, reveal: bool
) -> ShownEvent | list[EventSummary]:
    """The event; else the several that were named, or none."""
    async with open_unchanged_postgres(settings) as database:
        async with database.connection() as connection:
            named = await events_named(connection, name, _NAMED_SHOWN)
            if len(named) != 1:
                return named
            if not reveal:
                return await show_event(connection, sources, named[0].id) or []
        revealed = await reveal_event(
            database,
            sources,
            named[0].id,
            actor=operator(),
            clock=SystemClock(),
            ids=Uuid7Generator(),
        )
        return revealed or []


def _print_event(event: ShownEvent) -> None:
    refusal = f"; {event.detail}" if event.detail else ""
    lines = {
        "event": event.id,
        "source": event.source,
        "type": event.event_type or "none",
        "its id": event.event_id or "none",
        "received": f"{event.received_at:%Y-%m-%d %H:%M:%S.%f} UTC"
        f" from {event.address or 'nobody'}",
        "verdict": event.verdict + refusal,
        "status": event.status,
        "method": event.method,
        "query": event.query or "none",
    }
    for name, value in lines.items():
        print_plain(f"{name + ':':<10}{value}")
    for name, value in event.headers.items():
        print_plain(f"header    {name}: {value}")
    _print_story(event)
    print_plain(f"{event.body_bytes:,} bytes, sha256 {event.body_sha256}")
    _print_body(event)


def _print_story(event: ShownEvent) -> None:
    """What became of it; the reason of a message's death is at its letter."""
    for letter in event.letters:
        print_plain(f"letter    {letter.id} of {letter.channel}: {letter.reason}")
    for gone in event.given_up:
        moment = f"{gone.discarded_at:%Y-%m-%d %H:%M:%S}"
        print_plain(
            f"given up  letter {gone.id} of {gone.channel}, by {gone.actor} at {moment} UTC:"
            f" {gone.reason}"
        )
    for message in event.following:
        state = message.state.replace("-", " ")
        print_plain(f"message   {message.id} {message.message_type}: {state}")
    if event.unreadable:
        print_plain(f"no message follows from it: its source cannot read it: {event.unreadable}")
    elif event.nothing_follows:
        print_plain(f"no message follows from it: {event.nothing_follows}")


def _print_body(event: ShownEvent) -> None:
    body = event.body
    if event.body_bytes_kept < event.body_bytes:
        shows = "; --reveal shows them" if body.form == "hidden" else ""
        kept = f"{event.body_bytes_kept:,} of {event.body_bytes:,}"
        print_plain(f"(refused, so only the first {kept} bytes are kept{shows})")
    elif body.form == "hidden":
        print_plain("(neither JSON nor a form, so not shown; --reveal shows it)")
    if body.form == "json":
        print_plain(msgspec.json.format(body.text, indent=2))
    elif body.text:
        print_plain(body.text)


def replay_command(
    config: Path | None,
    which: Mapping[str, object],
    *,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Replay what is selected, after saying how many events that is."""
    clock = SystemClock()
    selection = msgspec.convert(which, Selection)
    event_filter = selection.event_filter(clock)
    if event_filter.is_empty != selection.everything:
        raise click.UsageError("give ids or filters; or --all alone for every verified event")
    event_filter = event_filter.for_replay()
    action = Action(
        verb="replay",
        things="events",
        count=partial(count_events, event_filter=event_filter),
        table=_table,
        act=partial(_replay, event_filter, clock),
        print_report=_print_report,
        nothing_matches="no event matches" if event_filter.names_events else None,
        check=partial(_require_source, event_filter.source),
        remarks=_remarks,
    )
    act_on_matching(config, action, yes=yes, dry_run=dry_run, as_json=as_json)


async def _replay(
    event_filter: EventFilter, clock: Clock, database: Database, expected: int, progress: Progress
) -> EventReplayReport:
    return await replay_events(
        database,
        event_filter,
        actor=operator(),
        channels_known=CHANNELS,
        clock=clock,
        ids=Uuid7Generator(),
        expected=expected,
        progress=progress,
    )


def _print_report(report: EventReplayReport) -> None:
    print_replayed(report)
    if report.taken_up:
        print_plain(f"  {len(report.taken_up):,} of them had been given up by an operator")


def _remarks(counts: EventCounts) -> list[str]:
    return [f"no event has the id {each}" for each in counts.not_found]


def _table(counts: EventCounts) -> Table:
    table = Table("source", "type", "status", "events")
    for group in counts.groups:
        table.add_row(
            escaped(group.source), escaped(group.event_type), group.status, f"{group.events:,}"
        )
    named = sum(group.events for group in counts.groups)
    if named < counts.total:
        table.add_row("", "others", "", f"{counts.total - named:,}")
    return table
