"""Shared state for a daemon alone, in its own memory.

All callers run on one event loop and no call waits in its middle, so each is atomic.
"""

from collections import deque
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Generic, Literal, TypeVar

import anyio
import anyio.lowlevel
import msgspec

from couponflow.kernel.clock import Clock
from couponflow.kernel.shared_state import (
    Heartbeat,
    Lock,
    RateVerdict,
    TopicSubscription,
    WindowCount,
    require_lifetime,
)

MAX_KEYS = 100_000
"""What is remembered of each kind of state."""
MAX_UNHEARD = 1_000
"""Payloads that wait for one listener."""
SWEEP_SECONDS = 1.0
"""How often a full memory looks for what has ended: a sweep walks through all of it."""
_FIRST_SWEEP = 1_024

V = TypeVar("V")


class _Entry(msgspec.Struct, Generic[V]):
    value: V
    ends_at: float


class _Expiring(Generic[V]):
    """Values that end, at most `max_keys`: beyond that, the one written longest ago is forgotten.

    What has ended is dropped when somebody asks for it, and by a sweep each time as much was
    written as the sweep before had left: so there is never more than twice what lives.
    """

    def __init__(self, clock: Clock, max_keys: int) -> None:
        self._clock = clock
        self._max_keys = max_keys
        self._entries: dict[str, _Entry[V]] = {}
        self._sweep_at_size = _FIRST_SWEEP
        self._swept_at = float("-inf")

    def find(self, key: str) -> _Entry[V] | None:
        entry = self._entries.get(key)
        if entry is None or self._clock.monotonic() < entry.ends_at:
            return entry
        del self._entries[key]
        return None

    def put(self, key: str, value: V, lifetime_seconds: float) -> _Entry[V]:
        entry = _Entry(value, self._clock.monotonic() + require_lifetime(lifetime_seconds))
        self._entries.pop(key, None)
        self._make_room()
        self._entries[key] = entry
        return entry

    def drop(self, key: str) -> None:
        self._entries.pop(key, None)

    def living(self) -> dict[str, V]:
        self._sweep()
        return {key: entry.value for key, entry in self._entries.items()}

    @property
    def full(self) -> bool:
        """Whether one more would be at the cost of one that lives."""
        if len(self._entries) >= self._max_keys:
            self._sweep()
        return len(self._entries) >= self._max_keys

    def __len__(self) -> int:
        return len(self._entries)

    def _make_room(self) -> None:
        recently = self._clock.monotonic() - self._swept_at < SWEEP_SECONDS
        if len(self._entries) >= min(self._sweep_at_size, self._max_keys) and not recently:
            self._sweep()
            self._sweep_at_size = max(_FIRST_SWEEP, 2 * len(self._entries))
        while len(self._entries) >= self._max_keys:
            del self._entries[next(iter(self._entries))]

    def _sweep(self) -> None:
        now = self._clock.monotonic()
        self._swept_at = now
        self._entries = {k: entry for k, entry in self._entries.items() if now < entry.ends_at}


class _Listener:
    """One end of a topic."""

    def __init__(self) -> None:
        self._unheard: deque[bytes] = deque(maxlen=MAX_UNHEARD)
        self._heard = anyio.Event()

    def tell(self, payload: bytes) -> None:
        self._unheard.append(payload)
        self._heard.set()

    async def receive(self, timeout_seconds: float) -> bytes | None:
        await anyio.lowlevel.checkpoint()
        if not self._unheard:
            self._heard = anyio.Event()
            with anyio.move_on_after(timeout_seconds):
                await self._heard.wait()
        return self._unheard.popleft() if self._unheard else None


