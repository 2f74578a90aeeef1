"""The in-memory channel against a model of it, under any sequence of operations."""

import asyncio
import random
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TypeVar

import anyio
import uvloop
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from couponflow.kernel.channel import Delivery, Handover, Subscription
from couponflow.kernel.channel_memory import MemoryChannel
from couponflow.kernel.clock import ManualClock
from couponflow.messages import Click
from tests.kernel.channel_helpers import (
    LONGER_THAN_ANY_TEST,
    attempts,
    clicks,
    counts,
    numbers,
    pass_turns,
)

T = TypeVar("T")

CAPACITY = 12
TURNS_UNTIL_IDLE = 6

consumer_names = st.sampled_from(["a", "b", "c"])
randoms = st.randoms(use_true_random=False)


@dataclass
class Consumer:
    """A consumer, what it has in flight by the model, and what it has settled already."""

    block: AbstractAsyncContextManager[Subscription[Click]]
    subscription: Subscription[Click]
    held: dict[int, Delivery[Click]] = field(default_factory=dict)
    settled: list[Delivery[Click]] = field(default_factory=list)

    def let_go_of_some(self, randomness: random.Random) -> list[Delivery[Click]]:
        count = randomness.randint(min(1, len(self.held)), len(self.held))
        chosen = randomness.sample(sorted(self.held), count)
        deliveries = [self.held.pop(number) for number in chosen]
        self.settled += deliveries
        return deliveries


async def cancel_when_idle(scope: anyio.CancelScope) -> None:
    await pass_turns(TURNS_UNTIL_IDLE)
    scope.cancel()


class MemoryChannelMachine(RuleBasedStateMachine):
    """Publishes, receives, settles, cancels and ends consumers at will, and keeps the books."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self.channel: MemoryChannel[Click] = MemoryChannel("clicks", CAPACITY, ManualClock())
        self.attempts: dict[int, int] = {}
        self.waiting: set[int] = set()
        self.acknowledged: set[int] = set()
        self.rejected = 0
        self.redelivered = 0
        self.batches: list[tuple[Handover, set[int]]] = []
        self.consumers = {name: self.run(self.begin(name)) for name in ("a", "b", "c")}

    def run(self, work: Coroutine[object, object, T]) -> T:
        return self.runner.run(work)

    async def begin(self, name: str) -> Consumer:
        block = self.channel.subscribe(name)
        return Consumer(block, await block.__aenter__())

    @property
    def unsettled(self) -> int:
        return len(self.attempts) - len(self.acknowledged)

    def waits_again(self, undone: set[int]) -> None:
        self.waiting |= undone
        for number in undone:
            self.attempts[number] += 1

    @rule(size=st.integers(0, CAPACITY))
    def publish(self, size: int) -> None:
        batch = range(len(self.attempts), len(self.attempts) + size)
        handover = self.run(self.publish_or_give_up(clicks(*batch)))
        assert (handover is not None) == (self.unsettled + size <= CAPACITY)
        if handover is not None:
            self.attempts.update(dict.fromkeys(batch, 1))
            self.waiting.update(batch)
            self.batches.append((handover, set(batch)))

    async def publish_or_give_up(self, batch: list[Click]) -> Handover | None:
        handover: Handover | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(cancel_when_idle, group.cancel_scope)
            handover = await self.channel.publish(batch)
            group.cancel_scope.cancel()
        return handover

    @precondition(lambda self: self.waiting)
    @rule(name=consumer_names, limit=st.integers(1, CAPACITY))
    def receive(self, name: str, limit: int) -> None:
        consumer = self.consumers[name]
        received = self.run(consumer.subscription.receive(limit, 0.0))
        expected = sorted(self.waiting)[:limit]
        assert attempts(received) == [(number, self.attempts[number]) for number in expected]
        consumer.held.update(zip(expected, received, strict=True))
        self.waiting.difference_update(expected)
        self.redelivered += sum(1 for number in expected if self.attempts[number] > 1)

    @precondition(lambda self: not self.waiting or self.unsettled < CAPACITY)
    @rule(name=consumer_names)
    def cancel_a_receive(self, name: str) -> None:
        subscription = self.consumers[name].subscription
        assert not self.run(self.receives_a_full_batch(subscription))

    async def receives_a_full_batch(self, subscription: Subscription[Click]) -> bool:
        """Ask for more than there can be, so that it waits or lingers, and give up."""
        async with anyio.create_task_group() as group:
            group.start_soon(cancel_when_idle, group.cancel_scope)
            await subscription.receive(CAPACITY + 1, LONGER_THAN_ANY_TEST)
            return True
        return False

    @rule(name=consumer_names, randomness=randoms)
    def acknowledge(self, name: str, randomness: random.Random) -> None:
        consumer = self.consumers[name]
        done = consumer.let_go_of_some(randomness)
        self.run(consumer.subscription.acknowledge(done))
        self.acknowledged.update(numbers(done))

    @rule(name=consumer_names, randomness=randoms)
    def reject(self, name: str, randomness: random.Random) -> None:
        consumer = self.consumers[name]
        undone = consumer.let_go_of_some(randomness)
        self.run(consumer.subscription.reject(undone))
        self.waits_again(set(numbers(undone)))
        self.rejected += len(undone)

    @rule(name=consumer_names)
    def settle_again(self, name: str) -> None:
        consumer = self.consumers[name]
        self.run(consumer.subscription.acknowledge(consumer.settled))
        self.run(consumer.subscription.reject(consumer.settled))

    @rule(name=consumer_names)
    def replace_a_consumer(self, name: str) -> None:
        ended = self.consumers[name]
        self.run(self.end(ended))
        self.waits_again(set(ended.held))
        self.consumers[name] = self.run(self.begin(name))

    async def end(self, consumer: Consumer) -> None:
        await consumer.block.__aexit__(None, None, None)

    @precondition(lambda self: self.batches)
    @rule(randomness=randoms)
    def a_sender_is_relieved_once_its_batch_is_done(self, randomness: random.Random) -> None:
        handover, batch = randomness.choice(self.batches)
        assert self.run(self.is_taken(handover)) == (batch <= self.acknowledged)

    async def is_taken(self, handover: Handover) -> bool:
        taken = False
        async with anyio.create_task_group() as group:
            group.start_soon(cancel_when_idle, group.cancel_scope)
            await handover.taken()
            taken = True
            group.cancel_scope.cancel()
        return taken

    @invariant()
    def every_message_is_in_one_place(self) -> None:
        held = sum(len(consumer.held) for consumer in self.consumers.values())
        assert len(self.attempts) == len(self.waiting) + held + len(self.acknowledged)
        assert self.run(counts(self.channel)) == (
            len(self.waiting),
            held,
            len(self.attempts),
            len(self.acknowledged),
            self.rejected,
            self.redelivered,
        )

    def teardown(self) -> None:
        """Whatever has happened, sealing lets everything out, in order, and then the consumer."""
        for consumer in self.consumers.values():
            self.run(self.end(consumer))
        assert self.run(self.drain()) == sorted(set(self.attempts) - self.acknowledged)
        self.runner.close()

    async def drain(self) -> list[int]:
        drained: list[int] = []
        self.channel.seal()
        async with self.channel.subscribe("last") as subscription:
            while batch := await subscription.receive(5, LONGER_THAN_ANY_TEST):
                drained += numbers(batch)
                await subscription.acknowledge(batch)
        return drained


MemoryChannelMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None
)
TestMemoryChannelAgainstItsModel = MemoryChannelMachine.TestCase
