"""couponflow as one process of a bench: its own consumers, relay, lease and settings.

Nothing is left out that the daemon has: attempts, retries, the dead-letter limit, metrics, the
worker's lease in PostgreSQL. Only its HTTP listeners and the supervisor are not there.
"""

import contextlib
import os
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio

from bench.messages.couponflow_watched import WatchedChannel
from bench.messages.harness import Payload, Run, Tally
from couponflow.config import ConsumersSettings, DatabaseSettings, OutboxSettings, RedisSettings
from couponflow.kernel.channel import Channel
from couponflow.kernel.channel_memory import MemoryChannel
from couponflow.kernel.clock import SystemClock
from couponflow.kernel.consumer import ChannelConsumers, ConsumerParts
from couponflow.kernel.controls import ChannelControls
from couponflow.kernel.database import Database, open_database
from couponflow.kernel.envelope import Envelope
from couponflow.kernel.handlers import DONE, Handler, HandlerContext, HandlerPolicy, Outcome
from couponflow.kernel.health import HealthBoard
from couponflow.kernel.identifiers import Uuid7Generator
from couponflow.kernel.message_metrics import ChannelCounts
from couponflow.kernel.migrations import migrate
from couponflow.kernel.outbox import Outgoing, publish, publish_many
from couponflow.kernel.outbox_relay import OutboxRelay, RelayParts
from couponflow.kernel.outbox_sinks import MemorySink
from couponflow.kernel.workers import WorkerLease
from couponflow.messages import EmailRequested

POOL_MAX = 20
"""Connections to PostgreSQL: as many as procrastinate is given."""
REGISTER_SECONDS = 30.0


class Work:
    """What the handler does: nothing, or wait for as long as a call to somebody else takes."""

    def __init__(self, tally: Tally, seconds: float) -> None:
        self._tally = tally
        self._seconds = seconds

    async def run(self, _message: EmailRequested, _context: HandlerContext) -> Outcome:
        self._tally.start()
        if self._seconds:
            await anyio.sleep(self._seconds)
        return DONE


class Handle:
    """What a supervisor would give to a role."""

    def __init__(self) -> None:
        self.stopping = anyio.Event()

    def started(self) -> None:
        """Nobody waits for it."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What all of couponflow's sides are made of."""

    run: Run
    tally: Tally
    work: Work
    channel: Channel[Envelope]
    database: Database
    lease: WorkerLease
    controls: ChannelControls
    health: HealthBoard
    ids: Uuid7Generator
    clock: SystemClock
    randomness: random.Random

    def message(self, payload: Payload) -> EmailRequested:
        return EmailRequested(to=payload["to"], subject=payload["subject"], text=payload["text"])

    async def depth(self) -> int:
        return (await self.channel.statistics()).depth

    def consumers(self) -> ChannelConsumers:
        policy = HandlerPolicy(concurrency=self.run.concurrency)
        return ChannelConsumers(
            ConsumerParts(
                # One consumer with all the places, as the peers have: not two that grow to five.
                settings=ConsumersSettings(min=1, max=1, concurrency=self.run.concurrency),
                channel=self.channel,
                handlers=[Handler("bench", EmailRequested, self.work.run, policy)],
                waiting=self.depth,
                away=(),  # a server that is away fails the bench
                database=self.database,
                lease=self.lease,
                controls=self.controls,
                health=self.health,
                counts=ChannelCounts(),
                ids=self.ids,
                clock=self.clock,
                randomness=self.randomness,
            )
        )

    def relay(self) -> OutboxRelay:
        return OutboxRelay(
            RelayParts(
                settings=OutboxSettings(),
                sinks=[MemorySink(self.channel)],
                database=self.database,
                lease=self.lease,
                controls=self.controls,
                health=self.health,
                ids=self.ids,
                clock=self.clock,
                randomness=self.randomness,
            )
        )


