"""The contract between a role that says something and a role that acts on it.

Delivery is at least once. A channel is bounded: a publisher waits while it is full. Whoever
publishes keeps what it sent until `Handover.taken()` returns; then the channel has taken
responsibility. Implementations: `channel_memory.py`, `channel_redis.py`; held by the one suite in
`tests/kernel/channel_conformance.py`.
"""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Generic, Protocol, TypeVar

import msgspec

M = TypeVar("M", bound=msgspec.Struct)
"""What a channel carries: a message, or the `Envelope` of one."""


class ChannelSealed(Exception):
    """Something was published on a channel after its publishers had said they were done.

    This is a fault in the order of shutdown, not in the message: report it.
    """


class Delivery(msgspec.Struct, Generic[M], frozen=True, gc=False):
    """A message handed to a consumer, who must acknowledge or reject it exactly once."""

    message: M
    tag: str
    """The channel's own name for this message; opaque."""
    attempt: int
    """1 the first time the message is handed out, then one more each time."""


class ChannelStatistics(msgspec.Struct, frozen=True):
    """A channel at one instant; the counts are since this process opened it."""

    capacity: int
    """How many messages may wait and be in flight together."""
    depth: int
    """Messages waiting to be handed out."""
    in_flight: int
    """Messages handed out and not yet settled."""
    oldest_seconds: float
    """Age of the oldest message not yet settled; 0 when there is none."""
    waiting_publishers: int
    published: int
    acknowledged: int
    rejected: int
    redelivered: int


class Handover(Protocol):
    """The sender's proof, to be awaited, that a published batch is no longer its burden."""

    async def taken(self) -> None:
        """Return once the channel has taken responsibility for every message of the batch.

        In memory that is when all of them have been acknowledged; on Redis when the server has
        answered. It may never return if the process ends first: then the sender still owns them.
        """
        ...


class Subscription(Protocol[M]):
    """One consumer's end of a channel."""

    async def receive(self, max_messages: int, linger_seconds: float) -> list[Delivery[M]]:
        """Wait for at least one message, then up to `linger_seconds` more for `max_messages`.

        Oldest first. Returns an empty list only when the channel is sealed and nothing is left
        for this process to do; what this consumer has not settled yet counts as left, so settle
        before receiving again. Cancelling it takes nothing out of the channel.
        """
        ...

    async def acknowledge(self, deliveries: Sequence[Delivery[M]]) -> None:
        """Say that these are done. Settling a delivery a second time does nothing."""
        ...

    async def reject(self, deliveries: Sequence[Delivery[M]]) -> None:
        """Give these back undone; they are handed out again, ahead of newer messages."""
        ...


class Channel(Protocol[M]):
    """A named, bounded, at-least-once queue of one message type."""

    @property
    def name(self) -> str: ...

    @property
    def capacity(self) -> int:
        """How many messages may wait and be in flight together: the largest batch there can be."""
        ...

    async def publish(self, messages: Sequence[M]) -> Handover:
        """Put a batch on the channel, waiting while it is full.

        All or nothing: a cancelled call has published none of the batch, or (where the answer was
        lost or the cancellation came too late) all of it, never a part. An empty batch is taken at
        once. Raises `ValueError` for a batch larger than the channel's capacity, and
        `ChannelSealed` after `seal()` and when `seal()` comes while it waits.
        """
        ...

    def subscribe(self, consumer: str) -> AbstractAsyncContextManager[Subscription[M]]:
        """Start consuming under a name that is unique in the installation.

        What the consumer has neither acknowledged nor rejected when the block ends, however it
        ends, is handed out again.
        """
        ...

    def seal(self) -> None:
        """Say that this process publishes no more, so that consumers can finish and leave."""
        ...

    async def statistics(self) -> ChannelStatistics: ...


class StreamHandover(Handover, Protocol):
    """A handover that also knows what each of its messages is called in the stream."""

    @property
    def tags(self) -> Sequence[str]:
        """In the order of the batch."""
        ...


class Stream(Channel[M], Protocol[M]):
    """A channel that outlives this process, and whose content can be looked at."""

    async def publish(self, messages: Sequence[M]) -> StreamHandover: ...

    async def missing(self, tags: Sequence[str]) -> list[str]:
        """Those of the messages that the stream does not have: settled, or lost."""
        ...
