"""What all commands share: settings, the event loop, and errors as one clear text."""

import errno
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NoReturn, TypeVar

import anyio
import msgspec
import psycopg
from rich.console import Console

from couponflow.catalogue.errors import ImportFailed, ImportRefused
from couponflow.config import Settings
from couponflow.config_loading import ConfigurationInvalid, load_settings
from couponflow.config_rules import settings_warnings
from couponflow.kernel.crash_points import VARIABLE, CrashPointUnknown, arm
from couponflow.kernel.database import DatabaseAway, DatabaseUrlBroken
from couponflow.kernel.embedded_postgres import EmbeddedPostgresFailed
from couponflow.kernel.error_text import primary_message
from couponflow.kernel.http import PortUnavailable
from couponflow.kernel.journal import JournalLocked
from couponflow.kernel.migrations import (
    DatabaseNewerThanCode,
    MigrationChanged,
    MigrationFailed,
    MigrationFilesBroken,
    MigrationLocked,
)
from couponflow.kernel.postgres import DatabaseMissing, SchemaNotCurrent
from couponflow.kernel.telemetry import configure_logging
from couponflow.kernel.tokens import TokenKeyBroken
from couponflow.roles import RolesInvalid
from couponflow.webhooks.contract import SendersInvalid

T = TypeVar("T")

WRONG_USAGE = 2
WORK_FAILED = 1

_FOR_THE_OPERATOR = (
    DatabaseAway,
    DatabaseMissing,
    DatabaseNewerThanCode,
    DatabaseUrlBroken,
    EmbeddedPostgresFailed,
    ImportFailed,
    ImportRefused,
    JournalLocked,
    MigrationChanged,
    MigrationFailed,
    MigrationFilesBroken,
    MigrationLocked,
    PortUnavailable,
    SchemaNotCurrent,
    SendersInvalid,
    TokenKeyBroken,
    psycopg.Error,
)
"""Errors whose text says what happened and what to do: a traceback would hide it."""
_DISK_REFUSES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

out = Console()
err = Console(stderr=True)


def fail(text: str, code: int = WORK_FAILED) -> NoReturn:
    """End the command with an error for a person."""
    err.print(f"[bold red]error:[/] {_escaped(text)}", soft_wrap=True, highlight=False)
    sys.exit(code)


def read_settings(config: Path | None, *, quiet: bool = False) -> Settings:
    """The settings, with logging set up; ends the command with every problem there is.

    `quiet` logs warnings only: for commands whose output is the answer.
    """
    try:
        settings = load_settings(config, os.environ)
    except ConfigurationInvalid as error:
        fail(str(error), WRONG_USAGE)
    try:
        arm(os.environ.get(VARIABLE, ""))
    except CrashPointUnknown as error:
        fail(str(error), WRONG_USAGE)
    level = settings.log.level
    configure_logging("warning" if quiet and level == "info" else level, settings.log.format)
    for warning in settings_warnings(settings):
        err.print(f"[yellow]warning:[/] {_escaped(warning)}", soft_wrap=True, highlight=False)
    return settings


def run_async(work: Callable[[], Awaitable[T]]) -> T:
    """Run a command's work on uvloop; errors meant for the operator end it with their text."""
    try:
        return anyio.run(work, backend_options={"use_uvloop": True})
    except RolesInvalid as error:
        fail(str(error), WRONG_USAGE)
    except (*_FOR_THE_OPERATOR, OSError) as error:
        if not _is_for_the_operator(error):
            raise
        fail(_text_of(error))
    except BaseExceptionGroup as group:
        wanted, others = group.split(_is_for_the_operator)
        if wanted is None or others is not None:
            raise
        fail("; ".join(_text_of(error) for error in _leaves(wanted)))
    except KeyboardInterrupt:
        fail("interrupted", 130)


def print_json(content: object) -> None:
    """Print one JSON document."""
    encoded = msgspec.json.encode(content, enc_hook=str)
    sys.stdout.write(msgspec.json.format(encoded, indent=2).decode() + "\n")


def _is_for_the_operator(error: BaseException) -> bool:
    """A file or disk that refuses is theirs to mend; any other `OSError` is a fault of ours."""
    if isinstance(error, OSError):
        return error.filename is not None or error.errno in _DISK_REFUSES
    return isinstance(error, _FOR_THE_OPERATOR)


def _text_of(error: BaseException) -> str:
    if isinstance(error, psycopg.Error):
        # Its whole text quotes rows, over several lines.
        return f"PostgreSQL refused: {' '.join(primary_message(error).split())}"
    if not isinstance(error, OSError):
        return str(error)
    where = "the disk" if error.filename is None else os.fsdecode(error.filename)
    return (
        f"{where} cannot be used: {error.strerror}; mend that, or set COUPONFLOW_VAR_DIR to a "
        "folder that can be written to"
    )


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")
