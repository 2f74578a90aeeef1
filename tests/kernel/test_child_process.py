import signal
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from couponflow.kernel.child_process import ChildNotStarted, end, ended, spawn

POLL_SECONDS = 0.01

STUBBORN = """
import signal, sys, time
signal.signal(signal.SIGINT, lambda *_: print("I stay", file=sys.stderr, flush=True))
print("ready", file=sys.stderr, flush=True)
while True:
    time.sleep(60)
"""


def start(code: str, errors: Path) -> subprocess.Popen[bytes]:
    with errors.open("wb") as file:
        return spawn([sys.executable, "-c", code], None, signal.SIGKILL, file)


async def until_says(errors: Path, word: str) -> None:
    with anyio.fail_after(20):
        while word not in await anyio.Path(errors).read_text():  # noqa: ASYNC110 - a file sets no event
            await anyio.sleep(POLL_SECONDS)


async def test_a_child_that_ignores_the_first_signal_gets_the_next(tmp_path: Path) -> None:
    errors = tmp_path / "errors"
    child = start(STUBBORN, errors)
    await until_says(errors, "ready")
    await end(child, [(signal.SIGINT, 0.2), (signal.SIGTERM, 20.0), (signal.SIGKILL, 20.0)])
    assert child.returncode == -signal.SIGTERM
    assert "I stay" in errors.read_text()


async def test_ending_is_not_cut_short_by_a_cancellation(tmp_path: Path) -> None:
    child = start("import time; time.sleep(60)", tmp_path / "errors")
    with anyio.CancelScope() as scope:
        scope.cancel()
        await end(child, [(signal.SIGKILL, 20.0)])
    assert child.returncode == -signal.SIGKILL


async def test_waiting_for_an_end_has_a_limit(tmp_path: Path) -> None:
    child = start("import time; time.sleep(60)", tmp_path / "errors")
    assert not await ended(child, within_seconds=0.05)
    await end(child, [(signal.SIGKILL, 20.0)])
    assert await ended(child, within_seconds=0.05)


def test_a_child_is_given_nothing_of_our_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPORT", "1")
    errors = tmp_path / "errors"
    code = "import os, sys; print(sorted(os.environ), file=sys.stderr)"
    assert start(code, errors).wait(20) == 0
    assert errors.read_text().strip() == "['LC_ALL', 'PATH', 'TZ']"


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with (
        (tmp_path / "errors").open("wb") as errors,
        pytest.raises(ChildNotStarted, match="/no/such/program cannot be run"),
    ):
        spawn(["/no/such/program"], None, signal.SIGTERM, errors)
