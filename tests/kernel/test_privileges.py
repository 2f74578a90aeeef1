import os
import subprocess
import sys
from pathlib import Path
from signal import SIGTERM

import pytest

from couponflow.kernel import privileges
from couponflow.kernel.privileges import (
    DAC_OVERRIDE,
    DAC_READ_SEARCH,
    Account,
    NoCapability,
    capability_to_pass,
    child_setup,
    closed_folders,
    nobody,
)

CLOSED = [Path("/closed")]


def may(monkeypatch: pytest.MonkeyPatch, *capabilities: int) -> None:
    """Make this process one that holds just these capabilities."""
    held = sum(1 << capability for capability in capabilities)
    monkeypatch.setattr(privileges, "_capability_set", lambda _: held)


def test_the_folders_that_others_may_not_pass_are_found(tmp_path: Path) -> None:
    inner = tmp_path / "closed" / "open"
    inner.mkdir(parents=True)
    (tmp_path / "closed").chmod(0o700)
    inner.chmod(0o711)
    assert tmp_path / "closed" in closed_folders([inner / "file"])
    assert inner not in closed_folders([inner / "file"])


def test_a_closed_folder_behind_a_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "closed" / "target").mkdir(parents=True)
    (tmp_path / "closed").chmod(0o700)
    (tmp_path / "link").symlink_to(tmp_path / "closed" / "target")
    assert tmp_path / "closed" in closed_folders([tmp_path / "link" / "file"])


def test_without_closed_folders_no_capability_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    may(monkeypatch)
    assert capability_to_pass([]) is None


def test_reading_is_preferred_to_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    may(monkeypatch, DAC_READ_SEARCH, DAC_OVERRIDE)
    assert capability_to_pass(CLOSED) == DAC_READ_SEARCH


def test_writing_serves_where_a_container_has_nothing_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    may(monkeypatch, DAC_OVERRIDE)
    assert capability_to_pass(CLOSED) == DAC_OVERRIDE


def test_a_program_closed_to_others_takes_the_stronger_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    may(monkeypatch, DAC_READ_SEARCH, DAC_OVERRIDE)
    assert capability_to_pass([], to_execute=True) == DAC_OVERRIDE


def test_without_either_capability_the_closed_folders_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    may(monkeypatch)
    with pytest.raises(NoCapability, match="only this user may pass through /closed"):
        capability_to_pass(CLOSED)


def test_a_child_of_root_is_nobody_with_one_capability_and_others_stay_who_they_are() -> None:
    account = Account(*nobody(), DAC_OVERRIDE) if os.geteuid() == 0 else None
    child = subprocess.run(
        [sys.executable, "-c", "print(open('/proc/self/status').read())"],
        preexec_fn=child_setup(account, SIGTERM),
        check=True,
        capture_output=True,
        text=True,
    )
    status = dict(line.split(":\t", 1) for line in child.stdout.splitlines() if ":\t" in line)
    uid = os.geteuid() if account is None else account.uid
    held = 0 if account is None else 1 << DAC_OVERRIDE
    assert status["Uid"].split() == [str(uid)] * 4
    assert [int(status[name], 16) for name in ("CapPrm", "CapEff", "CapAmb")] == [held] * 3


def test_the_capability_holds_for_the_question_whether_a_file_may_be_read(tmp_path: Path) -> None:
    """initdb asks so for its own programs before it runs them."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "file").write_text("x")
    (closed / "file").chmod(0o644)
    account = Account(*nobody(), DAC_READ_SEARCH) if os.geteuid() == 0 else None
    child = subprocess.run(
        [sys.executable, "-c", f"import os; print(os.access({str(closed / 'file')!r}, os.R_OK))"],
        preexec_fn=child_setup(account, SIGTERM),
        check=True,
        capture_output=True,
        text=True,
    )
    assert child.stdout == "True\n"
