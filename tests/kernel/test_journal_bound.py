"""A journal at its bound or on a full disk refuses, and takes records again without a restart."""

from pathlib import Path

import pytest

from couponflow.config import JournalSettings
from couponflow.kernel.clock import ManualClock
from couponflow.kernel.journal import (
    JournalFull,
    open_journal,
)
from couponflow.kernel.journal_segment import SEGMENT_START
from tests.kernel.journal_driver import (
    SMALL,
    Disk,
    append_all,
    fill,
    killed_copy,
    opened,
    payload,
    payloads,
    read_all,
    read_batch,
    segment_names,
    segment_path,
)

TIGHT = JournalSettings(segment_bytes=250, max_bytes=600)


@pytest.mark.parametrize("prepare", [False, True])
def test_at_the_bound_appends_are_refused_until_space_is_freed(
    tmp_path: Path, prepare: bool
) -> None:
    with opened(tmp_path, TIGHT) as journal:
        if prepare:
            journal.prepare_segment()
        assert fill(journal) == 10
        with pytest.raises(JournalFull, match=r"may hold 600 bytes .* raise \[journal\] max_bytes"):
            journal.append(payload(99))
        statistics = journal.statistics()
        assert (statistics.full, statistics.refused, statistics.appended) == (True, 2, 10)
        assert (statistics.bytes, statistics.segments) == (500, 2)
        journal.checkpoint(read_batch(journal, 5).end)
        journal.append(payload(10))
        assert not journal.statistics().full
        assert read_all(journal) == payloads(5, 6)


def test_a_bound_smaller_than_two_segments_still_frees_space(tmp_path: Path) -> None:
    with opened(tmp_path, JournalSettings(segment_bytes=250, max_bytes=250)) as journal:
        assert journal.statistics().bytes == 125
        assert fill(journal) == 4
        journal.checkpoint(read_batch(journal, 4).end)
        assert fill(journal) == 4


def test_a_segment_done_with_makes_room_for_a_large_record(tmp_path: Path) -> None:
    with opened(tmp_path, TIGHT) as journal:
        journal.append(payload(0))
        journal.checkpoint(read_batch(journal, 1).end)
        journal.append(b"p" * 500)
        assert journal.statistics().bytes == SEGMENT_START + 12 + 500
        assert read_all(journal) == [b"p" * 500]


def test_a_full_disk_refuses_at_once_and_is_tried_again(tmp_path: Path) -> None:
    disk = Disk()
    with open_journal(tmp_path, SMALL, ManualClock(), disk.allocate) as journal:
        disk.full = True
        with pytest.raises(JournalFull, match="No space left on device; free disk space"):
            append_all(journal, payloads(0, 6))
        asked = disk.asked
        assert fill(journal) == 0
        assert disk.asked == asked
        journal.prepare_segment()
        assert disk.asked == asked + 1
        assert journal.statistics().full
        assert "No space left on device" in journal.statistics().trouble
        disk.full = False
        journal.prepare_segment()
        journal.append(payload(5))
        assert (journal.statistics().full, journal.statistics().trouble) == (False, "")
        assert read_all(journal) == payloads(0, 6)
        assert segment_names(tmp_path) == [segment_path(tmp_path, n).name for n in (1, 2)]


def test_a_full_disk_does_not_keep_the_journal_from_opening(tmp_path: Path) -> None:
    directory = killed_copy(tmp_path / "first", 4, tmp_path / "second")
    disk = Disk()
    disk.full = True
    with open_journal(directory, SMALL, ManualClock(), disk.allocate) as journal:
        assert fill(journal) == 0
        batch = read_batch(journal, 10)
        assert batch.payloads == payloads(0, 4)
        journal.checkpoint(batch.end)
        assert journal.read(10) is None
        assert not journal.backlog
        assert segment_names(directory) == []
        disk.full = False
        journal.append(payload(4))
        assert read_all(journal) == [payload(4)]
