"""Getting entries from the stream: no more than is asked for, and what the dead left behind."""

from collections.abc import Iterable
from typing import Generic

import anyio

from couponflow.kernel.channel import M
from couponflow.kernel.channel_redis_acknowledging import Acknowledger
from couponflow.kernel.channel_redis_codec import Codec, EntryMalformed, Malformed
from couponflow.kernel.channel_redis_malformed import MalformedDesk
from couponflow.kernel.channel_redis_publishing import BATCH_FIELD
from couponflow.kernel.channel_redis_server import Fields, Patience, StreamServer
from couponflow.kernel.channel_redis_store import Held, Store, order_of
from couponflow.kernel.channel_redis_waiting import WaitingRoom
from couponflow.kernel.crash_points import crash_point
from couponflow.kernel.redis_client import RedisAway

_READ_MAX = 1000
_LOOK_SECONDS = 1.0


class Reader(Generic[M]):
    """The one consumer that all subscriptions of a channel in this process are to the server.

    Entries are read without waiting on the server, as many as receivers ask for. When there is
    none, another connection waits for one without reading it, so that nothing is ever on its way to
    somebody who has left.
    """

    def __init__(
        self,
        server: StreamServer,
        codec: Codec[M],
        capacity: int,
        store: Store[M],
        room: WaitingRoom,
        acknowledger: Acknowledger,
        desk: MalformedDesk,
    ) -> None:
        self._server = server
        self._codec = codec
        self._capacity = capacity
        self._store = store
        self._room = room
        self._acknowledger = acknowledger
        self._desk = desk
        self._wanted = 0
        self._subscriptions = 0
        self._newly_subscribed = False
        self._letting_go: dict[str, int] = {}
        # An answer that was lost may have given entries to this consumer.
        self._uncertain = False
        self._worth_a_look = True
        self._watch_from: bytes | None = None
        self._claim_at = 0.0
        self._one_at_a_time = anyio.Lock()
        self._sealed = False
        self._left_to_read: int | None = None
        self._drained = False
        self._full = False

    @property
    def sealed(self) -> bool:
        return self._sealed

    @property
    def full(self) -> bool:
        """At the last look nothing was waiting and there was no room for more."""
        return self._full

    @property
    def finished(self) -> bool:
        """Sealed, and nothing is left for this process to do."""
        return self._drained and not self._store.unsettled

    def want(self, change: int) -> None:
        """A receiver asks for so many more, or fewer."""
        self._wanted += change
        if change > 0:
            self._room.look_again()

    def look(self) -> None:
        """There may be something to read."""
        self._worth_a_look = True
        self._room.look_again()

    def seal(self) -> None:
        self._sealed = True
        self.look()

    def subscribed(self) -> None:
        self._newly_subscribed = not self._subscriptions
        self._subscriptions += 1
        self.look()

    def unsubscribed(self) -> None:
        self._subscriptions -= 1
        if not self._subscriptions:
            self._letting_go.update(self._store.clear())
        self._room.look_again()

    async def run(self) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self._read_on_demand)
            group.start_soon(self._watch)
            group.start_soon(self._stay_alive)

    async def leave(self) -> None:
        """Let go of everything, for others to claim at once; raises `RedisAway`."""
        untold, mine = self._acknowledger.untold, {**self._letting_go, **self._store.clear()}
        # Those nobody here knows of were on their way when the reading was cut off.
        for entry_id, deliveries in (await self._server.renew()).items():
            mine.setdefault(entry_id, deliveries - 1)
        await self._server.release([pair for pair in mine.items() if pair[0] not in untold])
        await self._server.leave()

    @property
    def _demand(self) -> int:
        return max(0, self._wanted - self._store.depth)

    def _something_to_do(self) -> bool:
        if self._letting_go:
            return True
        return self._worth_a_look and self._demand > 0 and not self._drained

    async def _read_on_demand(self) -> None:
        patience = Patience()
        while True:
            await self._room.until(self._something_to_do)
            try:
                async with self._one_at_a_time:
                    await self._turn()
                patience.over()
            except RedisAway:
                self._uncertain = True
                # Who wants to leave need not wait for it: what is in the stream stays there.
                self._drained = self._sealed
                self._room.look_again()
                await patience.wait()
            self._room.look_again()

    async def _turn(self) -> None:
        if self._letting_go:
            await self._let_go()
        if self._uncertain:
            await self._compare()
        sealed = self._sealed
        if not sealed and self._demand and anyio.current_time() >= self._claim_at:
            await self._take_over(self._demand)
        if sealed and self._left_to_read is None and await self._server.sweep():
            # A restart among living others leaves the rest to them.
            self._drained = True
        elif self._demand:
            await self._read(min(self._demand, _READ_MAX), sealed)

    async def _read(self, count: int, sealed: bool) -> None:
        length, latest, entries = await self._server.read(count)
        if entries:
            crash_point("channel.received")
        self._store.put(self._decoded((entry_id, 1, fields) for entry_id, fields in entries))
        self._full = length >= self._capacity and not entries
        if not entries:
            self._worth_a_look = False
            if self._watch_from is None:
                self._watch_from = latest
        if sealed:
            # What others publish meanwhile is theirs: the end comes after what is there now.
            left = length if self._left_to_read is None else self._left_to_read
            self._left_to_read = left - len(entries)
            self._drained = not entries or self._left_to_read <= 0

    async def _take_over(self, count: int) -> None:
        claimed = await self._server.claim(count)
        if claimed:
            crash_point("channel.claimed")
        self._store.put_old(self._decoded(claimed))
        if len(claimed) < count:
            self._claim_at = anyio.current_time() + self._look_seconds

    async def _let_go(self) -> None:
        leaving = dict(self._letting_go)
        await self._server.release(list(leaving.items()))
        for entry_id in leaving:
            del self._letting_go[entry_id]
        self._claim_at = 0.0
        if not self._subscriptions:
            await self._server.leave()

    async def _compare(self) -> None:
        """Renew what is held here; find what is known to one side only."""
        held = await self._server.renew()
        self._store.keep_only(held.keys())
        known = self._store.ids().union(
            self._acknowledger.untold, self._desk.entries, self._letting_go
        )
        unknown = [entry_id for entry_id in held if entry_id not in known]
        found = await self._server.fetch(unknown) if unknown else []
        entries = [(entry_id, held[entry_id.decode()], fields) for entry_id, fields in found]
        self._store.put_old(self._decoded(entries))
        deleted = set(unknown).difference(entry_id.decode() for entry_id, _ in found)
        self._acknowledger.add(dict.fromkeys(deleted, ""))
        self._uncertain = False

    async def _watch(self) -> None:
        patience = Patience()
        while True:
            await self._room.until(lambda: self._watch_from is not None)
            try:
                await self._server.anything_after(self._watch_from or b"$", self._look_seconds)
                patience.over()
            except RedisAway:
                await patience.wait()
            self._watch_from = None
            self.look()

    async def _stay_alive(self) -> None:
        """Keep others from claiming what is worked on here, and learn what they have claimed."""
        patience = Patience()
        while True:
            try:
                if self._subscriptions or self._store.unsettled or self._desk.entries:
                    async with self._one_at_a_time:
                        await self._compare()
                        await self._server.sweep()
                    self._room.look_again()
                patience.over()
                self._newly_subscribed = False
                with anyio.move_on_after(self._server.claim_idle_seconds / 3):
                    await self._room.until(lambda: self._newly_subscribed)
            except RedisAway:
                self._uncertain = True
                await patience.wait()

    @property
    def _look_seconds(self) -> float:
        return min(_LOOK_SECONDS, self._server.claim_idle_seconds / 2)

    def _decoded(self, entries: Iterable[tuple[bytes, int, Fields]]) -> list[Held[M]]:
        decoded: list[Held[M]] = []
        for raw_id, attempt, flat in entries:
            entry_id = raw_id.decode()
            fields = dict(zip(flat[::2], flat[1::2], strict=True))
            try:
                batch = fields.get(BATCH_FIELD, b"").decode("ascii", "replace")
                message = self._codec.decode(entry_id, fields)
            except EntryMalformed as error:
                self._desk.add(Malformed(self._server.name, entry_id, fields, str(error)))
                continue
            decoded.append(Held(message, entry_id, attempt, order_of(entry_id), batch))
        return decoded
