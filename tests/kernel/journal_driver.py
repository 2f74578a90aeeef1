"""Helpers that drive a journal in tests, and spoil its files."""

import contextlib
import errno
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

from couponflow.config import JournalSettings
from couponflow.kernel.clock import ManualClock
from couponflow.kernel.journal import (
    Journal,
    JournalBatch,
    JournalFull,
    open_journal,
)
from couponflow.kernel.journal_segment import allocate_file

# Five records of 30 bytes fit: 32 + 5 * (12 + 30) = 242.
SMALL = JournalSettings(segment_bytes=250, max_bytes=100_000)
RECORD_BYTES = 42


def payload(number: int) -> bytes:
    return b"click %024d" % number


def payloads(first: int, count: int) -> list[bytes]:
    return [payload(number) for number in range(first, first + count)]


@contextlib.contextmanager
def opened(directory: Path, journal_settings: JournalSettings = SMALL) -> Iterator[Journal]:
    with open_journal(directory, journal_settings, ManualClock()) as journal:
        yield journal


def append_all(journal: Journal, records: list[bytes]) -> None:
    for record in records:
        journal.append(record)


def read_all(journal: Journal, at_once: int = 1000) -> list[bytes]:
    found: list[bytes] = []
    while (batch := journal.read(at_once)) is not None:
        found += batch.payloads
    return found


def read_batch(journal: Journal, max_records: int) -> JournalBatch:
    batch = journal.read(max_records)
    assert batch is not None
    return batch


def killed_copy(directory: Path, count: int, copy: Path) -> Path:
    """Append `count` records and return the folder as a process killed after them leaves it."""
    with opened(directory) as journal:
        append_all(journal, payloads(0, count))
        shutil.copytree(directory, copy)
    return copy


def segment_names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("segment-*.journal"))


def segment_path(directory: Path, number: int) -> Path:
    return directory / f"segment-{number:016d}.journal"


def set_aside_names(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "set-aside").glob("*"))


def flip(path: Path, at: int, mask: int = 0xFF) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= mask
    path.write_bytes(content)


def fill(journal: Journal) -> int:
    for count in itertools.count():
        try:
            journal.append(payload(count))
        except JournalFull:
            return count
    raise AssertionError


class Disk:
    """A disk that can be full."""

    def __init__(self) -> None:
        self.full = False
        self.asked = 0

    def allocate(self, descriptor: int, size: int) -> None:
        self.asked += 1
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        allocate_file(descriptor, size)
