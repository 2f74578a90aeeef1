"""`couponflow check`: everything that can be wrong before a start, all at once."""

import fcntl
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path

import msgspec
from rich.table import Table

from couponflow.commands.support import WORK_FAILED, WRONG_USAGE, out, print_json, run_async
from couponflow.config import SENDER_SECTIONS, Settings
from couponflow.config_loading import (
    ConfigurationInvalid,
    DescribedSetting,
    describe_settings,
    load_with_sources,
)
from couponflow.config_rules import parse_bind, settings_warnings
from couponflow.kernel.database import DatabaseAway, DatabaseUrlBroken
from couponflow.kernel.http import Listener, PortUnavailable, require_available
from couponflow.kernel.migrations import (
    DatabaseNewerThanCode,
    MigrationChanged,
    MigrationFailed,
    MigrationFilesBroken,
    migration_status,
)
from couponflow.kernel.postgres_binaries import EmbeddedPostgresFailed, installed_binaries
from couponflow.redirect.audit import JOURNAL_FOLDER
from couponflow.roles import ROLES, RolesInvalid, parse_roles
from couponflow.webhooks.contract import SendersInvalid
from couponflow.worker_wiring import Senders

_RUNNING = "a daemon is running on this var folder"


class Check(msgspec.Struct, frozen=True):
    """One thing looked at."""

    name: str
    ok: bool
    detail: str


def check_command(config: Path | None, roles: str, *, as_json: bool) -> None:
    try:
        loaded = load_with_sources(config, os.environ)
    except ConfigurationInvalid as error:
        checks = [
            Check(problem.key, False, str(problem).removeprefix(f"{problem.key}: "))
            for problem in error.problems
        ]
        code = WRONG_USAGE
        described: list[DescribedSetting] = []
    else:
        described = describe_settings(loaded)
        checks = run_async(partial(_check_all, loaded.settings, roles))
        roles_ok = all(check.ok for check in checks if check.name == "roles")
        code = WORK_FAILED if roles_ok else WRONG_USAGE
    ok = all(check.ok for check in checks)
    if as_json:
        print_json({"ok": ok, "checks": checks, "settings": [row._asdict() for row in described]})
    else:
        _show(checks, described)
    if not ok:
        sys.exit(code)


async def _check_all(settings: Settings, roles: str) -> list[Check]:
    checks = [Check("configuration", True, "; ".join(settings_warnings(settings)))]
    chosen, roles_check = _check_roles(settings, roles)
    running = _daemon_runs(settings)
    checks += [
        roles_check,
        _check_folder(settings, running),
        *_check_ports(settings, chosen, running),
        _check_senders(settings),
    ]
    checks += [check async for check in _check_database(settings)]
    return checks + [check async for check in _check_redis(settings)]


def _check_roles(settings: Settings, roles: str) -> tuple[tuple[str, ...], Check]:
    """The roles to look at the rest for: all of them, if those named cannot run."""
    try:
        chosen = parse_roles(roles, in_memory=not settings.redis.url)
    except RolesInvalid as error:
        return tuple(ROLES), Check("roles", False, str(error))
    return chosen, Check("roles", True, ", ".join(chosen))


def _daemon_runs(settings: Settings) -> bool:
    """Whether a daemon holds this var folder's journal; its lock is free again at once."""
    try:
        lock = (settings.var_path / JOURNAL_FOLDER / "lock").open("rb")
    except OSError:
        return False
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _check_folder(settings: Settings, running: bool) -> Check:
    """The folder itself, or where it would be made."""
    folder = settings.var_path
    note = f"; {_RUNNING}" if running else ""
    existing = folder
    try:
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        with tempfile.NamedTemporaryFile(dir=existing):
            return Check("var_dir", True, f"{folder}{note}")
    except OSError as error:
        return Check("var_dir", False, f"{existing} cannot be written to: {error.strerror}")


def _check_ports(settings: Settings, chosen: Sequence[str], running: bool) -> list[Check]:
    listeners = [("[ops] bind", settings.ops.bind, settings.ops.server)]
    if "redirect" in chosen:
        redirect = settings.redirect
        listeners.insert(0, ("[redirect] bind", redirect.bind, redirect.server))
    if "webhooks" in chosen:
        listeners.append(("[webhooks] bind", settings.webhooks.bind, settings.webhooks.server))
    if "api" in chosen:
        listeners.append(("[api] bind", settings.api.bind, settings.api.server))
    checks = []
    for name, bind, server in listeners:
        listener = Listener(*parse_bind(bind), server)
        try:
            require_available(listener, shared=bool(settings.database.url))
        except PortUnavailable as error:
            # Then most likely that daemon listens there, and all is as it should be.
            note = f"{listener.address} is in use; {_RUNNING}"
            checks.append(Check(name, True, note) if running else Check(name, False, str(error)))
        else:
            checks.append(Check(name, True, listener.address))
    return checks


def _check_senders(settings: Settings) -> Check:
    """Who may send webhooks, and who is not set up."""
    try:
        senders = Senders(settings)
    except SendersInvalid as error:
        return Check("webhooks", False, str(error))
    off = [section for section in SENDER_SECTIONS if section not in senders.on]
    counts = {name: senders.live_secrets[name] for name in senders.on}
    on = ", ".join(
        f"{name} ({count} secret{'' if count == 1 else 's'})" for name, count in counts.items()
    )
    return Check(
        "webhooks",
        True,
        f"on: {on or 'none'}; off, for want of a secret: {', '.join(off) or 'none'}",
    )


async def _check_database(settings: Settings) -> AsyncIterator[Check]:
    if not settings.database.url:
        yield _check_embedded()
        return
    try:
        states = await migration_status(settings.database.url)
    except (
        DatabaseAway,
        DatabaseUrlBroken,
        DatabaseNewerThanCode,
        MigrationChanged,
        MigrationFailed,
        MigrationFilesBroken,
    ) as error:
        yield Check("database", False, str(error))
        return
    pending = sum(state.applied_at is None for state in states)
    yield Check("database", True, f"reachable; {pending} of {len(states)} migrations pending")


async def _check_redis(settings: Settings) -> AsyncIterator[Check]:
    if not settings.redis.url:
        return
    # Here and not above: coredis takes most of a second to import.
    from couponflow.kernel.redis_client import open_redis
    from couponflow.kernel.redis_review import review_redis

    async with open_redis(settings.redis) as redis:
        for problem in await review_redis(redis, settings.redis):
            yield Check("redis", problem.tolerable, problem.text)


def _check_embedded() -> Check:
    try:
        newest = installed_binaries()[0]
    except EmbeddedPostgresFailed as error:
        return Check("database", False, str(error))
    return Check("database", True, f"embedded PostgreSQL {newest.major}, in {newest.folder}")


def _show(checks: list[Check], described: list[DescribedSetting]) -> None:
    changed = [row for row in described if row.source != "default"]
    if changed:
        table = Table("setting", "value", "from", title="Not at its default", title_justify="left")
        for row in changed:
            table.add_row(row.key.replace("[", r"\["), row.value.replace("[", r"\["), row.source)
        out.print(table)
    for check in checks:
        mark = "[green]ok     [/]" if check.ok else "[bold red]problem[/]"
        name = check.name.replace("[", r"\[")
        detail = check.detail.replace("[", r"\[")
        out.print(f"{mark}  [bold]{name}[/]  {detail}", highlight=False, soft_wrap=True)
