import pytest

from couponflow.config import RedisSettings
from couponflow.kernel.redis_audit import PAGE_ENTRIES, streamed_messages
from couponflow.kernel.redis_client import RedisAway, open_redis
from tests.fault_proxy import fault_proxy, redis_target
from tests.redis_server import free_port


@pytest.mark.parametrize("count", [0, 1, PAGE_ENTRIES, 2 * PAGE_ENTRIES + 1])
async def test_every_message_of_the_stream_is_read_once(redis_url: str, count: int) -> None:
    settings = RedisSettings(url=redis_url)
    wanted = [b"%d" % number for number in range(count)]
    async with open_redis(settings) as redis:
        for message in wanted:
            await redis.call(lambda client, m=message: client.xadd("queue:x", {"message": m}))
    assert await streamed_messages(settings, "x") == wanted


async def test_an_entry_without_a_message_is_an_empty_one(redis_url: str) -> None:
    settings = RedisSettings(url=redis_url)
    async with open_redis(settings) as redis:
        await redis.call(lambda client: client.xadd("queue:x", {"subject": "Hello"}))
    assert await streamed_messages(settings, "x") == [b""]


@pytest.mark.parametrize("times", [1, 2])
async def test_a_redis_that_stumbles_is_asked_again(redis_url: str, times: int) -> None:
    async with open_redis(RedisSettings(url=redis_url)) as redis:
        await redis.call(lambda client: client.xadd("queue:x", {"message": b"1"}))
    async with fault_proxy(*redis_target(redis_url)) as proxy:
        proxy.cut_after(b"queue:x", count=times)
        assert await streamed_messages(RedisSettings(url=proxy.redis_url(redis_url)), "x") == [b"1"]
        assert proxy.cuts == times


async def test_a_redis_that_is_away_is_said_to_be() -> None:
    settings = RedisSettings(url=f"redis://127.0.0.1:{free_port()}/0")
    with pytest.raises(RedisAway):
        await streamed_messages(settings, "x")
