"""The client on a real server, on a cluster, and without either."""

import time
from collections.abc import AsyncIterator, Awaitable

import anyio
import pytest
from anyio.abc import SocketAttribute
from coredis.client import Client

from couponflow.config import RedisSettings
from couponflow.kernel.redis_client import Redis, RedisAway, RedisError, Script, Topic, open_redis
from tests.fault_proxy import fault_proxy, redis_target
from tests.redis_server import RedisServer, free_port, redis_server
from tests.samples import PATIENCE_SECONDS, POLL_SECONDS

APPEND = Script("return redis.call('APPEND', KEYS[1], ARGV[1])")


def impatient(url: str) -> RedisSettings:
    return RedisSettings(url=url, timeout_seconds=0.3)


async def until_reachable(redis: Redis) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        while not await redis.reachable():  # noqa: ASYNC110 - what is waited for sets no event
            await anyio.sleep(POLL_SECONDS)


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with open_redis(RedisSettings(url=redis_url)) as opened:
        yield opened


async def test_a_command_answers_in_bytes(redis: Redis) -> None:
    await redis.call(lambda client: client.set("key", "value"))

    assert await redis.call(lambda client: client.get("key")) == b"value"
    assert redis.trouble == ""


async def test_an_error_of_a_command_is_not_an_outage(redis: Redis) -> None:
    await redis.call(lambda client: client.set("key", "value"))

    with pytest.raises(RedisError, match="wrong kind of value"):
        await redis.call(lambda client: client.xlen("key"))
    assert redis.trouble == ""


async def test_a_script_runs_again_after_the_server_forgot_it(redis: Redis) -> None:
    assert await redis.script(APPEND, ["key"], ["ab"]) == 2
    await redis.call(lambda client: client.script_flush())

    assert await redis.script(APPEND, ["key"], ["c"]) == 3
    assert await redis.script(APPEND, ["key"], ["d"]) == 4


async def test_opening_does_not_wait_for_a_server_that_is_away() -> None:
    port = free_port()
    settings = RedisSettings(url=f"redis://:secret@127.0.0.1:{port}")
    with anyio.fail_after(PATIENCE_SECONDS):
        async with open_redis(settings) as redis:
            with pytest.raises(RedisAway, match=f"127.0.0.1:{port}.*REDIS_URL") as caught:
                await redis.call(lambda client: client.ping())
            assert "secret" not in str(caught.value)
            assert not await redis.reachable()
            assert redis.trouble


async def test_a_server_that_is_killed_and_started_is_found_again(
    stoppable_redis: RedisServer,
) -> None:
    async with open_redis(RedisSettings(url=stoppable_redis.url)) as redis:
        assert await redis.reachable()
        for _ in range(3):
            await stoppable_redis.kill()
            with pytest.raises(RedisAway):
                await redis.call(lambda client: client.ping())
            await stoppable_redis.start()
            await until_reachable(redis)
            await redis.back()


async def test_a_server_that_says_nothing_is_away_within_the_timeout() -> None:
    async def swallow(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            async for _ in stream:
                pass

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, swallow)
        async with open_redis(impatient(f"redis://127.0.0.1:{port}")) as redis:
            began = time.monotonic()
            with pytest.raises(RedisAway):
                await redis.call(lambda client: client.ping())
            assert time.monotonic() - began < 2.0
        group.cancel_scope.cancel()


async def test_a_stalled_connection_is_replaced(redis_url: str) -> None:
    async with (
        fault_proxy(*redis_target(redis_url)) as proxy,
        open_redis(impatient(proxy.redis_url(redis_url))) as redis,
    ):
        assert await redis.reachable()
        proxy.freeze_after(b"frozen")
        with pytest.raises(RedisAway, match=r"no answer in 0\.3 s"):
            await redis.call(lambda client: client.get("frozen"))
        await until_reachable(redis)
        assert await redis.call(lambda client: client.get("key")) is None


async def test_a_blocking_read_delays_nobody(redis: Redis) -> None:
    answers: list[object] = []

    async def wait() -> None:
        answers.append(await redis.call_blocking(lambda client: client.blpop(["list"], 20), 20.0))

    with anyio.fail_after(PATIENCE_SECONDS):
        async with anyio.create_task_group() as group:
            for _ in range(100):
                group.start_soon(wait)
            assert await redis.reachable()
            for _ in range(100):
                await redis.call(lambda client: client.rpush("list", ["x"]))
    assert answers == [[b"list", b"x"]] * 100


async def test_cancelled_blocking_reads_use_nothing_up(redis: Redis) -> None:
    def read(client: Client[bytes]) -> Awaitable[object]:
        return client.xread({"stream": "0"}, block=20_000)

    for _ in range(200):
        with anyio.move_on_after(0.001):
            await redis.call_blocking(read, 20.0)
    await redis.call(lambda client: client.xadd("stream", {"field": "value"}))

    with anyio.fail_after(PATIENCE_SECONDS):
        assert await redis.call_blocking(read, 20.0) is not None
    assert await redis.reachable()


async def test_a_cluster_answers_for_every_slot(redis_cluster_url: str) -> None:
    settings = RedisSettings(url=redis_cluster_url, cluster=True)
    async with open_redis(settings) as redis:
        for number in range(30):
            key = f"key:{number}"
            assert await redis.script(APPEND, [key], ["ab"]) == 2
            assert await redis.call(lambda client, key=key: client.get(key)) == b"ab"


async def test_what_is_published_is_heard(redis: Redis) -> None:
    async with redis.listen("topic") as topic:
        await redis.call(lambda client: client.publish("topic", b"one"))
        assert await topic.receive(PATIENCE_SECONDS) == b"one"
        assert await topic.receive(0.0) is None


async def test_what_is_published_in_a_cluster_is_heard(redis_cluster_url: str) -> None:
    settings = RedisSettings(url=redis_cluster_url, cluster=True)
    async with open_redis(settings) as redis, redis.listen("topic") as topic:
        await redis.call(lambda client: client.publish("topic", b"one"))
        assert await topic.receive(PATIENCE_SECONDS) == b"one"


async def publish_until_heard(redis: Redis, topic: Topic) -> bytes:
    with anyio.fail_after(PATIENCE_SECONDS):
        while True:
            await redis.call(lambda client: client.publish("topic", b"again"))
            heard = await topic.receive(POLL_SECONDS)
            if heard is not None:
                return heard


async def test_a_listener_hears_again_after_an_outage() -> None:
    async with (
        redis_server() as server,
        open_redis(RedisSettings(url=server.url)) as redis,
        redis.listen("topic") as topic,
    ):
        assert await topic.receive(0.0) is None
        for _ in range(2):
            await server.start()
            await until_reachable(redis)
            assert await publish_until_heard(redis, topic) == b"again"
            await server.kill()
            while await topic.receive(0.0) is not None:
                pass


async def test_a_slow_listener_loses_the_oldest(redis: Redis) -> None:
    async with redis.listen("topic") as topic, redis.listen("topic") as watched:
        for number in range(1_010):
            await redis.call(lambda client, data=str(number): client.publish("topic", data))
            assert await watched.receive(PATIENCE_SECONDS) == str(number).encode()
        await anyio.wait_all_tasks_blocked()
        assert [await topic.receive(0.0) for _ in range(2)] == [b"10", b"11"]
