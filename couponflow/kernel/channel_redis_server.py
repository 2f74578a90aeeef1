"""One stream on the server: its keys, what can be asked of it, and whether it answers."""

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import anyio
import msgspec
import structlog

from couponflow.kernel import channel_redis_scripts as scripts
from couponflow.kernel.backoff import exponential_backoff
from couponflow.kernel.redis_client import Redis, RedisAway, RedisError, Script

Fields = list[bytes]
"""Fields and their values, in turn."""

Argument = str | bytes | int

T = TypeVar("T")

_FIRST_RETRY_SECONDS = 0.02
_MAX_RETRY_SECONDS = 1.0
# A producer that has been silent for longer has nothing to repeat any more.
_REMEMBER_SECONDS = 86_400
_PAGE = 500

_log = structlog.get_logger("couponflow.channel")
_randomness = random.Random()  # noqa: S311 - jitter, not a secret


class Patience:
    """How long to wait before trying again: longer each time, until something has worked."""

    def __init__(self) -> None:
        self.over()

    def over(self) -> None:
        self._waits = exponential_backoff(_FIRST_RETRY_SECONDS, _MAX_RETRY_SECONDS, _randomness)

    async def wait(self) -> None:
        await anyio.sleep(next(self._waits))


class StreamServer:
    """The stream `queue:{name}` and its companions, which are all in one hash slot.

    Every call raises `RedisAway` where the server does not do what it is asked, whatever the
    reason: none is a reason to end. `report` is told when that begins, and when it is over.
    """

    def __init__(
        self,
        redis: Redis,
        name: str,
        consumer: str,
        claim_idle_seconds: float,
        report: Callable[[bool, str], None],
    ) -> None:
        self.name = name
        self.key = f"queue:{name}"
        self.claim_idle_seconds = claim_idle_seconds
        self.consumer = consumer
        self._redis = redis
        self._idle = int(claim_idle_seconds * 1000)
        self._heard_of = f"{{{self.key}}}:consumers"
        self._producer = self._producer_key(consumer)
        self._report = report
        self._away = False

    async def make_group(self) -> None:
        await self._run(scripts.MAKE_GROUP, [], [], int)

    # What producers ask

    async def publish(
        self, call: int, capacity: int, owed: bool, batches: int, arguments: Sequence[Argument]
    ) -> tuple[int, list[str]]:
        """Add as many of the batches, from the first, as there is room for: how many, and ids."""
        head = [call, capacity, _REMEMBER_SECONDS, int(owed), batches]
        told = await self._run(scripts.PUBLISH, [self._producer], [*head, *arguments], bytes)
        taken, *ids = told.decode().split()
        return int(taken), ids

    async def length(self) -> int:
        return await self._told(lambda: self._redis.call(lambda client: client.xlen(self.key)))

    async def owed(self, names: Sequence[str], forget: Sequence[str]) -> list[int]:
        """How much of each batch of this producer is not acknowledged; -1 where nobody knows."""
        arguments: list[Argument] = [_REMEMBER_SECONDS, len(forget), *forget, *names]
        return await self._run(scripts.OWED, [self._producer], arguments, list[int])

    async def missing(self, ids: Sequence[str]) -> list[str]:
        found: list[str] = []
        for start in range(0, len(ids), _PAGE):
            page = ids[start : start + _PAGE]
            found += map(bytes.decode, await self._run(scripts.MISSING, [], page, list[bytes]))
        return found

    # What consumers ask

    async def read(self, count: int) -> tuple[int, bytes, list[tuple[bytes, Fields]]]:
        """The stream's length; its latest id if there was nothing to read; what was read."""
        arguments: list[Argument] = [self.consumer, count]
        return await self._run(
            scripts.READ, [], arguments, tuple[int, bytes, list[tuple[bytes, Fields]]]
        )

    async def anything_after(self, entry_id: bytes, block_seconds: float) -> None:
        """Return once there is a newer entry, or after so long; nothing is read by it."""
        block = max(1, int(block_seconds * 1000))
        await self._told(
            lambda: self._redis.call_blocking(
                lambda client: client.xread({self.key: entry_id}, count=1, block=block),
                block_seconds,
            )
        )

    async def claim(self, count: int) -> list[tuple[bytes, int, Fields]]:
        """Take over what the dead held, so many at most: id, number of this delivery, fields."""
        found: list[tuple[bytes, int, Fields]] = []
        onwards = b"-"
        while onwards and len(found) < count:
            page = min(count - len(found), _PAGE)
            arguments: list[Argument] = [self.consumer, self._idle, onwards, page]
            onwards, claimed = await self._run(
                scripts.CLAIM, [], arguments, tuple[bytes, list[tuple[bytes, int, Fields]]]
            )
            found += claimed
        return found

    async def renew(self) -> dict[str, int]:
        """Say that what is held here is being worked on: ids, and how often each was delivered."""
        held: dict[str, int] = {}
        onwards = b"-"
        while onwards:
            arguments: list[Argument] = [self.consumer, onwards, _PAGE]
            onwards, page = await self._run(
                scripts.RENEW, [self._heard_of], arguments, tuple[bytes, list[tuple[bytes, int]]]
            )
            held.update((entry_id.decode(), deliveries) for entry_id, deliveries in page)
        return held

    async def sweep(self) -> int:
        """Forget the dead who hold nothing; how many other consumers live."""
        arguments: list[Argument] = [self.consumer, self._idle]
        return await self._run(scripts.SWEEP, [self._heard_of], arguments, int)

    async def fetch(self, ids: Sequence[str]) -> list[tuple[bytes, Fields]]:
        found: list[tuple[bytes, Fields]] = []
        for start in range(0, len(ids), _PAGE):
            page = ids[start : start + _PAGE]
            found += await self._run(scripts.FETCH, [], page, list[tuple[bytes, Fields]])
        return found

    async def acknowledge(self, batches: Sequence[tuple[str, Sequence[str]]]) -> None:
        """Delete what is done: for each batch its full name, or nothing, and the ids."""
        producers: dict[str, int] = {}
        arguments: list[Argument] = []
        for batch, ids in batches:
            producer, _, name = batch.rpartition(":")
            key = producers.setdefault(producer, len(producers) + 2) if producer else 0
            arguments += (key, name, len(ids), *ids)
        keys = [self._producer_key(each) for each in producers]
        await self._run(scripts.ACKNOWLEDGE, keys, arguments, int)

    async def release(self, entries: Sequence[tuple[str, int]]) -> None:
        """Let go of entries: ids, and how often each has been handed out."""
        for start in range(0, len(entries), _PAGE):
            arguments: list[Argument] = [self.consumer]
            for entry_id, handed_out in entries[start : start + _PAGE]:
                arguments += (entry_id, handed_out)
            await self._run(scripts.RELEASE, [], arguments, int)

    async def leave(self) -> None:
        await self._run(scripts.LEAVE, [self._heard_of], [self.consumer], int)

    async def statistics(self) -> tuple[int, int, int]:
        """The length, how much of it is handed out, and the age of the oldest in milliseconds."""
        return await self._run(scripts.STATISTICS, [], [], tuple[int, int, int])

    def _producer_key(self, producer: str) -> str:
        return f"{{{self.key}}}:producer:{producer}"

    async def _run(
        self, script: Script, keys: Sequence[str], arguments: Sequence[Argument], answer: type[T]
    ) -> T:
        async def ask() -> T:
            told = await self._redis.script(script, [self.key, *keys], arguments)
            return msgspec.convert(told, answer)

        return await self._told(ask)

    async def _told(self, ask: Callable[[], Awaitable[T]]) -> T:
        try:
            answer = await ask()
        except (RedisAway, RedisError, msgspec.ValidationError) as error:
            if not self._away:
                self._away = True
                _log.warning("channel_away", channel=self.name, error=str(error))
                self._report(False, str(error))
            if isinstance(error, RedisAway):
                raise
            raise RedisAway(f"{self.key} cannot be worked on: {error}") from error
        if self._away:
            self._away = False
            _log.info("channel_back", channel=self.name)
            self._report(True, "")
        return answer
