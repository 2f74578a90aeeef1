"""Programs that run beside the daemon, and never longer than it."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from signal import Signals
from typing import BinaryIO

import anyio

from couponflow.kernel.privileges import Account, child_setup

ENVIRONMENT = {"LC_ALL": "C", "PATH": os.defpath, "TZ": "UTC"}
"""What a child is given of the environment: nothing of ours, for a PGPORT there would bend it."""

_POLL_SECONDS = 0.01


class ChildNotStarted(Exception):
    """A program could not be run; what it wrote to `errors`, if anything, says more."""


def spawn(
    command: Sequence[str | Path], account: Account | None, death_signal: Signals, errors: BinaryIO
) -> subprocess.Popen[bytes]:
    """Run `command` as `account`, in a session of its own; call it from the main thread.

    Ctrl-C in the terminal does not reach it: the daemon ends it when it has no more need of it.
    If the daemon is killed, the child gets `death_signal` (on Linux).
    """
    try:
        return subprocess.Popen(  # noqa: S603 - our own programs, with arguments of ours
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            cwd="/",
            env=ENVIRONMENT,
            start_new_session=True,
            preexec_fn=child_setup(account, death_signal),
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ChildNotStarted(f"{command[0]} cannot be run: {error}") from error


async def ended(process: subprocess.Popen[bytes], within_seconds: float) -> bool:
    """Wait for `process` to end; tell whether it has."""
    # Popen tells of no end unless asked, and uvloop's own subprocesses refuse a user of their own.
    with anyio.move_on_after(within_seconds):
        while process.poll() is None:  # noqa: ASYNC110
            await anyio.sleep(_POLL_SECONDS)
    return process.returncode is not None


async def end(process: subprocess.Popen[bytes], signals: Sequence[tuple[Signals, float]]) -> None:
    """Send each signal in turn and give it its seconds, until `process` has ended and is reaped."""
    with anyio.CancelScope(shield=True):
        for number, seconds in signals:
            if process.poll() is None:
                process.send_signal(number)
                await ended(process, seconds)
