"""The journal's read cursor: from the checkpoint on, through old segments and into the live one."""

import contextlib
import os

import msgspec

from couponflow.kernel.journal_checkpoint import Position
from couponflow.kernel.journal_findings import (
    BrokenHeader,
    DamagedBytes,
    Findings,
    TornRecord,
    UnreadableSegment,
)
from couponflow.kernel.journal_folder import JournalFolder
from couponflow.kernel.journal_segment import (
    SEGMENT_START,
    Budget,
    Damage,
    FileSource,
    MapSource,
    SegmentReader,
    header_is_broken,
)
from couponflow.kernel.journal_table import SegmentTable

_READ_BYTES = 32 * 1024 * 1024
"""What one `read` may look at: some 10 ms, and enough to pass what a kill leaves behind."""


class JournalBatch(msgspec.Struct, frozen=True):
    """Consecutive records; `end` is where the next batch begins."""

    payloads: list[bytes]
    end: Position


class JournalReader:
    """Belongs to the one thread that reads; what it shares is in the table.

    A closed segment is scanned when the cursor reaches it, so that starting takes no time. A
    segment that another thread removes meanwhile was done, and is passed over.
    """

    def __init__(self, folder: JournalFolder, table: SegmentTable, findings: Findings) -> None:
        self._folder = folder
        self._table = table
        self._findings = findings
        self._cursor = table.checkpoint
        self._reader: SegmentReader | None = None
        """Reads the segment of the cursor, once that is open."""

    def read(self, max_records: int) -> JournalBatch | None:
        payloads: list[bytes] = []
        budget = Budget(_READ_BYTES)
        end = self._cursor
        while len(payloads) < max_records and not budget.spent and self._find_segment():
            number = self._cursor.segment
            try:
                reader = self._open()
                limit, closed = self._table.extent(number)
                found = reader.read(limit, max_records - len(payloads), budget)
            except OSError as error:
                self._give_up(error)
                continue
            self._report(number, reader)
            if found:
                payloads += found
                end = self._cursor = Position(number, reader.records_end)
            if reader.offset < limit:
                continue
            if not closed:
                break
            self._finish(reader.records_end)
        return JournalBatch(payloads, end) if payloads else None

    def rewind(self) -> None:
        self.close()
        self._cursor = self._table.checkpoint

    def close(self) -> None:
        if self._reader is not None:
            self._reader.source.close()
            self._reader = None

    def _find_segment(self) -> bool:
        """Put the cursor into a segment that exists; False when there is none beyond it."""
        with self._table.lock:
            cursor = max(self._cursor, self._table.checkpoint)
            if self._reader is not None and cursor == self._cursor:
                return True
            number = next((n for n in self._table.segments if n >= cursor.segment), None)
        # The checkpoint has overtaken the cursor: what is before it need not be read.
        self.close()
        if number is None:
            return False
        self._cursor = cursor if number == cursor.segment else Position(number, SEGMENT_START)
        return True

    def _open(self) -> SegmentReader:
        if self._reader is not None:
            return self._reader
        number, offset = self._cursor.segment, self._cursor.offset
        live = self._table.live
        if live is not None and live.number == number:
            self._reader = SegmentReader(MapSource(live), offset)
            return self._reader
        self._reader = SegmentReader(FileSource(self._folder.segment_path(number)), offset)
        if header_is_broken(self._reader.source.read(0, SEGMENT_START), number):
            self._keep(number)
            self._findings.add(BrokenHeader(number))
        return self._reader

    def _keep(self, number: int, end: int | None = None) -> bool:
        """Have a segment set aside when it is done; False when it is gone already."""
        with self._table.lock:
            segment = self._table.segments.get(number)
            if segment is None:
                return False
            segment.keep = True
            if end is not None:
                segment.end = end
            return True

    def _finish(self, records_end: int) -> None:
        """Leave a closed segment, having read all of it, and cut off what followed its records."""
        number = self._cursor.segment
        cut = False
        with self._table.lock:
            segment = self._table.segments.get(number)
            if segment is not None and segment.end is None:
                segment.end = records_end
                cut = not segment.keep and records_end < segment.size
                segment.size = records_end if cut else segment.size
        if cut:
            # Cutting spares the next start the search; without it nothing is wrong.
            with contextlib.suppress(OSError):
                os.truncate(self._folder.segment_path(number), records_end)
        self._leave(number)

    def _give_up(self, error: OSError) -> None:
        number, offset = self._cursor.segment, self._cursor.offset
        if self._keep(number, end=offset):
            self._findings.add(UnreadableSegment(number, offset, error.strerror or str(error)))
        self._leave(number)

    def _leave(self, number: int) -> None:
        self.close()
        self._cursor = Position(number + 1, SEGMENT_START)
        self._table.settle(self._table.checkpoint)

    def _report(self, number: int, reader: SegmentReader) -> None:
        damage, reader.damage = reader.damage, []
        if not damage:
            return
        with self._table.lock:
            segment = self._table.segments.get(number)
            live = self._table.live
            # What this process wrote is complete up to a known end: it can be damaged, not torn.
            ours = segment is None or segment.end is not None
            ours = ours or (live is not None and live.number == number)
        for stretch in damage:
            if stretch.torn and not ours:
                self._findings.add(TornRecord(number, stretch.offset, stretch.length))
            else:
                name = self._copy_aside(number, stretch, reader)
                self._findings.add(DamagedBytes(number, stretch.offset, stretch.length, name))

    def _copy_aside(self, number: int, stretch: Damage, reader: SegmentReader) -> str:
        try:
            return self._folder.copy_aside(number, stretch, reader.source)
        except OSError:
            return ""
