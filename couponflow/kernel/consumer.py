"""Consumers of one channel whose messages go to handlers, as many as are needed."""

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import anyio
import msgspec
import psycopg
import structlog

from couponflow.config import ConsumersSettings
from couponflow.kernel import outbox_rows
from couponflow.kernel.backoff import exponential_backoff
from couponflow.kernel.breaker import DeadLetterBreaker
from couponflow.kernel.channel import Channel, Delivery, Subscription
from couponflow.kernel.clock import Clock
from couponflow.kernel.consumer_desk import Desk, Places
from couponflow.kernel.consumer_gate import Gate
from couponflow.kernel.controls import ChannelControls
from couponflow.kernel.database import Database, DatabaseAway
from couponflow.kernel.dead_letters import AttemptError
from couponflow.kernel.elastic import ElasticConsumers
from couponflow.kernel.envelope import Envelope
from couponflow.kernel.handler_runner import HandlerRunner
from couponflow.kernel.handlers import Handler
from couponflow.kernel.health import HealthBoard
from couponflow.kernel.identifiers import Uuid7Generator
from couponflow.kernel.message_metrics import ChannelCounts
from couponflow.kernel.outbox_rows import Token
from couponflow.kernel.pace import Pace
from couponflow.kernel.role import RoleHandle
from couponflow.kernel.settlement import Dropped, Later, Settler
from couponflow.kernel.workers import WorkerLease

_TROUBLE = (DatabaseAway, psycopg.OperationalError)
_log = structlog.get_logger("couponflow.messages")


@dataclass(frozen=True, slots=True)
class ConsumerParts:
    """What the consumers of a channel are built from."""

    settings: ConsumersSettings
    channel: Channel[Envelope]
    handlers: Sequence[Handler]
    waiting: Callable[[], Awaitable[int]]
    """How many messages wait, wherever they do: what the number of consumers follows."""
    away: tuple[type[Exception], ...]
    """What `waiting` raises while it cannot tell."""
    database: Database
    lease: WorkerLease
    controls: ChannelControls
    health: HealthBoard
    counts: ChannelCounts
    ids: Uuid7Generator
    clock: Clock
    randomness: random.Random


