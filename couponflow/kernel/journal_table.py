"""Which segments a journal has in use, and how far its checkpoint has come."""

import contextlib
import threading
from dataclasses import dataclass

from couponflow.kernel.journal_checkpoint import CheckpointFile, CheckpointUnreadable, Position
from couponflow.kernel.journal_findings import CheckpointLost, CheckpointMoved, Findings
from couponflow.kernel.journal_folder import JournalFolder
from couponflow.kernel.journal_segment import SEGMENT_START, OpenSegment


@dataclass(slots=True)
class Segment:
    """What is known about a segment file that is in use."""

    size: int
    end: int | None = None
    """Where its records end; None while it is appended to or not yet scanned."""
    keep: bool = False
    """Whether it must be set aside, rather than deleted, when done."""


class SegmentTable:
    """The state that a journal's writer and reader share.

    `lock` guards every field and is never held while the disk is touched.
    `_settling`, taken before it, keeps checkpoints in order and deletes each segment once.
    """

    def __init__(self, folder: JournalFolder, findings: Findings) -> None:
        self.lock = threading.Lock()
        self.live: OpenSegment | None = None
        """The segment that is appended to."""
        self.sealed: list[OpenSegment] = []
        """Segments this process has filled and not yet synced."""
        self.removals = 0
        """Counts up when a segment has gone, so that a full journal knows when to try again."""
        self._folder = folder
        self._settling = threading.Lock()
        self.segments = {
            number: Segment(folder.segment_path(number).stat().st_size)
            for number in folder.segment_numbers()
        }
        """By number, oldest first."""
        self._file = CheckpointFile(folder.checkpoint_path)
        try:
            stored = self._file.load()
        except CheckpointUnreadable as error:
            stored = None
            findings.add(CheckpointLost(str(error)))
        self.checkpoint = self._clamp(stored, findings)
        self.last_number = max([0, *self.segments])
        if stored is not None:
            # A number the checkpoint has been inside of must not be used for other records.
            inside = stored.offset > SEGMENT_START
            self.last_number = max(
                self.last_number, stored.segment if inside else stored.segment - 1
            )
        self.settle(self.checkpoint)

    def _clamp(self, stored: Position | None, findings: Findings) -> Position:
        """Return where to replay from; what makes no sense is replayed, which does no harm."""
        numbers = list(self.segments)
        if not numbers:
            return Position(0, SEGMENT_START)
        if stored is None:
            return Position(numbers[0], SEGMENT_START)
        segment = self.segments.get(stored.segment)
        if segment is not None and SEGMENT_START <= stored.offset <= max(
            segment.size, SEGMENT_START
        ):
            return stored
        following = next((number for number in numbers if number >= stored.segment), numbers[0])
        used = Position(following, SEGMENT_START)
        findings.add(CheckpointMoved(stored, used))
        return used

    def install(self, segment: OpenSegment) -> None:
        with self.lock:
            self.segments[segment.number] = Segment(segment.capacity)
            self.live = segment

    def seal(self) -> None:
        """End the live segment where its last record ends; `lock` is held."""
        if self.live is not None:
            self.segments[self.live.number].end = self.live.written
            self.sealed.append(self.live)
            self.live = None

    def drop_sealed(self, number: int | None = None) -> None:
        """Close the sealed segments, or just the one named, without syncing them."""
        with self.lock:
            dropped = [sealed for sealed in self.sealed if number in (None, sealed.number)]
            self.sealed = [sealed for sealed in self.sealed if sealed not in dropped]
        for segment in dropped:
            segment.close()

    def end(self) -> Position:
        """Return the place behind the last record; `lock` is held."""
        if self.live is not None:
            return Position(self.live.number, self.live.written)
        return Position(self.last_number + 1, SEGMENT_START)

    def extent(self, number: int) -> tuple[int, bool]:
        """Return how far a segment may be read now, and whether that is all of it for ever."""
        with self.lock:
            if self.live is not None and self.live.number == number:
                return self.live.written, False
            segment = self.segments.get(number)
            if segment is None:
                return SEGMENT_START, True
            return (segment.size if segment.end is None else segment.end), True

    def settle(self, position: Position) -> None:
        """Move the checkpoint to `position` or later, and let the segments before it go."""
        with self._settling:
            with self.lock:
                settled, done = self._advance(max(position, self.checkpoint))
                moved = settled != self.checkpoint
                self.checkpoint = settled
            if moved:
                # A stored checkpoint that lags behind only means that more is replayed.
                with contextlib.suppress(OSError):
                    self._file.store(settled)
            for number in done:
                self._remove(number)

    def _advance(self, position: Position) -> tuple[Position, list[int]]:
        """Move a position over closed segments with nothing left; `lock` is held.

        Returns it with the numbers of the segments it has passed.
        """
        done: list[int] = []
        for number, segment in self.segments.items():
            if number >= position.segment:
                if number > position.segment:
                    position = Position(number, SEGMENT_START)
                if segment.end is None or position.offset < segment.end:
                    break
                position = Position(number + 1, SEGMENT_START)
            done.append(number)
        return position, done

    def _remove(self, number: int) -> None:
        # A file that cannot be removed now is tried again at the next start.
        with contextlib.suppress(OSError):
            self._folder.remove_segment(number, self.segments[number].keep)
        with self.lock:
            del self.segments[number]
            self.removals += 1
        self.drop_sealed(number)

    def backlog(self) -> bool:
        """Say whether anything is beyond the checkpoint, or may be: not all is scanned yet."""
        with self.lock:
            settled, done = self._advance(self.checkpoint)
            if self.live is not None:
                return settled < self.end()
            return len(done) < len(self.segments)

    def sizes(self) -> tuple[int, int]:
        """Return the bytes on disk, and those beyond the checkpoint; `lock` is held."""
        settled, _ = self._advance(self.checkpoint)
        on_disk = beyond = 0
        for number, segment in self.segments.items():
            on_disk += segment.size
            if number < settled.segment:
                continue
            start = settled.offset if number == settled.segment else SEGMENT_START
            end = segment.size if segment.end is None else segment.end
            if self.live is not None and self.live.number == number:
                end = self.live.written
            beyond += max(end - start, 0)
        return on_disk, beyond

    def close(self) -> None:
        self.drop_sealed()
        self._file.close()
