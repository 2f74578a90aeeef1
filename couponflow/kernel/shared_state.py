"""What the daemons of an installation know together: limits, caches, locks, counters, heartbeats.

One contract, in memory for a daemon alone (`shared_state_memory.py`) and in Redis for many
(`shared_state_redis.py`); `tests/kernel/shared_state_conformance.py` holds both to it. The daemon
itself uses heartbeats and shared rate limits so far; further roles stand on the rest. Nothing here
is the truth about anything: that is PostgreSQL's. It may be forgotten at any time (Redis restarts,
evicts, fails over), and whoever uses it must stay right when it is.

Keys are texts, and the kinds of state do not share a name space. The key of a rate limit, such as
`ratelimit:redirect:192.0.2.1`, is its name in Redis as it stands: begin it with `ratelimit:`.
Every call has a deadline and raises `SharedStateAway` when Redis does not answer, except where it
says otherwise. Whoever gets it does not know whether the call took effect: the answer may be what
was lost. A lifetime, window or lease that is not above zero is the caller's fault: `ValueError`.
"""

import math
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol

import msgspec


class SharedStateAway(Exception):
    """Redis did not answer in time, or could not do what it was asked.

    The operator checks that it runs, that REDIS_URL is right, and that it has memory left.
    """


class RateVerdict(msgspec.Struct, frozen=True):
    """Whether one more is allowed."""

    allowed: bool
    retry_after_seconds: float = 0.0
    """0 when allowed."""


class WindowCount(msgspec.Struct, frozen=True):
    """What was counted in a rate limit's window, and how long it lasts yet."""

    count: int
    seconds_left: float


class Lock(msgspec.Struct, frozen=True):
    """A lock that is held until its lease ends, unless it is renewed."""

    name: str
    holder: str
    fence: int
    """Higher than that of every holder before: whatever is written under the lock is written with
    it, and refused where a higher one was seen. Without that, a holder that slept through its
    lease would write beside the next."""


class Heartbeat(msgspec.Struct, frozen=True):
    """The latest sign of life of a worker, and what it said of itself."""

    worker_id: str
    details: Mapping[str, str]


class TopicSubscription(Protocol):
    """Hears what is published on a topic from now on; what is said while Redis is away is lost."""

    async def receive(self, timeout_seconds: float) -> bytes | None:
        """The next payload, or None when none came in time."""
        ...


class SharedState(Protocol):
    """The contract; see the module."""

    async def rate_limit(
        self, key: str, limit: int, window_seconds: float, *, when_away: Literal["allow", "refuse"]
    ) -> RateVerdict:
        """Count one against `limit` in a window that begins with the first, if it is allowed.

        Never raises `SharedStateAway`: `when_away` is the answer without Redis, `allow` for a
        redirect, `refuse` for whatever moves money.
        """
        ...

    async def rate_limit_add(self, key: str, amount: int, *, window_seconds: float) -> WindowCount:
        """Count what was allowed already, for a caller that decides by itself.

        Where no window of `key` is under way, one begins that lasts `window_seconds`.
        """
        ...

    async def count(self, key: str, amount: int = 1, *, lifetime_seconds: float) -> int:
        """Add to a counter and return its new value; it is forgotten so long after its first."""
        ...

    async def counted(self, key: str) -> int:
        """A counter's value; 0 when there is none."""
        ...

    async def cache_get(self, key: str) -> bytes | None:
        """What was put there and has not been forgotten since."""
        ...

    async def cache_put(self, key: str, value: bytes, *, lifetime_seconds: float) -> None:
        """Keep a value for so long from now; the one before it is gone."""
        ...

    async def cache_drop(self, key: str) -> None:
        """Forget a value; none being there is fine."""
        ...

    async def first_time(self, key: str, *, lifetime_seconds: float) -> bool:
        """Say whether this is the first call with `key` within its lifetime (idempotency)."""
        ...

    async def acquire(self, name: str, holder: str, *, lease_seconds: float) -> Lock | None:
        """Take a lock that nobody holds, or None; it ends by itself after `lease_seconds`.

        Not even its own holder takes a held lock again: a holder is one task.
        """
        ...

    async def renew(self, lock: Lock, *, lease_seconds: float) -> bool:
        """Hold on for another lease from now; False when the lock is no longer this holder's."""
        ...

    async def release(self, lock: Lock) -> bool:
        """Let go; False when it was no longer this holder's."""
        ...

    async def publish(self, topic: str, payload: bytes) -> None:
        """Tell whoever listens now; nobody is promised to hear it."""
        ...

    def listen(self, topic: str) -> AbstractAsyncContextManager[TopicSubscription]:
        """Hear everything published on a topic within the block, in order.

        A listener that lets too much pile up loses the oldest of it.
        """
        ...

    async def beat(
        self, worker_id: str, details: Mapping[str, str], *, lifetime_seconds: float
    ) -> None:
        """Say that a worker lives, for so long (`worker:heartbeat:{worker_id}` in Redis)."""
        ...

    async def heartbeats(self) -> list[Heartbeat]:
        """Every worker whose heartbeat has not ended, in the order of their ids."""
        ...

    async def silence(self, worker_id: str) -> None:
        """Forget a worker that ends in order."""
        ...


def require_lifetime(seconds: float) -> float:
    """Return `seconds` if something can live so long, else raise `ValueError`."""
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"a lifetime of {seconds} seconds: give one above zero that ends")
    return seconds
