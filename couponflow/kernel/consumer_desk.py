"""Where a consumer's messages are worked on, several at once."""

from collections import deque
from collections.abc import Awaitable, Callable

import anyio
from anyio.abc import TaskGroup

from couponflow.kernel.channel import Delivery
from couponflow.kernel.envelope import Envelope
from couponflow.kernel.handler_runner import COMMITTED, HandlerRunner
from couponflow.kernel.settlement import Settler
from couponflow.kernel.workers import WorkerLease


class Places:
    """How many messages of a channel may be worked on at once by all its consumers together."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0
        self._freed: anyio.Event | None = None

    def share(self, consumers: int) -> int:
        """What one of so many consumers may take."""
        return max(1, self._limit // consumers)

    def set_limit(self, limit: int) -> None:
        """Change it; what is above a smaller one is finished."""
        self._limit = limit
        self._look_again()

    def take(self, most: int) -> int:
        """Take as many places as there are, up to `most`; how many that is."""
        count = max(0, min(most, self._limit - self._taken))
        self._taken += count
        return count

    def give_back(self, count: int) -> None:
        """Give places back."""
        self._taken -= count
        self._look_again()

    async def change(self) -> None:
        """Return when there may be more places than there were."""
        # Made only for those who wait: an event for every message would cost more than its work.
        self._freed = self._freed or anyio.Event()
        await self._freed.wait()

    def _look_again(self) -> None:
        if self._freed is not None:
            self._freed.set()
            self._freed = None


class Desk:
    """One consumer's attempts: a task each for those that wait for something.

    A task makes one attempt after the other, so a handler that never waits costs no task switch.
    What waits together, and may, is attempted together.
    """

    def __init__(
        self,
        runner: HandlerRunner,
        settler: Settler,
        consumers: int,
        places: Places,
        lease: WorkerLease,
        begin: Callable[[Delivery[Envelope]], Awaitable[Delivery[Envelope] | None]],
    ) -> None:
        """`consumers` is how many may share the places.

        `begin` records the attempt at a message that is not begun yet; None if it may not.
        """
        self._runner = runner
        self._begin = begin
        self._settler = settler
        self._consumers = consumers
        self._places = places
        self._lease = lease
        self._todo: deque[Delivery[Envelope]] = deque()
        self._alone: deque[Delivery[Envelope]] = deque()
        """What was attempted with others, and is not done."""
        self._idle: list[anyio.Event] = []
        self._tasks: TaskGroup | None = None
        self._workers = 0
        self._mine = 0
        self._closed = False

    def open(self, tasks: TaskGroup) -> None:
        """Let attempts be made in `tasks`, which ends when the desk is closed and empty."""
        self._tasks = tasks

    async def take_room(self) -> int:
        """Wait until there is room for a message, and take all there is; how many fit.

        What is not used for `put` is to be returned.
        """
        while not (room := self._places.take(self._slots - self._mine)):
            await self._places.change()
        self._mine += room
        return room

    def return_room(self, count: int) -> None:
        """Give back room that was taken."""
        if count:
            self._mine -= count
            self._places.give_back(count)

    @property
    def _slots(self) -> int:
        return self._places.share(self._consumers)

    def put(self, delivery: Delivery[Envelope]) -> None:
        """Have an attempt made soon, in room that was taken."""
        self._todo.append(delivery)
        self._call_somebody()

    def close(self) -> None:
        """Say that no more comes; what is here is still worked on."""
        self._closed = True
        idle, self._idle = self._idle, []
        for called in idle:
            called.set()

    def _call_somebody(self) -> None:
        if self._idle:
            self._idle.pop().set()
        elif self._workers < self._slots and self._tasks is not None:
            self._workers += 1
            self._tasks.start_soon(self._work)

    async def _work(self) -> None:
        while True:
            if self._alone:
                await self._make_attempt(self._alone.popleft())
                continue
            if not self._todo:
                if self._closed:
                    # What others still attempt together may need somebody.
                    self._workers -= 1
                    return
                called = anyio.Event()
                self._idle.append(called)
                await called.wait()
                continue
            delivery = self._todo.popleft()
            if delivery.message.lapsed:
                await self._make_attempt_alone(delivery)
                self.return_room(1)
            elif self._todo and (batch := self._gather(delivery)):
                await self._make_attempt_together(batch)
            else:
                await self._make_attempt(delivery)

    async def _make_attempt(self, delivery: Delivery[Envelope]) -> None:
        self._settler.settle(delivery, await self._runner.attempt(delivery.message))
        self._lease.jobs_done += 1
        self.return_room(1)

    def _gather(self, first: Delivery[Envelope]) -> list[Delivery[Envelope]]:
        """Take what waits here and may be attempted with `first`; nothing where that is alone."""
        most = self._runner.together_max(first.message)
        if most == 1:
            return []
        message_type = type(first.message.message)
        batch = [first]
        for _ in range(len(self._todo)):
            delivery = self._todo.popleft()
            fits = len(batch) < most and type(delivery.message.message) is message_type
            if fits and self._runner.together_max(delivery.message) > 1:
                batch.append(delivery)
            else:
                self._todo.append(delivery)
        return batch if len(batch) > 1 else []

    async def _make_attempt_together(self, batch: list[Delivery[Envelope]]) -> None:
        done = await self._runner.attempt_together([delivery.message for delivery in batch])
        for delivery in batch:
            if delivery.message.message_id in done:
                self._settler.settle(delivery, COMMITTED)
                self._lease.jobs_done += 1
                self.return_room(1)
            else:
                self._alone.append(delivery)
                self._call_somebody()

    async def _make_attempt_alone(self, delivery: Delivery[Envelope]) -> None:
        """Begin no other such message before this one is settled: it may kill this worker, too."""
        async with self._lease.alone:
            begun = await self._begin(delivery)
            if begun is not None:
                verdict = await self._runner.attempt(begun.message)
                self._lease.jobs_done += 1
                await self._settler.settle_now(begun, verdict)
