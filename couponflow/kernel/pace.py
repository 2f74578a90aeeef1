"""A limit on how many messages are begun in a second."""

import math

import anyio

from couponflow.kernel.clock import Clock

BURST_SECONDS = 0.1
"""After a pause so much of a second's work may begin at once (one message at least)."""
UNLIMITED = 1_000_000_000
"""What may begin at once without a rate: more than any batch."""
_ROUNDING = 1e-9


class Pace:
    """Lets `rate_per_second` through in a second, evenly; None lets everything through.

    A token bucket that holds what a tenth of a second earns, or one message where that is less: so
    in any span of time no more pass than it earns and one bucket, or one batch where that is more.
    Small, because the limit is often somebody else's (a provider's), who counts by the second. For
    one channel in one daemon.
    """

    def __init__(self, clock: Clock, rate_per_second: float | None = None) -> None:
        self._clock = clock
        self._rate = _valid(rate_per_second)
        self._tokens = self._burst()
        self._earned_until = clock.monotonic()
        self._turn = anyio.Lock(fast_acquire=True)
        self._rate_changed = anyio.Event()

    @property
    def rate_per_second(self) -> float | None:
        return self._rate

    @rate_per_second.setter
    def rate_per_second(self, rate: float | None) -> None:
        """Change it; whoever waits now waits as the new rate says. `ValueError` unless positive."""
        if rate == self._rate:
            return
        new_rate = _valid(rate)
        self._earn()
        self._rate = new_rate
        self._tokens = min(self._tokens, self._burst())
        self._rate_changed.set()
        self._rate_changed = anyio.Event()

    @property
    def at_once(self) -> int:
        """The largest batch to take: one that waits for more holds messages that could run."""
        return UNLIMITED if self._rate is None else int(self._burst())

    async def take(self, count: int = 1) -> None:
        """Return when `count` messages may begin, which is at once while there is no limit.

        First come, first served: a large batch is not overtaken by small ones. A batch larger than
        the bucket waits until all of it is earned. A cancelled call has taken nothing.
        """
        if self._rate is None and not self._turn.locked():
            return
        async with self._turn:
            self._earn()
            while self._rate is not None:
                self._earn(count)
                missing = count - self._tokens
                if missing <= _ROUNDING:
                    self._tokens -= count
                    return
                with anyio.move_on_after(missing / self._rate):
                    await self._rate_changed.wait()

    def _earn(self, wanted: float = 0.0) -> None:
        """Add what was earned since the last time; the bucket grows to what is waited for."""
        now = self._clock.monotonic()
        elapsed, self._earned_until = now - self._earned_until, now
        if self._rate is not None:
            earned = self._tokens + elapsed * self._rate
            self._tokens = min(earned, max(self._burst(), wanted))

    def _burst(self) -> float:
        return 1.0 if self._rate is None else max(1.0, self._rate * BURST_SECONDS)


def _valid(rate_per_second: float | None) -> float | None:
    if rate_per_second is not None and not 0 < rate_per_second < math.inf:
        raise ValueError(f"the rate must be a number above 0 or None, not {rate_per_second}")
    return rate_per_second
