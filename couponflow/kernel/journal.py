"""The journal: an append-only log on disk, so that a click survives `kill -9` before it is a row.

Appending is a memory copy into a mapped file: the pages belong to the operating system, so the
record outlives the process at once, and a power loss takes at most what was not yet synced.
"""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec

from couponflow.config import JournalSettings
from couponflow.kernel.clock import Clock
from couponflow.kernel.journal_checkpoint import Position
from couponflow.kernel.journal_findings import Finding, Findings
from couponflow.kernel.journal_folder import JournalFolder, JournalLocked, lock_folder
from couponflow.kernel.journal_reader import JournalBatch, JournalReader
from couponflow.kernel.journal_segment import (
    SEGMENT_START,
    Allocator,
    OpenSegment,
    allocate_file,
    encode_record,
    make_segment,
)
from couponflow.kernel.journal_table import SegmentTable
from couponflow.kernel.journal_view import JournalRecord, read_segments

__all__ = [
    "Journal",
    "JournalBatch",
    "JournalFull",
    "JournalLocked",
    "JournalRecord",
    "JournalStatistics",
    "Position",
    "open_journal",
    "read_segments",
]


class JournalFull(Exception):
    """The journal could not record: it has reached `[journal] max_bytes`, or the disk is full.

    Nothing was written. Look whether PostgreSQL can be reached (records leave the journal once
    they are rows), free disk space, or raise `[journal] max_bytes`; freed space is used at once.
    """


class JournalStatistics(msgspec.Struct, frozen=True):
    """The journal at one instant; the counts are since this process opened it."""

    bytes: int
    """On disk, all segments, the one made ahead of need included."""
    backlog_bytes: int
    """Appended and beyond the checkpoint; too high while an older segment is not yet scanned."""
    segments: int
    appended: int
    refused: int
    unsynced: bool
    """Whether a power loss now would take records with it, as it may after a failed sync."""
    synced_age_seconds: float
    """How long ago everything was synced; 0 while nothing waits to be."""
    torn: int
    """Unfinished records cut off."""
    set_aside: int
    """Damaged stretches and segments that went, or are to go, to `set-aside/`."""
    full: bool
    """Whether appends are refused now."""
    trouble: str
    """Why the last new segment could not be made; empty when it could."""


