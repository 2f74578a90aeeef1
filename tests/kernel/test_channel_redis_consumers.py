"""Several daemons on one stream: the dead, the slow, the leaving, and what each may take."""

import anyio
import pytest

from couponflow.kernel.channel_redis import RedisChannel
from couponflow.kernel.redis_client import Redis
from couponflow.messages import Click
from tests.kernel.channel_helpers import (
    LONGER_THAN_ANY_TEST,
    attempts,
    clicks,
    counts,
    numbers,
    publishers_wait,
    receive_exactly,
)
from tests.kernel.redis_channels import click_channel, opened_redis
from tests.samples import PATIENCE_SECONDS, POLL_SECONDS

KEY = "queue:clicks"
GROUP = "couponflow"
BRIEFLY_SECONDS = 0.3
"""How long a consumer may be silent in these tests."""


async def die_holding(redis: Redis, name: str, count: int) -> None:
    """Read like a daemon that is killed thereafter."""
    got = await redis.call(
        lambda client: client.xreadgroup(GROUP, name, streams={KEY: ">"}, count=count)
    )
    assert got is not None


async def consumers(redis: Redis) -> dict[str, int]:
    """How much each consumer holds."""
    listed = await redis.call(lambda client: client.xinfo_consumers(KEY, GROUP))
    found: dict[str, int] = {}
    for each in listed:
        name, pending = each[b"name"], each[b"pending"]
        assert isinstance(name, bytes)
        assert isinstance(pending, int)
        found[name.decode()] = pending
    return found


async def until_idle(redis: Redis, entry_count: int, seconds: float) -> None:
    """Return once so many entries were untouched for so long."""
    idle = int(seconds * 1000)
    while True:
        found = await redis.call(
            lambda client: client.xpending(KEY, GROUP, start="-", end="+", count=100, idle=idle)
        )
        if len(found) == entry_count:
            return
        await anyio.sleep(POLL_SECONDS)


async def test_what_a_dead_consumer_held_is_taken_over_first_with_its_attempts(
    redis_url: str,
) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        async with (
            opened_redis(redis_url) as redis,
            click_channel(redis, claim_idle_seconds=BRIEFLY_SECONDS) as channel,
        ):
            await channel.publish(clicks(1, 2, 3))
            await die_holding(redis, "dead-1", 2)
            await until_idle(redis, 2, BRIEFLY_SECONDS)
            async with channel.subscribe("a") as subscription:
                received = await subscription.receive(10, 0.0)
                assert attempts(received) == [(1, 2), (2, 2), (3, 1)]
                assert await counts(channel) == (0, 3, 3, 0, 0, 2)
                await subscription.acknowledge(received)
            assert await counts(channel) == (0, 0, 3, 3, 0, 2)


async def test_attempts_are_counted_over_several_deaths(redis_url: str) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        async with (
            opened_redis(redis_url) as redis,
            click_channel(redis, claim_idle_seconds=BRIEFLY_SECONDS) as channel,
        ):
            [tag] = (await channel.publish(clicks(1))).tags
            await die_holding(redis, "dead-1", 1)
            await redis.call(lambda client: client.xclaim(KEY, GROUP, "dead-2", 0, [tag]))
            await until_idle(redis, 1, BRIEFLY_SECONDS)
            async with channel.subscribe("a") as subscription:
                received = await receive_exactly(subscription, 1)
                assert attempts(received) == [(1, 3)]


async def test_a_living_consumer_keeps_what_it_works_on_however_long(redis_url: str) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        async with (
            opened_redis(redis_url) as redis,
            click_channel(redis, claim_idle_seconds=BRIEFLY_SECONDS) as slow,
            click_channel(redis, claim_idle_seconds=BRIEFLY_SECONDS) as other,
            slow.subscribe("a") as subscription,
            other.subscribe("b") as eager,
        ):
            await slow.publish(clicks(1))
            received = await receive_exactly(subscription, 1)
            with anyio.move_on_after(BRIEFLY_SECONDS * 4) as waited:
                await eager.receive(1, 0.0)
            assert waited.cancelled_caught
            await subscription.acknowledge(received)
            assert await counts(slow) == (0, 0, 1, 1, 0, 0)


