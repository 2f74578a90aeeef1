"""Where the relay puts what it has claimed: memory, a Redis stream, a channel of bare messages."""

from collections.abc import Sequence
from typing import Generic, Protocol

from couponflow.kernel import outbox_rows
from couponflow.kernel.channel import Channel, M, Stream
from couponflow.kernel.crash_points import crash_point
from couponflow.kernel.database import Database
from couponflow.kernel.envelope import Envelope
from couponflow.kernel.outbox_rows import Token


class Sink(Protocol):
    """Takes over messages of one channel."""

    @property
    def channel(self) -> str: ...

    @property
    def begins(self) -> bool:
        """Whether claiming a message for this sink is already the beginning of an attempt."""
        ...

    @property
    def settles(self) -> bool:
        """Whether nothing is left to do for messages that were put."""
        ...

    async def put(self, envelopes: Sequence[Envelope]) -> None:
        """Take claimed messages over, waiting while there is no room.

        If it is cancelled or raises, the caller gives back what is still its own.
        """
        ...


class MemorySink:
    """To handlers in this process, which settle the rows themselves."""

    begins = True
    settles = False

    def __init__(self, channel: Channel[Envelope]) -> None:
        self._channel = channel
        self.channel = channel.name

    async def put(self, envelopes: Sequence[Envelope]) -> None:
        await self._channel.publish(envelopes)


class StreamSink:
    """To a Redis stream: rows are let go of, but stay, with the entry that carries them."""

    begins = False
    settles = True

    def __init__(self, stream: Stream[Envelope], database: Database) -> None:
        self.stream = stream
        self.channel = stream.name
        self._database = database

    async def put(self, envelopes: Sequence[Envelope]) -> None:
        handover = await self.stream.publish(envelopes)
        crash_point("outbox.streamed")
        tokens = [Token(each.message_id, each.handover) for each in envelopes]
        async with self._database.connection() as connection:
            await outbox_rows.record_streamed(connection, tokens, handover.tags)
        crash_point("outbox.recorded")


class BareSink(Generic[M]):
    """To a channel whose consumer knows nothing of the outbox: done is what it acknowledges."""

    begins = True
    settles = True

    def __init__(self, channel: Channel[M], message_type: type[M], database: Database) -> None:
        self.channel = channel.name
        self._channel = channel
        self._message_type = message_type
        self._database = database

    async def put(self, envelopes: Sequence[Envelope]) -> None:
        for start in range(0, len(envelopes), self._channel.capacity):
            await self._put(envelopes[start : start + self._channel.capacity])

    async def _put(self, envelopes: Sequence[Envelope]) -> None:
        wanted = self._message_type
        messages = [each.message for each in envelopes if isinstance(each.message, wanted)]
        handover = await self._channel.publish(messages)
        await handover.taken()
        tokens = [Token(each.message_id, each.handover) for each in envelopes]
        async with self._database.connection() as connection:
            await outbox_rows.finish(connection, tokens, "done")
