"""What every channel promises, as tests that each implementation inherits.

A test file of an implementation has a class that inherits `ChannelConformance` and a fixture
`make_channel`. Nothing here knows how a channel is made, when exactly a sender is relieved of a
batch, or how long anything takes: deadlines only turn a hang into a failure.
"""

import random
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

import anyio
import pytest

from couponflow.kernel.channel import Channel, ChannelSealed, Delivery, Subscription
from couponflow.messages import Click
from tests.kernel.channel_helpers import (
    LONGER_THAN_ANY_TEST,
    PATIENCE_SECONDS,
    attempts,
    clicks,
    counts,
    numbers,
    pass_turns,
    publishers_wait,
    receive_exactly,
)


class ChannelFactory(Protocol):
    """Opens an empty channel of clicks that nobody else uses."""

    def __call__(self, capacity: int) -> AbstractAsyncContextManager[Channel[Click]]: ...


class ConsumerDied(Exception):
    """Raised by a test within a subscription."""


@asynccontextmanager
async def opened(factory: ChannelFactory, capacity: int) -> AsyncGenerator[Channel[Click], None]:
    with anyio.fail_after(PATIENCE_SECONDS):
        async with factory(capacity) as channel:
            yield channel


async def hold_one_and_three(channel: Channel[Click], *, fail: bool) -> None:
    """A consumer that ends after it has received 1, 2 and 3 and acknowledged only 2."""
    async with channel.subscribe("a") as subscription:
        received = await receive_exactly(subscription, 3)
        await subscription.acknowledge(received[1:2])
        if fail:
            raise ConsumerDied


async def takes_over(channel: Channel[Click]) -> None:
    """The consumer after that one: it gets 1 and 3 again, then 4 for the first time."""
    async with channel.subscribe("b") as subscription:
        received = await receive_exactly(subscription, 3)
        assert attempts(received) == [(1, 2), (3, 2), (4, 1)]
        await subscription.acknowledge(received)
        assert await counts(channel) == (0, 0, 4, 4, 0, 2)


