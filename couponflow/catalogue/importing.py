"""Importing a CSV file: bad rows are set aside with their reasons, good rows are taken.

An import is one transaction: every good row of the file is written, or, if it is killed or the
database goes away, none. Until it ends, redirects and reports see the old rows. The timeout of
statements is lifted for it.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from io import BufferedReader, TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar, assert_never

import anyio.lowlevel
import msgspec
import psycopg

from couponflow.catalogue.columns import match_columns
from couponflow.catalogue.csv_records import read_records
from couponflow.catalogue.errors import ImportFailed, ImportRefused
from couponflow.catalogue.intake import Intake
from couponflow.catalogue.plans import MerchantsPlan, OffersPlan, Plan, UsersPlan
from couponflow.catalogue.rejects import RejectsWriter, open_rejects
from couponflow.catalogue.store import (
    Kind,
    Written,
    begin_staging,
    compare,
    settle,
    try_import_lock,
    upsert,
)
from couponflow.kernel.clock import Clock, SystemClock
from couponflow.kernel.database import Connection, Database
from couponflow.kernel.identifiers import Uuid7Generator

R = TypeVar("R")

_RECORDS_A_CHUNK = 2_000
_PROGRESS_SECONDS = 0.1
_SYSTEM_CLOCK = SystemClock()


class ImportProgress(msgspec.Struct, frozen=True):
    """How far an import is: `reading` the file, then `writing` its rows to the tables."""

    phase: Literal["reading", "writing"]
    bytes_read: int
    bytes_total: int
    rows: int
    rejected: int


class ImportReport(msgspec.Struct, frozen=True):
    """What became of a file's rows: `read` is the sum of the other four counts.

    After a dry run, the counts say what an import would do now.
    """

    kind: Kind
    dry_run: bool
    read: int
    inserted: int
    updated: int
    unchanged: int
    rejected: int
    rejects: Path | None
    """The file of rejected rows (`read_rejects` reads it), if there are any."""


async def import_file(
    kind: Kind,
    path: Path,
    database: Database,
    *,
    dry_run: bool,
    rejects: Path,
    progress: Callable[[ImportProgress], None],
    clock: Clock = _SYSTEM_CLOCK,
) -> ImportReport:
    """Import a CSV file with a header; `rejects` is replaced, or removed if no row is rejected.

    Raises `ImportRefused` if the file as a whole cannot be imported, `ImportFailed` if PostgreSQL
    objects: nothing was changed. Raises `DatabaseAway` if it is gone: nothing was changed, unless
    it went in the commit itself. Importing the same file again is always safe.
    `progress` is called at most ten times a second, and at the end of each phase.
    """
    match kind:
        case "merchants":
            ids = Uuid7Generator()
            plan = MerchantsPlan(new_id=lambda: ids.make(clock.now()))
            return await _import(plan, path, database, dry_run, rejects, progress, clock)
        case "offers":
            return await _import(OffersPlan(), path, database, dry_run, rejects, progress, clock)
        case "users":
            return await _import(UsersPlan(), path, database, dry_run, rejects, progress, clock)
        case _:
            assert_never(kind)


async def _import(
    plan: Plan[R],
    path: Path,
    database: Database,
    dry_run: bool,
    rejects: Path,
    progress: Callable[[ImportProgress], None],
    clock: Clock,
) -> ImportReport:
    with _open_source(path, rejects) as source:
        records = read_records(source.text)
        header = next(records, None)
        select = match_columns(header, plan.columns)
        names = header.fields if header else ()
        with open_rejects(rejects, names) as rejected:
            reporter = _Reporter(progress, source, rejected, clock)
            intake = Intake(plan, select, len(names), rejected)
            try:
                async with database.transaction() as connection:
                    await _begin(connection, plan, dry_run)
                    while chunk := list(islice(records, _RECORDS_A_CHUNK)):
                        await intake.take(connection, chunk)
                        reporter.report(intake.read)
                    reporter.end_phase("reading", intake.read)
                    # A cancellation that has been asked for takes hold here, not in the commit.
                    await anyio.lowlevel.checkpoint()
                    written = await (compare if dry_run else upsert)(connection, plan.kind)
                    # Before the commit: rows must not be imported while their rejects are lost.
                    rejects_file = rejected.finish()
            except psycopg.Error as error:
                raise ImportFailed(
                    f"the database objected: {_words_of(error)}; nothing was changed"
                ) from error
            if not dry_run:
                await settle(database, plan.kind)
            reporter.end_phase("writing", intake.read)
            return _report(plan.kind, dry_run, intake, written, rejects_file)


def _words_of(error: psycopg.Error) -> str:
    parts = (error.diag.message_primary, error.diag.message_detail)
    return ": ".join(part.rstrip(".") for part in parts if part) or str(error)


def _report(
    kind: Kind, dry_run: bool, intake: Intake[R], written: Written, rejects: Path | None
) -> ImportReport:
    return ImportReport(
        kind=kind,
        dry_run=dry_run,
        read=intake.read,
        inserted=written.inserted,
        updated=written.updated,
        unchanged=intake.staged - written.inserted - written.updated,
        rejected=intake.read - intake.staged,
        rejects=rejects,
    )


async def _begin(connection: Connection, plan: Plan[R], dry_run: bool) -> None:
    if not dry_run and not await try_import_lock(connection, plan.kind):
        raise ImportRefused(
            f"another import of {plan.kind} is running on this database: wait until it has ended"
        )
    await begin_staging(connection, plan.kind, dry_run=dry_run)
    await plan.prepare(connection)


class _Source(msgspec.Struct, frozen=True):
    """The open file: its text, and its bytes for the progress."""

    text: TextIOWrapper
    binary: BufferedReader
    size: int

    def position(self) -> int:
        return self.binary.tell() if self.binary.seekable() else 0


@contextmanager
def _open_source(path: Path, rejects: Path) -> Generator[_Source]:
    if path.resolve() == rejects.resolve():
        raise ImportRefused(f"the rejects file must be another file than {path}")
    try:
        binary = path.open("rb")
    except OSError as error:
        raise ImportRefused(f"{path} cannot be read: {error.strerror}") from error
    with (
        binary,
        # "utf-8-sig" takes away the byte order mark that spreadsheets put first.
        TextIOWrapper(binary, "utf-8-sig", errors="surrogateescape", newline="") as text,
    ):
        yield _Source(text, binary, path.stat().st_size)


class _Reporter:
    """Calls `progress`, but not too often."""

    def __init__(
        self,
        progress: Callable[[ImportProgress], None],
        source: _Source,
        rejected: RejectsWriter,
        clock: Clock,
    ) -> None:
        self._progress = progress
        self._source = source
        self._rejected = rejected
        self._clock = clock
        self._last = clock.monotonic()

    def report(self, rows: int) -> None:
        now = self._clock.monotonic()
        if now - self._last >= _PROGRESS_SECONDS:
            self._last = now
            self.end_phase("reading", rows)

    def end_phase(self, phase: Literal["reading", "writing"], rows: int) -> None:
        self._progress(
            ImportProgress(
                phase=phase,
                bytes_read=self._source.position(),
                bytes_total=self._source.size,
                rows=rows,
                rejected=self._rejected.count,
            )
        )
