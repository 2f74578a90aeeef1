import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.abc
import msgspec
import pytest

from couponflow.config import RedisSettings
from couponflow.kernel.redis_client import Redis, Script, open_redis
from couponflow.kernel.shared_state import Heartbeat, Lock, RateVerdict, SharedStateAway
from couponflow.kernel.shared_state_redis import RedisSharedState
from tests.kernel.shared_state_conformance import (
    LONG_SECONDS,
    SharedStateConformance,
    StateFactory,
    take,
)
from tests.redis_server import RedisServer
from tests.samples import PATIENCE_SECONDS, POLL_SECONDS

IMPATIENT_SECONDS = 0.5
CLOCKS_APART_SECONDS = 0.1
_TIME = Script("local t = redis.call('TIME') return {tonumber(t[1]), tonumber(t[2])}")


class RedisInstallation:
    """Two daemons with a client each, on one Redis."""

    brief_seconds = 0.3

    def __init__(self, redis: Redis, other: Redis) -> None:
        self.redis = redis
        self.state = RedisSharedState(redis)
        self.other = RedisSharedState(other)

    async def elapse(self, seconds: float) -> None:
        """Wait until the server's own clock has come so far, and the one it lets keys end by."""
        until = await self._server_seconds() + seconds + CLOCKS_APART_SECONDS
        while await self._server_seconds() <= until:  # noqa: ASYNC110 - no event tells
            await anyio.sleep(POLL_SECONDS)

    async def _server_seconds(self) -> float:
        # Where the key is: commands without one have no node in a cluster.
        seconds, micros = msgspec.convert(
            await self.redis.script(_TIME, ["any"], []), tuple[int, int]
        )
        return seconds + micros / 1e6


@asynccontextmanager
async def installed(
    url: str, *, cluster: bool = False, timeout_seconds: float = 5.0
) -> AsyncGenerator[RedisInstallation, None]:
    settings = RedisSettings(url=url, cluster=cluster, timeout_seconds=timeout_seconds)
    async with open_redis(settings) as redis, open_redis(settings) as other:
        yield RedisInstallation(redis, other)


class TestRedisSharedState(SharedStateConformance):
    @pytest.fixture
    def make_state(self, redis_url: str) -> StateFactory:
        return lambda: installed(redis_url)


class TestClusterSharedState(SharedStateConformance):
    @pytest.fixture
    def make_state(self, redis_cluster_url: str) -> StateFactory:
        return lambda: installed(redis_cluster_url, cluster=True)


async def calls_that_may_fail(state: RedisSharedState, lock: Lock) -> list[str]:
    """Which calls were answered."""
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "rate_limit_add": lambda: state.rate_limit_add("ratelimit:x", 1, window_seconds=60),
        "count": lambda: state.count("x", lifetime_seconds=60),
        "counted": lambda: state.counted("x"),
        "cache_get": lambda: state.cache_get("x"),
        "cache_put": lambda: state.cache_put("x", b"", lifetime_seconds=60),
        "cache_drop": lambda: state.cache_drop("x"),
        "first_time": lambda: state.first_time("x", lifetime_seconds=60),
        "acquire": lambda: state.acquire("x", "a", lease_seconds=60),
        "renew": lambda: state.renew(lock, lease_seconds=60),
        "release": lambda: state.release(lock),
        "publish": lambda: state.publish("x", b""),
        "beat": lambda: state.beat("x", {}, lifetime_seconds=60),
        "heartbeats": lambda: state.heartbeats(),
        "silence": lambda: state.silence("x"),
    }
    answered = []
    for name, call in calls.items():
        with contextlib.suppress(SharedStateAway):
            await call()
            answered.append(name)
    assert len(calls) == 14
    return answered


async def both_answers(state: RedisSharedState) -> tuple[RateVerdict, RateVerdict]:
    """Of a rate limit that fails open, and of one that fails closed."""
    return (
        await state.rate_limit("ratelimit:x", 5, 30.0, when_away="allow"),
        await state.rate_limit("ratelimit:x", 5, 30.0, when_away="refuse"),
    )


OPEN_AND_CLOSED = (RateVerdict(allowed=True), RateVerdict(False, retry_after_seconds=30.0))


async def test_a_stopped_redis_is_away_until_it_is_back(stoppable_redis: RedisServer) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        async with installed(stoppable_redis.url) as world:
            lock = await take(world.state, "a")
            await stoppable_redis.stop()
            assert await both_answers(world.state) == OPEN_AND_CLOSED
            assert await calls_that_may_fail(world.state, lock) == []
            await stoppable_redis.start()
            await world.redis.back()
            assert await both_answers(world.state) == (RateVerdict(True), RateVerdict(True))
            assert len(await calls_that_may_fail(world.state, lock)) == 14


async def test_a_redis_that_never_answers_is_away_in_time() -> None:
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as mute:
        port = mute.extra(anyio.abc.SocketAttribute.local_port)
        url = f"redis://127.0.0.1:{port}/0"
        async with installed(url, timeout_seconds=IMPATIENT_SECONDS) as world:
            with anyio.fail_after(PATIENCE_SECONDS):
                assert await both_answers(world.state) == OPEN_AND_CLOSED
                with pytest.raises(SharedStateAway):
                    await world.state.counted("x")


