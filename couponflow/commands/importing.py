"""`couponflow merchants|offers|users import`."""

import contextlib
import itertools
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

import msgspec
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from couponflow.catalogue.importing import ImportProgress, ImportReport, import_file
from couponflow.catalogue.rejects import read_rejects
from couponflow.catalogue.store import Kind
from couponflow.commands.support import WORK_FAILED, err, out, print_json, read_settings, run_async
from couponflow.config import Settings
from couponflow.kernel.postgres import open_current_postgres, open_unchanged_postgres

_REJECTS_SHOWN = 20
_REJECTS_IN_JSON = 1_000


def import_command(
    config: Path | None,
    kind: Kind,
    file: Path,
    *,
    dry_run: bool,
    rejects: Path | None,
    as_json: bool,
) -> None:
    settings = read_settings(config, quiet=True)
    passing = dry_run and rejects is None
    with contextlib.ExitStack() as stack:
        if passing:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="couponflow-"))
            place = Path(folder, "rejects.csv")
        else:
            place = rejects or _rejects_place(kind, file)
        report = run_async(
            partial(_import, settings, kind, file, file.stat().st_size, dry_run, place)
        )
        _report(report, passing=passing, as_json=as_json)
    if report.read and report.rejected == report.read:
        sys.exit(WORK_FAILED)


def _rejects_place(kind: Kind, file: Path) -> Path:
    """Beside the file, or in the current folder if that is no place to write to."""
    if file.is_relative_to("/dev") or file.is_relative_to("/proc"):
        return Path(f"{kind}.rejects.csv")
    beside = file.with_name(file.name + ".rejects.csv")
    return beside if os.access(file.parent, os.W_OK) else Path(beside.name)


def _report(report: ImportReport, *, passing: bool, as_json: bool) -> None:
    """Print what became of the rows; a `passing` rejects file is shown, and not named."""
    if as_json:
        shown = _read_some(report, _REJECTS_IN_JSON)
        named = msgspec.structs.replace(report, rejects=None) if passing else report
        print_json({"report": named, "first_rejects": shown})
        return
    _show(report)
    if report.rejects is not None and not passing:
        out.print(f"Rejected rows are in {report.rejects}", highlight=False, soft_wrap=True)


async def _import(
    settings: Settings, kind: Kind, file: Path, size: int, dry_run: bool, rejects: Path
) -> ImportReport:
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[rows]:,} rows, {task.fields[rejected]:,} rejected"),
        TimeRemainingColumn(),
        console=err,
        disable=not err.is_terminal,
        transient=True,
    )
    opened = open_unchanged_postgres if dry_run else open_current_postgres
    async with opened(settings) as database:
        with progress:
            bar = progress.add_task("reading", total=size, rows=0, rejected=0)

            def show(state: ImportProgress) -> None:
                progress.update(
                    bar,
                    description=state.phase,
                    completed=state.bytes_read,
                    rows=state.rows,
                    rejected=state.rejected,
                )

            return await import_file(
                kind, file, database, dry_run=dry_run, rejects=rejects, progress=show
            )


def _show(report: ImportReport) -> None:
    would = "would be " if report.dry_run else ""
    out.print(
        f"{report.kind}: {report.read:,} rows read, {would}{report.inserted:,} inserted, "
        f"{report.updated:,} updated, {report.unchanged:,} unchanged, {report.rejected:,} rejected",
        highlight=False,
        soft_wrap=True,
    )
    limit = report.rejected if report.dry_run else _REJECTS_SHOWN
    for line, reason in _read_some(report, limit):
        out.print(f"  line {line}: {reason}", markup=False, highlight=False, soft_wrap=True)
    if report.rejected > limit:
        out.print(f"  ... and {report.rejected - limit:,} more")


def _read_some(report: ImportReport, limit: int) -> list[tuple[int, str]]:
    if report.rejects is None:
        return []
    rows = itertools.islice(read_rejects(report.rejects), limit)
    return [(row.line, row.reason) for row in rows]