class ChannelQueue:
    """Messages put straight on a channel."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def enqueue(self, payloads: Sequence[Payload]) -> None:
        await self._parts.channel.publish([self._envelope(payload) for payload in payloads])

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._parts.consumers().run, Handle())
            yield
            tasks.cancel_scope.cancel()

    def _envelope(self, payload: Payload) -> Envelope:
        parts = self._parts
        now = parts.clock.now()
        message_id = parts.ids.make(now)
        return Envelope(
            message_id=message_id,
            message=parts.message(payload),
            correlation_id=message_id,
            published_at=now,
        )


class OutboxQueue:
    """Messages published in transactions, relayed through memory to handlers in this process."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def enqueue(self, payloads: Sequence[Payload]) -> None:
        messages = [self._parts.message(payload) for payload in payloads]
        async with self._parts.database.transaction() as connection:
            if len(messages) == 1:
                await publish(connection, messages[0])
            else:
                await publish_many(connection, [Outgoing(message=each) for each in messages])

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._parts.consumers().run, Handle())
            tasks.start_soon(self._parts.relay().run, Handle())
            yield
            tasks.cancel_scope.cancel()


CouponflowQueue = ChannelQueue | OutboxQueue
OpenCouponflow = Callable[[Run, Tally], AbstractAsyncContextManager[CouponflowQueue]]


def opener(side: str, *, capacity: int, work_seconds: float = 0.0) -> OpenCouponflow:
    """Return what opens one of couponflow's ways to carry messages."""

    @asynccontextmanager
    async def open_side(run: Run, tally: Tally) -> AsyncIterator[CouponflowQueue]:
        async with contextlib.AsyncExitStack() as stack:
            parts = await stack.enter_async_context(
                _open_parts(side, run, tally, Work(tally, work_seconds), capacity)
            )
            yield OutboxQueue(parts) if side == "outbox" else ChannelQueue(parts)

    return open_side


@asynccontextmanager
async def _open_parts(
    side: str, run: Run, tally: Tally, work: Work, capacity: int
) -> AsyncIterator[Parts]:
    url = os.environ["DATABASE_URL"]
    clock, ids, randomness = SystemClock(), Uuid7Generator(), random.Random(1)
    await migrate(url)
    async with contextlib.AsyncExitStack() as stack:
        database = await stack.enter_async_context(
            open_database(url, DatabaseSettings(pool_max=POOL_MAX))
        )
        channel = await stack.enter_async_context(_open_channel(side, capacity, clock))
        health = HealthBoard(clock)
        lease = WorkerLease(
            database,
            clock,
            health,
            roles=["bench"],
            lease_seconds=OutboxSettings().lease_seconds,
            var_path=Path(os.environ["COUPONFLOW_VAR_DIR"]),
            ids=ids,
        )
        controls = ChannelControls(database, randomness)
        registered = anyio.Event()
        lease.on_freed = registered.set
        tasks = await stack.enter_async_context(anyio.create_task_group())
        tasks.start_soon(lease.run, anyio.Event())
        tasks.start_soon(controls.run)
        with anyio.fail_after(REGISTER_SECONDS):
            await controls.loaded.wait()
            await registered.wait()
        yield Parts(
            run=run,
            tally=tally,
            work=work,
            channel=WatchedChannel(channel, tally),
            database=database,
            lease=lease,
            controls=controls,
            health=health,
            ids=ids,
            clock=clock,
            randomness=randomness,
        )
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def _open_channel(
    side: str, capacity: int, clock: SystemClock
) -> AsyncIterator[Channel[Envelope]]:
    if side != "redis":
        yield MemoryChannel(EmailRequested.channel, capacity, clock)
        return
    # Only here: importing the client of Redis takes most of a second.
    from bench.messages.couponflow_redis import open_stream

    async with open_stream(RedisSettings(url=os.environ["REDIS_URL"]), capacity) as stream:
        yield stream
