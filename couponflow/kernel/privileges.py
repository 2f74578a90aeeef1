"""Start a child process as a lesser account, able to reach its files, that dies with its parent.

PostgreSQL refuses to run as root, so root starts it under another account. That account cannot
pass through folders closed to others (root's own home, most often), so the child keeps one
capability that opens exactly those, and nothing else of root's.
"""

import contextlib
import ctypes
import os
import pwd
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from signal import Signals

DAC_OVERRIDE = 1
DAC_READ_SEARCH = 2

_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_SET_SECUREBITS = 28
_NO_SETUID_FIXUP = 4
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAPABILITY_VERSION_3 = 0x20080522

_IS_LINUX = sys.platform == "linux"
_libc = ctypes.CDLL(None, use_errno=True)


class NoCapability(Exception):
    """Files lie behind closed folders, and this process may not open them for another account."""


@dataclass(frozen=True, slots=True)
class Account:
    """Whom a child runs as."""

    uid: int
    gid: int
    capability: int | None = None
    """The one capability it keeps, to pass through folders that are closed to others."""


def nobody() -> tuple[int, int]:
    """Return the user and group id of the account that owns nothing."""
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:  # an image without an account database; the kernel's own number
        return 65534, 65534
    return entry.pw_uid, entry.pw_gid


def closed_folders(paths: Iterable[Path]) -> list[Path]:
    """Return the folders on the way to `paths` that others may not pass through."""
    found: dict[Path, None] = {}
    for path in paths:
        for folder in (*path.absolute().parents, *path.resolve().parents):
            if not folder.stat().st_mode & 0o001:
                found[folder] = None
    return list(found)


def capability_to_pass(closed: list[Path], *, to_execute: bool = False) -> int | None:
    """Choose the weakest capability that gets a child past `closed` folders, None without any.

    `to_execute` says that the program itself is closed to others, which takes a stronger one.
    """
    if not closed and not to_execute:
        return None
    permitted = _capability_set("CapPrm") & _capability_set("CapBnd")
    for capability in (DAC_OVERRIDE,) if to_execute else (DAC_READ_SEARCH, DAC_OVERRIDE):
        if permitted & (1 << capability):
            return capability
    raise NoCapability(
        "only this user may pass through " + ", ".join(str(folder) for folder in closed)
        if closed
        else "the program is closed to other users"
    )


def child_setup(account: Account | None, death_signal: Signals) -> Callable[[], None]:
    """Return a `preexec_fn` that becomes `account` and asks for `death_signal` when we die.

    The signal comes when the *thread* that forked ends, so fork from the main thread. Elsewhere
    than on Linux there is no such signal: the child outlives a killed parent.
    """
    parent = os.getpid()

    def set_up() -> None:
        try:
            if account is not None:
                _become(account)
            if _IS_LINUX:
                # Last, because a change of user or capabilities forgets it.
                _prctl(_PR_SET_PDEATHSIG, death_signal)
                if os.getppid() != parent:  # died before we asked
                    os._exit(1)
        except OSError as error:
            # All that subprocess itself passes on is that something failed.
            os.write(2, f"cannot become {account}: {error}\n".encode())
            raise

    return set_up


def _become(account: Account) -> None:
    os.setgroups([])
    os.setgid(account.gid)
    if account.capability is None:
        os.setuid(account.uid)
        return
    _prctl(_PR_SET_KEEPCAPS, 1)
    # Else access(2), by which initdb looks for its own programs, would ignore the capability.
    with contextlib.suppress(OSError):
        _prctl(_PR_SET_SECUREBITS, _NO_SETUID_FIXUP)
    os.setuid(account.uid)
    bit = 1 << account.capability
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    # Effective, permitted, inheritable of the low 32 capabilities, then of the high ones.
    sets = (ctypes.c_uint32 * 6)(bit, bit, bit, 0, 0, 0)
    if _libc.capset(header, sets) != 0:
        _raise_errno("capset")
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, account.capability)


def _prctl(option: int, first: int, second: int = 0) -> None:
    arguments = (ctypes.c_ulong(value) for value in (first, second, 0, 0))
    if _libc.prctl(ctypes.c_int(option), *arguments) != 0:
        _raise_errno(f"prctl {option}")


def _raise_errno(call: str) -> None:
    number = ctypes.get_errno()
    raise OSError(number, f"{call}: {os.strerror(number)}")


def _capability_set(name: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # not Linux
        return 0
    values = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return int(values[0], 16) if values else 0
