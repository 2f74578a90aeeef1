"""The rejects file: the rows an import did not take, as they were, with line and reason.

A row with too few fields is filled up with empty ones; the surplus of one with too many stands in
its last column; of a row that could not be taken apart, the first line stands in the first column.
"""

import csv
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from couponflow.catalogue.columns import REJECT_COLUMNS
from couponflow.catalogue.csv_records import CsvRecord
from couponflow.catalogue.errors import ImportRefused

# Bytes that are not UTF-8 go out as they came in.
_ERRORS = "surrogateescape"


class RejectedRow(msgspec.Struct, frozen=True):
    """Where a bad row stood and everything that is wrong with it."""

    line: int
    reason: str


def read_rejects(path: Path) -> Iterator[RejectedRow]:
    """Yield what a rejects file says, row by row."""
    with path.open(encoding="utf-8", errors=_ERRORS, newline="") as stream:
        for fields in csv.DictReader(stream):
            yield RejectedRow(int(fields["line"]), fields["reason"])


class RejectsWriter:
    """Writes rejected rows beside the final file, which appears whole or not at all.

    Raises `ImportRefused` when the file cannot be written.
    """

    def __init__(self, path: Path, header: Sequence[str]) -> None:
        self._path = path
        self._unfinished = path.with_name(path.name + ".unfinished")
        self._own = [index for index, name in enumerate(header) if _is_own(name)]
        self._width = len(header)
        self.count = 0
        with self._refusing():
            self._stream = self._unfinished.open("w", encoding="utf-8", errors=_ERRORS, newline="")
        self._csv = csv.writer(self._stream, lineterminator="\n")
        self._write_row([*(header[index] for index in self._own), *REJECT_COLUMNS])

    def write(self, record: CsvRecord, reason: str) -> None:
        """Add a row with everything that is wrong with it."""
        fields = list(record.fields)
        last = self._width - 1
        fields[last:] = [",".join(fields[last:])]
        fields += [""] * (self._width - len(fields))
        self._write_row([*(fields[index] for index in self._own), str(record.line), reason])
        self.count += 1

    def finish(self) -> Path | None:
        """Put the file in its place; with no rejected row, remove what an earlier import left."""
        with self._refusing():
            self._stream.close()
            if self.count:
                self._unfinished.replace(self._path)
                return self._path
            self._path.unlink(missing_ok=True)
            return None

    def discard(self) -> None:
        """Throw away what `finish` has not put in its place."""
        # What is still to be flushed may be what could not be written in the first place.
        with suppress(OSError):
            self._stream.close()
        self._unfinished.unlink(missing_ok=True)

    def _write_row(self, fields: Sequence[str]) -> None:
        with self._refusing():
            self._csv.writerow(fields)

    @contextmanager
    def _refusing(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise ImportRefused(
                f"the rejects file {self._path} cannot be written: {reason}"
            ) from error


@contextmanager
def open_rejects(path: Path, header: Sequence[str]) -> Generator[RejectsWriter]:
    """A writer whose file is thrown away unless `finish` was called."""
    writer = RejectsWriter(path, header)
    try:
        yield writer
    finally:
        writer.discard()


def _is_own(name: str) -> bool:
    return name.strip().lower() not in REJECT_COLUMNS
