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
from couponflow.commands.plain_text import escaped, print_below, print_plain
from couponflow.commands.support import (
    WRONG_USAGE,
    fail,
    out,
    print_json,
    read_settings,
    run_async,
)
from couponflow.config import Settings
from couponflow.kernel.clock import Clock, SystemClock
from couponflow.kernel.database import Database
from couponflow.kernel.identifiers import Uuid7Generator
from couponflow.kernel.postgres import open_unchanged_postgres
from couponflow.kernel.replays import Progress
from couponflow.messages import CHANNELS
from couponflow.webhooks.contract import Source
from couponflow.webhooks.event_filter import ALL_VERIFIED, EventFilter, EventStatus
from couponflow.webhooks.log_reading import EventCounts, EventSummary, count_events, list_events
from couponflow.webhooks.redaction import Payload
from couponflow.webhooks.replay import EventReplayReport, replay_events
from couponflow.webhooks.showing import ShownEvent, reveal_event, show_event
from couponflow.webhooks.sources.registry import known_sources


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says of which events are meant."""

    ids: tuple[str, ...] = ()
    everything: bool = False
    source: str | None = None
    type: str | None = None
    status: EventStatus | None = None
    since: str | None = None
    until: str | None = None
    text: str | None = None

    def event_filter(self, clock: Clock) -> EventFilter:
        """The same as a filter; raises click's `BadParameter` for what is none."""
        if self.text == "":
            raise click.BadParameter("every event holds an empty text", param_hint="--text")
        return EventFilter(
            source=self.source,
            event_type=self.type,
            status=self.status,
            since=moment_given("--since", self.since, clock),
            until=moment_given("--until", self.until, clock),
            text=self.text,
            ids=self.ids or None,
        )


class Listed(msgspec.Struct, frozen=True):
    """The newest events that match, and whether there are more."""

    items: list[EventSummary]
    more: bool


def list_command(
    config: Path | None, which: Mapping[str, object], limit: int, *, as_json: bool
) -> None:
    """List what the options say; `which` is a `Selection` as click gives it."""
    event_filter = msgspec.convert(which, Selection).event_filter(SystemClock())
    settings = read_settings(config, quiet=True)
    listed = run_async(partial(_list, settings, event_filter, limit))
    if as_json:
        print_json(listed)
        return
    if listed.items:
        _print_list(listed.items)
    else:
        out.print("No events match.")
    if listed.more:
        out.print("... and more; raise --limit, or go back with --until")


def _print_list(events: list[EventSummary]) -> None:
    """A line for each, whole however narrow the terminal is, and what it is called on one below."""
    rows = [
        (
            event.id,
            f"{event.received_at:%Y-%m-%d %H:%M:%S}",
            event.status,
            f"{event.body_bytes:,}",
        )
        for event in events
    ]
    headings, *lines = aligned(("id", "received", "status", "bytes"), rows, numbers=("bytes",))
    print_plain(headings)
    for event, line in zip(events, lines, strict=True):
        print_plain(line)
        verdict = "" if event.verdict == "verified" else event.verdict
        called = (event.source, verdict, event.event_type, event.event_id)
        print_below("  ".join(filter(None, called)))


async def _list(settings: Settings, event_filter: EventFilter, limit: int) -> Listed:
    async with open_unchanged_postgres(settings) as database, database.connection() as connection:
        page = await list_events(connection, event_filter, limit)
    return Listed(page.items, page.next_cursor is not None)


def show_command(config: Path | None, webhook_id: str, *, reveal: bool, as_json: bool) -> None:
    settings = read_settings(config, quiet=True)
    try:
        sources = known_sources(settings)
    except ValueError as error:
        fail(str(error), WRONG_USAGE)
    event = run_async(partial(_show, settings, sources, webhook_id, reveal=reveal))
    if event is None:
        fail(f"no event has the id {webhook_id}")
    if as_json:
        print_json(event)
    else:
        _print_event(event)


async def _show(
    settings: Settings, sources: Mapping[str, Source], webhook_id: str, *, reveal: bool
) -> ShownEvent | None:
    async with open_unchanged_postgres(settings) as database:
        if reveal:
            return await reveal_event(
                database,
                sources,
                webhook_id,
                actor=operator(),
                clock=SystemClock(),
                ids=Uuid7Generator(),
            )
        async with database.connection() as connection:
            return await show_event(connection, sources, webhook_id)


def _print_event(event: ShownEvent) -> None:
    refusal = f"; {event.detail}" if event.detail else ""
    lines = {
        "event": event.id,
        "source": event.source,
        "type": event.event_type or "none",
        "its id": event.event_id or "none",
        "received": f"{event.received_at:%Y-%m-%d %H:%M:%S.%f} from {event.address or 'nobody'}",
        "verdict": event.verdict + refusal,
        "status": event.status,
        "method": event.method,
        "query": event.query or "none",
    }
    for name, value in lines.items():
        print_plain(f"{name + ':':<10}{value}")
    for name, value in event.headers.items():
        print_plain(f"header    {name}: {value}")
    for letter in event.letters:
        print_plain(f"letter    {letter.id} of {letter.channel}: {letter.reason}")
    for message in event.following:
        reason = f": {message.reason}" if message.reason else ""
        print_plain(f"message   {message.id} {message.message_type}: {message.state}{reason}")
    if event.unreadable:
        print_plain(f"its source cannot read it: {event.unreadable}")
    print_plain(f"{event.body_bytes:,} bytes, sha256 {event.body_sha256}")
    _print_body(event.body)


def _print_body(body: Payload) -> None:
    if body.form == "hidden":
        print_plain("(neither JSON nor a form, so not shown; --reveal shows it)")
    elif body.form == "json":
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
    if selection.everything:
        event_filter = ALL_VERIFIED
    action = Action(
        verb="replay",
        things="events",
        count=partial(count_events, event_filter=event_filter),
        table=_table,
        act=partial(_replay, event_filter, clock),
        print_report=print_replayed,
        nothing_matches="no event matches" if selection.ids else None,
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
