"""What carries this daemon's messages: channels, outbox relay, lease and controls, put together.

In memory without Redis, in Redis streams with it; no role knows which.
"""

import contextlib
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
import psycopg
import structlog

from couponflow.config import Settings
from couponflow.kernel import outbox_rows
from couponflow.kernel.audit_log import AUDIT_LOGS
from couponflow.kernel.channel import Channel, Stream
from couponflow.kernel.channel_memory import MemoryChannel
from couponflow.kernel.clock import Clock
from couponflow.kernel.consumer import ConsumerParts
from couponflow.kernel.controls import ChannelControls
from couponflow.kernel.database import Database, DatabaseAway
from couponflow.kernel.envelope import Envelope
from couponflow.kernel.handlers import Handler
from couponflow.kernel.health import HealthBoard
from couponflow.kernel.identifiers import Uuid7Generator
from couponflow.kernel.message_metrics import MessageMetrics
from couponflow.kernel.outbox_relay import OutboxRelay, RelayParts
from couponflow.kernel.outbox_sinks import BareSink, MemorySink, Sink, StreamSink
from couponflow.kernel.partitions import ensure_partitions
from couponflow.kernel.role import Role, RoleHandle, Stage
from couponflow.kernel.shared_state import SharedState, SharedStateAway
from couponflow.kernel.telemetry import MetricSource
from couponflow.kernel.workers import WorkerLease
from couponflow.messages import CHANNELS, Click
from couponflow.roles import ROLES

if TYPE_CHECKING:
    from couponflow.kernel.outbox_verifier import OutboxVerifier
    from couponflow.kernel.redis_wiring import RedisWiring

PARTITIONS_SECONDS = 3600.0
_TROUBLE = (DatabaseAway, psycopg.OperationalError)
_log = structlog.get_logger("couponflow.messages")


@dataclass(frozen=True, slots=True)
class MessagingParts:
    """What the messaging of a daemon is built from."""

    settings: Settings
    roles: Sequence[str]
    database: Database
    health: HealthBoard
    messages: MessageMetrics
    clock: Clock
    redis: "RedisWiring | None"


