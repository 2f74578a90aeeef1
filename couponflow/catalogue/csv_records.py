"""CSV records with the line each begins on, from any bytes whatever.

A damaged line costs one record, never the ones after it: after a quote that does not close,
reading goes on with the next line. Bytes that are not UTF-8 stay in the text as lone surrogates
(`surrogateescape`), so that a rejected row can be written back as it was.
"""

import csv
import re
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TextIO

import msgspec

MAX_RECORD_CHARACTERS = 65_536

_TOO_LONG = f"has {MAX_RECORD_CHARACTERS:,} characters or more"
_UNDECODED_BYTE = re.compile(r"[\udc80-\udcff]")


class CsvRecord(msgspec.Struct, frozen=True, gc=False):
    """One record of the file."""

    line: int
    """The line of the file it begins on; the first is 1."""
    fields: Sequence[str]
    """Its fields; if it is broken, the (beginning of the) text of its first line alone."""
    problem: str | None
    """What is wrong with its text, if anything."""
    broken: bool
    """It could not be taken apart into fields."""


def read_records(stream: TextIO) -> Iterator[CsvRecord]:
    """Yield the records of a stream opened with `newline=""`; empty lines are left out."""
    lines = _Lines(stream)
    while line := lines.next():
        number = lines.number
        if len(line) >= MAX_RECORD_CHARACTERS:
            lines.skip_rest_of(line)
            yield _broken(number, line[:200], _TOO_LONG)
        elif '"' in line:
            yield _quoted_record(lines, line)
        elif text := line.rstrip("\r\n"):
            # Without a quote there is nothing that csv.reader would see otherwise, only slower.
            yield CsvRecord(number, text.split(","), _text_problem(text), False)


class _Lines:
    """The lines of a stream, some of which can be given back."""

    __slots__ = ("_given_back", "_stream", "number")

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._given_back: deque[str] = deque()
        self.number = 0

    def next(self) -> str:
        """The next line with its line end, cut at the longest record; empty at the end."""
        if self._given_back:
            line = self._given_back.popleft()
        else:
            line = self._stream.readline(MAX_RECORD_CHARACTERS)
        if line:
            self.number += 1
        return line

    def give_back(self, lines: Sequence[str]) -> None:
        self._given_back.extendleft(reversed(lines))
        self.number -= len(lines)

    def skip_rest_of(self, line: str) -> None:
        while line and not line.endswith(("\n", "\r")):
            line = self._stream.readline(MAX_RECORD_CHARACTERS)


def _quoted_record(lines: _Lines, first: str) -> CsvRecord:
    number = lines.number
    taken = [first]
    try:
        fields = next(csv.reader(_continued(lines, taken), strict=True))
    except csv.Error as error:
        lines.give_back(taken[1:])
        reason = f"has a quote that does not close or is not doubled inside its field ({error})"
        return _broken(number, first.rstrip("\r\n"), reason)
    return CsvRecord(number, fields, _text_problem("".join(taken)), False)


def _continued(lines: _Lines, taken: list[str]) -> Iterator[str]:
    """The lines a quoted field may run over, noted in `taken`, up to the longest record."""
    yield taken[0]
    size = len(taken[0])
    while line := lines.next():
        taken.append(line)
        size += len(line)
        if size >= MAX_RECORD_CHARACTERS:
            return
        yield line


def _broken(number: int, text: str, reason: str) -> CsvRecord:
    problem = f"line {reason}"
    if (more := _text_problem(text)) is not None:
        problem = f"{problem}; {more}"
    return CsvRecord(number, (text,), problem, True)


def _text_problem(text: str) -> str | None:
    if not text.isascii() and (undecoded := _UNDECODED_BYTE.search(text)):
        byte = ord(undecoded[0]) - 0xDC00
        return f"line holds the byte 0x{byte:02x}, which is not UTF-8: save the file as UTF-8"
    if "\0" in text:
        return "line holds a NUL byte"
    return None
