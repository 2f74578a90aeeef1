"""The checkpoint "acknowledged": a sender is relieved of what is done, whatever Redis forgets."""

from collections import Counter

import anyio
import pytest

from couponflow.kernel import channel_redis_publishing
from couponflow.kernel.channel import StreamHandover
from couponflow.kernel.channel_redis import RedisChannel
from couponflow.kernel.redis_client import Redis
from couponflow.messages import Click
from tests.kernel.channel_helpers import clicks, numbers, receive_exactly
from tests.kernel.redis_channels import click_channel, opened_redis
from tests.redis_server import RedisServer
from tests.samples import PATIENCE_SECONDS, until

KEY = "queue:clicks"


class Sender:
    """Publishes a batch and notes when it is relieved of it."""

    def __init__(self, channel: RedisChannel[Click]) -> None:
        self._channel = channel
        self.relieved: list[int] = []

    async def send(self, *batch: int) -> None:
        handover = await self._channel.publish(clicks(*batch))
        await handover.taken()
        self.relieved.extend(batch)


async def delete(redis: Redis, entry_id: str) -> None:
    assert await redis.call(lambda client: client.xdel(KEY, [entry_id])) == 1


async def test_a_sender_is_relieved_by_the_last_acknowledgement_of_another_daemon(
    redis_url: str,
) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        async with (
            opened_redis(redis_url) as redis,
            click_channel(redis, checkpoint="acknowledged") as channel,
            click_channel(redis) as elsewhere,
            elsewhere.subscribe("a") as subscription,
            anyio.create_task_group() as group,
        ):
            sender = Sender(channel)
            group.start_soon(sender.send, 1, 2)
            first, second = await receive_exactly(subscription, 2)
            await subscription.acknowledge([second])
            group.start_soon(sender.send, 3)
            await subscription.acknowledge(await receive_exactly(subscription, 1))
            await until(lambda: sender.relieved == [3])
            await subscription.acknowledge([first])
            await until(lambda: sender.relieved == [3, 1, 2])


async def test_handed_over_a_sender_is_relieved_by_the_server(redis_url: str) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        async with opened_redis(redis_url) as redis, click_channel(redis) as channel:
            sender = Sender(channel)
            await sender.send(1, 2)
            assert sender.relieved == [1, 2]


async def test_what_a_flush_took_is_published_again_for_the_same_sender(redis_url: str) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        async with (
            opened_redis(redis_url) as redis,
            click_channel(redis, checkpoint="acknowledged") as channel,
            anyio.create_task_group() as group,
        ):
            handover = await channel.publish(clicks(1, 2))
            before = handover.tags
            await redis.call(lambda client: client.flushall())
            await until(lambda: handover.tags != before)
            async with channel.subscribe("a") as subscription:
                received = await receive_exactly(subscription, 2)
                assert numbers(received) == [1, 2]
                assert [delivery.tag for delivery in received] == list(handover.tags)
                group.start_soon(subscription.acknowledge, received)
                await handover.taken()
            assert (await channel.statistics()).published == 2


async def test_entries_that_vanish_alone_are_published_again(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_redis_publishing, "_VERIFY_SECONDS", 0.05)
    with anyio.fail_after(PATIENCE_SECONDS):
        async with (
            opened_redis(redis_url) as redis,
            click_channel(redis, checkpoint="acknowledged") as channel,
        ):
            handover = await channel.publish(clicks(1, 2))
            before = handover.tags
            await delete(redis, before[1])
            await until(lambda: handover.tags != before)
            async with channel.subscribe("a") as subscription:
                received = await receive_exactly(subscription, 3)
                assert sorted(numbers(received)) == [1, 1, 2]
                await subscription.acknowledge(received)
                await handover.taken()


async def test_nothing_is_lost_with_a_server_that_dies_and_forgets(
    stoppable_redis: RedisServer,
) -> None:
    done: Counter[int] = Counter()

    async def consume(channel: RedisChannel[Click]) -> None:
        async with channel.subscribe("a") as subscription:
            while batch := await subscription.receive(7, 0.0):
                done.update(numbers(batch))
                await subscription.acknowledge(batch)

    with anyio.fail_after(PATIENCE_SECONDS):
        async with (
            opened_redis(stoppable_redis.url) as redis,
            click_channel(redis, 10_000, checkpoint="acknowledged") as channel,
            anyio.create_task_group() as group,
        ):
            handovers: list[StreamHandover] = []
            for number in range(0, 600, 3):
                handovers.append(await channel.publish(clicks(number, number + 1, number + 2)))
                if number == 150:
                    group.start_soon(consume, channel)
                if number % 200 == 150:
                    await stoppable_redis.kill()
                    group.start_soon(stoppable_redis.start)
            for handover in handovers:
                await handover.taken()
            assert set(done) == set(range(600))
            group.cancel_scope.cancel()
