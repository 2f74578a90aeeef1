"""`couponflow dead-letters`: looking at dead letters, sending them again, giving them up."""

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Literal, assert_never

import click
import msgspec
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from couponflow.commands.columns import aligned
from couponflow.commands.operator import operator
from couponflow.commands.support import (
    WORK_FAILED,
    err,
    fail,
    out,
    print_json,
    read_settings,
    run_async,
)
from couponflow.config import Settings
from couponflow.kernel.clock import Clock, SystemClock
from couponflow.kernel.dead_letter_replay import (
    DiscardReport,
    ReplayReport,
    discard,
    replay,
)
from couponflow.kernel.dead_letter_replay import (
    Progress as TellProgress,
)
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
from couponflow.messages import CHANNELS

Action = Literal["replay", "discard"]

_LEFT_SHOWN = 20
_AGO = re.compile(r"(\d{1,6})([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


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
            since=_moment("--since", self.since, clock),
            until=_moment("--until", self.until, clock),
            ids=self.ids or None,
        )


class Listed(msgspec.Struct, frozen=True):
    """The newest letters that match, and how many match in all."""

    items: list[LetterSummary]
    total: int


class Acted(msgspec.Struct, frozen=True, kw_only=True):
    """What matched, and what became of it; no report says that nothing was touched."""

    dry_run: bool
    matching: LetterCounts
    report: ReplayReport | DiscardReport | None = None


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
    _print(headings)
    for letter, line in zip(letters, lines, strict=True):
        _print(line)
        first_line = letter.reason.partition("\n")[0]
        reason = Text(f"  {first_line}")
        reason.truncate(out.width, overflow="ellipsis")
        _print(reason.plain)


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
        _print(f"{name + ':':<13}{value}")
    for failed in letter.errors:
        attempt = f"attempt {failed.attempt}" if failed.attempt else "replay"
        worker = f" by {failed.worker}" if failed.worker else ""
        _print(f"{attempt} at {failed.at:%Y-%m-%d %H:%M:%S}{worker}: {failed.error}")
    _print(msgspec.json.format(bytes(letter.message), indent=2).decode())


def act_command(
    config: Path | None,
    action: Action,
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
    if not (yes or dry_run or sys.stdin.isatty()):
        raise click.UsageError(f"nobody is here to confirm: add --yes to {action}, or --dry-run")
    settings = read_settings(config, quiet=True)
    counts = run_async(partial(_count, settings, letter_filter))
    if not counts.total and selection.ids:
        fail("no dead letter matches; it may have been replayed or discarded")
    if not as_json:
        _print_counts(counts)
    acted = Acted(dry_run=dry_run, matching=counts)
    if counts.total and not dry_run:
        question = f"{action.capitalize()} {counts.total:,} dead letters?"
        if not yes and not click.confirm(question, err=True):
            fail("not confirmed; nothing was changed")
        report = run_async(partial(_act, settings, action, letter_filter, counts.total, clock))
        acted = msgspec.structs.replace(acted, report=report)
    if as_json:
        print_json(acted)
    elif acted.report is not None:
        _print_report(acted.report)
    if isinstance(acted.report, ReplayReport) and acted.report.left and not acted.report.replayed:
        sys.exit(WORK_FAILED)


async def _count(settings: Settings, letter_filter: LetterFilter) -> LetterCounts:
    async with open_unchanged_postgres(settings) as database, database.connection() as connection:
        return await count_letters(connection, letter_filter)


async def _act(
    settings: Settings, action: Action, letter_filter: LetterFilter, expected: int, clock: Clock
) -> ReplayReport | DiscardReport:
    async with open_unchanged_postgres(settings) as database:
        with _progress_bar(expected) as progress:
            match action:
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
                    assert_never(action)


@contextmanager
def _progress_bar(total: int) -> Iterator[TellProgress]:
    bar = Progress(
        TextColumn("dead letters"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=err,
        disable=not err.is_terminal,
        transient=True,
    )
    with bar:
        task = bar.add_task("", total=total)
        yield lambda seen: bar.update(task, completed=seen)


def _print_counts(counts: LetterCounts) -> None:
    if not counts.total:
        out.print("No dead letters match.")
        return
    table = Table("channel", "reason", "letters")
    for group in counts.groups:
        table.add_row(group.channel, _plain(group.reason), f"{group.letters:,}")
    named = sum(group.letters for group in counts.groups)
    if named < counts.total:
        table.add_row("", "other channels and reasons", f"{counts.total - named:,}")
    out.print(table)
    _print(f"{counts.total:,} dead letters match.")


def _print_report(report: ReplayReport | DiscardReport) -> None:
    match report:
        case DiscardReport(discarded=discarded):
            _print(f"{discarded:,} discarded; audit_logs keeps them")
        case ReplayReport():
            _print(
                f"{report.replayed:,} replayed, {report.refused:,} refused, "
                f"{report.skipped:,} skipped"
            )
            for left in report.left[:_LEFT_SHOWN]:
                _print(f"  {left.id} {left.outcome}: {left.reason}")
            others = report.refused + report.skipped - _LEFT_SHOWN
            if others > 0:
                _print(f"  ... and {others:,} more")
        case _:
            assert_never(report)


def _moment(option: str, text: str | None, clock: Clock) -> datetime | None:
    """A moment in ISO 8601 (UTC where it does not say), or as `2h`: so long ago."""
    if text is None:
        return None
    try:
        if ago := _AGO.fullmatch(text):
            span = timedelta(**{_UNITS[ago[2]]: int(ago[1])})
            return datetime.fromtimestamp(clock.now(), UTC) - span
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(
            f"{text!r} is no moment: write 2026-11-20, 2026-11-20T18:30:00Z, or 2h for 2 hours ago",
            param_hint=option,
        ) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def _print(text: str) -> None:
    out.print(text, markup=False, highlight=False, soft_wrap=True)