async def test_flushall_forgets_everything_but_fences_still_grow(redis_url: str) -> None:
    async with installed(redis_url) as world:
        state = world.state
        before = await take(state, "a")
        for _ in range(5):
            assert await state.release(before)
            before = await take(state, "a")
        await state.count("x", 5, lifetime_seconds=LONG_SECONDS)
        await world.redis.call(lambda client: client.flushall())
        assert await state.counted("x") == 0
        assert not await state.renew(before, lease_seconds=LONG_SECONDS)
        after = await take(world.other, "b")
        assert after.fence > before.fence


async def test_fences_grow_even_when_the_servers_clock_was_set_back(redis_url: str) -> None:
    async with installed(redis_url) as world:
        ahead = 4_000_000_000_000_000
        await world.redis.call(lambda client: client.hset("lock:sync", {"fence": ahead}))
        assert (await take(world.state, "a")).fence == ahead + 1


async def test_listeners_outlive_a_restart(stoppable_redis: RedisServer) -> None:
    async with installed(stoppable_redis.url) as world, world.state.listen("offers") as listener:
        with anyio.fail_after(PATIENCE_SECONDS):
            await world.other.publish("offers", b"before")
            assert await listener.receive(PATIENCE_SECONDS) == b"before"
            await stoppable_redis.stop()
            with pytest.raises(SharedStateAway, match="REDIS_URL"):
                await world.other.publish("offers", b"lost")
            await stoppable_redis.start()
            heard = None
            while heard is None:
                with contextlib.suppress(SharedStateAway):
                    await world.other.publish("offers", b"after")
                heard = await listener.receive(POLL_SECONDS)
            assert heard == b"after"


async def test_keys_are_called_as_operators_know_them_and_all_end(redis_url: str) -> None:
    async with installed(redis_url) as world:
        state = world.state
        await state.rate_limit("ratelimit:redirect:192.0.2.1", 9, 60.0, when_away="refuse")
        await state.rate_limit_add("ratelimit:redirect:192.0.2.1", 4, window_seconds=60.0)
        await state.count("mails", 3, lifetime_seconds=60.0)
        await state.cache_put("redirect:url:7", b"https://shop.example", lifetime_seconds=60.0)
        await state.first_time("event-1", lifetime_seconds=60.0)
        lock = await take(state, "worker-1", 60.0)
        await state.beat("host:1", {"roles": "all"}, lifetime_seconds=60.0)
        client_get = {
            "ratelimit:redirect:192.0.2.1": b"5",
            "counter:mails": b"3",
            "cache:redirect:url:7": b"https://shop.example",
            "once:event-1": b"1",
            "worker:heartbeat:host:1": b'{"roles":"all"}',
        }
        for key, value in client_get.items():
            assert await world.redis.call(lambda client, key=key: client.get(key)) == value
        fields = await world.redis.call(lambda client: client.hgetall("lock:sync"))
        assert (fields[b"holder"], fields[b"fence"]) == (b"worker-1", str(lock.fence).encode())
        keys = await world.redis.call(lambda client: client.keys("*"))
        assert {str(key, "ascii") for key in keys} == {
            *client_get,
            "lock:sync",
            "worker:heartbeats",
        }
        for key in keys:
            assert await world.redis.call(lambda client, key=key: client.pttl(key)) > 0


async def test_a_count_that_somebody_wrote_without_an_end_gets_one(redis_url: str) -> None:
    async with installed(redis_url) as world:
        await world.redis.call(lambda client: client.set("ratelimit:x", b"9"))
        refused = await world.state.rate_limit("ratelimit:x", 5, 30.0, when_away="allow")
        assert refused == RateVerdict(False, retry_after_seconds=30.0)
        assert 0 < await world.redis.call(lambda client: client.pttl("ratelimit:x")) <= 30_000


async def test_a_key_of_another_type_is_no_crash(redis_url: str) -> None:
    async with installed(redis_url) as world:
        await world.redis.call(lambda client: client.lpush("ratelimit:x", [b"a"]))
        await world.redis.call(lambda client: client.lpush("counter:x", [b"a"]))
        assert await both_answers(world.state) == OPEN_AND_CLOSED
        with pytest.raises(SharedStateAway, match="wrong kind"):
            await world.state.counted("x")


async def test_a_heartbeat_that_cannot_be_read_hides_no_other(redis_url: str) -> None:
    async with installed(redis_url) as world:
        for worker_id in ("a", "b"):
            await world.state.beat(worker_id, {"roles": "all"}, lifetime_seconds=LONG_SECONDS)
        await world.redis.call(lambda client: client.set("worker:heartbeat:a", b"{"))
        assert await world.state.heartbeats() == [
            Heartbeat("a", {}),
            Heartbeat("b", {"roles": "all"}),
        ]


async def test_the_list_of_workers_lets_go_of_the_dead(redis_url: str) -> None:
    async with installed(redis_url) as world:
        await world.state.beat("living", {}, lifetime_seconds=LONG_SECONDS)
        await world.state.beat("dead", {}, lifetime_seconds=world.brief_seconds)
        await world.elapse(world.brief_seconds)
        await world.state.beat("living", {}, lifetime_seconds=LONG_SECONDS)
        listed = await world.redis.call(lambda client: client.zrange("worker:heartbeats", 0, -1))
        assert listed == (b"living",)
