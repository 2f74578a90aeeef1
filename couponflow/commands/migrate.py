"""`couponflow migrate`."""

from functools import partial
from pathlib import Path

from rich.table import Table

from couponflow.commands.support import out, print_json, read_settings, run_async
from couponflow.config import Settings
from couponflow.kernel.migrations import Migration, MigrationState, migrate, migration_status
from couponflow.kernel.postgres import open_existing_postgres, open_postgres


def migrate_command(config: Path | None, *, status: bool, as_json: bool) -> None:
    settings = read_settings(config, quiet=True)
    if status:
        _show_status(run_async(partial(_status, settings)), as_json=as_json)
    else:
        _show_applied(run_async(partial(_migrate, settings)), as_json=as_json)


async def _migrate(settings: Settings) -> list[Migration]:
    async with open_postgres(settings) as database:
        return await migrate(database.url)


async def _status(settings: Settings) -> list[MigrationState]:
    async with open_existing_postgres(settings) as database:
        return await migration_status(database.url)


def _show_applied(applied: list[Migration], *, as_json: bool) -> None:
    if as_json:
        print_json({"applied": [migration.name for migration in applied]})
        return
    for migration in applied:
        out.print(f"applied {migration.name}")
    if not applied:
        out.print("The schema is up to date.")


def _show_status(states: list[MigrationState], *, as_json: bool) -> None:
    if as_json:
        print_json({"migrations": states})
        return
    table = Table("migration", "applied")
    for state in states:
        applied = f"{state.applied_at:%Y-%m-%d %H:%M:%S %Z}" if state.applied_at else "pending"
        table.add_row(state.name, applied)
    out.print(table)
