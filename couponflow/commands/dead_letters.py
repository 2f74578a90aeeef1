"""`couponflow dead-letters`: looking at dead letters, sending them again, giving them up."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Literal, assert_never

import click
import msgspec
from rich.table import Table

from couponflow.commands.acting import Action, act_on_matching, print_replayed
from couponflow.commands.columns import aligned
from couponflow.commands.moments import moment_given
from couponflow.commands.operator import operator
from couponflow.commands.plain_text import escaped, print_below, print_plain
from couponflow.commands.support import fail, out, print_json, read_settings, run_async
from couponflow.config import Settings
from couponflow.kernel.clock import Clock, SystemClock
from couponflow.kernel.database import Database
from couponflow.kernel.dead_letter_replay import DiscardReport, ReplayReport, discard, replay
from couponflow.kernel.dead_letters import (
    Letter,
    LetterCounts,
    LetterFilter,
    LetterSummary,
    count_letters,
    list_letters,
    show_letter,
)
from couponflow.kernel.identifiers import Uuid7Generator
from couponflow.kernel.postgres import open_unchanged_postgres
from couponflow.kernel.replays import Progress, Replayed
from couponflow.messages import CHANNELS

Verb = Literal["replay", "discard"]


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says of which letters are meant."""

    ids: tuple[str, ...] = ()
    everything: bool = False
    channel: str | None = None
    type: str | None = None
    reason: str | None = None
    correlation_id: str | None = None
    since: str | None = None
    until: str | None = None

    def letter_filter(self, clock: Clock) -> LetterFilter:
        """The same as a filter; raises click's `BadParameter` for a moment that is none."""
        return LetterFilter(
            channel=self.channel,
            message_type=self.type,
            reason_contains=self.reason,
            correlation_id=self.correlation_id,
            since=moment_given("--since", self.since, clock),
            until=moment_given("--until", self.until, clock),
            ids=self.ids or None,
        )


class Listed(msgspec.Struct, frozen=True):
    """The newest letters that match, and how many match in all."""

    items: list[LetterSummary]
    total: int


def list_command(
    config: Path | None, which: Mapping[str, object], limit: int, *, as_json: bool
) -> None:
    """List what the options say; `which` is a `Selection` as click gives it."""
    letter_filter = msgspec.convert(which, Selection).letter_filter(SystemClock())
    settings = read_settings(config, quiet=True)
    listed = run_async(partial(_list, settings, letter_filter, limit))
    if as_json:
        print_json(listed)
        return
    if listed.items:
        _print_list(listed.items)
    if listed.total > len(listed.items):
        out.print(f"... and {listed.total - len(listed.items):,} more; raise --limit")
    elif not listed.total:
        out.print("No dead letters match.")


def _print_list(letters: list[LetterSummary]) -> None:
    """A line for each, whole however narrow the terminal is, and the reason on one below."""
    rows = [
        (
            letter.id,
            letter.channel,
            letter.message_type,
            f"{letter.attempts:,}",
            f"{letter.dead_at:%Y-%m-%d %H:%M:%S}",
        )
        for letter in letters
    ]
    # The gap and the headings are such that it fits into 80 columns.
    headings, *lines = aligned(
        ("id", "channel", "type", "tries", "died"), rows, numbers=("tries",), gap=1
    )
    print_plain(headings)
    for letter, line in zip(letters, lines, strict=True):
        print_plain(line)
        print_below(letter.reason.partition("\n")[0])


async def _list(settings: Settings, letter_filter: LetterFilter, limit: int) -> Listed:
    async with open_unchanged_postgres(settings) as database, database.connection() as connection:
        page = await list_letters(connection, letter_filter, limit)
        counts = await count_letters(connection, letter_filter)
    return Listed(page.items, counts.total)


def show_command(config: Path | None, letter_id: str, *, as_json: bool) -> None:
    settings = read_settings(config, quiet=True)
    letter = run_async(partial(_show, settings, letter_id))
    if letter is None:
        fail(f"no dead letter has the id {letter_id}, nor has its message")
    if as_json:
        print_json(letter)
    else:
        _print_letter(letter)


async def _show(settings: Settings, letter_id: str) -> Letter | None:
    async with open_unchanged_postgres(settings) as database, database.connection() as connection:
        return await show_letter(connection, letter_id)


def _print_letter(letter: Letter) -> None:
    published_at = f"{letter.published_at:%Y-%m-%d %H:%M:%S}" if letter.published_at else "unknown"
    lines = {
        "letter": letter.id,
        "channel": letter.channel,
        "message": letter.message_id,
        "type": letter.message_type or "none",
        "correlation": letter.correlation_id or "none",
        "published": published_at,
        "died": f"{letter.dead_at:%Y-%m-%d %H:%M:%S}",
        "attempts": f"{letter.attempts}",
        "reason": letter.reason,
    }
    for name, value in lines.items():
        print_plain(f"{name + ':':<13}{value}")
    for failed in letter.errors:
        attempt = f"attempt {failed.attempt}" if failed.attempt else "replay"
        worker = f" by {failed.worker}" if failed.worker else ""
        print_plain(f"{attempt} at {failed.at:%Y-%m-%d %H:%M:%S}{worker}: {failed.error}")
    print_plain(msgspec.json.format(bytes(letter.message), indent=2).decode())


def act_command(
    config: Path | None,
    verb: Verb,
    which: Mapping[str, object],
    *,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Replay or discard what is selected, after saying how many letters that is."""
    clock = SystemClock()
    selection = msgspec.convert(which, Selection)
    letter_filter = selection.letter_filter(clock)
    if letter_filter.is_empty != selection.everything:
        raise click.UsageError("give ids or filters; or --all alone for every letter there is")
    none = "no dead letter matches; it may have been replayed or discarded"
    action = Action(
        verb=verb,
        things="dead letters",
        count=partial(count_letters, letter_filter=letter_filter),
        table=_table,
        act=partial(_act, verb, letter_filter, clock),
        print_report=_print_report,
        nothing_matches=none if selection.ids else None,
    )
    act_on_matching(config, action, yes=yes, dry_run=dry_run, as_json=as_json)


async def _act(
    verb: Verb,
    letter_filter: LetterFilter,
    clock: Clock,
    database: Database,
    expected: int,
    progress: Progress,
) -> ReplayReport | DiscardReport:
    match verb:
        case "replay":
            return await replay(
                database,
                letter_filter,
                actor=operator(),
                channels_known=CHANNELS,
                clock=clock,
                ids=Uuid7Generator(),
                expected=expected,
                progress=progress,
            )
        case "discard":
            return await discard(
                database,
                letter_filter,
                actor=operator(),
                clock=clock,
                ids=Uuid7Generator(),
                expected=expected,
                progress=progress,
            )
        case _:
            assert_never(verb)


def _table(counts: LetterCounts) -> Table:
    table = Table("channel", "reason", "letters")
    for group in counts.groups:
        table.add_row(group.channel, escaped(group.reason), f"{group.letters:,}")
    named = sum(group.letters for group in counts.groups)
    if named < counts.total:
        table.add_row("", "other channels and reasons", f"{counts.total - named:,}")
    return table


def _print_report(report: ReplayReport | DiscardReport) -> None:
    match report:
        case DiscardReport(discarded=discarded):
            print_plain(f"{discarded:,} discarded; audit_logs keeps them")
        case Replayed():
            print_replayed(report)
        case _:
            assert_never(report)
