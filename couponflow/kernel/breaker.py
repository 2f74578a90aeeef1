"""Stops the consumers of a channel that dead-letter nearly everything, before the queue is gone.

Nearly every message failing for good is seldom the messages' fault: a bad deployment, a wrong key,
a provider that closed the account. Going on would move the whole queue into the dead letters, to be
replayed by hand. So the channel rests, its messages wait where they are, and now and then one of
them is tried.
"""

import math
from collections import deque
from typing import Literal

import anyio
import structlog

from couponflow.kernel.clock import Clock

BreakerState = Literal["closed", "open", "half-open"]
"""Closed: all is well. Open: nothing is begun. Half-open: one message at a time is tried."""

UNLIMITED = 1_000_000_000
"""What a closed breaker allows: more than any batch."""
REST_MAX_SECONDS = 600.0

_log = structlog.get_logger("couponflow.messages")


class _UnderWay:
    """Counts an attempt for as long as its block runs; one serves all, since it holds nothing."""

    __slots__ = ("_breaker",)

    def __init__(self, breaker: "DeadLetterBreaker") -> None:
        self._breaker = breaker

    def __enter__(self) -> None:
        self._breaker.begin_attempt()

    def __exit__(self, *raised: object) -> None:
        self._breaker.end_attempt()


class DeadLetterBreaker:
    """Watches how the messages of one channel end in one daemon.

    It opens when `share` of the latest `window` that ended are dead, and at least `least` have
    ended since it was last closed. After `rest_seconds` it is half-open. Then a message that ends
    well closes it, and a death opens it again. Each rest is twice as long as the one before, up to
    ten minutes, until `least` messages have ended without opening it.

    Only ends count, so do not record an attempt that is to be repeated: while everything fails,
    most attempts are such, and would hide it.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        window: int = 50,
        share: float = 0.8,
        least: int = 20,
        rest_seconds: float = 30.0,
        channel: str = "",
    ) -> None:
        """`channel` is for the log and the operator only."""
        self._clock = clock
        self._window = max(window, least)
        self._ends: deque[bool] = deque()
        """Whether each of the latest messages died."""
        self._dead = 0
        self._share = share
        self._least = least
        self._first_rest_seconds = rest_seconds
        self._next_rest_seconds = rest_seconds
        self._rested_at: float | None = None
        """When the rest is over, by the monotonic clock; None while closed."""
        self._under_way = 0
        self._attempt = _UnderWay(self)
        self._kept = 0
        self._channel = channel
        self._change = anyio.Event()

    @property
    def state(self) -> BreakerState:
        if self._rested_at is None:
            return "closed"
        return "open" if self._clock.monotonic() < self._rested_at else "half-open"

    def allows(self) -> int:
        """How many messages may be begun now: `UNLIMITED`, none, or one when half-open.

        When half-open it is none while an `attempt` is under way. Several consumers that ask before
        any of them has begun are allowed one each, which does no harm: deaths are kept meanwhile.
        """
        match self.state:
            case "closed":
                return UNLIMITED
            case "open":
                return 0
            case "half-open":
                return 0 if self._under_way else 1

    async def until_allowed(self) -> None:
        """Return once at least one message may be begun."""
        while not self.allows():
            # When the rest is over it is the end of an attempt that is waited for.
            with anyio.move_on_after(self._remaining_seconds() or math.inf):
                await self._change.wait()

    def attempt(self) -> _UnderWay:
        """Count one message as being worked on, so that a half-open breaker lets no second begin.

        A context manager. However the attempt ends, also as one that is to be repeated, the next
        may then begin.
        """
        return self._attempt

    def begin_attempt(self) -> None:
        """The beginning of what `attempt` counts."""
        self._under_way += 1

    def end_attempt(self) -> None:
        """Its end."""
        self._under_way -= 1
        if self._rested_at is not None:
            self._tell()

    def record(self, dead: bool) -> None:
        """Say that a message has ended: dead, or done or discarded.

        A death is recorded by `about_to_bury`, or here where its answer does not matter; not both.
        """
        match self.state:
            case "closed":
                self._record_closed(dead)
            case "half-open" if dead:
                self._open()
            case "half-open":
                self._close()
            case "open":
                # Begun before it opened: what it says is known already.
                pass

    def about_to_bury(self) -> bool:
        """Record a death; say whether the message may become a dead letter.

        False when the breaker is open by now: then keep the message for a later attempt, without
        taking its last attempt away.
        """
        self.record(dead=True)
        if self.state == "closed":
            return True
        self._kept += 1
        return False

    def detail(self) -> str:
        """What an operator should know, for the health check `consumer:{channel}`."""
        match self.state:
            case "closed":
                return f"{self._dead} of the last {len(self._ends)} messages died"
            case "open":
                remaining = math.ceil(self._remaining_seconds())
                return f"{self._diagnosis()}; one is tried in {remaining} s"
            case "half-open":
                return f"{self._diagnosis()}; one at a time is tried now"

    def _diagnosis(self) -> str:
        option = f" --channel {self._channel}" if self._channel else ""
        return (
            f"stopped: {self._dead} of the last {len(self._ends)} messages died, so the fault "
            "is probably not theirs. `couponflow dead-letters list"
            f"{option}` shows why; mend the cause. Further messages wait and are not lost "
            f"({self._kept} were kept from dying)"
        )

    def _record_closed(self, dead: bool) -> None:
        if len(self._ends) == self._window:
            self._dead -= self._ends.popleft()
        self._ends.append(dead)
        self._dead += dead
        if len(self._ends) < self._least:
            return
        if self._dead / len(self._ends) >= self._share:
            self._open()
        else:
            self._next_rest_seconds = self._first_rest_seconds

    def _remaining_seconds(self) -> float:
        """How long the breaker stays open; 0 when it is not."""
        if self._rested_at is None:
            return 0.0
        return max(0.0, self._rested_at - self._clock.monotonic())

    def _open(self) -> None:
        rest_seconds = self._next_rest_seconds
        self._next_rest_seconds = min(2 * rest_seconds, REST_MAX_SECONDS)
        self._rested_at = self._clock.monotonic() + rest_seconds
        _log.error(
            "nearly every message dies: consumers rest",
            channel=self._channel,
            dead=self._dead,
            ended=len(self._ends),
            rest_seconds=rest_seconds,
        )
        self._tell()

    def _close(self) -> None:
        self._ends.clear()
        self._dead = 0
        self._rested_at = None
        self._kept = 0
        _log.info("a message ended well: consumers go on", channel=self._channel)
        self._tell()

    def _tell(self) -> None:
        self._change.set()
        self._change = anyio.Event()
