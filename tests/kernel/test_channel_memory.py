"""The in-memory channel: the conformance suite, and what only this implementation promises."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import pytest

from couponflow.kernel.channel import Channel, ChannelSealed, Subscription
from couponflow.kernel.channel_memory import MemoryChannel
from couponflow.kernel.clock import ManualClock, SystemClock
from couponflow.messages import Click
from tests.kernel.channel_conformance import ChannelConformance, ChannelFactory
from tests.kernel.channel_helpers import (
    LONGER_THAN_ANY_TEST,
    PATIENCE_SECONDS,
    attempts,
    clicks,
    counts,
    numbers,
    pass_turns,
    receive_exactly,
)


@asynccontextmanager
async def open_memory_channel(capacity: int) -> AsyncGenerator[Channel[Click], None]:
    yield MemoryChannel("clicks", capacity, SystemClock())


class TestMemoryChannel(ChannelConformance):
    @pytest.fixture
    def make_channel(self) -> ChannelFactory:
        return open_memory_channel


def new_channel(capacity: int, clock: ManualClock | None = None) -> MemoryChannel[Click]:
    return MemoryChannel("clicks", capacity, clock or ManualClock())


def test_a_channel_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="channel clicks: capacity is 0"):
        new_channel(0)


def test_a_channel_has_its_name() -> None:
    assert new_channel(1).name == "clicks"


async def test_a_batch_is_taken_over_only_when_its_last_message_is_acknowledged() -> None:
    channel = new_channel(10)
    relieved: list[str] = []

    async def send(name: str, batch: list[Click]) -> None:
        handover = await channel.publish(batch)
        await handover.taken()
        relieved.append(name)

    with anyio.fail_after(PATIENCE_SECONDS):
        async with channel.subscribe("a") as subscription, anyio.create_task_group() as group:
            group.start_soon(send, "first", clicks(1, 2))
            await anyio.wait_all_tasks_blocked()
            group.start_soon(send, "second", clicks(3))
            one, two, three = await subscription.receive(3, LONGER_THAN_ANY_TEST)
            await subscription.acknowledge([one, three])
            await anyio.wait_all_tasks_blocked()
            assert relieved == ["second"]
            await subscription.reject([two])
            await anyio.wait_all_tasks_blocked()
            assert relieved == ["second"]
            await subscription.acknowledge(await subscription.receive(1, 0.0))
        assert relieved == ["second", "first"]


async def test_the_age_of_the_oldest_message_ends_with_its_acknowledgement() -> None:
    clock = ManualClock()
    channel = new_channel(10, clock)
    async with channel.subscribe("a") as subscription:
        await channel.publish(clicks(1))
        clock.advance(5.0)
        await channel.publish(clicks(2))
        clock.advance(2.0)
        assert (await channel.statistics()).oldest_seconds == 7.0
        first, second = await subscription.receive(2, 0.0)
        assert (await channel.statistics()).oldest_seconds == 7.0
        await subscription.reject([first])
        assert (await channel.statistics()).oldest_seconds == 7.0
        await subscription.acknowledge(await subscription.receive(1, 0.0))
        assert (await channel.statistics()).oldest_seconds == 2.0
        await subscription.acknowledge([second])
        assert (await channel.statistics()).oldest_seconds == 0.0


async def test_waiting_publishers_are_served_in_the_order_they_came() -> None:
    channel = new_channel(3)
    published: list[int] = []

    async def publish(*batch: int) -> None:
        await channel.publish(clicks(*batch))
        published.extend(batch)

    with anyio.fail_after(PATIENCE_SECONDS):
        async with channel.subscribe("a") as subscription, anyio.create_task_group() as group:
            await publish(1, 2)
            for batch in ((3, 4, 5), (6,), (7,)):
                group.start_soon(publish, *batch)
                await anyio.wait_all_tasks_blocked()
            # The batch of one would fit, but the batch of three was here before it.
            assert (await channel.statistics()).waiting_publishers == 3
            await subscription.acknowledge(await receive_exactly(subscription, 2))
            await anyio.wait_all_tasks_blocked()
            assert published == [1, 2, 3, 4, 5]
            await subscription.acknowledge(await receive_exactly(subscription, 2))
        assert published == [1, 2, 3, 4, 5, 6, 7]


async def test_a_publisher_that_gives_up_lets_the_next_one_in() -> None:
    channel = new_channel(2)
    impatient = anyio.CancelScope()

    async def publish_impatiently() -> None:
        with impatient:
            await channel.publish(clicks(2, 3))

    with anyio.fail_after(PATIENCE_SECONDS):
        async with anyio.create_task_group() as group:
            await channel.publish(clicks(1))
            group.start_soon(publish_impatiently)
            await anyio.wait_all_tasks_blocked()
            group.start_soon(channel.publish, clicks(4))
            await anyio.wait_all_tasks_blocked()
            assert (await channel.statistics()).waiting_publishers == 2
            impatient.cancel()
        assert await counts(channel) == (2, 0, 2, 0, 0, 0)
        async with channel.subscribe("a") as subscription:
            assert numbers(await subscription.receive(10, 0.0)) == [1, 4]


async def test_a_publisher_cancelled_as_room_appears_publishes_only_if_it_returns() -> None:
    channel = new_channel(1)
    returned: list[int] = []

    async def publish(number: int) -> None:
        await channel.publish(clicks(number))
        returned.append(number)

    with anyio.fail_after(PATIENCE_SECONDS):
        async with channel.subscribe("a") as subscription:
            await publish(0)
            for number in range(1, 20):
                async with anyio.create_task_group() as group:
                    group.start_soon(publish, number)
                    await pass_turns(number % 4)
                    await subscription.acknowledge(await subscription.receive(1, 0.0))
                    await pass_turns(number // 4 % 4)
                    group.cancel_scope.cancel()
                now = await channel.statistics()
                assert now.published == len(returned)
                assert now.waiting_publishers == 0
                if now.depth == 0:
                    await publish(number)


async def test_a_publisher_that_waits_when_the_channel_is_sealed_keeps_its_batch() -> None:
    channel = new_channel(1)
    refused: list[str] = []

    async def publish() -> None:
        try:
            await channel.publish(clicks(2))
        except ChannelSealed as error:
            refused.append(str(error))

    with anyio.fail_after(PATIENCE_SECONDS):
        await channel.publish(clicks(1))
        async with anyio.create_task_group() as group:
            group.start_soon(publish)
            await anyio.wait_all_tasks_blocked()
            channel.seal()
    assert refused == [
        "channel clicks is sealed: its publishers must stop before it; "
        "a batch of 1 messages was not published"
    ]
    assert await counts(channel) == (1, 0, 1, 0, 0, 0)
    assert (await channel.statistics()).waiting_publishers == 0


async def test_what_a_waiting_publisher_does_to_its_list_changes_nothing() -> None:
    channel = new_channel(2)
    batch = clicks(2, 3)
    with anyio.fail_after(PATIENCE_SECONDS):
        async with channel.subscribe("a") as subscription:
            await channel.publish(clicks(1))
            async with anyio.create_task_group() as group:
                group.start_soon(channel.publish, batch)
                await anyio.wait_all_tasks_blocked()
                batch.clear()
                await subscription.acknowledge(await subscription.receive(1, 0.0))
            assert numbers(await subscription.receive(10, 0.0)) == [2, 3]


async def test_a_consumer_does_not_linger_for_what_a_full_channel_keeps_out() -> None:
    channel = new_channel(2)
    with anyio.fail_after(PATIENCE_SECONDS):
        async with channel.subscribe("a") as subscription:
            await channel.publish(clicks(1, 2))
            full = await subscription.receive(10, LONGER_THAN_ANY_TEST)
            assert numbers(full) == [1, 2]
            await subscription.acknowledge(full[:1])
            await subscription.reject(full[1:])
            async with anyio.create_task_group() as group:
                group.start_soon(channel.publish, clicks(3, 4))
                again = await subscription.receive(10, LONGER_THAN_ANY_TEST)
                assert attempts(again) == [(2, 2)]
                await subscription.acknowledge(again)
            assert numbers(await subscription.receive(10, LONGER_THAN_ANY_TEST)) == [3, 4]


async def test_a_consumer_does_not_linger_on_a_sealed_channel() -> None:
    channel = new_channel(10)
    received: list[int] = []

    async def consume(subscription: Subscription[Click]) -> None:
        received.extend(numbers(await subscription.receive(10, LONGER_THAN_ANY_TEST)))

    with anyio.fail_after(PATIENCE_SECONDS):
        async with channel.subscribe("a") as subscription, anyio.create_task_group() as group:
            group.start_soon(consume, subscription)
            await channel.publish(clicks(1))
            await anyio.wait_all_tasks_blocked()
            assert received == []
            channel.seal()
        assert received == [1]


async def test_a_lingering_consumer_whose_messages_went_to_another_waits_on() -> None:
    channel = new_channel(10)
    received: list[list[int]] = []

    async def consume(subscription: Subscription[Click]) -> None:
        received.append(numbers(await subscription.receive(2, 0.2)))

    with anyio.fail_after(PATIENCE_SECONDS):
        async with channel.subscribe("a") as one, channel.subscribe("b") as other:
            async with anyio.create_task_group() as group:
                await channel.publish(clicks(1))
                group.start_soon(consume, one)
                await pass_turns(4)
                assert numbers(await other.receive(1, 0.0)) == [1]
                with anyio.move_on_after(0.3):
                    await other.receive(1, 0.0)
                assert received == []
                await channel.publish(clicks(2))
            assert received == [[2]]


async def test_a_consumer_that_rejects_everything_lets_others_run() -> None:
    channel = new_channel(10)
    with anyio.fail_after(PATIENCE_SECONDS):
        await channel.publish(clicks(1))
        with anyio.move_on_after(0.01) as scope:
            async with channel.subscribe("a") as subscription:
                while True:
                    await subscription.reject(await subscription.receive(10, 0.0))
    assert scope.cancelled_caught
    now = await channel.statistics()
    assert (now.depth, now.in_flight, now.acknowledged) == (1, 0, 0)


async def test_a_subscription_that_has_ended_hands_out_and_settles_nothing() -> None:
    channel = new_channel(10)
    await channel.publish(clicks(1))
    async with channel.subscribe("a") as ended:
        late = await ended.receive(1, 0.0)
    with pytest.raises(anyio.ClosedResourceError):
        await ended.receive(1, 0.0)
    async with channel.subscribe("b") as subscription:
        again = await subscription.receive(1, 0.0)
        await ended.acknowledge(late)
        await ended.reject(late)
        assert await counts(channel) == (0, 1, 1, 0, 0, 1)
        await subscription.acknowledge(late)
        assert await counts(channel) == (0, 1, 1, 0, 0, 1)
        await subscription.acknowledge(again)
        assert await counts(channel) == (0, 0, 1, 1, 0, 1)


async def test_a_receive_still_waiting_when_its_subscription_ends_is_told() -> None:
    channel = new_channel(10)
    told: list[str] = []

    async def consume(subscription: Subscription[Click]) -> None:
        try:
            await subscription.receive(1, LONGER_THAN_ANY_TEST)
        except anyio.ClosedResourceError:
            told.append("ended")

    with anyio.fail_after(PATIENCE_SECONDS):
        async with anyio.create_task_group() as group, channel.subscribe("a") as subscription:
            group.start_soon(consume, subscription)
            await anyio.wait_all_tasks_blocked()
    assert told == ["ended"]


async def test_a_consumer_name_in_use_is_refused_and_free_again_afterwards() -> None:
    channel = new_channel(10)
    async with channel.subscribe("a"):
        with pytest.raises(ValueError, match="a consumer named 'a' is already subscribed"):
            async with channel.subscribe("a"):
                raise AssertionError("two consumers have one name")
    await channel.publish(clicks(1))
    async with channel.subscribe("a") as subscription:
        assert numbers(await subscription.receive(1, 0.0)) == [1]


async def test_asking_for_no_messages_is_refused() -> None:
    channel = new_channel(10)
    await channel.publish(clicks(1))
    async with channel.subscribe("a") as subscription:
        with pytest.raises(ValueError, match="max_messages is 0"):
            await subscription.receive(0, 0.0)
    assert await counts(channel) == (1, 0, 1, 0, 0, 0)
