"""Where time comes from, so that tests can say what time it is."""

import time
from typing import Protocol

END_OF_TIME = 253_370_764_800.0
"""The year 9999, in seconds since the epoch: PostgreSQL holds later times, Python reads none."""


class Clock(Protocol):
    """Two clocks: one for dates, one for intervals."""

    def now(self) -> float:
        """Seconds since the epoch, UTC; may jump when the machine's clock is set."""
        ...

    def monotonic(self) -> float:
        """Seconds since some fixed moment; never jumps. For intervals and deadlines."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


class ManualClock:
    """A clock that stands still until it is told to move; for tests and simulators."""

    def __init__(self, now: float = 1_790_000_000.0) -> None:
        self._now = now
        self._monotonic = 0.0

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> None:
        self._now += seconds
        self._monotonic += seconds
