"""`couponflow merchants|offers|users import`."""

import itertools
from functools import partial
from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from couponflow.catalogue.importing import ImportProgress, ImportReport, import_file
from couponflow.catalogue.rejects import read_rejects
from couponflow.catalogue.store import Kind
from couponflow.commands.support import err, out, print_json, read_settings, run_async
from couponflow.config import Settings
from couponflow.kernel.postgres import open_current_postgres

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
    rejects = rejects or file.with_name(file.name + ".rejects.csv")
    report = run_async(
        partial(_import, settings, kind, file, file.stat().st_size, dry_run, rejects)
    )
    if as_json:
        shown = _read_some(report, _REJECTS_IN_JSON)
        print_json({"report": report, "first_rejects": shown})
    else:
        _show(report)


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
    async with open_current_postgres(settings) as database:
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
    if report.rejects is not None:
        out.print(f"Rejected rows are in {report.rejects}", highlight=False, soft_wrap=True)


def _read_some(report: ImportReport, limit: int) -> list[tuple[int, str]]:
    if report.rejects is None:
        return []
    rows = itertools.islice(read_rejects(report.rejects), limit)
    return [(row.line, row.reason) for row in rows]
