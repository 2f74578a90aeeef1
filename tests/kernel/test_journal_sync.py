"""The journal and a disk that fails to sync: it is told, and tried again."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from couponflow.kernel.clock import ManualClock
from couponflow.kernel.journal import open_journal
from tests.kernel.journal_driver import (
    SMALL,
    append_all,
    opened,
    payloads,
    read_all,
    segment_path,
)


@pytest.mark.parametrize("kind", [stat.S_ISREG, stat.S_ISDIR])
def test_a_failed_sync_is_told_until_another_has_succeeded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Callable[[int], bool]
) -> None:
    broken = True
    synced: list[int] = []

    def fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        if broken and kind(status.st_mode):
            raise OSError(errno.EIO, "the disk is broken")
        synced.append(status.st_ino)

    monkeypatch.setattr(os, "fsync", fsync)
    clock = ManualClock()
    with open_journal(tmp_path, SMALL, clock) as journal:
        append_all(journal, payloads(0, 12))
        files = {path.stat().st_ino for path in tmp_path.glob("segment-*")}
        assert len(files) == 3
        for _ in range(3):
            clock.advance(1.0)
            with pytest.raises(OSError, match="the disk is broken"):
                journal.sync()
            assert journal.statistics().unsynced
        assert journal.statistics().synced_age_seconds == 3.0
        broken = False
        journal.sync()
        assert set(synced) == {*files, tmp_path.stat().st_ino}
        assert not journal.statistics().unsynced
        assert read_all(journal) == payloads(0, 12)


def test_a_sealed_segment_that_fails_to_sync_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []
    fails_for: set[int] = set()

    def fsync(descriptor: int) -> None:
        tried.append(os.fstat(descriptor).st_ino)
        if tried[-1] in fails_for:
            raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(os, "fsync", fsync)
    with opened(tmp_path) as journal:
        append_all(journal, payloads(0, 7))
        sealed = segment_path(tmp_path, 1).stat().st_ino
        fails_for.add(sealed)
        for times in (1, 2, 3):
            with pytest.raises(OSError, match="the disk is broken"):
                journal.sync()
            assert tried.count(sealed) == times
        fails_for.clear()
        for _ in range(2):
            journal.sync()
            assert tried.count(sealed) == 4
