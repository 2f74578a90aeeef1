"""The channel while Redis dies, forgets, or does not answer."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from couponflow.config import RedisSettings
from couponflow.kernel.channel import ChannelSealed
from couponflow.kernel.channel_redis import MessageCodec, RedisChannel, open_redis_channel
from couponflow.kernel.redis_client import Redis, open_redis
from couponflow.messages import Click
from tests.fault_proxy import FaultProxy, fault_proxy, redis_target
from tests.kernel.channel_helpers import (
    attempts,
    clicks,
    counts,
    numbers,
    publishers_wait,
    receive_exactly,
)
from tests.kernel.redis_channels import (
    CLAIM_IDLE_SECONDS,
    click_channel,
    no_malformed,
    opened_redis,
)
from tests.redis_server import RedisServer, ask, free_port, redis_server
from tests.samples import PATIENCE_SECONDS, POLL_SECONDS, until

END_OF_A_CLICK = b'"verdict":"human"}\r\n'
KEY = "queue:clicks"


@asynccontextmanager
async def behind_a_proxy(url: str) -> AsyncIterator[tuple[FaultProxy, RedisChannel[Click]]]:
    async with fault_proxy(*redis_target(url)) as proxy:
        settings = RedisSettings(url=proxy.redis_url(url), timeout_seconds=0.5)
        async with open_redis(settings) as redis, click_channel(redis) as channel:
            yield proxy, channel


async def length(redis: Redis) -> int:
    return await redis.call(lambda client: client.xlen(KEY))


async def test_a_publish_whose_answer_is_lost_is_done_once(redis_url: str) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        async with behind_a_proxy(redis_url) as (proxy, channel), opened_redis(redis_url) as redis:
            for number in range(5):
                proxy.cut_after(END_OF_A_CLICK, "to_server")
                handover = await channel.publish(clicks(number))
                assert proxy.seen.is_set()
                assert await channel.missing(handover.tags) == []
            assert await length(redis) == 5
            async with channel.subscribe("a") as subscription:
                received = await receive_exactly(subscription, 5)
            assert numbers(received) == [0, 1, 2, 3, 4]
            assert proxy.cuts == 5


async def test_entries_whose_delivery_is_lost_are_found_again(redis_url: str) -> None:
    # Before the next renewal, which would find them as well.
    with anyio.fail_after(CLAIM_IDLE_SECONDS / 6):
        async with (
            behind_a_proxy(redis_url) as (proxy, channel),
            channel.subscribe("a") as subscription,
        ):
            await channel.publish(clicks(0))
            await subscription.acknowledge(await receive_exactly(subscription, 1))
            await channel.publish(clicks(1, 2, 3))
            proxy.cut_after(b'"click_id":"2"', "to_client")
            received = await receive_exactly(subscription, 3)
            assert proxy.seen.is_set()
            # Nobody has seen them before.
            assert attempts(received) == [(1, 1), (2, 1), (3, 1)]
            await subscription.acknowledge(received)
            assert await counts(channel) == (0, 0, 4, 4, 0, 0)


async def test_an_acknowledgement_made_while_redis_is_away_is_told_later(redis_url: str) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        async with behind_a_proxy(redis_url) as (proxy, channel), opened_redis(redis_url) as redis:
            await channel.publish(clicks(1, 2))
            async with channel.subscribe("a") as subscription:
                received = await receive_exactly(subscription, 2)
                proxy.refuse()
                await subscription.acknowledge(received)
                assert await length(redis) == 2
                proxy.heal()
                while await length(redis):  # noqa: ASYNC110 - it tells of nothing
                    await anyio.sleep(POLL_SECONDS)
                assert await counts(channel) == (0, 0, 2, 2, 0, 0)


async def test_publishers_wait_while_redis_is_away_and_can_give_up() -> None:
    async with (
        redis_server() as server,
        opened_redis(server.url) as redis,
        click_channel(redis) as channel,
    ):
        with anyio.move_on_after(0.05) as given_up:
            await channel.publish(clicks(1))
        assert given_up.cancelled_caught
        with anyio.fail_after(PATIENCE_SECONDS):
            async with anyio.create_task_group() as group:
                group.start_soon(channel.publish, clicks(2))
                await anyio.wait_all_tasks_blocked()
                await server.start()
            async with channel.subscribe("a") as subscription:
                received = numbers(await subscription.receive(10, 0.05))
        # The first call was under way when its sender gave up: all of it is there, or nothing.
        assert received in ([2], [1, 2])


async def test_statistics_tell_what_was_last_known_while_redis_is_away(
    stoppable_redis: RedisServer,
) -> None:
    async with opened_redis(stoppable_redis.url) as redis, click_channel(redis) as channel:
        await channel.publish(clicks(1, 2))
        assert await counts(channel) == (2, 0, 2, 0, 0, 0)
        await stoppable_redis.kill()
        assert await counts(channel) == (2, 0, 2, 0, 0, 0)


async def test_a_flushed_stream_begins_anew(redis_url: str) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        async with (
            opened_redis(redis_url) as redis,
            click_channel(redis) as channel,
            channel.subscribe("a") as subscription,
        ):
            before = await channel.publish(clicks(1, 2))
            held = await receive_exactly(subscription, 1)
            await redis.call(lambda client: client.flushall())
            await redis.call(lambda client: client.script_flush())
            after = await channel.publish(clicks(3, 4))
            assert await channel.missing([*before.tags, *after.tags]) == list(before.tags)
            assert numbers(await receive_exactly(subscription, 2)) == [3, 4]
            await subscription.acknowledge(held)
            assert await counts(channel) == (0, 2, 4, 1, 0, 0)


async def test_a_consumer_that_waits_survives_a_flush(redis_url: str) -> None:
    received: list[int] = []

    async def consume(channel: RedisChannel[Click]) -> None:
        async with channel.subscribe("a") as subscription:
            received.extend(numbers(await subscription.receive(1, 0.0)))

    with anyio.fail_after(PATIENCE_SECONDS):
        async with (
            opened_redis(redis_url) as redis,
            click_channel(redis) as channel,
            click_channel(redis) as producer,
            anyio.create_task_group() as group,
        ):
            group.start_soon(consume, channel)
            await anyio.wait_all_tasks_blocked()
            await redis.call(lambda client: client.flushall())
            await producer.publish(clicks(7))
    assert received == [7]


async def test_a_stream_that_is_something_else_is_reported_and_waited_for(redis_url: str) -> None:
    told: list[tuple[bool, str]] = []

    with anyio.fail_after(PATIENCE_SECONDS):
        async with opened_redis(redis_url) as redis:
            await redis.call(lambda client: client.set(KEY, "a string"))
            async with open_redis_channel(
                redis,
                "clicks",
                10,
                MessageCodec(Click),
                claim_idle_seconds=30.0,
                on_malformed=no_malformed,
                report=lambda ok, detail: told.append((ok, detail)),
            ) as channel:
                async with anyio.create_task_group() as group:
                    group.start_soon(channel.publish, clicks(1))
                    await until(lambda: len(told) == 1)
                    assert not told[0][0]
                    assert "wrong kind of value" in told[0][1]
                    await redis.call(lambda client: client.delete([KEY]))
                assert told[1:] == [(True, "")]
            assert await length(redis) == 1


async def test_sealing_sends_waiting_publishers_away(redis_url: str) -> None:
    refused: list[int] = []

    async def publish(channel: RedisChannel[Click]) -> None:
        try:
            await channel.publish(clicks(2))
        except ChannelSealed:
            refused.append(2)

    with anyio.fail_after(PATIENCE_SECONDS):
        async with opened_redis(redis_url) as redis, click_channel(redis, 1) as channel:
            await channel.publish(clicks(1))
            async with anyio.create_task_group() as group:
                group.start_soon(publish, channel)
                await publishers_wait(channel, 1)
                channel.seal()
            assert refused == [2]
            assert await length(redis) == 1


async def test_sealed_consumers_leave_though_redis_is_away(stoppable_redis: RedisServer) -> None:
    left: list[object] = []

    async def consume(channel: RedisChannel[Click]) -> None:
        async with channel.subscribe("a") as subscription:
            left.append(await subscription.receive(1, 0.0))

    with anyio.fail_after(PATIENCE_SECONDS):
        async with (
            opened_redis(stoppable_redis.url) as redis,
            click_channel(redis) as channel,
            anyio.create_task_group() as group,
        ):
            group.start_soon(consume, channel)
            await anyio.wait_all_tasks_blocked()
            await stoppable_redis.kill()
            assert left == []
            channel.seal()
    assert left == [[]]


async def test_a_channel_without_room_is_refused(redis_url: str) -> None:
    async with opened_redis(redis_url) as redis:
        with pytest.raises(ValueError, match="channel clicks: capacity is 0"):
            async with click_channel(redis, 0):
                raise AssertionError("it was opened")


async def test_a_channel_opens_and_closes_without_redis() -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        async with (
            opened_redis(f"redis://127.0.0.1:{free_port()}") as redis,
            click_channel(redis) as channel,
            channel.subscribe("a"),
        ):
            assert await counts(channel) == (0, 0, 0, 0, 0, 0)


async def test_the_group_is_made_at_the_beginning_of_a_stream_that_others_began(
    shared_redis: RedisServer, redis_url: str
) -> None:
    click = '{"type":"click.v1","click_id":"5","merchant_id":"m","offer_id":"o","user_id":"u",'
    click += '"clicked_at":1.0,"ip":"192.0.2.1","user_agent":"","referer":"","verdict":"human"}'
    assert (await ask(shared_redis.port, "XADD", KEY, "*", "message", click)).startswith("$")

    with anyio.fail_after(PATIENCE_SECONDS):
        async with opened_redis(redis_url) as redis, click_channel(redis) as channel:
            groups = await redis.call(lambda client: client.xinfo_groups(KEY))
            assert [group[b"last-delivered-id"] for group in groups] == [b"0-0"]
            async with channel.subscribe("a") as subscription:
                assert numbers(await receive_exactly(subscription, 1)) == [5]
