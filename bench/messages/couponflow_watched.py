"""A channel that tells a tally what its consumers have acknowledged."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from bench.messages.harness import Tally
from couponflow.kernel.channel import (
    Channel,
    ChannelStatistics,
    Delivery,
    Handover,
    Subscription,
)
from couponflow.kernel.envelope import Envelope


class WatchedSubscription:
    """Tells the tally what has been acknowledged."""

    def __init__(self, inner: Subscription[Envelope], tally: Tally) -> None:
        self._inner = inner
        self._tally = tally

    async def receive(self, max_messages: int, linger_seconds: float) -> list[Delivery[Envelope]]:
        return await self._inner.receive(max_messages, linger_seconds)

    async def acknowledge(self, deliveries: Sequence[Delivery[Envelope]]) -> None:
        await self._inner.acknowledge(deliveries)
        self._tally.acknowledge(len(deliveries))

    async def reject(self, deliveries: Sequence[Delivery[Envelope]]) -> None:
        await self._inner.reject(deliveries)


class WatchedChannel:
    """A channel, with its consumers watched."""

    def __init__(self, inner: Channel[Envelope], tally: Tally) -> None:
        self._inner = inner
        self._tally = tally

    @property
    def name(self) -> str:
        return self._inner.name

    @property
    def capacity(self) -> int:
        return self._inner.capacity

    async def publish(self, messages: Sequence[Envelope]) -> Handover:
        return await self._inner.publish(messages)

    @asynccontextmanager
    async def subscribe(self, consumer: str) -> AsyncIterator[Subscription[Envelope]]:
        async with self._inner.subscribe(consumer) as subscription:
            yield WatchedSubscription(subscription, self._tally)

    def seal(self) -> None:
        self._inner.seal()

    async def statistics(self) -> ChannelStatistics:
        return await self._inner.statistics()
