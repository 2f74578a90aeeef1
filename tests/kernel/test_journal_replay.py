"""Starting again: what the last process left is replayed, whatever happened to the disk."""

import shutil
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from couponflow.kernel.journal import (
    read_segments,
)
from couponflow.kernel.journal_findings import (
    BrokenHeader,
    DamagedBytes,
    TornRecord,
    UnreadableSegment,
)
from couponflow.kernel.journal_segment import SEGMENT_START
from tests.kernel.journal_driver import (
    RECORD_BYTES,
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
    set_aside_names,
)

# Starting again


def test_a_clean_close_with_everything_handed_over_leaves_no_segment(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        append_all(journal, payloads(0, 8))
        journal.prepare_segment()
        journal.checkpoint(read_batch(journal, 8).end)
    assert segment_names(tmp_path) == []
    with opened(tmp_path) as journal:
        assert not journal.backlog
        assert journal.read(10) is None
        assert journal.findings == []
        append_all(journal, payloads(8, 1))
        shutil.copytree(tmp_path, tmp_path / "copy")
    with opened(tmp_path / "copy") as journal:
        assert read_all(journal) == payloads(8, 1)
        assert journal.findings == []


def test_a_clean_close_cuts_the_current_segment_to_its_records(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        append_all(journal, payloads(0, 2))
    assert segment_path(tmp_path, 1).stat().st_size == SEGMENT_START + 2 * RECORD_BYTES


def test_a_start_begins_a_new_segment(tmp_path: Path) -> None:
    directory = killed_copy(tmp_path / "first", 2, tmp_path / "second")
    with opened(directory) as journal:
        journal.append(payload(2))
        assert segment_names(directory) == [segment_path(directory, n).name for n in (1, 2)]
        assert read_all(journal) == payloads(0, 3)


def test_a_segment_left_by_a_kill_is_cut_to_its_records_once_scanned(tmp_path: Path) -> None:
    directory = killed_copy(tmp_path / "first", 2, tmp_path / "second")
    with opened(directory) as journal:
        assert journal.statistics().backlog_bytes == 250 - SEGMENT_START
        assert read_all(journal) == payloads(0, 2)
        assert segment_path(directory, 1).stat().st_size == SEGMENT_START + 2 * RECORD_BYTES
        assert journal.statistics().backlog_bytes == 2 * RECORD_BYTES
        assert journal.findings == []


def test_unused_segments_left_by_a_kill_go_away(tmp_path: Path) -> None:
    with opened(tmp_path / "first") as journal:
        journal.prepare_segment()
        shutil.copytree(tmp_path / "first", tmp_path / "second")
    with opened(tmp_path / "second") as journal:
        assert journal.backlog
        assert journal.read(10) is None
        assert not journal.backlog
        assert segment_names(tmp_path / "second") == [segment_path(tmp_path, 3).name]


def test_unknown_files_are_left_alone(tmp_path: Path) -> None:
    names = {"notes.txt", "segment-1.journal", "segment-0000000000000001.journal.bak"}
    for name in names:
        (tmp_path / name).write_text("mine")
    with opened(tmp_path) as journal:
        append_all(journal, payloads(0, 8))
        journal.checkpoint(read_batch(journal, 8).end)
    assert {path.name for path in tmp_path.iterdir()} == names | {"lock", "checkpoint"}
    assert {(tmp_path / name).read_text() for name in names} == {"mine"}


# Damage


def test_a_torn_last_record_is_cut_off(tmp_path: Path) -> None:
    directory = killed_copy(tmp_path / "first", 3, tmp_path / "second")
    torn_at = SEGMENT_START + 2 * RECORD_BYTES
    path = segment_path(directory, 1)
    path.write_bytes(path.read_bytes()[: torn_at + 20].ljust(250, b"\0"))
    with opened(directory) as journal:
        assert read_all(journal) == payloads(0, 2)
        assert journal.findings == [TornRecord(1, torn_at, 20)]
        assert journal.statistics().torn == 1
        assert path.stat().st_size == torn_at
    assert set_aside_names(directory) == []


def test_a_corrupt_record_is_set_aside_and_the_rest_replayed(tmp_path: Path) -> None:
    directory = killed_copy(tmp_path / "first", 8, tmp_path / "second")
    corrupt_at = SEGMENT_START + RECORD_BYTES
    flip(segment_path(directory, 1), corrupt_at + 20)
    damaged = segment_path(directory, 1).read_bytes()[corrupt_at : corrupt_at + RECORD_BYTES]
    with opened(directory) as journal:
        assert read_all(journal) == payloads(0, 1) + payloads(2, 6)
        name = "segment-0000000000000001.offset-74.length-42.bytes"
        assert journal.findings == [DamagedBytes(1, corrupt_at, RECORD_BYTES, name)]
        assert (directory / "set-aside" / name).read_bytes() == damaged
        journal.rewind()
        assert read_all(journal) == payloads(0, 1) + payloads(2, 6)
        assert journal.statistics().set_aside == 1
        assert len(journal.findings) == 1


def test_damage_at_the_end_of_a_segment_of_this_process_is_not_taken_for_torn(
    tmp_path: Path,
) -> None:
    with opened(tmp_path) as journal:
        append_all(journal, payloads(0, 6))
        last_at = SEGMENT_START + 4 * RECORD_BYTES
        flip(segment_path(tmp_path, 1), last_at + 20)
        assert read_all(journal) == [*payloads(0, 4), payload(5)]
        name = "segment-0000000000000001.offset-200.length-42.bytes"
        assert journal.findings == [DamagedBytes(1, last_at, RECORD_BYTES, name)]
        assert segment_path(tmp_path, 1).stat().st_size == 250


def test_damage_that_cannot_be_copied_is_still_reported(tmp_path: Path) -> None:
    directory = killed_copy(tmp_path / "first", 3, tmp_path / "second")
    flip(segment_path(directory, 1), SEGMENT_START)
    (directory / "set-aside").write_text("in the way")
    with opened(directory) as journal:
        assert read_all(journal) == payloads(1, 2)
        assert journal.findings == [DamagedBytes(1, SEGMENT_START, RECORD_BYTES, "")]


def test_a_segment_with_a_broken_header_is_replayed_then_set_aside(tmp_path: Path) -> None:
    directory = killed_copy(tmp_path / "first", 8, tmp_path / "second")
    flip(segment_path(directory, 1), 9)
    content = segment_path(directory, 1).read_bytes()
    with opened(directory) as journal:
        assert read_all(journal) == payloads(0, 8)
        assert journal.findings == [BrokenHeader(1)]
        assert set_aside_names(directory) == []
        journal.rewind()
        journal.checkpoint(read_batch(journal, 8).end)
        assert not segment_path(directory, 1).exists()
    aside = directory / "set-aside" / "segment-0000000000000001.journal"
    assert aside.read_bytes() == content


def test_an_unreadable_segment_is_passed_over(tmp_path: Path) -> None:
    directory = killed_copy(tmp_path / "first", 12, tmp_path / "second")
    with opened(directory) as journal:
        segment_path(directory, 2).unlink()
        segment_path(directory, 2).mkdir()
        assert read_all(journal) == payloads(0, 5) + payloads(10, 2)
        assert journal.findings == [UnreadableSegment(2, SEGMENT_START, "Is a directory")]


@given(st.integers(min_value=0, max_value=249), st.integers(min_value=1, max_value=255))
@settings(max_examples=60, deadline=None)
def test_a_flipped_byte_loses_at_most_its_record(at: int, mask: int) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        directory = killed_copy(Path(temporary) / "first", 12, Path(temporary) / "second")
        flip(segment_path(directory, 2), at, mask)
        expected = payloads(0, 12)
        hit = (at - SEGMENT_START) // RECORD_BYTES
        if 0 <= hit < 5:
            del expected[5 + hit]
        with opened(directory) as journal:
            assert read_all(journal) == expected
            assert len(journal.findings) == 1
        assert [record.payload for record in read_segments(directory)] == expected


@given(st.integers(min_value=0, max_value=250))
@settings(max_examples=60, deadline=None)
def test_zeros_from_any_byte_on_lose_only_what_they_hit(cut: int) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        directory = killed_copy(Path(temporary) / "first", 10, Path(temporary) / "second")
        path = segment_path(directory, 2)
        path.write_bytes(path.read_bytes()[:cut].ljust(250, b"\0"))
        whole = max(0, (cut - SEGMENT_START) // RECORD_BYTES)
        with opened(directory) as journal:
            assert read_all(journal) == payloads(0, 5 + whole)
            assert journal.statistics().torn == (
                0 < (cut - SEGMENT_START) % RECORD_BYTES < 42 and SEGMENT_START < cut < 242
            )
