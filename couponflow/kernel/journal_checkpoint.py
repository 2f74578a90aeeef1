"""The journal's checkpoint: a small file that says how far its reader has handed records over.

The file has two slots, a page apart, written in turn: a write that is cut short spoils one slot
and the other still holds the checkpoint before it, which only means a longer replay.
"""

import os
import struct
from pathlib import Path
from zlib import crc32

import msgspec

_MAGIC = b"CFJC"
_VERSION = 1
_SLOT = struct.Struct("<4sIQQQI")
_CHECKED_BYTES = _SLOT.size - 4
_SLOT_DISTANCE_BYTES = 4096


class Position(msgspec.Struct, frozen=True, order=True):
    """A place in the journal: a byte of a segment's file, where a record begins or could."""

    segment: int
    offset: int


class CheckpointUnreadable(Exception):
    """The checkpoint file holds no valid checkpoint; the journal is replayed from its start."""


class CheckpointFile:
    """Stores positions so that `kill -9` cannot lose them; one process writes, others may read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._sequence = 0

    def load(self) -> Position | None:
        """Return the stored position, or None when none was ever stored.

        Raises `CheckpointUnreadable` when there is something, but nothing valid.
        """
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CheckpointUnreadable(f"{self._path}: {error.strerror}") from error
        slots = (_decode(content, slot * _SLOT_DISTANCE_BYTES) for slot in (0, 1))
        valid = [slot for slot in slots if slot is not None]
        if valid:
            self._sequence, position = max(valid)
            return position
        if content:
            raise CheckpointUnreadable(f"{self._path} holds no valid checkpoint")
        return None

    def store(self, position: Position) -> None:
        """Write `position` over the older slot; raises `OSError` when the disk refuses."""
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        sequence = self._sequence + 1
        slot = _encode(sequence, position)
        os.pwrite(self._descriptor, slot, sequence % 2 * _SLOT_DISTANCE_BYTES)
        self._sequence = sequence

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _encode(sequence: int, position: Position) -> bytes:
    slot = _SLOT.pack(_MAGIC, _VERSION, sequence, position.segment, position.offset, 0)
    checked = slot[:_CHECKED_BYTES]
    return checked + struct.pack("<I", crc32(checked))


def _decode(content: bytes, at: int) -> tuple[int, Position] | None:
    slot = content[at : at + _SLOT.size]
    if len(slot) < _SLOT.size:
        return None
    magic, version, sequence, segment, offset, crc = _SLOT.unpack(slot)
    if (magic, version, crc) != (_MAGIC, _VERSION, crc32(slot[:_CHECKED_BYTES])):
        return None
    return sequence, Position(segment, offset)
