"""A batch of messages from its sender to the stream, and until the sender is relieved of it."""

from collections.abc import Callable, Sequence

import anyio

from couponflow.kernel.channel_redis_server import Patience, StreamServer
from couponflow.kernel.channel_redis_waiting import WaitingRoom
from couponflow.kernel.redis_client import RedisAway

_FIRST_LOOK_SECONDS = 0.01
_MAX_LOOK_SECONDS = 0.25
_PAGE = 500


class Batch:
    """What was published together; also the handover that its sender holds."""

    def __init__(self, entries: Sequence[Sequence[bytes]]) -> None:
        self.entries = entries
        self.size = len(entries)
        self.bytes = sum([sum(map(len, entry)) for entry in entries])
        self.name = ""
        self.answered = False
        """The batch is on the stream, or never will be."""
        self.sealed_out = False
        self.abandoned = False
        self._tags: Sequence[str] = ()
        self._is_taken = False
        self._taken: anyio.Event | None = None

    @property
    def tags(self) -> Sequence[str]:
        """The ids of the entries; others, if the stream lost them and they were published again."""
        return self._tags

    async def taken(self) -> None:
        if not self._is_taken:
            # Made only for a sender that waits, which most do not.
            self._taken = self._taken or anyio.Event()
            await self._taken.wait()

    def published(self, ids: Sequence[str]) -> None:
        self._tags = ids
        self.answered = True

    def relieve(self) -> None:
        self.entries = ()
        self.answered = self._is_taken = True
        if self._taken is not None:
            self._taken.set()


class Owing:
    """The batches on the stream whose acknowledgement their senders still wait for.

    The server counts for each how much is left. Where it has lost the count (FLUSHALL, a failover),
    or entries are gone that were never acknowledged (evicted, deleted by hand), the whole batch is
    given to `publish_again`.
    """

    def __init__(
        self,
        server: StreamServer,
        room: WaitingRoom,
        verify_seconds: float,
        publish_again: Callable[[Batch], None],
    ) -> None:
        self._server = server
        self._room = room
        self._verify_seconds = verify_seconds
        self._publish_again = publish_again
        self._batches: dict[str, Batch] = {}
        self._forget: list[str] = []
        self._look_now = False

    def add(self, batch: Batch) -> None:
        self._batches[batch.name] = batch
        self._room.look_again()

    def look_now(self) -> None:
        """Something was acknowledged here: a batch may be done."""
        self._look_now = True
        self._room.look_again()

    async def run(self) -> None:
        patience = Patience()
        wait = _FIRST_LOOK_SECONDS
        verify_at = anyio.current_time() + self._verify_seconds
        while True:
            await self._room.until(lambda: bool(self._batches))
            with anyio.move_on_after(wait):
                await self._room.until(lambda: self._look_now)
            self._look_now = False
            try:
                settled = await self._look(list(self._batches))
                if anyio.current_time() >= verify_at:
                    await self._verify()
                    verify_at = anyio.current_time() + self._verify_seconds
                patience.over()
            except RedisAway:
                await patience.wait()
                continue
            wait = _FIRST_LOOK_SECONDS if settled else min(wait * 2, _MAX_LOOK_SECONDS)

    async def _look(self, names: Sequence[str]) -> bool:
        settled = False
        for start in range(0, len(names), _PAGE):
            page, forget = names[start : start + _PAGE], tuple(self._forget)
            left = await self._server.owed(page, forget)
            del self._forget[: len(forget)]
            for name, count in zip(page, left, strict=True):
                if count == 0:
                    self._batches.pop(name).relieve()
                    self._forget.append(name)
                    settled = True
                elif count < 0:
                    self._publish_again(self._batches.pop(name))
        return settled

    async def _verify(self) -> None:
        for name, batch in list(self._batches.items()):
            # Acknowledging deletes and counts in one step, so what is gone uncounted was lost. In
            # this order, an acknowledgement in between hides a loss until the next time, and never
            # makes one up.
            there = batch.size - len(await self._server.missing(batch.tags))
            [left] = await self._server.owed([name], ())
            if left > there:
                self._forget.append(name)
                self._publish_again(self._batches.pop(name))