class ChannelConsumers:
    """Consumes a channel with its handlers until the channel is finished."""

    def __init__(self, parts: ConsumerParts) -> None:
        self._parts = parts
        self._name = parts.channel.name
        self._breaker = DeadLetterBreaker(parts.clock, channel=self._name)
        self._runner = HandlerRunner(
            parts.handlers,
            database=parts.database,
            clock=parts.clock,
            randomness=parts.randomness,
            counts=parts.counts,
            breaker=self._breaker,
            worker_name=parts.lease.name,
        )
        self._pace = Pace(parts.clock)
        self._places = Places(parts.settings.concurrency)

    async def run(self, handle: RoleHandle) -> None:
        """Consume until the channel is sealed and empty."""
        parts = self._parts
        elastic = ElasticConsumers(
            f"{parts.lease.name}:{self._name}", parts.settings, parts.waiting, away=parts.away
        )
        parts.counts.consumers = lambda: elastic.size
        parts.health.add_probe(f"consumer:{self._name}", self._probe)
        handle.started()

        async def consume(name: str, leave: anyio.Event) -> None:
            await self._consume(name, leave, handle.stopping)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._follow_controls)
            await elastic.run(consume, handle.stopping)
            tasks.cancel_scope.cancel()

    async def _follow_controls(self) -> None:
        """Heed a changed limit at once, also while everybody waits for the old one."""
        controls = self._parts.controls
        while True:
            control = controls.of(self._name)
            self._places.set_limit(control.concurrency or self._parts.settings.concurrency)
            self._pace.rate_per_second = control.rate_per_second
            await controls.changed()

    def _probe(self) -> tuple[bool, str]:
        if self._parts.controls.of(self._name).paused:
            return True, "paused by an operator"
        return self._breaker.state == "closed", self._breaker.detail()

    async def _consume(self, name: str, leave: anyio.Event, stopping: anyio.Event) -> None:
        parts = self._parts
        async with (
            parts.channel.subscribe(name) as subscription,
            anyio.create_task_group() as watching,
        ):
            settler = Settler(
                parts.database,
                subscription,
                parts.ids,
                parts.randomness,
                parts.counts,
                parts.lease,
                parts.clock,
            )
            gate = Gate(self._name, parts.controls, self._breaker, leave, stopping)

            async def begin(delivery: Delivery[Envelope]) -> Delivery[Envelope] | None:
                if delivery.message.begun:
                    return delivery
                begun = await self._begin_streamed([delivery], settler)
                return begun[0] if begun else None

            watching.start_soon(gate.watch)
            async with anyio.create_task_group() as working:
                working.start_soon(settler.run)
                desk = Desk(
                    self._runner, settler, parts.settings.max, self._places, parts.lease, begin
                )
                async with anyio.create_task_group() as attempts:
                    desk.open(attempts)
                    await self._feed(subscription, desk, settler, gate)
                    desk.close()
                settler.close()
            watching.cancel_scope.cancel()

    async def _feed(
        self, subscription: Subscription[Envelope], desk: Desk, settler: Settler, gate: Gate
    ) -> None:
        """Bring messages to the desk, as many as it has room for, until there are no more."""
        while await gate.opened():
            room = 0
            with gate.interruptible():
                room = await desk.take_room()
            if gate.take_interrupted():
                continue
            unused = room
            try:
                batch = await self._receive(subscription, gate, room)
                if batch is None:
                    return
                for delivery in await self._begin(batch, settler):
                    desk.put(delivery)
                    unused -= 1
            finally:
                desk.return_room(unused)

    async def _receive(
        self, subscription: Subscription[Envelope], gate: Gate, room: int
    ) -> list[Delivery[Envelope]] | None:
        """Receive up to `room` messages; none if the gate was closed, None when it is over."""
        # Another consumer may have begun the one message that the breaker allows.
        room = min(room, self._breaker.allows(), self._pace.at_once)
        if not room:
            return []
        batch: list[Delivery[Envelope]] = []
        with gate.interruptible():
            batch = await subscription.receive(room, 0.0)
        if gate.take_interrupted():
            return []
        if not batch:
            return None
        await self._pace.take(len(batch))
        return batch

    async def _begin(
        self, batch: list[Delivery[Envelope]], settler: Settler
    ) -> list[Delivery[Envelope]]:
        """Have PostgreSQL count the attempts of what came through a stream.

        Those over which a worker died are counted one at a time, each when its turn has come.
        """
        ready = [d for d in batch if d.message.begun or (d.message.handover and d.message.lapsed)]
        streamed = [
            d for d in batch if d.message.handover and not (d.message.begun or d.message.lapsed)
        ]
        if streamed:
            ready += await self._begin_streamed(streamed, settler)
        for delivery in batch:
            if not delivery.message.handover:
                direct = self._begin_direct(delivery, settler)
                ready += [direct] if direct else []
        return ready

    async def _begin_streamed(
        self, batch: list[Delivery[Envelope]], settler: Settler
    ) -> list[Delivery[Envelope]]:
        tokens = [Token(d.message.message_id, d.message.handover) for d in batch]
        in_hand = self._parts.lease.in_hand
        # Another entry of the same message may be at work here.
        new_in_hand = {token.message_id for token in tokens} - in_hand
        in_hand |= new_in_hand
        uncertain = False
        for wait in exponential_backoff(0.1, 5.0, self._parts.randomness):
            try:
                async with self._parts.database.connection() as connection:
                    owner = self._parts.lease.worker_id
                    # One that comes again had a consumer here, which crashed, or elsewhere.
                    again = [uncertain or d.attempt > 1 for d in batch]
                    begun = await outbox_rows.begin(connection, owner, tokens, again)
                    alive = len(begun) == len(tokens) or (
                        await outbox_rows.is_worker_alive(connection, owner)
                    )
            except _TROUBLE as error:
                # It may have been carried out, and only the answer was lost.
                uncertain = True
                _log.warning("messages not begun yet", channel=self._name, error=str(error))
            else:
                if alive:
                    break
            await anyio.sleep(wait)
        ready = []
        for delivery in batch:
            found = begun.get(delivery.message.message_id)
            if found is None:
                in_hand -= {delivery.message.message_id} & new_in_hand
                settler.settle(delivery, Dropped())
                continue
            envelope = msgspec.structs.replace(
                delivery.message,
                attempt=found.attempt,
                handover=found.handover,
                lapsed=found.lapsed,
                begun=True,
            )
            ready.append(Delivery(envelope, delivery.tag, delivery.attempt))
        return ready

    def _begin_direct(
        self, delivery: Delivery[Envelope], settler: Settler
    ) -> Delivery[Envelope] | None:
        """A message without a row: the stream counts its attempts, until one goes wrong."""
        if delivery.attempt == 1:
            return delivery
        envelope = msgspec.structs.replace(
            delivery.message, attempt=delivery.message.attempt + delivery.attempt - 1
        )
        error = AttemptError(
            envelope.attempt - 1,
            self._parts.clock.now(),
            "",
            "the consumer died, or gave the message back, during this attempt",
        )
        settler.settle(
            Delivery(envelope, delivery.tag, delivery.attempt),
            Later(error=error, forgiven=True, lapsed=True),
        )
        return None
