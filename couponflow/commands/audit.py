"""`couponflow audit`."""

import sys
from functools import partial
from pathlib import Path

from rich.table import Table

from couponflow.commands.support import WORK_FAILED, out, print_json, read_settings, run_async
from couponflow.config import Settings
from couponflow.daemon import INVARIANTS
from couponflow.kernel.audit import AuditScope, Finding, run_audit
from couponflow.kernel.postgres import open_unchanged_postgres


def audit_command(config: Path | None, *, as_json: bool) -> None:
    settings = read_settings(config, quiet=True)
    findings = run_async(partial(_audit, settings))
    ok = all(finding.ok for finding in findings)
    if as_json:
        print_json({"ok": ok, "findings": findings})
    else:
        for finding in findings:
            _show(finding)
    if not ok:
        sys.exit(WORK_FAILED)


async def _audit(settings: Settings) -> list[Finding]:
    async with open_unchanged_postgres(settings) as database:
        return await run_audit(INVARIANTS, AuditScope(database, settings.var_path))


def _show(finding: Finding) -> None:
    mark = "[green]holds[/]" if finding.ok else "[bold red]BROKEN[/]"
    out.print(f"{mark}  [bold]{finding.name}[/]  {finding.proves}", highlight=False, soft_wrap=True)
    if finding.offenders:
        table = Table()
        for name in finding.offenders[0]:
            table.add_column(name, overflow="fold")
        for row in finding.offenders:
            table.add_row(*row.values())
        out.print(table)
