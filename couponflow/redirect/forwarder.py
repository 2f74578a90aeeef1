"""Takes clicks from the journal to their channel, and lets go of them when they are safe."""

import anyio
import anyio.lowlevel
import msgspec
import structlog
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from couponflow.kernel.channel import Channel, Handover
from couponflow.kernel.journal import Journal, Position
from couponflow.messages import Click
from couponflow.redirect.metrics import RedirectMetrics

BATCH_RECORDS = 200
"""About a third of a millisecond of Python, after which redirects get their turn."""
BATCHES_UNDER_WAY = 256
IDLE_SECONDS = 0.02
"""How often an empty journal is looked at: a signal per click would cost a system call each."""

_log = structlog.get_logger("couponflow.redirect")
_decode = msgspec.json.Decoder(Click).decode


class Forwarder:
    """The one reader of the journal.

    The checkpoint moves, in order, when the channel has taken responsibility for a batch; until
    then the journal is where the click lives. After a restart clicks may be sent twice, which
    changes nothing: their ids are unique in the database.
    """

    def __init__(self, journal: Journal, channel: Channel[Click], metrics: RedirectMetrics) -> None:
        self._journal = journal
        self._channel = channel
        self._metrics = metrics

    async def run(self, stopping: anyio.Event) -> None:
        """Forward until `stopping` is set and the journal is empty; then all is handed over."""
        self._journal.rewind()
        send, receive = anyio.create_memory_object_stream[tuple[Handover, Position]](
            BATCHES_UNDER_WAY
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._move_checkpoint, receive)
            await self._publish(send, stopping)

    async def _publish(
        self, under_way: MemoryObjectSendStream[tuple[Handover, Position]], stopping: anyio.Event
    ) -> None:
        async with under_way:
            while True:
                batch = self._journal.read(BATCH_RECORDS)
                if batch is not None:
                    clicks = self._decode_all(batch.payloads)
                    handover = await self._channel.publish(clicks)
                    await under_way.send((handover, batch.end))
                    await anyio.lowlevel.checkpoint()
                elif stopping.is_set():
                    return
                else:
                    with anyio.move_on_after(IDLE_SECONDS):
                        await stopping.wait()

    async def _move_checkpoint(
        self, under_way: MemoryObjectReceiveStream[tuple[Handover, Position]]
    ) -> None:
        async with under_way:
            async for handover, position in under_way:
                await handover.taken()
                self._journal.checkpoint(position)

    def _decode_all(self, payloads: list[bytes]) -> list[Click]:
        try:
            return [_decode(payload) for payload in payloads]
        except msgspec.DecodeError:
            return [click for payload in payloads if (click := self._decode_one(payload))]

    def _decode_one(self, payload: bytes) -> Click | None:
        try:
            return _decode(payload)
        except msgspec.DecodeError as error:
            self._metrics.undecodable += 1
            _log.error("journal record is not a click", error=str(error), record=payload[:2000])
            return None