async def test_a_consumer_that_leaves_lets_go_at_once(redis_url: str) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        async with opened_redis(redis_url) as redis, click_channel(redis) as other:
            async with click_channel(redis) as channel, channel.subscribe("a") as subscription:
                await channel.publish(clicks(1, 2, 3))
                first, second = await receive_exactly(subscription, 2)
                await subscription.reject([first])
                again = await receive_exactly(subscription, 1)
                assert attempts([*again, second]) == [(1, 2), (2, 1)]
            # Patience for a dead one is 30 s here, and for one that says so a second.
            async with other.subscribe("b") as subscription:
                received = await receive_exactly(subscription, 3)
                assert attempts(received) == [(1, 3), (2, 2), (3, 1)]


async def test_a_daemon_whose_role_fails_lets_go_at_once(redis_url: str) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        async with opened_redis(redis_url) as redis, click_channel(redis) as other:
            with pytest.RaisesGroup(ZeroDivisionError):
                async with click_channel(redis) as channel, channel.subscribe("a") as subscription:
                    await channel.publish(clicks(1))
                    await receive_exactly(subscription, 1)
                    raise ZeroDivisionError
            async with other.subscribe("b") as subscription:
                assert attempts(await receive_exactly(subscription, 1)) == [(1, 2)]


async def test_the_last_subscription_lets_go_while_the_channel_stays_open(redis_url: str) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        async with (
            opened_redis(redis_url) as redis,
            click_channel(redis) as channel,
            click_channel(redis) as other,
        ):
            async with channel.subscribe("a") as subscription:
                await channel.publish(clicks(1))
                await receive_exactly(subscription, 1)
            async with other.subscribe("b") as subscription:
                assert attempts(await receive_exactly(subscription, 1)) == [(1, 2)]


async def test_nothing_is_read_that_nobody_asks_for(redis_url: str) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        async with (
            opened_redis(redis_url) as redis,
            click_channel(redis) as channel,
            channel.subscribe("a") as subscription,
        ):
            with anyio.move_on_after(POLL_SECONDS):
                await subscription.receive(10, LONGER_THAN_ANY_TEST)
            await channel.publish(clicks(*range(20)))
            assert await counts(channel) == (20, 0, 20, 0, 0, 0)
            assert sum((await consumers(redis)).values()) == 0
            assert len(await receive_exactly(subscription, 5)) == 5
            assert sum((await consumers(redis)).values()) == 5


async def test_capacity_is_of_all_daemons_together(redis_url: str) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        async with (
            opened_redis(redis_url) as redis,
            click_channel(redis, 3) as one,
            click_channel(redis, 3) as other,
            other.subscribe("a") as subscription,
        ):
            await one.publish(clicks(1, 2))
            async with anyio.create_task_group() as group:
                group.start_soon(other.publish, clicks(3, 4))
                await publishers_wait(other, 1)
                assert await counts(one) == (2, 0, 2, 0, 0, 0)
                received = await receive_exactly(subscription, 2)
                assert (await other.statistics()).waiting_publishers == 1
                await subscription.acknowledge(received[:1])
            assert numbers(await receive_exactly(subscription, 2)) == [3, 4]


async def test_the_dead_who_hold_nothing_are_forgotten_and_those_who_hold_are_not(
    redis_url: str,
) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        async with (
            opened_redis(redis_url) as redis,
            click_channel(redis, claim_idle_seconds=BRIEFLY_SECONDS) as channel,
        ):
            await channel.publish(clicks(1, 2))
            await die_holding(redis, "holds", 1)
            await redis.call(lambda client: client.xgroup_createconsumer(KEY, GROUP, "empty"))
            assert await consumers(redis) == {"holds": 1, "empty": 0}
            async with channel.subscribe("a"):
                while "empty" in await consumers(redis):  # noqa: ASYNC110 - it tells of nothing
                    await anyio.sleep(POLL_SECONDS)
                # Nobody receives, so nobody claims: what the other holds keeps its name alive.
                assert (await consumers(redis))["holds"] == 1
            async with channel.subscribe("b") as subscription:
                received = await receive_exactly(subscription, 2)
                assert sorted(attempts(received)) == [(1, 2), (2, 1)]
                await subscription.acknowledge(received)
                while "holds" in await consumers(redis):  # noqa: ASYNC110 - it tells of nothing
                    await anyio.sleep(POLL_SECONDS)


