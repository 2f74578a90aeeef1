"""As many consumers of a channel as its depth asks for, between a least and a most."""

from collections.abc import Awaitable, Callable
from itertools import count

import anyio
import structlog
from anyio.abc import TaskGroup

from couponflow.config import ConsumersSettings

SAMPLE_SECONDS = 1.0
"""How often the depth is looked at, and at most one consumer is started or let go."""

Consume = Callable[[str, anyio.Event], Awaitable[None]]
"""Consumes under the given name until the channel is finished or the given event, `leave`, is set.

Once it is set the consumer begins nothing more, finishes what it has, and returns.
"""

_log = structlog.get_logger("couponflow.consumers")


class ElasticConsumers:
    """Runs the consumers of one channel in this daemon, more of them while much waits.

    One more while the depth is above `grow_above`, one less while it is below `shrink_below`; in
    between the number stays, so that a depth near one limit does not make consumers come and go.
    Those that were told to leave and still finish what they have count towards `max`.
    """

    def __init__(
        self,
        prefix: str,
        settings: ConsumersSettings,
        waiting: Callable[[], Awaitable[int]],
        *,
        away: tuple[type[Exception], ...],
        sample_seconds: float = SAMPLE_SECONDS,
    ) -> None:
        """`waiting` tells the depth; while it raises one of `away`, the number stays."""
        self._prefix = prefix
        self._settings = settings
        self._waiting = waiting
        self._away = away
        self._sample_seconds = sample_seconds
        self._leaves: dict[str, anyio.Event] = {}
        """The `leave` of each consumer that runs, oldest first."""

    @property
    def size(self) -> int:
        """Consumers that run and were not told to leave."""
        return sum(not leave.is_set() for leave in self._leaves.values())

    async def run(self, consume: Consume, stopping: anyio.Event) -> None:
        """Run consumers until all have returned by themselves.

        They do when the channel is finished; `stopping` only ends the growing and shrinking. The
        first that returns without having been told to leave shows that the channel is finished,
        and ends it too. An exception of a consumer ends all of them and is raised.
        """
        settled = anyio.Event()
        async with anyio.create_task_group() as consumers:
            for _ in range(self._settings.min):
                self._start(consumers, consume, settled)
            async with anyio.create_task_group() as regulation:
                regulation.start_soon(self._regulate, consumers, consume, settled)
                regulation.start_soon(_pass_on, stopping, settled)
                await settled.wait()
                regulation.cancel_scope.cancel()

    async def _regulate(self, consumers: TaskGroup, consume: Consume, settled: anyio.Event) -> None:
        known = True
        while True:
            await anyio.sleep(self._sample_seconds)
            try:
                depth = await self._waiting()
            except self._away as error:
                if known:
                    _log.warning("depth unknown", consumers=self._prefix, error=str(error))
                known = False
                continue
            known = True
            # The channel may have finished while the answer was on its way.
            if not settled.is_set():
                self._step(depth, consumers, consume, settled)

    def _step(
        self, depth: int, consumers: TaskGroup, consume: Consume, settled: anyio.Event
    ) -> None:
        settings = self._settings
        if depth > settings.grow_above and len(self._leaves) < settings.max:
            name = self._start(consumers, consume, settled)
            _log.info("consumer started", consumer=name, waiting=depth, consumers=self.size)
        elif depth < settings.shrink_below and self.size > settings.min:
            name = self._let_go()
            _log.info("consumer let go", consumer=name, waiting=depth, consumers=self.size)

    def _start(self, consumers: TaskGroup, consume: Consume, settled: anyio.Event) -> str:
        # Names are used again, since Redis remembers every name there ever was in a group.
        names = (f"{self._prefix}-{number}" for number in count(1))
        name = next(free for free in names if free not in self._leaves)
        leave = self._leaves[name] = anyio.Event()
        consumers.start_soon(self._consume, consume, name, leave, settled, name=name)
        return name

    def _let_go(self) -> str:
        """Tell the youngest that stays to leave: the others have been of use for longer."""
        name = next(name for name in reversed(self._leaves) if not self._leaves[name].is_set())
        self._leaves[name].set()
        return name

    async def _consume(
        self, consume: Consume, name: str, leave: anyio.Event, settled: anyio.Event
    ) -> None:
        try:
            await consume(name, leave)
        finally:
            del self._leaves[name]
        if not leave.is_set():
            settled.set()


async def _pass_on(stopping: anyio.Event, settled: anyio.Event) -> None:
    await stopping.wait()
    settled.set()
