"""The channel within one process.

A message costs a struct and a dictionary entry; everything that touches the event loop is done
once a batch. All publishers and consumers of a channel run on one event loop, so what happens
between two awaits is atomic, and that is what the promises below are built on: a call changes
the channel only after its last await.
"""

import heapq
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic

import anyio
import anyio.lowlevel

from couponflow.kernel.channel import (
    ChannelSealed,
    ChannelStatistics,
    Delivery,
    Handover,
    M,
    Subscription,
)
from couponflow.kernel.clock import Clock


class _Batch:
    """What was published together: how old it is, and how much of it is not yet done."""

    __slots__ = ("_done", "published_at", "unsettled")

    def __init__(self, published_at: float, unsettled: int) -> None:
        self.published_at = published_at
        self.unsettled = unsettled
        self._done = anyio.Event()
        if not unsettled:
            self._done.set()

    def finish(self) -> None:
        self._done.set()

    async def taken(self) -> None:
        await self._done.wait()


class _Held(Delivery[M], Generic[M], frozen=True, gc=False):
    """A delivery that also knows its place in the order and the batch it came in."""

    sequence: int
    batch: _Batch


class _Store(Generic[M]):
    """The messages and their order, without any waiting."""

    def __init__(self) -> None:
        self._fresh: deque[_Held[M]] = deque()
        # Whatever was given back has been handed out before, and messages are handed out in
        # order: all of it is older than all that is fresh.
        self._returned: list[tuple[int, _Held[M]]] = []
        self._batches: dict[_Batch, None] = {}
        self._next_sequence = 0
        self.unsettled = 0
        self.published = 0
        self.acknowledged = 0
        self.rejected = 0
        self.redelivered = 0

    @property
    def depth(self) -> int:
        return len(self._fresh) + len(self._returned)

    def oldest_published_at(self) -> float | None:
        oldest = next(iter(self._batches), None)
        return None if oldest is None else oldest.published_at

    def put(self, messages: Sequence[M], now: float) -> _Batch:
        batch = _Batch(now, len(messages))
        if messages:
            self._fresh.extend(
                _Held(message, str(sequence), 1, sequence, batch)
                for sequence, message in enumerate(messages, self._next_sequence)
            )
            self._batches[batch] = None
            self._next_sequence += len(messages)
            self.unsettled += len(messages)
            self.published += len(messages)
        return batch

    def take(self, limit: int) -> list[_Held[M]]:
        """Remove the oldest messages, at most `limit` of them."""
        again = min(limit, len(self._returned))
        taken = [heapq.heappop(self._returned)[1] for _ in range(again)]
        self.redelivered += again
        popleft = self._fresh.popleft
        taken += [popleft() for _ in range(min(limit - again, len(self._fresh)))]
        return taken

    def finish(self, done: Sequence[_Held[M]]) -> None:
        """Forget messages that were taken and are done."""
        for held in done:
            batch = held.batch
            batch.unsettled -= 1
            if not batch.unsettled:
                del self._batches[batch]
                batch.finish()
        self.unsettled -= len(done)
        self.acknowledged += len(done)

    def give_back(self, undone: Sequence[_Held[M]]) -> None:
        """Put back messages that were taken, each at its old place in the order."""
        for held in undone:
            again = _Held(held.message, held.tag, held.attempt + 1, held.sequence, held.batch)
            heapq.heappush(self._returned, (held.sequence, again))


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    ready: Callable[[], bool]
    wake: anyio.Event


class _WaitingRoom:
    """Tasks that wait for a condition of the channel, looked at after every change to it."""

    def __init__(self) -> None:
        self._waiters: list[_Waiter] = []

    async def until(self, ready: Callable[[], bool]) -> None:
        """Return once `ready()`, without another await after it said so."""
        while not ready():
            waiter = _Waiter(ready, anyio.Event())
            self._waiters.append(waiter)
            try:
                await waiter.wake.wait()
            finally:
                self._waiters.remove(waiter)

    def look_again(self) -> None:
        for waiter in self._waiters:
            if waiter.ready():
                waiter.wake.set()


class _MemorySubscription(Generic[M]):
    def __init__(self, channel: "MemoryChannel[M]", store: _Store[M], room: _WaitingRoom) -> None:
        self._channel = channel
        self._store = store
        self._room = room
        self._in_flight: dict[str, _Held[M]] = {}
        self._ended = False

    async def receive(self, max_messages: int, linger_seconds: float) -> list[Delivery[M]]:
        if max_messages < 1:
            raise ValueError(f"max_messages is {max_messages}; ask for at least 1")
        # A consumer that rejects everything at once must not keep the event loop to itself.
        await anyio.lowlevel.checkpoint()
        while True:
            await self._room.until(self._something_to_say)
            if linger_seconds > 0 and self._worth_lingering(max_messages):
                with anyio.move_on_after(linger_seconds):
                    await self._room.until(lambda: not self._worth_lingering(max_messages))
            if self._ended:
                raise anyio.ClosedResourceError
            if self._store.depth:
                return self._hand_out(max_messages)
            if self._channel.finished:
                return []
            # Another consumer took them while this one lingered.

    def _something_to_say(self) -> bool:
        return self._ended or self._store.depth > 0 or self._channel.finished

    def _worth_lingering(self, max_messages: int) -> bool:
        if self._ended or self._channel.closed_to_publishers:
            return False
        return self._store.depth < max_messages

    def _hand_out(self, limit: int) -> list[Delivery[M]]:
        taken = self._store.take(limit)
        self._in_flight.update((held.tag, held) for held in taken)
        return [*taken]

    async def acknowledge(self, deliveries: Sequence[Delivery[M]]) -> None:
        self._store.finish(self._settle(deliveries))
        self._room.look_again()

    async def reject(self, deliveries: Sequence[Delivery[M]]) -> None:
        undone = self._settle(deliveries)
        self._store.give_back(undone)
        self._store.rejected += len(undone)
        self._room.look_again()

    def _settle(self, deliveries: Sequence[Delivery[M]]) -> list[_Held[M]]:
        """Those of the deliveries that this consumer still had to settle."""
        settled: list[_Held[M]] = []
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
        self._room.look_again()


