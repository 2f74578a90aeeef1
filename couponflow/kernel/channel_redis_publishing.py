"""Getting batches onto the stream: in turn, whole, once, and many at a time."""

from collections import deque
from collections.abc import Callable, Sequence

import anyio

from couponflow.kernel.channel import ChannelSealed
from couponflow.kernel.channel_redis_batch import Batch, Owing
from couponflow.kernel.channel_redis_server import Argument, Patience, StreamServer
from couponflow.kernel.channel_redis_waiting import WaitingRoom
from couponflow.kernel.crash_points import crash_point
from couponflow.kernel.redis_client import RedisAway

BATCH_FIELD = b"batch"
"""Whose batch an entry is of, where its producer is owed the acknowledgement."""

# What goes to the server in one call, unless a single batch is larger: it works on nothing else
# meanwhile.
_CALL_MESSAGES = 500
_CALL_BYTES = 1 << 20

_FULL_POLL_SECONDS = 0.01
_VERIFY_SECONDS = 15.0


class Publisher:
    """The batches of one process on their way to one stream.

    One call to the server is under way at a time. Whatever comes meanwhile goes with the next, so
    that a hundred senders of one message each share a call. A call that got no answer is repeated,
    unchanged and under the same number, until it gets one: the server knows whether it did it.
    """

    def __init__(
        self, server: StreamServer, capacity: int, *, owed: bool, on_published: Callable[[], None]
    ) -> None:
        self._server = server
        self._capacity = capacity
        self._owed = owed
        self._on_published = on_published
        self._room = WaitingRoom()
        self._line: deque[Batch] = deque()
        self._again: deque[Batch] = deque()
        self._under_way = 0
        self._answer: anyio.Event | None = None
        self._owing = Owing(server, self._room, _VERIFY_SECONDS, self._publish_again)
        self._call = 0
        self._sealed = False
        self._acknowledgements = 0
        self._full = False
        self.published = 0

    @property
    def waiting(self) -> int:
        """How many senders wait for room."""
        return len(self._line) + self._under_way if self._full else 0

    async def publish(self, entries: Sequence[Sequence[bytes]]) -> Batch:
        batch = Batch(entries)
        if not entries:
            batch.relieve()
            return batch
        self._refuse(batch, self._sealed)
        self._line.append(batch)
        self._room.look_again()
        try:
            while not batch.answered:
                # One event for all that wait: one each would cost more than their messages.
                self._answer = self._answer or anyio.Event()
                await self._answer.wait()
        except BaseException:
            batch.abandoned = True
            if batch in self._line:
                self._line.remove(batch)
            raise
        self._refuse(batch, batch.sealed_out)
        return batch

    def seal(self) -> None:
        """Send those away who still wait; what is under way may still be published."""
        self._sealed = True
        while self._line:
            self._send_away(self._line.popleft())
        self._tell()

    def acknowledged_here(self) -> None:
        """There may be room again, and batches may be done: look now rather than soon."""
        self._acknowledgements += 1
        self._owing.look_now()

    async def run(self) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self._owing.run)
            while True:
                await self._room.until(lambda: bool(self._line or self._again))
                # Asked first where there was no room, since the batches themselves may be large.
                if self._full and not await self._has_room():
                    await self._wait_for_room()
                    continue
                batches = self._next_call()
                self._under_way = len(batches)
                taken = await self._publish(batches)
                self._under_way = 0
                self._full = taken < len(batches)
                self._back_in_line(batches[taken:])
                self._tell()

    def _publish_again(self, batch: Batch) -> None:
        self._again.append(batch)
        self._room.look_again()

    def _next_call(self) -> list[Batch]:
        chosen: list[Batch] = []
        messages = length = 0
        for line in (self._again, self._line):
            while line:
                messages += line[0].size
                length += line[0].bytes
                if chosen and (messages > _CALL_MESSAGES or length > _CALL_BYTES):
                    return chosen
                chosen.append(line.popleft())
        return chosen

    def _back_in_line(self, batches: Sequence[Batch]) -> None:
        for batch in reversed(batches):
            if batch.tags:
                self._again.appendleft(batch)
            elif self._sealed:
                self._send_away(batch)
            elif not batch.abandoned:
                self._line.appendleft(batch)

    def _send_away(self, batch: Batch) -> None:
        batch.sealed_out = batch.answered = True

    def _tell(self) -> None:
        """Have every sender look whether its batch was answered."""
        if self._answer is not None:
            self._answer.set()
            self._answer = None

    async def _has_room(self) -> bool:
        try:
            length = await self._server.length()
        except RedisAway:
            return False
        # Whoever was first in line may have left it.
        first = self._again or self._line
        return not first or length + first[0].size <= self._capacity

    async def _wait_for_room(self) -> None:
        before = self._acknowledgements
        with anyio.move_on_after(_FULL_POLL_SECONDS):
            await self._room.until(lambda: self._acknowledgements != before)

    async def _publish(self, batches: Sequence[Batch]) -> int:
        """Call the server until it answers; how many of the batches it took."""
        if not batches:
            return 0
        self._call += 1
        arguments = self._arguments(batches)
        patience = Patience()
        while True:
            try:
                taken, ids = await self._server.publish(
                    self._call, self._capacity, self._owed, len(batches), arguments
                )
                break
            except RedisAway:
                await patience.wait()
        crash_point("channel.published")
        self._on_the_stream(batches[:taken], ids)
        return taken

    def _arguments(self, batches: Sequence[Batch]) -> list[Argument]:
        arguments: list[Argument] = []
        for number, batch in enumerate(batches):
            batch.name = f"{self._call}.{number}"
            mark: tuple[bytes, ...] = ()
            if self._owed:
                mark = BATCH_FIELD, f"{self._server.consumer}:{batch.name}".encode()
            arguments += (batch.name, batch.size)
            for entry in batch.entries:
                arguments += (len(entry) + len(mark), *entry, *mark)
        return arguments

    def _on_the_stream(self, batches: Sequence[Batch], ids: Sequence[str]) -> None:
        first = 0
        for batch in batches:
            if not batch.tags:
                self.published += batch.size
            batch.published(ids[first : first + batch.size])
            first += batch.size
            if self._owed:
                self._owing.add(batch)
            else:
                batch.relieve()
        if batches:
            self._on_published()

    def _refuse(self, batch: Batch, sealed: bool) -> None:
        if sealed:
            raise ChannelSealed(
                f"channel {self._server.name} is sealed: its publishers must stop before it; "
                f"a batch of {batch.size} messages was not published"
            )
