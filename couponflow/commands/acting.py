"""Acting on whatever matches: say how many that is, ask, act, and tell what came of it."""

import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import click
import msgspec
from rich import progress as rich_progress
from rich.table import Table

from couponflow.commands.plain_text import print_plain
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
from couponflow.kernel.database import Connection, Database
from couponflow.kernel.postgres import open_unchanged_postgres
from couponflow.kernel.replays import Left, Progress, Replayed

_LEFT_SHOWN = 20


class Counts(Protocol):
    """How many match."""

    @property
    def total(self) -> int: ...


C = TypeVar("C", bound=Counts)
R = TypeVar("R")
L = TypeVar("L", bound=Left)


class Acted(msgspec.Struct, Generic[C, R], frozen=True, kw_only=True):
    """What matched, and what became of it; no report says that nothing was touched."""

    dry_run: bool
    matching: C
    report: R | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Action(Generic[C, R]):
    """What a command does to what matches, and how it tells of it."""

    verb: str
    things: str
    count: Callable[[Connection], Awaitable[C]]
    table: Callable[[C], Table]
    """The counts for people, where anything matches."""
    act: Callable[[Database, int, Progress], Awaitable[R]]
    """Is told how many somebody agreed to."""
    print_report: Callable[[R], None]
    nothing_matches: str | None
    """The error that it is when nothing matches; None where it is none."""
    check: Callable[[Settings], None] = lambda _: None
    """Ends the command if what it is asked for cannot be meant."""
    remarks: Callable[[C], Sequence[str]] = lambda _: ()
    """What else there is to say of the counts, a line each."""

    def some(self, count: int) -> str:
        """So many of the things, as people write it."""
        return f"{count:,} {self.things.removesuffix('s') if count == 1 else self.things}"


def act_on_matching(
    config: Path | None, action: Action[C, R], *, yes: bool, dry_run: bool, as_json: bool
) -> None:
    """Do it once somebody agreed; ends with exit code 1 if a replay could replay nothing."""
    if not (yes or dry_run or sys.stdin.isatty()):
        raise click.UsageError(
            f"nobody is here to confirm: add --yes to {action.verb}, or --dry-run"
        )
    settings = read_settings(config, quiet=True)
    action.check(settings)
    counts = run_async(partial(_count, settings, action))
    if not counts.total and action.nothing_matches is not None:
        fail("; ".join((action.nothing_matches, *action.remarks(counts))))
    if not as_json:
        _print_counts(action, counts)
    report: R | None = None
    if counts.total and not dry_run:
        question = f"{action.verb.capitalize()} {action.some(counts.total)}?"
        if not yes and not click.confirm(question, err=True):
            fail("not confirmed; nothing was changed")
        report = run_async(partial(_act, settings, action, counts.total))
    if as_json:
        print_json(Acted(dry_run=dry_run, matching=counts, report=report))
    elif report is not None:
        action.print_report(report)
    if isinstance(report, Replayed) and report.left and not report.replayed:
        sys.exit(WORK_FAILED)


def print_replayed(report: Replayed[L]) -> None:
    """Print what became of everything, and the reasons of the first that were left."""
    print_plain(
        f"{report.replayed:,} replayed, {report.refused:,} refused, {report.skipped:,} skipped"
    )
    for left in report.left[:_LEFT_SHOWN]:
        print_plain(f"  {left.id} {left.outcome}: {left.reason}")
    others = report.refused + report.skipped - _LEFT_SHOWN
    if others > 0:
        print_plain(f"  ... and {others:,} more")


async def _count(settings: Settings, action: Action[C, R]) -> C:
    async with open_unchanged_postgres(settings) as database, database.connection() as connection:
        return await action.count(connection)


async def _act(settings: Settings, action: Action[C, R], expected: int) -> R:
    async with open_unchanged_postgres(settings) as database:
        with _progress_bar(action.things, expected) as progress:
            return await action.act(database, expected, progress)


@contextmanager
def _progress_bar(things: str, total: int) -> Iterator[Progress]:
    bar = rich_progress.Progress(
        rich_progress.TextColumn(things),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TimeRemainingColumn(),
        console=err,
        disable=not err.is_terminal,
        transient=True,
    )
    with bar:
        task = bar.add_task("", total=total)
        yield lambda seen: bar.update(task, completed=seen)


def _print_counts(action: Action[C, R], counts: C) -> None:
    if counts.total:
        out.print(action.table(counts))
        matched = "matches" if counts.total == 1 else "match"
        print_plain(f"{action.some(counts.total)} {matched}.")
    else:
        out.print(f"No {action.things} match.")
    for remark in action.remarks(counts):
        print_plain(remark)
