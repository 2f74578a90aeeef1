"""What the journal found wrong on disk: each a thing an operator should read once in the log."""

from typing import TypeAlias, assert_never

import msgspec

from couponflow.kernel.journal_checkpoint import Position


class TornRecord(msgspec.Struct, frozen=True):
    """A segment ended in a record that was never finished; it was cut off."""

    segment: int
    offset: int
    length: int

    def __str__(self) -> str:
        return (
            f"journal segment {self.segment} ended in an unfinished record"
            f" ({self.length} bytes from byte {self.offset}), which was cut off:"
            " normal after a kill or a power loss"
        )


class DamagedBytes(msgspec.Struct, frozen=True):
    """Bytes between valid records are no record; they were skipped."""

    segment: int
    offset: int
    length: int
    set_aside: str
    """The file in `set-aside/` that holds a copy; empty when it could not be written."""

    def __str__(self) -> str:
        copy = f"a copy is in set-aside/{self.set_aside}" if self.set_aside else "not copied"
        return (
            f"journal segment {self.segment} is damaged: {self.length} bytes from byte"
            f" {self.offset} were skipped ({copy}); check the disk"
        )


class BrokenHeader(msgspec.Struct, frozen=True):
    """A segment's header is not valid; its records are replayed all the same."""

    segment: int

    def __str__(self) -> str:
        return (
            f"journal segment {self.segment} has a broken header: its valid records are replayed,"
            " then the file goes to set-aside/; check the disk"
        )


class UnreadableSegment(msgspec.Struct, frozen=True):
    """The disk did not give a segment's bytes; what lies beyond `offset` was not replayed."""

    segment: int
    offset: int
    error: str

    def __str__(self) -> str:
        return (
            f"journal segment {self.segment} cannot be read from byte {self.offset} on"
            f" ({self.error}): the rest was not replayed, the file goes to set-aside/"
        )


class CheckpointLost(msgspec.Struct, frozen=True):
    """The checkpoint file is not valid; everything in the journal is replayed."""

    error: str

    def __str__(self) -> str:
        return f"journal checkpoint lost ({self.error}): everything in the journal is replayed"


class CheckpointMoved(msgspec.Struct, frozen=True):
    """The checkpoint points at something that is not there; another place is used."""

    stored: Position
    used: Position

    def __str__(self) -> str:
        return (
            f"journal checkpoint points at segment {self.stored.segment} byte {self.stored.offset},"
            f" which is not there: replaying from segment {self.used.segment}"
            f" byte {self.used.offset}"
        )


Finding: TypeAlias = (
    TornRecord | DamagedBytes | BrokenHeader | UnreadableSegment | CheckpointLost | CheckpointMoved
)

_KEPT = 1000


class Findings:
    """The list of findings, each once and bounded, with the counts that metrics want."""

    def __init__(self) -> None:
        self.kept: list[Finding] = []
        self.torn = 0
        self.set_aside = 0

    def add(self, finding: Finding) -> None:
        """Keep and count a finding, unless a reader that went back has met it before."""
        if finding in self.kept:
            return
        if len(self.kept) < _KEPT:
            self.kept.append(finding)
        match finding:
            case TornRecord():
                self.torn += 1
            case DamagedBytes() | BrokenHeader() | UnreadableSegment():
                self.set_aside += 1
            case CheckpointLost() | CheckpointMoved():
                pass
            case _:
                assert_never(finding)
