"""The data folder of the embedded PostgreSQL: whose it is, what fits it, and how it is made."""

import contextlib
import fcntl
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import anyio

from couponflow.kernel.child_process import ChildNotStarted, end, ended, spawn
from couponflow.kernel.postgres_binaries import (
    Binaries,
    EmbeddedPostgresFailed,
    installed_binaries,
)
from couponflow.kernel.postgres_log import PostgresLog
from couponflow.kernel.privileges import (
    Account,
    NoCapability,
    capability_to_pass,
    closed_folders,
    nobody,
)

SUPERUSER = "couponflow"

_INITDB_SECONDS = 120.0
_LOCK_POLL_SECONDS = 0.05
_INITDB_ARGUMENTS = (
    f"--username={SUPERUSER}",
    "--auth=trust",
    "--encoding=UTF8",
    "--locale=C",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
    "--wal-segsize=4",
    "--no-instructions",
)


def is_made(data: Path) -> bool:
    """Tell whether `data` holds a database, as against being absent or empty."""
    try:
        (data / "PG_VERSION").stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def owner_of(data: Path) -> tuple[int, int]:
    """Return the user and group id PostgreSQL must run as: whoever has the data, or will.

    Root makes new data `nobody`'s, since PostgreSQL refuses to run as root.
    """
    ours = os.geteuid()
    if not data.exists():
        return nobody() if ours == 0 else (ours, os.getegid())
    status = data.stat()
    if ours not in (0, status.st_uid):
        raise EmbeddedPostgresFailed(
            f"{data} belongs to user id {status.st_uid}, and this is user id {ours}; "
            "run couponflow as that user, or set COUPONFLOW_VAR_DIR to a folder of your own"
        )
    if status.st_uid != 0:
        return status.st_uid, status.st_gid
    if is_made(data):
        raise EmbeddedPostgresFailed(
            f"{data} belongs to root, and PostgreSQL refuses to run as root; "
            f"give it away with: chown -R nobody {data}"
        )
    return nobody()


def binaries_for(data: Path) -> Binaries:
    """Return the binaries that can open `data`, or the newest for data not made yet."""
    installed = installed_binaries()
    if not is_made(data):
        return installed[0]
    needed = (data / "PG_VERSION").read_text().strip()
    for binaries in installed:
        if str(binaries.major) == needed:
            return binaries
    offered = " and ".join(str(binaries.major) for binaries in installed)
    raise EmbeddedPostgresFailed(
        f"{data} was made by PostgreSQL {needed}, but the installed binaries are of PostgreSQL "
        f"{offered}; install the couponflow that made it, dump the data there and load it here, "
        "or set DATABASE_URL"
    )


def account_for(data: Path, owner: tuple[int, int], binaries: Binaries) -> Account | None:
    """Return the account to change to, None when that is who we are."""
    if os.geteuid() != 0:
        return None
    programs = (binaries.postgres, binaries.initdb)
    to_execute = not all(program.stat().st_mode & 0o001 for program in programs)
    try:
        capability = capability_to_pass(closed_folders((data, *programs)), to_execute=to_execute)
    except NoCapability as error:
        raise EmbeddedPostgresFailed(
            f"PostgreSQL must not run as root, and no other user gets to its files: {error}; put "
            "the checkout and COUPONFLOW_VAR_DIR where others may pass, or set DATABASE_URL"
        ) from error
    return Account(*owner, capability)


async def make_if_missing(
    data: Path, binaries: Binaries, account: Account | None, log: PostgresLog
) -> None:
    """Make the data folder, whole or not at all; several processes may try at once."""
    if is_made(data):
        return
    async with _making(data):
        if is_made(data):
            return
        fresh = _fresh_folder(data, account)
        await _initdb(fresh, binaries, account, log)
        fresh.rename(data)


def _fresh_folder(data: Path, account: Account | None) -> Path:
    if data.exists() and any(data.iterdir()):
        raise EmbeddedPostgresFailed(
            f"{data} holds files but no PostgreSQL database; move them away, "
            "or set COUPONFLOW_VAR_DIR to another folder"
        )
    # What a kill during initdb leaves behind is only this folder.
    fresh = data.with_name(data.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    if account is not None:
        os.chown(fresh, account.uid, account.gid)
    return fresh


async def _initdb(
    fresh: Path, binaries: Binaries, account: Account | None, log: PostgresLog
) -> None:
    log.mark()
    command = [binaries.initdb, "-D", fresh, *_INITDB_ARGUMENTS]
    try:
        with log.appending() as errors:
            process = spawn(command, account, signal.SIGTERM, errors)
    except ChildNotStarted as error:
        raise _not_made(fresh, f"{error} {log.tail()}") from error
    try:
        if not await ended(process, _INITDB_SECONDS):
            raise _not_made(fresh, f"initdb has not ended within {_INITDB_SECONDS:.0f} s")
    finally:
        await end(process, [(signal.SIGTERM, 2.0), (signal.SIGKILL, 2.0)])
    if process.returncode != 0:
        raise _not_made(fresh, log.tail())


def _not_made(fresh: Path, cause: str) -> EmbeddedPostgresFailed:
    return EmbeddedPostgresFailed(
        f"PostgreSQL could not make its data folder {fresh}: {cause}\n"
        "Check the disk's free space and the folder's owner, or set DATABASE_URL."
    )


@contextlib.asynccontextmanager
async def _making(data: Path) -> AsyncIterator[None]:
    """Hold the lock under which the data folder is made; it ends with the process, too."""
    path = data.with_name(data.name + ".lock")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with anyio.move_on_after(_INITDB_SECONDS) as waiting:
            while not _locked(descriptor):  # noqa: ASYNC110 - another process sets no event of ours
                await anyio.sleep(_LOCK_POLL_SECONDS)
        if waiting.cancelled_caught:
            raise EmbeddedPostgresFailed(
                f"another process has been making {data} for {_INITDB_SECONDS:.0f} s; "
                "end it, then start again"
            )
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