class Journal:
    """Made by `open_journal`.

    At the bound the newest clicks go unrecorded (`append` raises, and the caller still redirects)
    and the oldest are kept: their shoppers have been owed longest, and nothing that was promised
    is taken back.

    Locking. The table's `lock` guards what threads share and is never held while the disk is
    touched, so no append waits for the disk because of another thread's upkeep. `_making` is held
    while a segment file is made and put to use, `_syncing` while syncing, the table's `_settling`
    while the checkpoint moves and segments are deleted; they are taken in that order, `lock` last.
    A record is published by moving `written` after its copy is complete. `read` and `rewind`
    belong to one thread. Maps are not closed by hand: the last user drops them.
    """

    def __init__(
        self, folder: JournalFolder, settings: JournalSettings, clock: Clock, allocate: Allocator
    ) -> None:
        self._folder = folder
        self._settings = settings
        # Two segments at least, or space would only be freed when everything is done.
        self._segment_bytes = min(settings.segment_bytes, settings.max_bytes // 2)
        self._clock = clock
        self._allocate = allocate
        self._findings = Findings()
        self._table = SegmentTable(folder, self._findings)
        self._lock = self._table.lock
        self._reader = JournalReader(folder, self._table, self._findings)
        self._making = threading.Lock()
        self._syncing = threading.Lock()
        self._closed = False
        self._prepared: OpenSegment | None = None
        self._names_unsynced = False
        self._sync_failed = False
        self._synced_at = clock.monotonic()
        self._appended = 0
        self._refused = 0
        self._refused_at_removal: int | None = None
        self._trouble = ""
        with contextlib.suppress(JournalFull), self._making:
            self._switch(0)

    @property
    def findings(self) -> list[Finding]:
        """What was found wrong on disk, oldest first; the first thousand are kept."""
        return self._findings.kept

    def append(self, payload: bytes) -> None:
        """Record `payload`, 1 byte to 64 KiB (else `ValueError`); on return a kill is harmless.

        Raises `JournalFull` when it cannot record. It makes no system call, but for the switch to
        the next segment when none was prepared.
        """
        record = encode_record(payload)
        if self._copy(record):
            return
        try:
            if self._refusing:
                raise JournalFull(self._trouble)
            with self._making:
                while not self._copy(record):
                    self._switch(len(record))
        except JournalFull:
            with self._lock:
                self._refused += 1
            raise

    def _copy(self, record: bytes) -> bool:
        with self._lock:
            live = self._table.live
            if live is None:
                return False
            start = live.written
            end = start + len(record)
            if end > live.capacity:
                return False
            live.map[start:end] = record
            live.written = end
            self._appended += 1
            return True

    @property
    def _refusing(self) -> bool:
        """Whether a segment could not be made, and nothing has been freed since."""
        return self._refused_at_removal == self._table.removals

    def _switch(self, record_bytes: int) -> None:
        """Put the next segment to use; `_making` is held. Raises `JournalFull` without one."""
        with self._lock:
            if self._closed:
                raise JournalFull("the journal is closed: the daemon is shutting down")
            self._table.seal()
            segment, self._prepared = self._prepared, None
        if segment is None:
            # Freed space is not missed: what goes from here on counts as gone since.
            removals = self._table.removals
            try:
                segment = self._make(max(self._segment_bytes, SEGMENT_START + record_bytes))
            except JournalFull:
                self._refused_at_removal = removals
                raise
        self._table.install(segment)

    def _make(self, size: int) -> OpenSegment:
        """Make a segment file; `_making` is held. Raises `JournalFull`."""
        if not self._has_room(size):
            self._table.settle(self._table.checkpoint)
        if not self._has_room(size):
            self._trouble = (
                f"the journal may hold {self._settings.max_bytes} bytes and has no room left: check"
                " that PostgreSQL can be reached, or raise [journal] max_bytes"
            )
            raise JournalFull(self._trouble)
        number = self._table.last_number + 1
        path = self._folder.segment_path(number)
        try:
            segment = make_segment(path, number, size, self._clock.now(), self._allocate)
        except OSError as error:
            reason = error.strerror or str(error)
            self._trouble = f"cannot make {path} ({size} bytes): {reason}; free disk space"
            raise JournalFull(self._trouble) from error
        self._table.last_number = number
        self._names_unsynced = True
        self._trouble = ""
        return segment

    def _has_room(self, size: int) -> bool:
        with self._lock:
            on_disk, _ = self._table.sizes()
            return on_disk + self._prepared_bytes() + size <= self._settings.max_bytes

    def _prepared_bytes(self) -> int:
        return 0 if self._prepared is None else self._prepared.capacity

    def prepare_segment(self) -> None:
        """Make the next segment ahead of need, and try again what could not be made; never raises.

        To be called off the hot path every tenth of a second or so, in a worker thread.
        """
        if self._settings.fsync_seconds == 0:
            self._table.drop_sealed()
        with self._making:
            if self._prepared is not None or self._closed:
                return
            with contextlib.suppress(JournalFull):
                segment = self._make(self._segment_bytes)
                with self._lock:
                    self._prepared = segment
                self._refused_at_removal = None

    def sync(self) -> None:
        """Make what was appended before this call survive a power loss too.

        Blocks for as long as the disk takes. Raises `OSError` when the disk fails; the next call
        tries again what failed, and until one succeeds the statistics say `unsynced`.
        """
        with self._syncing:
            begun_at = self._clock.monotonic()
            try:
                self._sync_live()
                self._sync_sealed()
                self._sync_names()
            except OSError:
                self._sync_failed = True
                raise
            self._sync_failed = False
            self._synced_at = begun_at

    def _sync_live(self) -> None:
        with self._lock:
            live = self._table.live
            if live is None or live.synced == live.written:
                return
            written = live.written
            descriptor = os.dup(live.descriptor)
        _sync_and_close(descriptor)
        live.synced = written

    def _sync_sealed(self) -> None:
        while True:
            with self._lock:
                if not self._table.sealed:
                    return
                segment = self._table.sealed[0]
                descriptor = os.dup(segment.descriptor)
            if segment.synced < segment.written:
                _sync_and_close(descriptor)
                segment.synced = segment.written
            else:
                os.close(descriptor)
            # Only now: a segment whose sync failed stays, to be tried again.
            self._table.drop_sealed(segment.number)

    def _sync_names(self) -> None:
        # Cleared before, for a segment may be made meanwhile.
        with self._lock:
            names_unsynced, self._names_unsynced = self._names_unsynced, False
        if not names_unsynced:
            return
        try:
            self._folder.sync()
        except OSError:
            self._names_unsynced = True
            raise

    def read(self, max_records: int) -> JournalBatch | None:
        """Return the next records, at most `max_records`; None when there are none now.

        The work of one call is bounded, so None may also mean that a damaged or empty stretch is
        not yet searched to its end: ask again, as one would for new records.
        """
        return self._reader.read(max_records)

    def rewind(self) -> None:
        """Go back to the checkpoint: what was read and not handed over is read again.

        A batch read before may still be handed over; then its records are not read again.
        """
        self._reader.rewind()

    def checkpoint(self, position: Position) -> None:
        """Say that everything before `position`, the `end` of a batch, is someone else's now.

        Survives `kill -9`, and deletes the segments that are done. A position before the
        checkpoint is ignored; one beyond the last record is a `ValueError`: it would lose clicks.
        """
        with self._lock:
            end = self._table.end()
        if position > end:
            raise ValueError(f"{position} is beyond the end of the journal, {end}")
        self._table.settle(position)

    @property
    def backlog(self) -> bool:
        """Whether anything is beyond the checkpoint, or may be in a segment not yet scanned."""
        return self._table.backlog()

    def statistics(self) -> JournalStatistics:
        with self._lock:
            on_disk, beyond = self._table.sizes()
            live = self._table.live
            unsynced = (
                self._sync_failed
                or bool(self._table.sealed)
                or (live is not None and max(live.synced, SEGMENT_START) < live.written)
            )
            synced_age_seconds = self._clock.monotonic() - self._synced_at
            return JournalStatistics(
                bytes=on_disk + self._prepared_bytes(),
                backlog_bytes=beyond,
                segments=len(self._table.segments) + (self._prepared is not None),
                appended=self._appended,
                refused=self._refused,
                unsynced=unsynced,
                synced_age_seconds=synced_age_seconds if unsynced else 0.0,
                torn=self._findings.torn,
                set_aside=self._findings.set_aside,
                full=self._refusing,
                trouble=self._trouble,
            )

    def close(self) -> None:
        """Sync, and leave no file but what is not yet handed over; `open_journal` calls it."""
        with self._making:
            with self._lock:
                self._closed = True
                last = self._table.live
                prepared, self._prepared = self._prepared, None
                self._table.seal()
            self._reader.close()
            try:
                self.sync()
                if last is not None:
                    # Spares the next start the search for records in what was never used.
                    with contextlib.suppress(OSError):
                        os.truncate(self._folder.segment_path(last.number), last.written)
                self._table.settle(self._table.checkpoint)
            finally:
                self._table.close()
                if prepared is not None:
                    prepared.close()
                    self._folder.remove_segment(prepared.number, keep=False)


def _sync_and_close(descriptor: int) -> None:
    """Sync a duplicate of a segment's descriptor: the segment may be closed meanwhile."""
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def open_journal(
    directory: Path,
    settings: JournalSettings,
    clock: Clock,
    allocate: Allocator = allocate_file,
) -> Iterator[Journal]:
    """Open the journal in `directory`, alone; raises `JournalLocked` when it is in use.

    What the last process left is scanned as the reader reaches it. A full disk does not keep it
    from opening: then `append` refuses until there is room.
    """
    with lock_folder(directory) as folder:
        journal = Journal(folder, settings, clock, allocate)
        try:
            yield journal
        finally:
            journal.close()
