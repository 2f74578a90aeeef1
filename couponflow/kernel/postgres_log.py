"""What the embedded PostgreSQL writes to its standard error."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

_MAX_BYTES = 10 * 1024 * 1024
_TAIL_LINES = 15
_TAIL_BYTES = 8192


class PostgresLog:
    """A log file that is appended to, and started afresh when it has grown too large."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._marked = 0

    def cut(self) -> None:
        """Empty the file if it is larger than 10 MB; call it before a server starts."""
        if self._size() > _MAX_BYTES:
            self.path.write_bytes(b"")

    def appending(self) -> BinaryIO:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        return os.fdopen(os.open(self.path, flags, 0o600), "ab")

    def mark(self) -> None:
        """Remember the end of the file; `says` and `tail` look at what comes after."""
        self._marked = self._size()

    def says(self, words: Iterable[str]) -> bool:
        text = self._since_mark()
        return any(word in text for word in words)

    def tail(self) -> str:
        return "\n".join(self._since_mark().splitlines()[-_TAIL_LINES:]) or "(nothing)"

    def _since_mark(self) -> str:
        try:
            with self.path.open("rb") as file:
                file.seek(max(self._marked, self._size() - _TAIL_BYTES))
                return file.read(_TAIL_BYTES).decode(errors="replace")
        except FileNotFoundError:
            return ""

    def _size(self) -> int:
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0
