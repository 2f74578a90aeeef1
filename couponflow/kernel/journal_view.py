"""The journal as an onlooker sees it: without the lock, beside a daemon that goes on writing."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from couponflow.kernel.journal_checkpoint import CheckpointFile, CheckpointUnreadable, Position
from couponflow.kernel.journal_folder import JournalFolder
from couponflow.kernel.journal_segment import SEGMENT_START, Budget, FileSource, SegmentReader

_RECORDS_AT_ONCE = 1000


class JournalRecord(msgspec.Struct, frozen=True):
    """One record, and whether it is still the journal's: beyond the stored checkpoint."""

    payload: bytes
    beyond_checkpoint: bool


def read_segments(directory: Path) -> Iterator[JournalRecord]:
    """Yield every valid record on disk, oldest first, changing nothing.

    The checkpoint is read before the segments, so a record said to be before it has been handed
    over. Segments deleted meanwhile are passed over, segments made meanwhile may be missing.
    Raises `OSError` when the disk does not give a segment's bytes.
    """
    folder = JournalFolder(directory)
    checkpoint = _stored_checkpoint(folder)
    for number in folder.segment_numbers():
        try:
            source = FileSource(folder.segment_path(number))
        except FileNotFoundError:
            continue
        with contextlib.closing(source):
            yield from _records(source, number, checkpoint)


def _records(source: FileSource, number: int, checkpoint: Position) -> Iterator[JournalRecord]:
    boundary = SEGMENT_START
    if number < checkpoint.segment:
        boundary = source.size
    elif number == checkpoint.segment:
        boundary = min(checkpoint.offset, source.size)
    for start, end, beyond in (
        (SEGMENT_START, boundary, False),
        (boundary, source.size, True),
    ):
        reader = SegmentReader(source, start)
        budget = Budget(sys.maxsize)
        while payloads := reader.read(end, _RECORDS_AT_ONCE, budget):
            for payload in payloads:
                yield JournalRecord(payload, beyond)


def _stored_checkpoint(folder: JournalFolder) -> Position:
    try:
        stored = CheckpointFile(folder.checkpoint_path).load()
    except CheckpointUnreadable:
        stored = None
    return Position(0, SEGMENT_START) if stored is None else stored