class MemoryChannel(Generic[M]):
    """A channel for the roles of one process; what is on it dies with the process.

    That loses nothing, because `taken()` returns only when all messages of a batch have been
    acknowledged: until then the sender still has them.

    `capacity` bounds the messages waiting and in flight together, so it bounds memory: a consumer
    that settles nothing stops the publishers. Publishers that wait are served in the order they
    came; those still waiting when the channel is sealed get `ChannelSealed` and keep their batch.

    A consumer settles what it has before it receives again: on a sealed channel `receive` waits
    for every message in flight, for it may come back. `receive` does not linger while the channel
    is full or sealed, since nothing more could arrive, and raises `anyio.ClosedResourceError`
    once its subscription has ended. `linger_seconds` is counted by the event loop; `clock` only
    tells the age of the oldest message.
    """

    def __init__(self, name: str, capacity: int, clock: Clock) -> None:
        if capacity < 1:
            raise ValueError(f"channel {name}: capacity is {capacity}; it must be at least 1")
        self._name = name
        self._capacity = capacity
        self._clock = clock
        self._store: _Store[M] = _Store()
        self._room = _WaitingRoom()
        self._line: deque[object] = deque()
        self._consumers: set[str] = set()
        self._sealed = False

    @property
    def name(self) -> str:
        return self._name

    @property
    def capacity(self) -> int:
        return self._capacity

    @property
    def finished(self) -> bool:
        """Sealed, and every message that was ever published is done."""
        return self._sealed and not self._store.unsettled

    @property
    def closed_to_publishers(self) -> bool:
        """Nothing more can arrive now: the channel is sealed, or full."""
        return self._sealed or bool(self._line) or self._store.unsettled >= self._capacity

    async def publish(self, messages: Sequence[M]) -> Handover:
        if len(messages) > self._capacity:
            raise ValueError(
                f"channel {self._name}: a batch of {len(messages)} messages can never fit its "
                f"capacity of {self._capacity}; publish smaller batches or raise the capacity"
            )
        # The caller may change its list while this call waits.
        batch = tuple(messages)
        if self._line or not self._fits(len(batch)):
            return await self._publish_in_turn(batch)
        return self._put(batch)

    async def _publish_in_turn(self, batch: Sequence[M]) -> Handover:
        place = object()
        self._line.append(place)
        # Whoever lingers for more messages now waits in vain.
        self._room.look_again()
        try:
            await self._room.until(
                lambda: self._sealed or (self._line[0] is place and self._fits(len(batch)))
            )
            return self._put(batch)
        finally:
            self._line.remove(place)
            self._room.look_again()

    def _fits(self, size: int) -> bool:
        return self._store.unsettled + size <= self._capacity

    def _put(self, batch: Sequence[M]) -> Handover:
        if self._sealed:
            raise ChannelSealed(
                f"channel {self._name} is sealed: its publishers must stop before it; "
                f"a batch of {len(batch)} messages was not published"
            )
        handover = self._store.put(batch, self._clock.monotonic())
        self._room.look_again()
        return handover

    @asynccontextmanager
    async def subscribe(self, consumer: str) -> AsyncGenerator[Subscription[M], None]:
        if consumer in self._consumers:
            raise ValueError(
                f"channel {self._name}: a consumer named {consumer!r} is already subscribed; "
                "give each consumer a name of its own"
            )
        subscription = _MemorySubscription(self, self._store, self._room)
        self._consumers.add(consumer)
        try:
            yield subscription
        finally:
            self._consumers.remove(consumer)
            subscription.end()

    def seal(self) -> None:
        self._sealed = True
        self._room.look_again()

    async def statistics(self) -> ChannelStatistics:
        store = self._store
        published_at = store.oldest_published_at()
        return ChannelStatistics(
            capacity=self._capacity,
            depth=store.depth,
            in_flight=store.unsettled - store.depth,
            oldest_seconds=0.0 if published_at is None else self._clock.monotonic() - published_at,
            waiting_publishers=len(self._line),
            published=store.published,
            acknowledged=store.acknowledged,
            rejected=store.rejected,
            redelivered=store.redelivered,
        )
