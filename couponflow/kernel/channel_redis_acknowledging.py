"""Telling the server what is done: many at a time, and again until it has heard."""

from collections.abc import Callable, Mapping

import anyio

from couponflow.kernel.channel_redis_server import Patience, StreamServer
from couponflow.kernel.channel_redis_waiting import WaitingRoom
from couponflow.kernel.crash_points import crash_point
from couponflow.kernel.redis_client import RedisAway

# As many ids as a Lua script can surely hand to one command.
_PAGE = 1000


class Acknowledger:
    """What consumers here have done and the server does not know yet; bounded by what they held.

    While Redis is away it is kept and told later. If this process ends before, those messages are
    handed out again: delivery is at least once.
    """

    def __init__(self, server: StreamServer, on_acknowledged: Callable[[], None]) -> None:
        self._server = server
        self._on_acknowledged = on_acknowledged
        self._room = WaitingRoom()
        self._untold: dict[str, str] = {}
        self._round = anyio.Event()

    @property
    def untold(self) -> Mapping[str, str]:
        """Ids, and the batch each was published in where its producer is owed that."""
        return self._untold

    async def acknowledge(self, done: Mapping[str, str]) -> None:
        """Return once the server knows, or is found to be away."""
        if done:
            self.add(done)
            await self._round.wait()

    def add(self, done: Mapping[str, str]) -> None:
        self._untold.update(done)
        self._room.look_again()

    async def run(self) -> None:
        patience = Patience()
        while True:
            await self._room.until(lambda: bool(self._untold))
            told, self._round = self._round, anyio.Event()
            try:
                await self.tell()
                patience.over()
            except RedisAway:
                told.set()
                await patience.wait()
            else:
                told.set()

    async def tell(self) -> None:
        """Tell the server of everything there is now; raises `RedisAway`."""
        ids = list(self._untold)
        for start in range(0, len(ids), _PAGE):
            page = ids[start : start + _PAGE]
            by_batch: dict[str, list[str]] = {}
            for entry_id in page:
                by_batch.setdefault(self._untold[entry_id], []).append(entry_id)
            await self._server.acknowledge(list(by_batch.items()))
            crash_point("channel.acknowledged")
            for entry_id in page:
                del self._untold[entry_id]
            self._on_acknowledged()