class ChannelConformance:
    """The promises of `couponflow.kernel.channel`."""

    @pytest.fixture
    def make_channel(self) -> ChannelFactory:
        raise NotImplementedError("the implementation's test class has this fixture")

    # Order and batches

    async def test_messages_come_out_in_the_order_they_went_in(
        self, make_channel: ChannelFactory
    ) -> None:
        async with opened(make_channel, 10) as channel, channel.subscribe("a") as subscription:
            await channel.publish(clicks(1, 2))
            await channel.publish(clicks(3))
            await channel.publish(clicks(4, 5))
            received = await receive_exactly(subscription, 5)
            assert attempts(received) == [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1)]
            assert [delivery.message for delivery in received] == clicks(1, 2, 3, 4, 5)

    async def test_a_batch_holds_no_more_than_was_asked_for(
        self, make_channel: ChannelFactory
    ) -> None:
        async with opened(make_channel, 10) as channel, channel.subscribe("a") as subscription:
            await channel.publish(clicks(1, 2, 3, 4, 5))
            assert numbers(await subscription.receive(2, LONGER_THAN_ANY_TEST)) == [1, 2]
            assert numbers(await subscription.receive(2, LONGER_THAN_ANY_TEST)) == [3, 4]
            assert numbers(await subscription.receive(2, 0.01)) == [5]

    async def test_an_empty_batch_is_no_burden(self, make_channel: ChannelFactory) -> None:
        async with opened(make_channel, 10) as channel:
            handover = await channel.publish([])
            await handover.taken()
            assert await counts(channel) == (0, 0, 0, 0, 0, 0)

    # Linger

    async def test_a_slow_trickle_becomes_one_batch_as_soon_as_it_is_full(
        self, make_channel: ChannelFactory
    ) -> None:
        received: list[int] = []

        async def consume(subscription: Subscription[Click]) -> None:
            received.extend(numbers(await subscription.receive(4, LONGER_THAN_ANY_TEST)))

        async with opened(make_channel, 10) as channel, channel.subscribe("a") as subscription:
            async with anyio.create_task_group() as group:
                group.start_soon(consume, subscription)
                for click in clicks(1, 2, 3, 4):
                    await anyio.wait_all_tasks_blocked()
                    assert received == []
                    await channel.publish([click])
            assert received == [1, 2, 3, 4]

    async def test_a_batch_that_does_not_fill_is_handed_out_when_the_linger_is_over(
        self, make_channel: ChannelFactory
    ) -> None:
        async with opened(make_channel, 10) as channel, channel.subscribe("a") as subscription:
            await channel.publish(clicks(1))
            assert numbers(await subscription.receive(10, 0.01)) == [1]

    # Bounds

    async def test_a_full_channel_makes_a_publisher_wait_for_an_acknowledgement(
        self, make_channel: ChannelFactory
    ) -> None:
        async with opened(make_channel, 2) as channel, channel.subscribe("a") as subscription:
            await channel.publish(clicks(1, 2))
            async with anyio.create_task_group() as group:
                group.start_soon(channel.publish, clicks(3))
                await publishers_wait(channel, 1)
                first = await receive_exactly(subscription, 2)
                assert numbers(first) == [1, 2]
                # What is in flight still takes room.
                assert (await channel.statistics()).waiting_publishers == 1
                assert await counts(channel) == (0, 2, 2, 0, 0, 0)
                await subscription.acknowledge(first[:1])
            assert numbers(await receive_exactly(subscription, 1)) == [3]
            assert await counts(channel) == (0, 2, 3, 1, 0, 0)
            assert (await channel.statistics()).waiting_publishers == 0

    async def test_a_batch_that_can_never_fit_is_refused(
        self, make_channel: ChannelFactory
    ) -> None:
        async with opened(make_channel, 2) as channel:
            with pytest.raises(ValueError, match="3 messages"):
                await channel.publish(clicks(1, 2, 3))
            assert await counts(channel) == (0, 0, 0, 0, 0, 0)
            await channel.publish(clicks(1, 2))
            assert await counts(channel) == (2, 0, 2, 0, 0, 0)

    # Settlement

    async def test_an_acknowledged_message_is_never_handed_out_again(
        self, make_channel: ChannelFactory
    ) -> None:
        async with opened(make_channel, 10) as channel:
            async with channel.subscribe("a") as subscription:
                await channel.publish(clicks(1, 2))
                await subscription.acknowledge(await receive_exactly(subscription, 2))
                assert await counts(channel) == (0, 0, 2, 2, 0, 0)
            await channel.publish(clicks(3))
            async with channel.subscribe("b") as subscription:
                assert attempts(await subscription.receive(10, 0.01)) == [(3, 1)]

    async def test_the_sender_is_relieved_once_all_of_its_batch_is_acknowledged(
        self, make_channel: ChannelFactory
    ) -> None:
        async with opened(make_channel, 10) as channel, channel.subscribe("a") as subscription:
            handover = await channel.publish(clicks(1, 2, 3))
            received = await receive_exactly(subscription, 3)
            await subscription.acknowledge(received[1:])
            await subscription.acknowledge(received[:1])
            await handover.taken()
            await handover.taken()

    async def test_rejected_messages_come_again_in_order_before_newer_ones(
        self, make_channel: ChannelFactory
    ) -> None:
        async with opened(make_channel, 10) as channel, channel.subscribe("a") as subscription:
            await channel.publish(clicks(1, 2, 3, 4, 5))
            first, second, third, fourth = await receive_exactly(subscription, 4)
            await subscription.reject([fourth, second])
            await subscription.acknowledge([third])
            await subscription.reject([first])
            assert await counts(channel) == (4, 0, 5, 1, 3, 0)
            again = await receive_exactly(subscription, 4)
            assert attempts(again) == [(1, 2), (2, 2), (4, 2), (5, 1)]
            assert await counts(channel) == (0, 4, 5, 1, 3, 3)
            await subscription.reject(again[:1])
            assert attempts(await receive_exactly(subscription, 1)) == [(1, 3)]

    async def test_settling_a_delivery_a_second_time_does_nothing(
        self, make_channel: ChannelFactory
    ) -> None:
        async with opened(make_channel, 10) as channel, channel.subscribe("a") as subscription:
            await channel.publish(clicks(1, 2))
            first, second = await receive_exactly(subscription, 2)
            await subscription.acknowledge([first, first])
            await subscription.reject([first])
            await subscription.reject([second])
            await subscription.reject([second])
            await subscription.acknowledge([second])
            assert await counts(channel) == (1, 0, 2, 1, 1, 0)
            again = await receive_exactly(subscription, 1)
            assert attempts(again) == [(2, 2)]
            # The delivery of the first attempt does not settle the second.
            await subscription.acknowledge([second])
            assert await counts(channel) == (0, 1, 2, 1, 1, 1)
            await subscription.acknowledge(again)
            assert await counts(channel) == (0, 0, 2, 2, 1, 1)

    # Consumers that end

    async def test_what_a_consumer_leaves_unsettled_comes_again(
        self, make_channel: ChannelFactory
    ) -> None:
        async with opened(make_channel, 10) as channel:
            await channel.publish(clicks(1, 2, 3, 4))
            await hold_one_and_three(channel, fail=False)
            await takes_over(channel)

    async def test_what_a_failing_consumer_held_comes_again(
        self, make_channel: ChannelFactory
    ) -> None:
        async with opened(make_channel, 10) as channel:
            await channel.publish(clicks(1, 2, 3, 4))
            with pytest.raises(ConsumerDied):
                await hold_one_and_three(channel, fail=True)
            await takes_over(channel)

    async def test_what_a_cancelled_consumer_held_comes_again(
        self, make_channel: ChannelFactory
    ) -> None:
        async with opened(make_channel, 10) as channel:
            await channel.publish(clicks(1, 2, 3, 4))
            with anyio.CancelScope() as consumer:
                async with channel.subscribe("a") as subscription:
                    received = await receive_exactly(subscription, 3)
                    await subscription.acknowledge(received[1:2])
                    consumer.cancel()
                    await anyio.sleep_forever()
            await takes_over(channel)

    async def test_two_consumers_share_the_messages_without_overlap(
        self, make_channel: ChannelFactory
    ) -> None:
        async with (
            opened(make_channel, 100) as channel,
            channel.subscribe("a") as one,
            channel.subscribe("b") as other,
        ):
            await channel.publish(clicks(*range(100)))
            received = await receive_exactly(one, 30)
            received += await receive_exactly(other, 50)
            received += await receive_exactly(one, 20)
            assert sorted(numbers(received)) == list(range(100))

    # Cancellation

    async def test_a_cancelled_receive_takes_nothing(self, make_channel: ChannelFactory) -> None:
        async with (
            opened(make_channel, 10) as channel,
            channel.subscribe("a") as one,
            channel.subscribe("b") as other,
        ):
            with anyio.move_on_after(0.01) as waiting:
                await one.receive(10, LONGER_THAN_ANY_TEST)
            assert waiting.cancelled_caught
            await channel.publish(clicks(1, 2))
            with anyio.move_on_after(0.01) as lingering:
                await one.receive(10, LONGER_THAN_ANY_TEST)
            assert lingering.cancelled_caught
            assert numbers(await receive_exactly(other, 2)) == [1, 2]

    async def test_a_receive_cancelled_as_messages_arrive_loses_none(
        self, make_channel: ChannelFactory
    ) -> None:
        done: list[int] = []

        async def consume(subscription: Subscription[Click]) -> None:
            received = await subscription.receive(3, 0.0)
            with anyio.CancelScope(shield=True):
                done.extend(numbers(received))
                await subscription.acknowledge(received)

        async with opened(make_channel, 200) as channel, channel.subscribe("a") as subscription:
            for number in range(100):
                async with anyio.create_task_group() as group:
                    group.start_soon(consume, subscription)
                    await pass_turns(number % 4)
                    await channel.publish(clicks(number))
                    await pass_turns(number // 4 % 4)
                    group.cancel_scope.cancel()
            rest = await receive_exactly(subscription, 100 - len(done))
            await subscription.acknowledge(rest)
            assert sorted(done + numbers(rest)) == list(range(100))
            assert (await channel.statistics()).acknowledged == 100

    async def test_a_cancelled_publish_can_be_repeated_and_was_never_done_in_part(
        self, make_channel: ChannelFactory
    ) -> None:
        async with opened(make_channel, 3) as channel, channel.subscribe("a") as subscription:
            await channel.publish(clicks(1, 2))
            async with anyio.create_task_group() as group:
                group.start_soon(channel.publish, clicks(3, 4))
                await publishers_wait(channel, 1)
                group.cancel_scope.cancel()
            published = (await channel.statistics()).published
            assert published in (2, 4)
            assert (await channel.statistics()).waiting_publishers == 0
            await subscription.acknowledge(await receive_exactly(subscription, published))
            await channel.publish(clicks(3, 4))
            assert numbers(await receive_exactly(subscription, 2)) == [3, 4]

    # The end

    async def test_a_sealed_channel_hands_out_what_is_left_and_lets_its_consumers_go(
        self, make_channel: ChannelFactory
    ) -> None:
        async with opened(make_channel, 10) as channel, channel.subscribe("a") as subscription:
            await channel.publish(clicks(1, 2, 3))
            channel.seal()
            channel.seal()
            received = await receive_exactly(subscription, 3)
            await subscription.reject(received[1:])
            await subscription.acknowledge(received[:1])
            again = await subscription.receive(10, LONGER_THAN_ANY_TEST)
            assert attempts(again) == [(2, 2), (3, 2)]
            await subscription.acknowledge(again)
            assert await subscription.receive(10, LONGER_THAN_ANY_TEST) == []

    async def test_sealing_an_empty_channel_lets_waiting_consumers_go(
        self, make_channel: ChannelFactory
    ) -> None:
        left: list[list[Delivery[Click]]] = []

        async def consume(channel: Channel[Click], name: str) -> None:
            async with channel.subscribe(name) as subscription:
                left.append(await subscription.receive(10, LONGER_THAN_ANY_TEST))

        async with opened(make_channel, 10) as channel:
            async with anyio.create_task_group() as group:
                group.start_soon(consume, channel, "a")
                group.start_soon(consume, channel, "b")
                await anyio.wait_all_tasks_blocked()
                assert left == []
                channel.seal()
            assert left == [[], []]

    async def test_a_consumer_of_a_sealed_channel_stays_for_what_another_gives_back(
        self, make_channel: ChannelFactory
    ) -> None:
        received: list[tuple[int, int]] = []

        async def consume(subscription: Subscription[Click]) -> None:
            while batch := await subscription.receive(10, 0.0):
                received.extend(attempts(batch))
                await subscription.acknowledge(batch)

        async with (
            opened(make_channel, 10) as channel,
            channel.subscribe("a") as one,
            channel.subscribe("b") as other,
        ):
            await channel.publish(clicks(1))
            held = await receive_exactly(one, 1)
            channel.seal()
            async with anyio.create_task_group() as group:
                group.start_soon(consume, other)
                await anyio.wait_all_tasks_blocked()
                await one.reject(held)
            assert received == [(1, 2)]
            assert await one.receive(1, 0.0) == []

    async def test_publishing_on_a_sealed_channel_is_refused(
        self, make_channel: ChannelFactory
    ) -> None:
        async with opened(make_channel, 10) as channel:
            await channel.publish(clicks(1))
            channel.seal()
            with pytest.raises(ChannelSealed):
                await channel.publish(clicks(2))
            assert await counts(channel) == (1, 0, 1, 0, 0, 0)

    # Statistics

    async def test_statistics_tell_the_state_of_every_message(
        self, make_channel: ChannelFactory
    ) -> None:
        async with opened(make_channel, 10) as channel, channel.subscribe("a") as subscription:
            assert (await channel.statistics()).capacity == 10
            assert (await channel.statistics()).oldest_seconds == 0.0
            assert await counts(channel) == (0, 0, 0, 0, 0, 0)
            await channel.publish(clicks(1, 2, 3, 4))
            assert await counts(channel) == (4, 0, 4, 0, 0, 0)
            received = await receive_exactly(subscription, 3)
            assert await counts(channel) == (1, 3, 4, 0, 0, 0)
            await subscription.acknowledge(received[:1])
            await subscription.reject(received[1:2])
            assert await counts(channel) == (2, 1, 4, 1, 1, 0)
            rest = await receive_exactly(subscription, 2)
            assert await counts(channel) == (0, 3, 4, 1, 1, 1)
            await subscription.acknowledge([*rest, received[2]])
            assert await counts(channel) == (0, 0, 4, 4, 1, 1)
            assert (await channel.statistics()).oldest_seconds == 0.0

    async def test_ten_thousand_messages_through_unreliable_consumers_are_each_done_once(
        self, make_channel: ChannelFactory
    ) -> None:
        done: Counter[int] = Counter()
        randomness = random.Random(2026)

        async def publish(channel: Channel[Click]) -> None:
            number = 0
            while number < 10_000:
                size = min(randomness.randint(1, 200), 10_000 - number)
                await channel.publish(clicks(*range(number, number + size)))
                number += size
            channel.seal()

        async def consume(channel: Channel[Click], name: str) -> None:
            async with channel.subscribe(name) as subscription:
                while batch := await subscription.receive(randomness.randint(1, 150), 0.001):
                    randomness.shuffle(batch)
                    bad, good = batch[: len(batch) // 10], batch[len(batch) // 10 :]
                    await subscription.reject(bad)
                    await subscription.acknowledge(good)
                    done.update(numbers(good))

        async with opened(make_channel, 500) as channel:
            async with anyio.create_task_group() as group:
                group.start_soon(publish, channel)
                for name in ("a", "b", "c"):
                    group.start_soon(consume, channel, name)
            now = await channel.statistics()
            assert done == Counter(range(10_000))
            assert (now.depth, now.in_flight) == (0, 0)
            assert (now.published, now.acknowledged) == (10_000, 10_000)
            assert now.rejected == now.redelivered
            assert now.rejected > 0
