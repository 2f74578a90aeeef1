"""The channel between daemons: a Redis stream with one consumer group.

The stream `queue:{name}` holds what waits and what is in flight, and nothing else: what is
acknowledged is deleted, and nothing is ever trimmed. So its length is bounded by refusing to add,
over all daemons together.

What can be lost, and what not: an entry that the server holds is handed out until it is
acknowledged, whoever dies. What the server itself forgets (FLUSHALL, a failover to a replica that
was behind, an eviction) is gone, unless its sender asks `missing()` or the channel was opened with
`checkpoint="acknowledged"`: its batches are then published again.
"""

import os
import secrets
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Generic, Literal

import anyio
import anyio.lowlevel

from couponflow.kernel.channel import (
    ChannelStatistics,
    Delivery,
    M,
    StreamHandover,
    Subscription,
)
from couponflow.kernel.channel_redis_acknowledging import Acknowledger
from couponflow.kernel.channel_redis_codec import (
    Codec,
    EntryMalformed,
    EnvelopeCodec,
    Malformed,
    MessageCodec,
)
from couponflow.kernel.channel_redis_consuming import Reader
from couponflow.kernel.channel_redis_malformed import MalformedDesk
from couponflow.kernel.channel_redis_publishing import Publisher
from couponflow.kernel.channel_redis_server import StreamServer
from couponflow.kernel.channel_redis_store import Held, Store
from couponflow.kernel.channel_redis_waiting import WaitingRoom
from couponflow.kernel.redis_client import Redis, RedisAway

__all__ = [
    "Codec",
    "EntryMalformed",
    "EnvelopeCodec",
    "Malformed",
    "MessageCodec",
    "RedisChannel",
    "open_redis_channel",
]

Checkpoint = Literal["handed-over", "acknowledged"]

_CLOSE_SECONDS = 2.0


class _RedisSubscription(Generic[M]):
    def __init__(
        self,
        store: Store[M],
        room: WaitingRoom,
        reader: Reader[M],
        acknowledger: Acknowledger,
        publisher: Publisher,
    ) -> None:
        self._store = store
        self._room = room
        self._reader = reader
        self._acknowledger = acknowledger
        self._publisher = publisher
        self._in_flight: dict[str, Held[M]] = {}
        self._ended = False

    async def receive(self, max_messages: int, linger_seconds: float) -> list[Delivery[M]]:
        if max_messages < 1:
            raise ValueError(f"max_messages is {max_messages}; ask for at least 1")
        # A consumer that rejects everything at once must not keep the event loop to itself.
        await anyio.lowlevel.checkpoint()
        with self._wanting(max_messages):
            while True:
                await self._room.until(self._something_to_say)
                if linger_seconds > 0 and self._worth_lingering(max_messages):
                    with anyio.move_on_after(linger_seconds):
                        await self._room.until(lambda: not self._worth_lingering(max_messages))
                if self._ended:
                    raise anyio.ClosedResourceError
                if self._store.depth:
                    return self._hand_out(max_messages)
                if self._reader.finished:
                    return []
                # Another consumer took them while this one lingered.

    @contextmanager
    def _wanting(self, count: int) -> Iterator[None]:
        self._reader.want(count)
        try:
            yield
        finally:
            self._reader.want(-count)

    def _something_to_say(self) -> bool:
        return self._ended or self._store.depth > 0 or self._reader.finished

    def _worth_lingering(self, max_messages: int) -> bool:
        if self._ended or self._reader.sealed or self._reader.full or self._publisher.waiting:
            return False
        return self._store.depth < max_messages

    def _hand_out(self, limit: int) -> list[Delivery[M]]:
        taken = self._store.take(limit)
        self._in_flight.update((held.tag, held) for held in taken)
        return [*taken]

    async def acknowledge(self, deliveries: Sequence[Delivery[M]]) -> None:
        done = self._settle(deliveries)
        self._store.finish(done)
        self._room.look_again()
        await self._acknowledger.acknowledge({held.tag: held.batch for held in done})

    async def reject(self, deliveries: Sequence[Delivery[M]]) -> None:
        undone = self._settle(deliveries)
        self._store.give_back(undone)
        self._store.rejected += len(undone)
        self._room.look_again()

    def _settle(self, deliveries: Sequence[Delivery[M]]) -> list[Held[M]]:
        """Those of the deliveries that this consumer still had to settle."""
        settled: list[Held[M]] = []
        for delivery in deliveries:
            held = self._in_flight.get(delivery.tag)
            if held is not None and held.attempt == delivery.attempt:
                del self._in_flight[delivery.tag]
                settled.append(held)
        return settled

    def end(self) -> None:
        self._ended = True
        self._store.give_back(list(self._in_flight.values()))
        self._in_flight.clear()


