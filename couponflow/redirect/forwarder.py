"""Takes clicks from the journal to their channel, and lets go of them when they are safe."""

from pathlib import Path

import anyio
import anyio.lowlevel
import msgspec
import structlog
from anyio import to_thread
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from couponflow.kernel.channel import Channel, Handover
from couponflow.kernel.crash_points import crash_point
from couponflow.kernel.journal import Journal, Position
from couponflow.messages import Click
from couponflow.redirect import set_aside
from couponflow.redirect.metrics import RedirectMetrics

BATCH_RECORDS = 200
"""About a third of a millisecond of Python, after which redirects get their turn. A channel that
holds less is given less at once."""
BATCHES_UNDER_WAY = 256
IDLE_SECONDS = 0.02
"""How often an empty journal is looked at: a signal per click would cost a system call each."""

_log = structlog.get_logger("couponflow.redirect")
_decode = msgspec.json.Decoder(Click).decode


class Forwarder:
    """The one reader of the journal.

    The checkpoint moves, in order, when the channel has taken responsibility for a batch; until
    then the journal is where the click lives. After a restart clicks may be sent twice, which
    changes nothing: their ids are unique in the database. A record that is no click is written
    into `set_aside_folder` before the checkpoint moves past it.
    """

    def __init__(
        self,
        journal: Journal,
        channel: Channel[Click],
        metrics: RedirectMetrics,
        set_aside_folder: Path,
    ) -> None:
        self._journal = journal
        self._channel = channel
        self._metrics = metrics
        self._set_aside_folder = set_aside_folder

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
        batch_records = min(BATCH_RECORDS, self._channel.capacity)
        async with under_way:
            while True:
                batch = self._journal.read(batch_records)
                if batch is not None:
                    clicks = await self._decode_all(batch.payloads)
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
                crash_point("clicks.handed_over")
                self._journal.checkpoint(position)

    async def _decode_all(self, payloads: list[bytes]) -> list[Click]:
        try:
            return [_decode(payload) for payload in payloads]
        except msgspec.DecodeError:
            return [click for payload in payloads if (click := await self._decode_one(payload))]

    async def _decode_one(self, payload: bytes) -> Click | None:
        try:
            return _decode(payload)
        except msgspec.DecodeError as error:
            await self._set_aside(payload, str(error))
            return None

    async def _set_aside(self, payload: bytes, problem: str) -> None:
        self._metrics.undecodable += 1
        try:
            path = await to_thread.run_sync(set_aside.keep, self._set_aside_folder, payload)
        except OSError as error:
            # To wait for the disk would hold up every click behind it, and they free the disk.
            _log.error(
                "journal record is not a click and could not be set aside: this is its last copy",
                error=problem,
                disk=str(error),
                record=payload,
            )
        else:
            _log.error("journal record is not a click", error=problem, kept=str(path))
