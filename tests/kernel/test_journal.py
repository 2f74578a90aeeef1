"""The journal: what was appended is read until it is handed over."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from couponflow.config import JournalSettings
from couponflow.kernel.clock import ManualClock, SystemClock
from couponflow.kernel.journal import (
    JournalBatch,
    JournalFull,
    JournalLocked,
    JournalRecord,
    Position,
    open_journal,
    read_segments,
)
from couponflow.kernel.journal_findings import (
    CheckpointLost,
    CheckpointMoved,
)
from couponflow.kernel.journal_segment import SEGMENT_START
from tests.kernel.journal_driver import (
    RECORD_BYTES,
    SMALL,
    Disk,
    append_all,
    flip,
    killed_copy,
    opened,
    payload,
    payloads,
    read_all,
    read_batch,
    segment_names,
    segment_path,
)

# Appending and reading


def test_a_fresh_folder_is_private_and_holds_one_segment(tmp_path: Path) -> None:
    with opened(tmp_path / "var" / "journal") as journal:
        directory = tmp_path / "var" / "journal"
        assert directory.stat().st_mode & 0o777 == 0o700
        assert sorted(path.name for path in directory.iterdir()) == [
            "lock",
            "segment-0000000000000001.journal",
        ]
        assert segment_path(directory, 1).stat().st_size == 250
        assert (directory / "lock").read_text() == f"{os.getpid()}\n"
        assert journal.read(10) is None
        assert not journal.backlog


@given(st.lists(st.binary(min_size=1, max_size=400), max_size=30), st.integers(1, 7))
@settings(max_examples=50, deadline=None)
def test_what_was_appended_is_read_across_segments(records: list[bytes], at_once: int) -> None:
    with tempfile.TemporaryDirectory() as directory, opened(Path(directory)) as journal:
        for index, record in enumerate(records):
            journal.append(record)
            if index % 3 == 0:
                journal.prepare_segment()
        assert read_all(journal, at_once) == records
        assert journal.findings == []
        journal.rewind()
        assert read_all(journal) == records


def test_the_largest_payload_fits_whatever_the_segment_size(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        journal.prepare_segment()
        journal.append(b"p" * 65_536)
        assert read_all(journal) == [b"p" * 65_536]


def test_a_payload_too_large_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        before = journal.statistics()
        with pytest.raises(ValueError, match="1 to 65536 bytes"):
            journal.append(b"p" * 65_537)
        assert journal.statistics() == before
        assert journal.read(10) is None


def test_a_batch_ends_where_the_next_begins(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        append_all(journal, payloads(0, 6))
        assert read_batch(journal, 2) == JournalBatch(
            payloads(0, 2), Position(1, SEGMENT_START + 2 * RECORD_BYTES)
        )
        assert read_batch(journal, 9) == JournalBatch(
            payloads(2, 4), Position(2, SEGMENT_START + RECORD_BYTES)
        )
        assert journal.read(9) is None
        journal.append(payload(6))
        assert read_batch(journal, 9).payloads == [payload(6)]


def test_rewinding_goes_back_to_the_checkpoint(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        append_all(journal, payloads(0, 8))
        journal.checkpoint(read_batch(journal, 3).end)
        assert read_all(journal) == payloads(3, 5)
        journal.rewind()
        assert read_all(journal) == payloads(3, 5)


def test_records_handed_over_after_a_rewind_are_not_read_again(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        append_all(journal, payloads(0, 8))
        first, second = read_batch(journal, 2).end, read_batch(journal, 4).end
        journal.rewind()
        assert read_batch(journal, 1).payloads == [payload(0)]
        journal.checkpoint(first)
        assert read_batch(journal, 1).payloads == [payload(2)]
        journal.checkpoint(second)
        assert read_all(journal) == payloads(6, 2)


# The checkpoint


def test_the_checkpoint_deletes_segments_before_it(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        append_all(journal, payloads(0, 12))
        assert segment_names(tmp_path) == [segment_path(tmp_path, n).name for n in (1, 2, 3)]
        journal.checkpoint(read_batch(journal, 6).end)
        assert segment_names(tmp_path) == [segment_path(tmp_path, n).name for n in (2, 3)]
        assert journal.backlog
        assert journal.statistics().backlog_bytes == 6 * RECORD_BYTES
        journal.checkpoint(read_batch(journal, 6).end)
        assert segment_names(tmp_path) == [segment_path(tmp_path, 3).name]
        assert not journal.backlog
        assert journal.statistics().backlog_bytes == 0


def test_a_checkpoint_at_the_end_of_a_full_segment_deletes_it(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        append_all(journal, payloads(0, 6))
        journal.checkpoint(read_batch(journal, 5).end)
        assert segment_names(tmp_path) == [segment_path(tmp_path, 2).name]


def test_a_checkpoint_going_backwards_is_ignored(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        append_all(journal, payloads(0, 4))
        first, second = read_batch(journal, 1).end, read_batch(journal, 2).end
        journal.checkpoint(second)
        journal.checkpoint(first)
        journal.rewind()
        assert read_all(journal) == [payload(3)]


def test_a_checkpoint_beyond_the_last_record_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        append_all(journal, payloads(0, 2))
        beyond = Position(1, SEGMENT_START + 3 * RECORD_BYTES)
        with pytest.raises(ValueError, match="beyond the end of the journal"):
            journal.checkpoint(beyond)
        assert read_all(journal) == payloads(0, 2)
        assert journal.backlog


def test_a_checkpoint_survives_a_kill(tmp_path: Path) -> None:
    with opened(tmp_path / "first") as journal:
        append_all(journal, payloads(0, 7))
        journal.checkpoint(read_batch(journal, 6).end)
        shutil.copytree(tmp_path / "first", tmp_path / "second")
    with opened(tmp_path / "second") as journal:
        assert read_all(journal) == [payload(6)]


@pytest.mark.parametrize("slot", [0, 4096])
def test_a_spoilt_slot_costs_one_checkpoint_only(tmp_path: Path, slot: int) -> None:
    with opened(tmp_path) as journal:
        append_all(journal, payloads(0, 4))
        journal.checkpoint(read_batch(journal, 1).end)
        journal.checkpoint(read_batch(journal, 1).end)
    flip(tmp_path / "checkpoint", slot + 30)
    with opened(tmp_path) as journal:
        assert read_all(journal) in (payloads(1, 3), payloads(2, 2))
        assert journal.findings == []


@pytest.mark.parametrize("content", [b"no checkpoint", bytes(5000)])
def test_a_lost_checkpoint_replays_everything(tmp_path: Path, content: bytes) -> None:
    with opened(tmp_path) as journal:
        append_all(journal, payloads(0, 4))
        journal.checkpoint(read_batch(journal, 3).end)
    (tmp_path / "checkpoint").write_bytes(content)
    with opened(tmp_path) as journal:
        assert read_all(journal) == payloads(0, 4)
        error = f"{tmp_path / 'checkpoint'} holds no valid checkpoint"
        assert journal.findings == [CheckpointLost(error)]


def test_a_missing_checkpoint_replays_everything(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        append_all(journal, payloads(0, 4))
        journal.checkpoint(read_batch(journal, 3).end)
    (tmp_path / "checkpoint").unlink()
    with opened(tmp_path) as journal:
        assert read_all(journal) == payloads(0, 4)
        assert journal.findings == []


def test_a_checkpoint_in_a_missing_segment_is_moved_to_the_next(tmp_path: Path) -> None:
    directory = killed_copy(tmp_path / "first", 12, tmp_path / "second")
    with opened(directory) as journal:
        journal.checkpoint(read_batch(journal, 1).end)
    segment_path(directory, 1).unlink()
    with opened(directory) as journal:
        assert read_all(journal) == payloads(5, 7)
        stored = Position(1, SEGMENT_START + RECORD_BYTES)
        assert journal.findings == [CheckpointMoved(stored, Position(2, SEGMENT_START))]


def test_a_checkpoint_in_the_future_is_replaced_and_its_number_not_reused(tmp_path: Path) -> None:
    with opened(tmp_path / "first") as journal:
        append_all(journal, payloads(0, 12))
        journal.checkpoint(read_batch(journal, 11).end)
        (tmp_path / "second").mkdir()
        shutil.copy(tmp_path / "first" / "checkpoint", tmp_path / "second")
    killed_copy(tmp_path / "third", 4, tmp_path / "fourth")
    shutil.copy(segment_path(tmp_path / "fourth", 1), tmp_path / "second")
    with opened(tmp_path / "second") as journal:
        assert read_all(journal) == payloads(0, 4)
        stored = Position(3, SEGMENT_START + RECORD_BYTES)
        assert journal.findings == [CheckpointMoved(stored, Position(1, SEGMENT_START))]
        journal.append(payload(4))
        assert read_batch(journal, 1).end == Position(4, SEGMENT_START + RECORD_BYTES)


# Upkeep


def test_a_prepared_segment_is_used_without_asking_the_disk(tmp_path: Path) -> None:
    disk = Disk()
    with open_journal(tmp_path, SMALL, ManualClock(), disk.allocate) as journal:
        journal.prepare_segment()
        journal.prepare_segment()
        assert disk.asked == 2
        append_all(journal, payloads(0, 10))
        assert disk.asked == 2
        assert journal.statistics().segments == 2
        assert read_all(journal) == payloads(0, 10)


def test_the_statistics_say_what_a_power_loss_would_take(tmp_path: Path) -> None:
    clock = ManualClock()
    with open_journal(tmp_path, SMALL, clock) as journal:
        clock.advance(3.0)
        assert not journal.statistics().unsynced
        append_all(journal, payloads(0, 7))
        assert journal.statistics().unsynced
        assert journal.statistics().synced_age_seconds == 3.0
        journal.sync()
        assert not journal.statistics().unsynced
        assert journal.statistics().synced_age_seconds == 0.0


@pytest.mark.parametrize("sync", [False, True])
def test_segments_done_with_leave_no_descriptor_open(tmp_path: Path, sync: bool) -> None:
    before = len(os.listdir("/dev/fd"))
    with opened(tmp_path) as journal:
        append_all(journal, payloads(0, 1))
        journal.checkpoint(read_batch(journal, 1).end)
        with_one_segment = len(os.listdir("/dev/fd"))
        for _ in range(10):
            append_all(journal, payloads(0, 10))
            if sync:
                journal.sync()
            journal.checkpoint(read_batch(journal, 10).end)
        assert len(os.listdir("/dev/fd")) == with_one_segment
    assert len(os.listdir("/dev/fd")) == before


def test_segments_never_synced_are_closed_when_syncing_is_off(tmp_path: Path) -> None:
    off = JournalSettings(segment_bytes=250, max_bytes=100_000, fsync_seconds=0)
    with opened(tmp_path, off) as journal:
        journal.prepare_segment()
        with_two_segments = len(os.listdir("/dev/fd"))
        append_all(journal, payloads(0, 50))
        journal.prepare_segment()
        assert len(os.listdir("/dev/fd")) == with_two_segments
        assert read_all(journal) == payloads(0, 50)


def test_an_append_after_the_close_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        journal.append(payload(0))
    with pytest.raises(JournalFull, match="the daemon is shutting down"):
        journal.append(payload(1))
    with opened(tmp_path) as journal:
        assert read_all(journal) == [payload(0)]


# The lock


def test_a_second_process_cannot_open_the_journal(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from couponflow.config import JournalSettings
from couponflow.kernel.clock import SystemClock
from couponflow.kernel.journal import JournalLocked, open_journal
try:
    with open_journal(Path({str(tmp_path)!r}), JournalSettings(), SystemClock()):
        print("opened")
except JournalLocked as error:
    print(error)
"""
    with opened(tmp_path) as journal:
        journal.append(payload(0))
        answer = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        ).stdout
        assert f"(pid {os.getpid()})" in answer
        assert "COUPONFLOW_VAR_DIR" in answer
        assert segment_names(tmp_path) == [segment_path(tmp_path, 1).name]
        assert read_all(journal) == [payload(0)]