class RedisChannel(Generic[M]):
    """One process's end of the stream; made by `open_redis_channel`.

    `capacity` is of the stream, for all daemons together. Publishers of one process are served in
    the order they came, those of several in any order. While Redis is away publishers and
    receivers wait, acknowledgements are kept and told later, and `statistics()` tells the last that
    was known; so what this process counts is exact, and depth and the rest are as of the last
    answer. What one consumer gives back is handed out again here; when the last subscription here
    ends, what it held is let go and claimed by another within a second.

    After `seal()` this process reads on only if no other consumer lives, and no further than what
    is in the stream at that moment: in a restart among others what waits is theirs, and the daemon
    that stops finishes what it has. Alone, it finishes all there is, as the one in memory does.
    """

    def __init__(
        self,
        server: StreamServer,
        capacity: int,
        codec: Codec[M],
        on_malformed: Callable[[Malformed], Awaitable[None]],
        checkpoint: Checkpoint,
    ) -> None:
        if capacity < 1:
            raise ValueError(
                f"channel {server.name}: capacity is {capacity}; it must be at least 1"
            )
        self._server = server
        self._capacity = capacity
        self._codec = codec
        self._store: Store[M] = Store()
        self._room = WaitingRoom()
        self._acknowledger = Acknowledger(server, self._acknowledged_here)
        self._desk = MalformedDesk(self._acknowledger, on_malformed)
        self._reader = Reader(
            server, codec, capacity, self._store, self._room, self._acknowledger, self._desk
        )
        self._publisher = Publisher(
            server, capacity, owed=checkpoint == "acknowledged", on_published=self._reader.look
        )
        self._consumers: set[str] = set()
        self._on_server = (0, 0, 0)

    @property
    def name(self) -> str:
        return self._server.name

    @property
    def capacity(self) -> int:
        return self._capacity

    async def publish(self, messages: Sequence[M]) -> StreamHandover:
        if len(messages) > self._capacity:
            raise ValueError(
                f"channel {self.name}: a batch of {len(messages)} messages can never fit its "
                f"capacity of {self._capacity}; publish smaller batches or raise the capacity"
            )
        return await self._publisher.publish([self._codec.encode(each) for each in messages])

    async def missing(self, tags: Sequence[str]) -> list[str]:
        """Those of the entries that are not in the stream: done, or lost; raises `RedisAway`."""
        return await self._server.missing(tags)

    @asynccontextmanager
    async def subscribe(self, consumer: str) -> AsyncGenerator[Subscription[M], None]:
        if consumer in self._consumers:
            raise ValueError(
                f"channel {self.name}: a consumer named {consumer!r} is already subscribed; "
                "give each consumer a name of its own"
            )
        subscription = _RedisSubscription(
            self._store, self._room, self._reader, self._acknowledger, self._publisher
        )
        self._consumers.add(consumer)
        self._reader.subscribed()
        try:
            yield subscription
        finally:
            self._consumers.remove(consumer)
            subscription.end()
            self._reader.unsubscribed()

    def seal(self) -> None:
        self._publisher.seal()
        self._reader.seal()

    async def statistics(self) -> ChannelStatistics:
        with suppress(RedisAway):
            self._on_server = await self._server.statistics()
        length, pending, oldest_milliseconds = self._on_server
        buffered, untold = self._store.depth, len(self._acknowledger.untold)
        return ChannelStatistics(
            capacity=self._capacity,
            depth=max(0, length - pending) + buffered,
            in_flight=max(0, pending - buffered - untold),
            oldest_seconds=oldest_milliseconds / 1000,
            waiting_publishers=self._publisher.waiting,
            published=self._publisher.published,
            acknowledged=self._store.acknowledged,
            rejected=self._store.rejected,
            redelivered=self._store.redelivered,
        )

    async def run(self) -> None:
        """Carry what is published and read what is asked for, until cancelled."""
        async with anyio.create_task_group() as group:
            for task in (self._publisher, self._reader, self._acknowledger, self._desk):
                group.start_soon(task.run)

    async def begin(self) -> None:
        """Make the group, so that it is there before anything else, if Redis is."""
        with suppress(RedisAway):
            await self._server.make_group()

    async def leave(self) -> None:
        """Tell the server what is done, and let go of the rest."""
        with suppress(RedisAway), anyio.move_on_after(_CLOSE_SECONDS, shield=True):
            await self._acknowledger.tell()
            await self._reader.leave()

    def _acknowledged_here(self) -> None:
        self._publisher.acknowledged_here()


def _nobody_asks(ok: bool, detail: str) -> None:
    """Nobody wants to know whether the channel works."""


@asynccontextmanager
async def open_redis_channel(
    redis: Redis,
    name: str,
    capacity: int,
    codec: Codec[M],
    *,
    claim_idle_seconds: float,
    on_malformed: Callable[[Malformed], Awaitable[None]],
    checkpoint: Checkpoint = "handed-over",
    report: Callable[[bool, str], None] = _nobody_asks,
) -> AsyncGenerator[RedisChannel[M], None]:
    """Open the channel for the block; Redis may be away then, and whenever it likes.

    A malformed entry is deleted when `on_malformed` has returned, which is asked again while it
    raises. `report` is told `(False, why)` when the stream does not do what it is asked, and
    `(True, "")` when it does again. With `checkpoint="acknowledged"` a sender is relieved of its
    batch only when all of it is acknowledged, and what the stream lost is published again.
    """
    consumer = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    server = StreamServer(redis, name, consumer, claim_idle_seconds, report)
    channel = RedisChannel(server, capacity, codec, on_malformed, checkpoint)
    await channel.begin()
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(channel.run)
            try:
                yield channel
            finally:
                group.cancel_scope.cancel()
    finally:
        await channel.leave()