class Messaging:
    """Everything one daemon needs to send and to consume messages."""

    def __init__(self, parts: MessagingParts) -> None:
        self._parts = parts
        settings = parts.settings
        self._ids = Uuid7Generator()
        self._randomness = random.Random()  # noqa: S311 - spreads retries, guards nothing
        self._consumed = sorted(
            frozenset[str]().union(*(ROLES[role].consumes for role in parts.roles))
        )
        self._produced = frozenset[str]().union(*(ROLES[role].produces for role in parts.roles))
        self.relays = bool(self._consumed) or (parts.redis is not None and "api" in parts.roles)
        """Whether this daemon hands over what is in the outbox."""
        self.controls = ChannelControls(parts.database, self._randomness)
        self.lease = WorkerLease(
            parts.database,
            parts.clock,
            parts.health,
            roles=parts.roles,
            lease_seconds=settings.outbox.lease_seconds,
            var_path=settings.var_path,
            ids=self._ids,
        )
        self.clicks: Channel[Click] | None = None
        self._enveloped: dict[str, Channel[Envelope]] = {}
        self._streams: list[Stream[Envelope]] = []
        self._sinks: list[Sink] = []
        self._verifier: OutboxVerifier | None = None

    @property
    def shared_state(self) -> SharedState | None:
        return self._parts.redis.shared_state if self._parts.redis else None

    async def open(self, stack: contextlib.AsyncExitStack) -> None:
        """Open the channels that the roles here need."""
        # Before anybody writes there: a row on its way into the partition for what has none is
        # refused at the moment in which its month gets one.
        with contextlib.suppress(*_TROUBLE):
            await self._ensure_partitions()
        if self._parts.redis is None:
            self._open_in_memory()
        else:
            await self._open_in_redis(stack, self._parts.redis)

    def sources(self) -> list[MetricSource]:
        """What here has metrics."""
        return [self.lease, *([self._verifier] if self._verifier is not None else [])]

    def channels(self) -> list[Channel[Click] | Channel[Envelope]]:
        """The channels that are open here."""
        clicks = [self.clicks] if self.clicks is not None else []
        return [*clicks, *self._enveloped.values()]

    def _open_in_memory(self) -> None:
        settings, clock = self._parts.settings, self._parts.clock
        if Click.channel in self._produced or Click.channel in self._consumed:
            self.clicks = MemoryChannel(Click.channel, settings.channels.capacity, clock)
            if Click.channel in self._consumed:
                self._sinks.append(BareSink(self.clicks, Click, self._parts.database))
        for name in self._consumed:
            if name != Click.channel:
                # Small: what waits is better left in the outbox, where every daemon can have it.
                channel: Channel[Envelope] = MemoryChannel(
                    name, 2 * settings.outbox.batch_rows, clock
                )
                self._enveloped[name] = channel
                self._sinks.append(MemorySink(channel))

    async def _open_in_redis(self, stack: contextlib.AsyncExitStack, redis: "RedisWiring") -> None:
        database = self._parts.database
        if Click.channel in self._produced or Click.channel in self._consumed:
            self.clicks = await redis.open_clicks(stack, self._parts.settings.journal.checkpoint)
        for name in CHANNELS:
            if name == Click.channel or not (self.relays or name in self._consumed):
                continue
            stream = await redis.open_stream(stack, name)
            self._enveloped[name] = stream
            if self.relays:
                self._streams.append(stream)
                self._sinks.append(StreamSink(stream, database))
        if self.relays:
            self._verifier = redis.verifier(self._streams, self._randomness)
            # Its row may only go when the click is stored, whatever the journal is content with.
            clicks = await redis.open_clicks(stack, "acknowledged")
            self._sinks.append(BareSink(clicks, Click, database))

    def consumer_parts(self, channel: str, handlers: Sequence[Handler]) -> ConsumerParts:
        """What the consumers of a channel need."""
        parts = self._parts
        return ConsumerParts(
            settings=parts.settings.consumers,
            channel=self._enveloped[channel],
            handlers=handlers,
            waiting=self._waiting(channel),
            away=(*_TROUBLE, *(parts.redis.away if parts.redis else ())),
            database=parts.database,
            lease=self.lease,
            controls=self.controls,
            health=parts.health,
            counts=parts.messages.channel(channel),
            ids=self._ids,
            clock=parts.clock,
            randomness=self._randomness,
        )

    def _waiting(self, channel: str) -> Callable[[], Awaitable[int]]:
        async def in_stream() -> int:
            return (await self._enveloped[channel].statistics()).depth

        async def in_outbox() -> int:
            async with self._parts.database.connection() as connection:
                limit = self._parts.settings.consumers.grow_above + 1
                due = await outbox_rows.count_due(connection, channel, limit)
            return due + await in_stream()

        return in_stream if self._parts.redis else in_outbox

    def roles(self) -> list[Role]:
        """The roles that no operator names: they come with the others."""
        own = [Role("worker", Stage.FOUNDATION, self._run_worker)]
        if self.relays:
            # When the consumers finish what is on the channels, nothing more may come.
            own.append(Role("relay", Stage.INTAKE, self._run_relay))
        return own

    async def _run_worker(self, handle: RoleHandle) -> None:
        """Keep the lease, the controls, the heartbeat and the audit log's partitions."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.controls.run)
            tasks.start_soon(self._make_partitions)
            if self.shared_state is not None:
                tasks.start_soon(self._beat, self.shared_state)
            handle.started()
            if self.relays:
                await self.lease.run(handle.stopping)
            else:
                await handle.stopping.wait()
            tasks.cancel_scope.cancel()

    async def _run_relay(self, handle: RoleHandle) -> None:
        parts = self._parts
        relay = OutboxRelay(
            RelayParts(
                settings=parts.settings.outbox,
                sinks=self._sinks,
                database=parts.database,
                lease=self.lease,
                controls=self.controls,
                health=parts.health,
                ids=self._ids,
                clock=parts.clock,
                randomness=self._randomness,
            )
        )
        async with anyio.create_task_group() as tasks:
            if self._verifier is not None:
                tasks.start_soon(self._verifier.run)
            await relay.run(handle)
            tasks.cancel_scope.cancel()

    async def _beat(self, shared: SharedState) -> None:
        """Say in Redis that this daemon lives; a daemon without a lease has an id all the same."""
        own_id = self._ids.make(self._parts.clock.now())
        lease_seconds = self._parts.settings.outbox.lease_seconds
        try:
            while True:
                worker_id = self.lease.worker_id or own_id
                details = {"name": self.lease.name, "roles": ",".join(self._parts.roles)}
                try:
                    await shared.beat(worker_id, details, lifetime_seconds=lease_seconds)
                except SharedStateAway as error:
                    _log.warning("heartbeat not sent", error=str(error))
                await anyio.sleep(lease_seconds / 3)
        finally:
            with anyio.move_on_after(1.0, shield=True), contextlib.suppress(SharedStateAway):
                await shared.silence(self.lease.worker_id or own_id)

    async def _make_partitions(self) -> None:
        while True:
            try:
                await self._ensure_partitions()
            except _TROUBLE as error:
                _log.warning("partitions of audit_logs not made yet", error=str(error))
                await anyio.sleep(5)
            else:
                await anyio.sleep(PARTITIONS_SECONDS)

    async def _ensure_partitions(self) -> None:
        async with self._parts.database.connection() as connection:
            await ensure_partitions(connection, AUDIT_LOGS, self._parts.clock.now())

    def seal(self) -> None:
        """Say that nothing more is published here."""
        for channel in self.channels():
            channel.seal()
