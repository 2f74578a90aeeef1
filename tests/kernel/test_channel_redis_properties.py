"""Two processes on one Redis stream against a model, under any sequence of operations.

Each `RedisChannel` stands for a process. The model knows less than that of the channel in memory,
because processes do not wait for each other; what it knows must hold all the same: nothing is
handed out that is settled or that somebody else holds, and nothing is ever missing in the end.
"""

from contextlib import AbstractAsyncContextManager, AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import TypeVar

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from couponflow.config import RedisSettings
from couponflow.kernel.channel import Delivery, Subscription
from couponflow.kernel.channel_redis import RedisChannel
from couponflow.kernel.redis_client import open_redis
from couponflow.messages import Click
from tests.kernel.channel_helpers import PATIENCE_SECONDS, clicks, numbers
from tests.kernel.redis_channels import click_channel
from tests.redis_server import ask

T = TypeVar("T")

CAPACITY = 12
WAIT_SECONDS = 0.02
processes = st.sampled_from([0, 1])


@dataclass
class Process:
    """One end of the stream with one consumer, and what that holds by the model."""

    stack: ExitStack
    channel: RedisChannel[Click]
    subscription: Subscription[Click]
    held: dict[int, Delivery[Click]] = field(default_factory=dict)


class RedisChannelMachine(RuleBasedStateMachine):
    """Publishes, receives, settles, and ends and begins processes at will."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.stack = ExitStack()
        portal = start_blocking_portal("asyncio", {"use_uvloop": True})
        self.portal: BlockingPortal = self.stack.enter_context(portal)
        port = int(url.rpartition(":")[2].partition("/")[0])
        assert self.portal.call(ask, port, "FLUSHALL") == "+OK"
        self.published = 0
        self.unsettled: set[int] = set()
        self.least_attempt: dict[int, int] = {}
        self.processes = [self.begin(number) for number in (0, 1)]

    def begin(self, number: int) -> Process:
        stack = ExitStack()
        redis = stack.enter_context(self.opened(open_redis(RedisSettings(url=self.url))))
        channel = stack.enter_context(self.opened(click_channel(redis, CAPACITY)))
        subscription = stack.enter_context(self.opened(channel.subscribe(f"consumer-{number}")))
        return Process(stack, channel, subscription)

    def opened(self, manager: AbstractAsyncContextManager[T]) -> AbstractContextManager[T]:
        """Entered and left in one task of the portal's, as task groups want it."""
        return self.portal.wrap_async_context_manager(manager)

    @rule(process=processes, size=st.integers(1, CAPACITY))
    def publish(self, process: int, size: int) -> None:
        batch = list(range(self.published, self.published + size))
        channel = self.processes[process].channel

        async def publish_or_give_up() -> bool:
            with anyio.move_on_after(WAIT_SECONDS if self.is_full(size) else PATIENCE_SECONDS):
                handover = await channel.publish(clicks(*batch))
                await handover.taken()
                return True
            return False

        done = self.portal.call(publish_or_give_up)
        assert done == (not self.is_full(size))
        if done:
            self.published += size
            self.unsettled |= set(batch)
            self.least_attempt.update(dict.fromkeys(batch, 1))

    def is_full(self, size: int) -> bool:
        return len(self.unsettled) + size > CAPACITY

    @precondition(lambda self: self.waiting)
    @rule(process=processes, limit=st.integers(1, CAPACITY))
    def receive(self, process: int, limit: int) -> None:
        receiver, waiting = self.processes[process], self.waiting

        async def receive_or_give_up() -> list[Delivery[Click]]:
            # What the other process gave back locally does not come here.
            with anyio.move_on_after(WAIT_SECONDS * 5):
                return await receiver.subscription.receive(limit, 0.0)
            return []

        for delivery in self.portal.call(receive_or_give_up):
            (number,) = numbers([delivery])
            assert number in waiting, "somebody else holds it, or it is done"
            assert delivery.attempt >= self.least_attempt[number]
            receiver.held[number] = delivery

    @property
    def waiting(self) -> set[int]:
        return self.unsettled.difference(*(process.held for process in self.processes))

    @rule(process=processes, keep=st.integers(0, 3))
    def acknowledge(self, process: int, keep: int) -> None:
        settled = self.let_go(process, keep)
        self.portal.call(self.processes[process].subscription.acknowledge, settled)
        self.unsettled -= set(numbers(settled))

    @rule(process=processes, keep=st.integers(0, 3))
    def reject(self, process: int, keep: int) -> None:
        undone = self.let_go(process, keep)
        self.portal.call(self.processes[process].subscription.reject, undone)
        for delivery in undone:
            self.least_attempt[numbers([delivery])[0]] = delivery.attempt + 1

    def let_go(self, process: int, keep: int) -> list[Delivery[Click]]:
        held = self.processes[process].held
        return [held.pop(number) for number in sorted(held)[keep:]]

    @rule(process=processes)
    def end_and_begin_again(self, process: int) -> None:
        ended = self.processes[process]
        for number, delivery in ended.held.items():
            self.least_attempt[number] = delivery.attempt + 1
        ended.stack.close()
        self.processes[process] = self.begin(process)

    @invariant()
    def the_stream_holds_what_is_not_settled(self) -> None:
        channel = self.processes[0].channel

        async def length() -> int:
            statistics = await channel.statistics()
            return statistics.depth + statistics.in_flight

        assert self.portal.call(length) == len(self.unsettled)

    def teardown(self) -> None:
        """Whatever has happened, a last process gets everything that is not settled."""
        for process in self.processes:
            process.stack.close()
        last = self.begin(2)

        async def drain() -> list[int]:
            drained: list[int] = []
            with anyio.fail_after(PATIENCE_SECONDS):
                while len(drained) < len(self.unsettled):
                    batch = await last.subscription.receive(5, 0.0)
                    drained += numbers(batch)
                    await last.subscription.acknowledge(batch)
            return drained

        assert sorted(self.portal.call(drain)) == sorted(self.unsettled)
        last.stack.close()
        self.stack.close()


def test_two_processes_on_one_stream_agree_with_their_model(redis_url: str) -> None:
    class OnThisServer(RedisChannelMachine):
        def __init__(self) -> None:
            super().__init__(redis_url)

    run_state_machine_as_test(
        OnThisServer,
        settings=settings(
            max_examples=30,
            stateful_step_count=20,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
