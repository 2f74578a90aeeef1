"""Where a consumer's messages are worked on, several at once."""

from collections import deque

import anyio
from anyio.abc import TaskGroup

from couponflow.kernel.channel import Delivery
from couponflow.kernel.envelope import Envelope
from couponflow.kernel.handler_runner import HandlerRunner
from couponflow.kernel.settlement import Settler
from couponflow.kernel.workers import WorkerLease


class Places:
    """How many messages of a channel may be worked on at once by all its consumers together."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0
        self.alone = anyio.Lock()
        """Held by the one message at work over which a worker died before."""
        self._freed = anyio.Event()

    def free(self) -> None:
        """Give one place back."""
        self.taken -= 1
        self._freed.set()

    async def wait_for_one(self) -> None:
        self._freed = anyio.Event()
        await self._freed.wait()


class Desk:
    """One consumer's attempts: a task each for those that wait for something.

    A task makes one attempt after the other, so a handler that never waits costs no task switch.
    """

    def __init__(
        self,
        runner: HandlerRunner,
        settler: Settler,
        slots: int,
        places: Places,
        lease: WorkerLease,
    ) -> None:
        self._runner = runner
        self._settler = settler
        self._slots = slots
        self._places = places
        self._lease = lease
        self._todo: deque[Delivery[Envelope]] = deque()
        self._idle: list[anyio.Event] = []
        self._tasks: TaskGroup | None = None
        self._workers = 0
        self._mine = 0
        self._closed = False

    def open(self, tasks: TaskGroup) -> None:
        """Let attempts be made in `tasks`, which ends when the desk is closed and empty."""
        self._tasks = tasks

    async def room(self) -> int:
        """Wait until there is a place for one more message; how many there are."""
        while True:
            room = min(self._slots - self._mine, self._places.limit - self._places.taken)
            if room > 0:
                return room
            await self._places.wait_for_one()

    def put(self, delivery: Delivery[Envelope]) -> None:
        """Have an attempt made soon."""
        self._mine += 1
        self._places.taken += 1
        self._todo.append(delivery)
        self._call_somebody()

    def close(self) -> None:
        """Say that no more comes; what is here is still worked on."""
        self._closed = True
        for idle in self._idle:
            idle.set()

    def _call_somebody(self) -> None:
        if self._idle:
            self._idle.pop().set()
        elif self._workers < self._slots and self._tasks is not None:
            self._workers += 1
            self._tasks.start_soon(self._work)

    async def _work(self) -> None:
        while True:
            if not self._todo:
                if self._closed:
                    return
                called = anyio.Event()
                self._idle.append(called)
                await called.wait()
                continue
            delivery = self._todo.popleft()
            await self._make_attempt(delivery)
            self._mine -= 1
            self._places.free()

    async def _make_attempt(self, delivery: Delivery[Envelope]) -> None:
        envelope = delivery.message
        if envelope.lapsed:
            async with self._places.alone:
                verdict = await self._runner.attempt(envelope)
        else:
            verdict = await self._runner.attempt(envelope)
        self._lease.jobs_done += 1
        self._settler.settle(delivery, verdict)
