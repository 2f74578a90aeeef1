"""Ids made by the application: UUID version 7, which sort by the time they were made."""

import os
import re
from collections.abc import Callable

_CANONICAL = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}
_DIGITS_AN_ID = 19
_IDS_A_REFILL = 512

is_canonical_uuid = _CANONICAL.fullmatch
"""Truthy for a UUID in lower-case text with hyphens."""


class Uuid7Generator:
    """Makes UUIDv7 texts (RFC 9562, section 5.7) in well under a microsecond.

    Random digits are drawn a few thousand at a time, and the part that holds the time is written
    once a millisecond. Not safe for several threads at once: give each its own.
    """

    __slots__ = ("_milliseconds", "_prefix", "_random_bytes", "_stock", "_used")

    def __init__(self, random_bytes: Callable[[int], bytes] = os.urandom) -> None:
        self._random_bytes = random_bytes
        self._milliseconds = -1
        self._prefix = ""
        self._stock = ""
        self._used = 0

    def make(self, now: float) -> str:
        """A new id that carries `now`, in seconds since the epoch, to the millisecond."""
        milliseconds = int(now * 1000)
        if milliseconds != self._milliseconds:
            digits = f"{milliseconds:012x}"
            self._prefix = f"{digits[:8]}-{digits[8:]}-7"
            self._milliseconds = milliseconds
        start = self._used
        if start >= len(self._stock):
            self._stock = self._random_bytes(_DIGITS_AN_ID * _IDS_A_REFILL // 2).hex()
            start = 0
        self._used = start + _DIGITS_AN_ID
        r = self._stock[start : start + _DIGITS_AN_ID]
        return f"{self._prefix}{r[:3]}-{_VARIANT[r[3]]}{r[4:7]}-{r[7:]}"
