"""Relay and consumers of one channel in memory, as a daemon puts them together."""

import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path

import anyio

from couponflow.config import ConsumersSettings, OutboxSettings
from couponflow.kernel import outbox_rows
from couponflow.kernel.channel import Channel, ChannelStatistics, Subscription
from couponflow.kernel.channel_memory import MemoryChannel
from couponflow.kernel.clock import SystemClock
from couponflow.kernel.consumer import ChannelConsumers, ConsumerParts
from couponflow.kernel.controls import ChannelControls
from couponflow.kernel.database import Connection, Database
from couponflow.kernel.envelope import Envelope
from couponflow.kernel.handlers import (
    Handler,
    HandlerContext,
    HandlerPolicy,
    Outcome,
    RetryPolicy,
    Told,
)
from couponflow.kernel.health import HealthBoard
from couponflow.kernel.identifiers import Uuid7Generator
from couponflow.kernel.message_metrics import ChannelCounts
from couponflow.kernel.outbox_relay import OutboxRelay, RelayParts
from couponflow.kernel.outbox_sinks import MemorySink, Sink
from couponflow.kernel.workers import WorkerLease
from couponflow.messages import EmailRequested
from tests.kernel.outboxes import CHANNEL
from tests.samples import PATIENCE_SECONDS, POLL_SECONDS, until

Run = Callable[[EmailRequested, HandlerContext], Awaitable[Outcome]]
RunTogether = Callable[[Sequence[Told[EmailRequested]], Connection], Awaitable[Sequence[str]]]
AT_ONCE = HandlerPolicy(retry=RetryPolicy(first_seconds=0.001))
"""Tried again at once."""


class Handle:
    """The supervisor's part."""

    def __init__(self) -> None:
        self.stopping = anyio.Event()
        self.running = anyio.Event()

    def started(self) -> None:
        self.running.set()


@dataclass
class Plant:
    """One daemon's parts for the channel `emails`."""

    database: Database
    lease: WorkerLease
    controls: ChannelControls
    health: HealthBoard
    channel: Channel[Envelope]
    clock: SystemClock = field(default_factory=SystemClock)
    ids: Uuid7Generator = field(default_factory=Uuid7Generator)
    randomness: random.Random = field(default_factory=lambda: random.Random(1))
    counts: ChannelCounts = field(default_factory=ChannelCounts)

    def relay(
        self, sinks: Sequence[Sink] | None = None, *, poll_seconds: float = 0.05
    ) -> OutboxRelay:
        return OutboxRelay(
            RelayParts(
                settings=OutboxSettings(batch_rows=20, poll_seconds=poll_seconds),
                sinks=[MemorySink(self.channel)] if sinks is None else sinks,
                database=self.database,
                lease=self.lease,
                controls=self.controls,
                health=self.health,
                ids=self.ids,
                clock=self.clock,
                randomness=self.randomness,
            )
        )

    def consumers(
        self,
        run: Run,
        policy: HandlerPolicy = AT_ONCE,
        *,
        concurrency: int = 10,
        consumers: int = 2,
        run_together: RunTogether | None = None,
        others: Sequence[Handler] = (),
    ) -> ChannelConsumers:
        handler = Handler("test", EmailRequested, run, policy, run_together)
        return ChannelConsumers(
            ConsumerParts(
                settings=ConsumersSettings(min=consumers, max=consumers, concurrency=concurrency),
                channel=self.channel,
                handlers=[handler, *others],
                waiting=self.waiting,
                away=(),
                database=self.database,
                lease=self.lease,
                controls=self.controls,
                health=self.health,
                counts=self.counts,
                ids=self.ids,
                clock=self.clock,
                randomness=self.randomness,
            )
        )

    async def waiting(self) -> int:
        return (await self.channel.statistics()).depth

    async def until_empty(self) -> None:
        """Return once nothing is on its way any more."""
        with anyio.fail_after(PATIENCE_SECONDS):
            while await self.left():  # noqa: ASYNC110 - what is waited for sets no event
                await anyio.sleep(POLL_SECONDS)

    async def left(self) -> int:
        async with self.database.connection() as connection:
            counts = await outbox_rows.count_by_channel(connection)
        return sum(c.due + c.later + c.leased + c.streamed for c in counts.values())


@contextlib.asynccontextmanager
async def plant(
    database: Database,
    var_path: Path,
    *,
    lease_seconds: float = 30.0,
    channel: Channel[Envelope] | None = None,
) -> AsyncIterator[Plant]:
    """A daemon with its lease and its controls; it leaves in order at the end of the block."""
    clock = SystemClock()
    health = HealthBoard(clock)
    controls = ChannelControls(database, random.Random(1), poll_seconds=0.05)
    lease = WorkerLease(
        database,
        clock,
        health,
        roles=["email"],
        lease_seconds=lease_seconds,
        var_path=var_path,
        ids=Uuid7Generator(),
    )
    stopping = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(controls.run)
        async with anyio.create_task_group() as leasing:
            leasing.start_soon(lease.run, stopping)
            await until(lambda: bool(lease.worker_id) and controls.loaded.is_set())
            yield Plant(
                database,
                lease,
                controls,
                health,
                channel or MemoryChannel(CHANNEL, 100, clock),
            )
            stopping.set()
        group.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def at_work(
    built: Plant, consumers: ChannelConsumers, relay: OutboxRelay | None = None
) -> AsyncIterator[None]:
    """Relay and consume for the block, then stop as the supervisor does."""
    relaying, consuming = Handle(), Handle()
    relay = relay or built.relay()
    with anyio.fail_after(PATIENCE_SECONDS):
        async with anyio.create_task_group() as working:
            working.start_soon(consumers.run, consuming)
            async with anyio.create_task_group() as intake:
                intake.start_soon(relay.run, relaying)
                await relaying.running.wait()
                yield
                relaying.stopping.set()
            built.channel.seal()
            consuming.stopping.set()


class Published:
    """What a `FakeStream` says of a batch."""

    def __init__(self, tags: Sequence[str]) -> None:
        self.tags = tags

    async def taken(self) -> None:
        """At once, as a stream does."""


class FakeStream:
    """A stream in memory, which says that it has lost whatever is in `lost`."""

    def __init__(self) -> None:
        self._inner: MemoryChannel[Envelope] = MemoryChannel(CHANNEL, 1000, SystemClock())
        self.lost: set[str] = set()
        self.asked: list[int] = []
        self.fails: list[Exception] = []

    @property
    def name(self) -> str:
        return CHANNEL

    @property
    def capacity(self) -> int:
        return self._inner.capacity

    @property
    def depth(self) -> int:
        """Messages that nobody has received."""
        return self._inner._store.depth

    async def publish(self, messages: Sequence[Envelope]) -> Published:
        if self.fails:
            raise self.fails.pop()
        await self._inner.publish(messages)
        published = (await self._inner.statistics()).published
        return Published([str(n) for n in range(published - len(messages), published)])

    def subscribe(self, consumer: str) -> AbstractAsyncContextManager[Subscription[Envelope]]:
        return self._inner.subscribe(consumer)

    def seal(self) -> None:
        self._inner.seal()

    async def statistics(self) -> ChannelStatistics:
        return await self._inner.statistics()

    async def missing(self, tags: Sequence[str]) -> list[str]:
        self.asked.append(len(tags))
        return [tag for tag in tags if tag in self.lost]
