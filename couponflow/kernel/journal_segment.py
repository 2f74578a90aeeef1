"""A journal segment: its file format, how one is made, and how records are read from a damaged one.

    segment = header (32 bytes), records, zeros to the end of the file
    header  = b"CFJH", u32 version, u64 number, f64 created at (epoch), 4 zeros, u32 crc32
    record  = b"CFJ1", u32 length, u32 crc32 of the payload with the length as seed, payload

All numbers are little-endian. A damaged stretch is stepped over by looking for the next magic
that begins a record with a right crc. Text payloads cannot imitate one from within, because the
length of a record always holds zero bytes.
"""

import contextlib
import mmap
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeAlias
from zlib import crc32

import msgspec

MAX_PAYLOAD_BYTES = 65_536
RECORD_MAGIC = b"CFJ1"
RECORD_HEADER = struct.Struct("<4sII")
LENGTH = struct.Struct("<I")
SEGMENT_START = 32
"""The offset of a segment's first record."""

_HEADER = struct.Struct("<4sIQd4xI")
_HEADER_MAGIC = b"CFJH"
_HEADER_CHECKED_BYTES = SEGMENT_START - 4
_VERSION = 1
_WINDOW_BYTES = 256 * 1024
_ZEROS = bytes(_WINDOW_BYTES)

Allocator: TypeAlias = Callable[[int, int], None]
"""Gives the file of a descriptor that many bytes of disk, all zero, or raises `OSError`."""


def encode_record(payload: bytes) -> bytes:
    """Return the record of `payload`; raises `ValueError` unless it has 1 byte to 64 KiB."""
    length = len(payload)
    if not 0 < length <= MAX_PAYLOAD_BYTES:
        raise ValueError(
            f"a journal payload has 1 to {MAX_PAYLOAD_BYTES} bytes, this one has {length}"
        )
    return RECORD_HEADER.pack(RECORD_MAGIC, length, crc32(payload, length)) + payload


def parse_records(window: bytes, max_records: int) -> tuple[list[bytes], int]:
    """Return the payloads of the valid records `window` begins with, and the bytes they take."""
    payloads: list[bytes] = []
    at = 0
    last_header = len(window) - RECORD_HEADER.size
    while at <= last_header and len(payloads) < max_records:
        magic, length, crc = RECORD_HEADER.unpack_from(window, at)
        if magic != RECORD_MAGIC or not 0 < length <= MAX_PAYLOAD_BYTES:
            break
        begin = at + RECORD_HEADER.size
        payload = window[begin : begin + length]
        if len(payload) < length or crc32(payload, length) != crc:
            break
        payloads.append(payload)
        at = begin + length
    return payloads, at


def encode_header(number: int, created_at: float) -> bytes:
    header = _HEADER.pack(_HEADER_MAGIC, _VERSION, number, created_at, 0)
    checked = header[:_HEADER_CHECKED_BYTES]
    return checked + LENGTH.pack(crc32(checked))


def header_is_broken(header: bytes, number: int) -> bool:
    """Say whether a file's first bytes are damaged.

    A file too short for a header, or with nothing but zeros there, was never finished: its maker
    was killed. That is no damage.
    """
    if len(header) < SEGMENT_START or header == bytes(SEGMENT_START):
        return False
    magic, version, named, _, crc = _HEADER.unpack(header)
    right = (_HEADER_MAGIC, _VERSION, number, crc32(header[:_HEADER_CHECKED_BYTES]))
    return (magic, version, named, crc) != right


def allocate_file(descriptor: int, size: int) -> None:
    """Reserve the disk now, so that a full disk is an error here and no SIGBUS in the map later."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    written = 0
    while written < size:
        written += os.pwrite(descriptor, _ZEROS[: size - written], written)


class OpenSegment:
    """A segment this process made, mapped into memory for appending."""

    __slots__ = ("capacity", "descriptor", "map", "number", "synced", "written")

    def __init__(self, number: int, descriptor: int, capacity: int) -> None:
        self.number = number
        self.descriptor = descriptor
        self.capacity = capacity
        self.map = mmap.mmap(descriptor, capacity)
        self.written = SEGMENT_START
        """Where the next record goes; everything before is complete."""
        self.synced = 0

    def close(self) -> None:
        """Give up the descriptor; the map goes when its last user drops it."""
        os.close(self.descriptor)


def make_segment(
    path: Path, number: int, size: int, created_at: float, allocate: Allocator
) -> OpenSegment:
    """Make, allocate and map a new segment; raises `OSError` and leaves no file when it cannot."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        allocate(descriptor, size)
        segment = OpenSegment(number, descriptor, size)
    except BaseException:
        os.close(descriptor)
        with contextlib.suppress(OSError):
            path.unlink()
        raise
    segment.map[:SEGMENT_START] = encode_header(number, created_at)
    return segment