async def test_a_daemon_that_leaves_in_order_is_forgotten_at_once(redis_url: str) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        async with opened_redis(redis_url) as redis:
            async with click_channel(redis) as channel, channel.subscribe("a") as subscription:
                await channel.publish(clicks(1))
                await subscription.acknowledge(await receive_exactly(subscription, 1))
                assert len(await consumers(redis)) == 1
            assert await consumers(redis) == {}


async def test_an_entry_deleted_by_hand_does_not_haunt_the_group(redis_url: str) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        async with (
            opened_redis(redis_url) as redis,
            click_channel(redis, claim_idle_seconds=BRIEFLY_SECONDS) as channel,
        ):
            tag, _ = (await channel.publish(clicks(1, 2))).tags
            await die_holding(redis, "dead", 2)
            await redis.call(lambda client: client.xdel(KEY, [tag]))
            await until_idle(redis, 2, BRIEFLY_SECONDS)
            async with channel.subscribe("a") as subscription:
                received = await receive_exactly(subscription, 1)
                assert attempts(received) == [(2, 2)]
                await subscription.acknowledge(received)
            assert await counts(channel) == (0, 0, 2, 1, 0, 1)


async def receive_all(channel: RedisChannel[Click]) -> list[int]:
    received: list[int] = []
    async with channel.subscribe("a") as subscription:
        while batch := await subscription.receive(10, 0.0):
            received += numbers(batch)
            await subscription.acknowledge(batch)
    return received


async def test_sealed_among_living_others_a_daemon_leaves_them_the_rest(redis_url: str) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        async with (
            opened_redis(redis_url) as redis,
            click_channel(redis) as leaving,
            click_channel(redis) as staying,
            staying.subscribe("b") as subscription,
        ):
            # It has been heard of when it has received something.
            await leaving.publish(clicks(0))
            await subscription.acknowledge(await receive_exactly(subscription, 1))
            await leaving.publish(clicks(1, 2, 3))
            leaving.seal()
            assert await receive_all(leaving) == []
            assert numbers(await receive_exactly(subscription, 3)) == [1, 2, 3]


async def test_sealed_and_alone_a_daemon_finishes_what_there_is_and_no_more(
    redis_url: str,
) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        async with (
            opened_redis(redis_url) as redis,
            click_channel(redis) as leaving,
            click_channel(redis, 10_000) as producer,
            anyio.create_task_group() as group,
        ):

            async def go_on() -> None:
                while True:
                    await producer.publish(clicks(9))

            await leaving.publish(clicks(1, 2, 3))
            leaving.seal()
            group.start_soon(go_on)
            assert (await receive_all(leaving))[:3] == [1, 2, 3]
            group.cancel_scope.cancel()


async def test_a_consumer_name_in_use_is_refused_and_free_again_afterwards(redis_url: str) -> None:
    async with opened_redis(redis_url) as redis, click_channel(redis) as channel:
        async with channel.subscribe("a"):
            with pytest.raises(ValueError, match="a consumer named 'a' is already subscribed"):
                async with channel.subscribe("a"):
                    raise AssertionError("two consumers have one name")
        async with channel.subscribe("a") as subscription:
            with pytest.raises(ValueError, match="max_messages is 0"):
                await subscription.receive(0, 0.0)


async def test_a_subscription_that_has_ended_hands_out_and_settles_nothing(redis_url: str) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        async with opened_redis(redis_url) as redis, click_channel(redis) as channel:
            await channel.publish(clicks(1))
            async with channel.subscribe("a") as ended:
                late = await receive_exactly(ended, 1)
            with pytest.raises(anyio.ClosedResourceError):
                await ended.receive(1, 0.0)
            async with channel.subscribe("b") as subscription:
                again = await receive_exactly(subscription, 1)
                await ended.acknowledge(late)
                await ended.reject(late)
                assert await counts(channel) == (0, 1, 1, 0, 0, 1)
                await subscription.acknowledge(again)
                assert await counts(channel) == (0, 0, 1, 1, 0, 1)