class MemorySharedState:
    """What one process knows; it dies with the process and is never away.

    Of each kind of state at most `max_keys` are remembered: one more makes it forget the one that
    was written longest ago. Locks are not forgotten: while so many are held, no other is given.
    """

    def __init__(self, clock: Clock, *, max_keys: int = MAX_KEYS) -> None:
        self._clock = clock
        self._windows: _Expiring[int] = _Expiring(clock, max_keys)
        self._counters: _Expiring[int] = _Expiring(clock, max_keys)
        self._cache: _Expiring[bytes] = _Expiring(clock, max_keys)
        self._seen: _Expiring[None] = _Expiring(clock, max_keys)
        self._locks: _Expiring[Lock] = _Expiring(clock, max_keys)
        self._heartbeats: _Expiring[Heartbeat] = _Expiring(clock, max_keys)
        self._listeners: dict[str, list[_Listener]] = {}
        self._last_fence = 0

    async def rate_limit(
        self, key: str, limit: int, window_seconds: float, *, when_away: Literal["allow", "refuse"]
    ) -> RateVerdict:
        require_lifetime(window_seconds)
        window = self._windows.find(key)
        if limit > (window.value if window else 0):
            _add(self._windows, key, 1, window_seconds)
            return RateVerdict(allowed=True)
        wait = window.ends_at - self._clock.monotonic() if window else window_seconds
        return RateVerdict(allowed=False, retry_after_seconds=wait)

    async def rate_limit_add(self, key: str, amount: int, *, window_seconds: float) -> WindowCount:
        window = _add(self._windows, key, amount, window_seconds)
        return WindowCount(window.value, window.ends_at - self._clock.monotonic())

    async def count(self, key: str, amount: int = 1, *, lifetime_seconds: float) -> int:
        return _add(self._counters, key, amount, lifetime_seconds).value

    async def counted(self, key: str) -> int:
        counter = self._counters.find(key)
        return counter.value if counter else 0

    async def cache_get(self, key: str) -> bytes | None:
        cached = self._cache.find(key)
        return cached.value if cached else None

    async def cache_put(self, key: str, value: bytes, *, lifetime_seconds: float) -> None:
        self._cache.put(key, value, lifetime_seconds)

    async def cache_drop(self, key: str) -> None:
        self._cache.drop(key)

    async def first_time(self, key: str, *, lifetime_seconds: float) -> bool:
        require_lifetime(lifetime_seconds)
        if self._seen.find(key) is not None:
            return False
        self._seen.put(key, None, lifetime_seconds)
        return True

    async def acquire(self, name: str, holder: str, *, lease_seconds: float) -> Lock | None:
        require_lifetime(lease_seconds)
        if self._locks.find(name) is not None or self._locks.full:
            return None
        # Of the time as well, so that it also grows past those of the process before this one.
        self._last_fence = max(self._last_fence + 1, int(self._clock.now() * 1e6))
        lock = Lock(name, holder, self._last_fence)
        self._locks.put(name, lock, lease_seconds)
        return lock

    async def renew(self, lock: Lock, *, lease_seconds: float) -> bool:
        require_lifetime(lease_seconds)
        held = self._is_held(lock)
        if held:
            self._locks.put(lock.name, lock, lease_seconds)
        return held

    async def release(self, lock: Lock) -> bool:
        held = self._is_held(lock)
        if held:
            self._locks.drop(lock.name)
        return held

    def _is_held(self, lock: Lock) -> bool:
        held = self._locks.find(lock.name)
        return held is not None and held.value == lock

    async def publish(self, topic: str, payload: bytes) -> None:
        for listener in self._listeners.get(topic, ()):
            listener.tell(payload)

    @asynccontextmanager
    async def listen(self, topic: str) -> AsyncGenerator[TopicSubscription, None]:
        listener = _Listener()
        self._listeners.setdefault(topic, []).append(listener)
        try:
            yield listener
        finally:
            self._listeners[topic].remove(listener)
            if not self._listeners[topic]:
                del self._listeners[topic]

    async def beat(
        self, worker_id: str, details: Mapping[str, str], *, lifetime_seconds: float
    ) -> None:
        self._heartbeats.put(worker_id, Heartbeat(worker_id, dict(details)), lifetime_seconds)

    async def heartbeats(self) -> list[Heartbeat]:
        return [heartbeat for _, heartbeat in sorted(self._heartbeats.living().items())]

    async def silence(self, worker_id: str) -> None:
        self._heartbeats.drop(worker_id)

    def remembered(self) -> int:
        """How many keys are in memory, ended or not."""
        kinds = (
            self._windows,
            self._counters,
            self._cache,
            self._seen,
            self._locks,
            self._heartbeats,
        )
        return sum(map(len, kinds))


def _add(counts: _Expiring[int], key: str, amount: int, lifetime_seconds: float) -> _Entry[int]:
    """Add to a count, whose lifetime begins with its first."""
    require_lifetime(lifetime_seconds)
    entry = counts.find(key)
    if entry is None:
        return counts.put(key, amount, lifetime_seconds)
    entry.value += amount
    return entry
