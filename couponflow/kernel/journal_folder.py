"""The journal's folder: which files it holds, who may use it, and how files leave it."""

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path

from couponflow.kernel.journal_segment import SEGMENT_START, Damage, Source, header_is_broken

_SEGMENT_NAME = re.compile(r"segment-(\d{16})\.journal")
_COPY_BYTES = 256 * 1024


class JournalLocked(Exception):
    """Another daemon uses this journal folder, and two would mix up their clicks.

    Stop the other one, or give this one a folder of its own with COUPONFLOW_VAR_DIR.
    """


class JournalFolder:
    """Paths and file operations; it remembers nothing and leaves unknown files alone."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.checkpoint_path = directory / "checkpoint"
        self.set_aside_directory = directory / "set-aside"

    def segment_path(self, number: int) -> Path:
        return self.directory / f"segment-{number:016d}.journal"

    def segment_numbers(self) -> list[int]:
        """Return the numbers of the segments there are, oldest first; none without a folder."""
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            return []
        matches = (_SEGMENT_NAME.fullmatch(name) for name in names)
        return sorted(int(match[1]) for match in matches if match is not None)

    def remove_segment(self, number: int, keep: bool) -> None:
        """Delete a segment, or move it to `set-aside/` if `keep` or if its header is broken."""
        path = self.segment_path(number)
        with contextlib.suppress(FileNotFoundError):
            if keep or header_is_broken(_first_bytes(path), number):
                path.rename(self._set_aside_path(path.name))
            else:
                path.unlink()

    def copy_aside(self, number: int, damage: Damage, source: Source) -> str:
        """Copy damaged bytes into `set-aside/` and return the file's name.

        A copy made before is left as it is. Raises `OSError` when the disk refuses.
        """
        name = f"segment-{number:016d}.offset-{damage.offset}.length-{damage.length}.bytes"
        path = self._set_aside_path(name)
        with contextlib.suppress(FileExistsError), path.open("xb") as copy:
            offset, end = damage.offset, damage.offset + damage.length
            while chunk := source.read(offset, min(_COPY_BYTES, end - offset)):
                copy.write(chunk)
                offset += len(chunk)
        return name

    def sync(self) -> None:
        """Make the names of new segments survive a power loss."""
        descriptor = os.open(self.directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _set_aside_path(self, name: str) -> Path:
        self.set_aside_directory.mkdir(mode=0o700, exist_ok=True)
        return self.set_aside_directory / name


@contextlib.contextmanager
def lock_folder(directory: Path) -> Iterator[JournalFolder]:
    """Make the folder if need be and hold its lock; raises `JournalLocked` when somebody else does.

    The lock belongs to the open file, so it is free again the moment its holder dies.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise JournalLocked(
                f"the journal in {directory} is in use by another daemon (pid {holder}): stop it,"
                " or set COUPONFLOW_VAR_DIR to a folder of its own for this one"
            ) from None
        # The pid only serves that message; a full disk must not keep the daemon from starting.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        yield JournalFolder(directory)
    finally:
        os.close(descriptor)


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(SEGMENT_START)