def test_a_journal_cannot_be_opened_twice_and_is_free_after_the_close(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(JournalLocked), opened(tmp_path):
        raise AssertionError
    with opened(tmp_path) as journal:
        assert journal.read(1) is None


# Onlookers


def test_an_onlooker_sees_records_before_and_beyond_the_checkpoint(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        append_all(journal, payloads(0, 8))
        journal.prepare_segment()
        journal.checkpoint(read_batch(journal, 7).end)
        assert list(read_segments(tmp_path)) == [
            JournalRecord(payload(5), False),
            JournalRecord(payload(6), False),
            JournalRecord(payload(7), True),
        ]
    assert list(read_segments(tmp_path / "none")) == []


def test_an_onlooker_bears_segments_deleted_meanwhile(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        append_all(journal, payloads(0, 12))
        onlooker = read_segments(tmp_path)
        assert next(onlooker).payload == payload(0)
        journal.checkpoint(read_batch(journal, 11).end)
        # The first file is open, the second is gone before its turn.
        assert [record.payload for record in onlooker] == payloads(1, 4) + payloads(10, 2)


# Threads


def test_a_thread_appends_while_another_reads(tmp_path: Path) -> None:
    count = 20_000
    roomy = JournalSettings(segment_bytes=65_536, max_bytes=1 << 30)
    finished = threading.Event()
    with open_journal(tmp_path, roomy, SystemClock()) as journal:

        def append() -> None:
            append_all(journal, payloads(0, count))

        def keep_up() -> None:
            while not finished.is_set():
                journal.prepare_segment()
                journal.sync()

        threads = [threading.Thread(target=append), threading.Thread(target=keep_up)]
        for thread in threads:
            thread.start()
        found: list[bytes] = []
        try:
            while len(found) < count and (threads[0].is_alive() or journal.backlog):
                batch = journal.read(500)
                if batch is not None:
                    found += batch.payloads
                    journal.checkpoint(batch.end)
        finally:
            finished.set()
            for thread in threads:
                thread.join()
        assert found == payloads(0, count)
        assert journal.findings == []
        assert not journal.backlog
    assert segment_names(tmp_path) == []


def test_several_threads_append_without_loss_or_disorder(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        threads = [
            threading.Thread(target=append_all, args=(journal, payloads(first, 200)))
            for first in (0, 1000, 2000)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = read_all(journal)
    for first in (0, 1000, 2000):
        mine = payloads(first, 200)
        assert [record for record in found if record in mine] == mine
    assert len(found) == 600
