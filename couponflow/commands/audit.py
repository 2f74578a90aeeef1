"""`couponflow audit`."""

import sys
from functools import partial
from pathlib import Path

from rich.table import Table

from couponflow.commands.support import WORK_FAILED, err, out, print_json, read_settings, run_async
from couponflow.config import Settings
from couponflow.invariants import INVARIANTS
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
        scope = AuditScope(
            database,
            settings.var_path,
            partial(_streamed, settings),
            settings.outbox.done_days,
        )
        return await run_audit(INVARIANTS, scope)


async def _streamed(settings: Settings, channel: str) -> list[bytes]:
    """What a stream holds; of a Redis that does not answer, nothing."""
    if not settings.redis.url:
        return []
    # Here and not above: coredis takes most of a second to import.
    from couponflow.kernel.redis_audit import streamed_messages
    from couponflow.kernel.redis_client import RedisAway

    try:
        return await streamed_messages(settings.redis, channel)
    except RedisAway as error:
        err.print(f"what is on its way counts as missing: {error}", style="yellow", markup=False)
        return []


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
