"""Where a data folder's PostgreSQL listens, and whether one is up on it."""

import hashlib
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from couponflow.kernel.postgres_binaries import EmbeddedPostgresFailed
from couponflow.kernel.postgres_data import SUPERUSER
from couponflow.kernel.privileges import Account

PORT = 5432
"""Only the name of the socket file: nothing listens on TCP."""

_SOCKET_PATH_MAX_BYTES = 100  # the kernel's limit is 104 to 108, by system
_POSTMASTER_PID_LINES = 8


@dataclass(frozen=True, slots=True)
class RunningServer:
    """What `postmaster.pid` says of a server whose process is alive."""

    pid: int
    sockets: Path
    ready: bool


def running_server(data: Path) -> RunningServer | None:
    """Return the server that is up on `data`, starting ones included.

    After a crash the file stays, and its process id may be somebody else's by now: connect before
    you believe it.
    """
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return None
    if len(lines) < _POSTMASTER_PID_LINES or not lines[0].isdecimal():
        return None
    pid = int(lines[0])
    return RunningServer(pid, Path(lines[4]), lines[7].strip() == "ready") if _alive(pid) else None


def url_of(sockets: Path) -> str:
    """Return the URL of the server that listens in the folder `sockets`."""
    return f"postgresql://{SUPERUSER}@/postgres?host={quote(str(sockets))}&port={PORT}"


def socket_folder(data: Path, account: Account | None) -> Path:
    """Return the folder for the server's socket: `data` itself, unless its path is too long.

    Then it is a folder in the system's temporary one, named after `data` so that every process
    finds the same, and private to PostgreSQL's account.
    """
    if len(os.fsencode(data / f".s.PGSQL.{PORT}")) <= _SOCKET_PATH_MAX_BYTES:
        return data
    digest = hashlib.sha256(os.fsencode(data)).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"couponflow-{digest}"
    uid = os.geteuid() if account is None else account.uid
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        pass
    else:
        if account is not None:
            os.chown(folder, account.uid, account.gid)
    # Anybody may have made it first: in a folder of theirs they could pose as our server.
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != uid or status.st_mode & 0o077:
        raise EmbeddedPostgresFailed(
            f"{folder} is to hold PostgreSQL's socket, because the path of {data} is too long for "
            f"one, but it is not a private folder of user id {uid}; remove it, or set "
            "COUPONFLOW_VAR_DIR to a shorter path"
        )
    return folder


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # alive, and another user's
        return True
    return True