class Source(Protocol):
    """Where a segment's bytes come from."""

    def read(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes; fewer only where the segment ends."""
        ...

    def close(self) -> None: ...


class MapSource:
    """The bytes of a segment this process has mapped: no system call, no release of the GIL."""

    def __init__(self, segment: OpenSegment) -> None:
        self._map = segment.map

    def read(self, offset: int, length: int) -> bytes:
        return self._map[offset : offset + length]

    def close(self) -> None:
        """Nothing to do: the map goes with its last user."""


class FileSource:
    """The bytes of a closed segment, read rather than mapped: it may shrink or fail at any time."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self._descriptor).st_size

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._descriptor, length, offset)

    def close(self) -> None:
        os.close(self._descriptor)


class Damage(msgspec.Struct, frozen=True):
    """Bytes that are no record; `torn` when no valid record follows them."""

    offset: int
    length: int
    torn: bool


class Budget:
    """How many bytes a caller may still look at before it should let others work."""

    def __init__(self, limit_bytes: int) -> None:
        self.left_bytes = limit_bytes

    def spend(self, count: int) -> None:
        self.left_bytes -= count

    @property
    def spent(self) -> bool:
        return self.left_bytes <= 0


class SegmentReader:
    """Reads one segment's records in order and steps over what is damaged."""

    def __init__(self, source: Source, offset: int) -> None:
        self.source = source
        self.offset = offset
        """How far everything is decided: a record handed out or damage noted."""
        self.records_end = offset
        """Where the last record handed out ended."""
        self.damage: list[Damage] = []
        """What was stepped over, oldest first; the caller takes it from here."""
        self._searched = offset + 1
        self._content_end = offset

    def read(self, end: int, max_records: int, budget: Budget) -> list[bytes]:
        """Return the next payloads before `end`; `offset` reaches `end` when there are no more.

        It stops earlier when the budget is spent, in the middle of a search if need be, and goes
        on from there the next time. Raises `OSError` when the disk does not give the bytes, after
        it has returned all records before them.
        """
        payloads: list[bytes] = []
        try:
            while self.offset < end and len(payloads) < max_records and not budget.spent:
                if not self._take_records(end, max_records, budget, payloads):
                    self._step_over(end, budget)
        except OSError:
            if not payloads:
                raise
        return payloads

    def _take_records(
        self, end: int, max_records: int, budget: Budget, payloads: list[bytes]
    ) -> bool:
        window = self.source.read(self.offset, min(_WINDOW_BYTES, end - self.offset))
        found, length = parse_records(window, max_records - len(payloads))
        if not found:
            return False
        payloads += found
        budget.spend(length)
        self._decide(self.offset + length)
        self.records_end = self.offset
        return True

    def _decide(self, offset: int) -> None:
        self.offset = offset
        self._searched = offset + 1
        self._content_end = offset

    def _step_over(self, end: int, budget: Budget) -> None:
        following = self._search(end, budget)
        if following is not None:
            # A writer in another process may have finished this record while the search ran.
            if not self._record_at(self.offset, end):
                self.damage.append(Damage(self.offset, following - self.offset, torn=False))
                self._decide(following)
            return
        if self._searched < end:
            return
        if self._content_end > self.offset:
            self.damage.append(Damage(self.offset, self._content_end - self.offset, torn=True))
        self._decide(end)

    def _search(self, end: int, budget: Budget) -> int | None:
        """Look for the next valid record; None when there is none before `_searched`."""
        overlap = len(RECORD_MAGIC) - 1
        begin = max(self._searched - overlap, self.offset + 1)
        if self._searched == self.offset + 1:
            self._note_content(self.offset, self.source.read(self.offset, 1))
        while self._searched < end and not budget.spent:
            chunk = self.source.read(begin, min(_WINDOW_BYTES, end - begin))
            budget.spend(max(len(chunk), 1))
            at = chunk.find(RECORD_MAGIC) if self._note_content(begin, chunk) else -1
            while at >= 0:
                if self._record_at(begin + at, end):
                    return begin + at
                at = chunk.find(RECORD_MAGIC, at + 1)
            reached = begin + len(chunk)
            # Nothing more came: the file is shorter than it was.
            self._searched = reached if reached > self._searched else end
            begin = self._searched - overlap
        return None

    def _note_content(self, begin: int, chunk: bytes) -> bool:
        """Remember how far there is anything but zeros; say whether this chunk has any."""
        # The comparison is many times quicker than stripping, and most chunks are all zeros.
        if chunk == (_ZEROS if len(chunk) == _WINDOW_BYTES else bytes(len(chunk))):
            return False
        self._content_end = begin + len(chunk.rstrip(b"\0"))
        return True

    def _record_at(self, offset: int, end: int) -> bool:
        length = min(RECORD_HEADER.size + MAX_PAYLOAD_BYTES, end - offset)
        found, _ = parse_records(self.source.read(offset, length), 1)
        return bool(found)
