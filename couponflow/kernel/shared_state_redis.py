"""Shared state in Redis, for an installation of many daemons.

Keys, as an operator sees them: rate limits are called as they are given (`ratelimit:redirect:...`),
heartbeats `worker:heartbeat:{worker_id}` (JSON) and listed in `worker:heartbeats`, everything else
has a prefix: `counter:`, `cache:`, `once:`, `lock:` (a hash of holder, fence and end), and topics
`topic:`. Every call touches one key, and every key ends by itself.
"""

import math
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Literal

import msgspec
import structlog
from coredis import PureToken

from couponflow.kernel.redis_client import Redis, RedisAway, RedisError, Script
from couponflow.kernel.shared_state import (
    Heartbeat,
    Lock,
    RateVerdict,
    SharedStateAway,
    TopicSubscription,
    WindowCount,
    require_lifetime,
)
from couponflow.kernel.shared_state_scripts import ACQUIRE, ADD, ENLIST, PUBLISH, RATE_LIMIT, RENEW

FENCE_KEPT_SECONDS = 86_400.0
"""How long a lock's last fence outlives it. A fence is also never below the server's clock, so
this matters only when that clock is set back."""
HEARTBEAT = "worker:heartbeat:"
HEARTBEATS = "worker:heartbeats"
_log = structlog.get_logger("couponflow.shared_state")
_details = msgspec.json.Decoder(dict[str, str])


class RedisSharedState:
    """What all daemons on one Redis know together; within Redis's own deadline for every call."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._unchecked = False

    async def rate_limit(
        self, key: str, limit: int, window_seconds: float, *, when_away: Literal["allow", "refuse"]
    ) -> RateVerdict:
        window = _milliseconds(window_seconds)
        try:
            allowed, wait = await self._pair(RATE_LIMIT, key, limit, window)
        except SharedStateAway as error:
            if not self._unchecked:
                _log.warning("rate limits are not checked", answer=when_away, error=str(error))
            self._unchecked = True
            if when_away == "allow":
                return RateVerdict(allowed=True)
            return RateVerdict(allowed=False, retry_after_seconds=window_seconds)
        if self._unchecked:
            _log.info("rate limits are checked again")
        self._unchecked = False
        return RateVerdict(allowed=allowed == 1, retry_after_seconds=wait / 1000)

    async def rate_limit_add(self, key: str, amount: int, *, window_seconds: float) -> WindowCount:
        count, left = await self._pair(ADD, key, amount, _milliseconds(window_seconds))
        return WindowCount(count, left / 1000)

    async def count(self, key: str, amount: int = 1, *, lifetime_seconds: float) -> int:
        lifetime = _milliseconds(lifetime_seconds)
        value, _ = await self._pair(ADD, f"counter:{key}", amount, lifetime)
        return value

    async def counted(self, key: str) -> int:
        with _asking():
            value = await self._redis.call(lambda client: client.get(f"counter:{key}"))
        return int(value or 0)

    async def cache_get(self, key: str) -> bytes | None:
        with _asking():
            return await self._redis.call(lambda client: client.get(f"cache:{key}"))

    async def cache_put(self, key: str, value: bytes, *, lifetime_seconds: float) -> None:
        lifetime = _milliseconds(lifetime_seconds)
        with _asking():
            await self._redis.call(lambda client: client.set(f"cache:{key}", value, px=lifetime))

    async def cache_drop(self, key: str) -> None:
        with _asking():
            await self._redis.call(lambda client: client.delete([f"cache:{key}"]))

    async def first_time(self, key: str, *, lifetime_seconds: float) -> bool:
        lifetime = _milliseconds(lifetime_seconds)
        with _asking():
            return await self._redis.call(
                lambda client: client.set(f"once:{key}", b"1", condition=PureToken.NX, px=lifetime)
            )

    async def acquire(self, name: str, holder: str, *, lease_seconds: float) -> Lock | None:
        kept = _milliseconds(FENCE_KEPT_SECONDS)
        fence = await self._number(
            ACQUIRE, f"lock:{name}", holder, _milliseconds(lease_seconds), kept
        )
        return Lock(name, holder, fence) if fence else None

    async def renew(self, lock: Lock, *, lease_seconds: float) -> bool:
        return await self._end_in(lock, _milliseconds(lease_seconds))

    async def release(self, lock: Lock) -> bool:
        return await self._end_in(lock, 0)

    async def _end_in(self, lock: Lock, milliseconds: int) -> bool:
        kept = _milliseconds(FENCE_KEPT_SECONDS)
        key = f"lock:{lock.name}"
        return await self._number(RENEW, key, lock.holder, lock.fence, milliseconds, kept) == 1

    async def publish(self, topic: str, payload: bytes) -> None:
        with _asking():
            await self._redis.script(PUBLISH, [f"topic:{topic}"], [payload])

    @asynccontextmanager
    async def listen(self, topic: str) -> AsyncGenerator[TopicSubscription, None]:
        async with self._redis.listen(f"topic:{topic}") as subscription:
            yield subscription

    async def beat(
        self, worker_id: str, details: Mapping[str, str], *, lifetime_seconds: float
    ) -> None:
        lifetime = _milliseconds(lifetime_seconds)
        value = msgspec.json.encode(details)
        with _asking():
            await self._redis.call(
                lambda client: client.set(HEARTBEAT + worker_id, value, px=lifetime)
            )
        # A list of its own, since looking for keys by pattern walks through all there are.
        await self._number(ENLIST, HEARTBEATS, worker_id, lifetime)

    async def heartbeats(self) -> list[Heartbeat]:
        with _asking():
            listed = await self._redis.call(lambda client: client.zrange(HEARTBEATS, 0, -1))
        found = [await self._heartbeat(str(worker_id, "utf-8")) for worker_id in listed]
        living = [heartbeat for heartbeat in found if heartbeat is not None]
        return sorted(living, key=lambda heartbeat: heartbeat.worker_id)

    async def _heartbeat(self, worker_id: str) -> Heartbeat | None:
        with _asking():
            value = await self._redis.call(lambda client: client.get(HEARTBEAT + worker_id))
        return None if value is None else Heartbeat(worker_id, _read_details(worker_id, value))

    async def silence(self, worker_id: str) -> None:
        with _asking():
            await self._redis.call(lambda client: client.delete([HEARTBEAT + worker_id]))
            await self._redis.call(lambda client: client.zrem(HEARTBEATS, [worker_id]))

    async def _number(self, script: Script, key: str, *arguments: str | int) -> int:
        with _asking():
            return msgspec.convert(await self._redis.script(script, [key], arguments), int)

    async def _pair(self, script: Script, key: str, *arguments: str | int) -> tuple[int, int]:
        with _asking():
            reply = await self._redis.script(script, [key], arguments)
        return msgspec.convert(reply, tuple[int, int])


@contextmanager
def _asking() -> Generator[None]:
    """Turn what Redis may do instead of answering into the contract's error."""
    try:
        yield
    except RedisAway as error:
        raise SharedStateAway(str(error)) from error
    except RedisError as error:
        # Out of memory, a failover under way, a key that somebody else gave another type.
        raise SharedStateAway(f"Redis refused: {error}; look at its log and memory") from error


def _milliseconds(seconds: float) -> int:
    return math.ceil(require_lifetime(seconds) * 1000)


def _read_details(worker_id: str, value: bytes) -> dict[str, str]:
    try:
        return _details.decode(value)
    except msgspec.DecodeError as error:
        # The worker lives, whatever somebody wrote there: the others must still be shown.
        _log.warning("heartbeat not readable", worker_id=worker_id, error=str(error))
        return {}
