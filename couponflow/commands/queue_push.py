"""`couponflow queue push`."""

import itertools
import os
import stat
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec
from anyio import to_thread
from rich.progress import BarColumn, Progress, TextColumn

from couponflow.admin.store import submit, submit_many
from couponflow.admin.submissions import (
    Submission,
    SubmissionOptions,
    checked_key,
    decode_message,
    message_types_of,
    parse_moment,
)
from couponflow.commands.operator import operator
from couponflow.commands.support import (
    WORK_FAILED,
    WRONG_USAGE,
    err,
    fail,
    out,
    print_json,
    read_settings,
    run_async,
)
from couponflow.config import Settings
from couponflow.kernel.api import ProblemError
from couponflow.kernel.outbox import Outgoing
from couponflow.kernel.postgres import open_unchanged_postgres
from couponflow.messages import CHANNELS, MessageTypes

BATCH_LINES = 500
BAD_LINES_SHOWN = 20


class BadLine(msgspec.Struct, frozen=True):
    """A line that is no message of the channel."""

    line: int
    reason: str


class LinesPushed(msgspec.Struct, frozen=True):
    """What became of a file of messages: all were published, or none."""

    pushed: int
    bad: int
    first_bad: list[BadLine]


class _LinesBad(Exception):
    """Rolls back what was published before the bad line was met."""


def queue_push_command(
    config: Path | None,
    channel: str,
    text: str,
    *,
    at: str | None,
    dedup_key: str | None,
    as_json: bool,
) -> None:
    settings = read_settings(config, quiet=True)
    try:
        types = message_types_of(channel, CHANNELS)
        options = SubmissionOptions(
            available_at=None if at is None else parse_moment(at),
            dedup_key=None if dedup_key is None else checked_key(dedup_key, "--dedup-key"),
        )
        message = decode_message(
            sys.stdin.buffer.read() if text == "-" else os.fsencode(text), types
        )
    except ProblemError as error:
        fail(error.detail, WRONG_USAGE)
    submission = Submission(message=message, options=options, actor=operator())
    run_async(partial(_push, settings, submission, as_json=as_json))


async def _push(settings: Settings, submission: Submission, *, as_json: bool) -> None:
    async with open_unchanged_postgres(settings) as database:
        try:
            submitted, _ = await submit(database, submission)
        except ProblemError as error:
            fail(error.detail)
    if as_json:
        print_json(submitted)
    elif submitted.deduplicated:
        out.print(f"waits already as {submitted.message_id}", highlight=False)
    else:
        out.print(submitted.message_id, highlight=False)


def queue_push_lines_command(
    config: Path | None, channel: str, *, at: str | None, as_json: bool
) -> None:
    settings = read_settings(config, quiet=True)
    try:
        types = message_types_of(channel, CHANNELS)
        available_at = None if at is None else parse_moment(at)
    except ProblemError as error:
        fail(error.detail, WRONG_USAGE)
    report = run_async(partial(_push_lines, settings, types, available_at))
    if as_json:
        print_json(report)
    else:
        _show(report)
    if report.bad:
        sys.exit(WORK_FAILED)


async def _push_lines(
    settings: Settings, types: MessageTypes, available_at: float | None
) -> LinesPushed:
    lines = _Lines(types, available_at)
    channel = types[0].channel
    pushed = 0
    async with open_unchanged_postgres(settings) as database:
        try:
            with _progress() as progress:
                bar = progress.add_task("pushing", total=_stdin_bytes(), lines=0)
                async with database.transaction() as connection:
                    while (batch := await to_thread.run_sync(lines.next_batch)) is not None:
                        pushed += await submit_many(connection, operator(), channel, batch)
                        progress.update(bar, completed=lines.bytes_read, lines=lines.number)
                    if lines.bad:
                        raise _LinesBad
        except _LinesBad:
            return LinesPushed(0, lines.bad, lines.first_bad)
    return LinesPushed(pushed, 0, [])


class _Lines:
    """Standard input, a batch of messages at a time; bad lines are counted and kept out."""

    def __init__(self, types: MessageTypes, available_at: float | None) -> None:
        self._types = types
        self._available_at = available_at
        self.number = 0
        self.bytes_read = 0
        self.bad = 0
        self.first_bad: list[BadLine] = []

    def next_batch(self) -> list[Outgoing] | None:
        """The messages of the next lines, or None when there are none left."""
        read = list(itertools.islice(sys.stdin.buffer, BATCH_LINES))
        return list(self._messages(read)) if read else None

    def _messages(self, read: list[bytes]) -> Iterator[Outgoing]:
        for line in read:
            self.number += 1
            self.bytes_read += len(line)
            if not line.strip():
                continue
            try:
                message = decode_message(line, self._types)
            except ProblemError as error:
                self.bad += 1
                if len(self.first_bad) < BAD_LINES_SHOWN:
                    self.first_bad.append(BadLine(self.number, error.detail))
            else:
                yield Outgoing(message=message, available_at=self._available_at)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[lines]:,} lines"),
        console=err,
        disable=not err.is_terminal,
        transient=True,
    )


def _stdin_bytes() -> int | None:
    """How much there is to read, where that can be known."""
    status = os.fstat(sys.stdin.fileno())
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _show(report: LinesPushed) -> None:
    if not report.bad:
        out.print(f"{report.pushed:,} messages pushed", highlight=False)
        return
    for bad in report.first_bad:
        err.print(f"line {bad.line}: {bad.reason}", markup=False, highlight=False, soft_wrap=True)
    if report.bad > len(report.first_bad):
        err.print(f"... and {report.bad - len(report.first_bad):,} more")
    err.print("Nothing was pushed: mend these lines and push the file again.", highlight=False)
